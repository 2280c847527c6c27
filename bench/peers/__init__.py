"""What others do: libraries of the same kind, each run in an environment of its own (`make bench-setup`), never in ours.

A peer is a program in this folder. It prepares, says `ready` and perhaps how it works, and for each number of seconds that it
reads it works for about so long and says how many units a second it managed. It ends when its input does.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".peers" / "bin" / "python"


class NotInstalled(Exception):
    """Something that is compared with is not on this machine."""


class Peer:
    """A peer at work: `slice` lets it run for so many seconds."""

    def __init__(self, program: str, *arguments: str) -> None:
        if not PYTHON.exists():
            raise NotInstalled("the others are not installed; make bench-setup")
        self._command = [str(PYTHON), str(HERE / f"{program}.py"), *arguments]
        self.how = ""  #: in which of its ways it works, in its own words
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready, _, self.how = (said := self._ask(None)).partition(" ")
        if ready != "ready":
            raise NotInstalled(f"{self._command[1]} does not start: {said!r}; make bench-setup")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate()

    def slice(self, seconds: float) -> float:
        """Units a second, of one slice."""
        return float(self._ask(f"{seconds}"))

    def _ask(self, words: str | None) -> str:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        if words is not None:
            process.stdin.write(f"{words}\n")
            process.stdin.flush()
        return process.stdout.readline().strip()
