"""A program of tests/story/processes.py that is running: to be watched, stopped, frozen and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.warm import WarmPopen

ROOT = Path(__file__).parents[2]


def eventually(predicate: Callable[[], object], within: float = 20.0) -> None:
    """Wait until something another process does has happened."""
    ends = time.monotonic() + within
    while not predicate():
        assert time.monotonic() < ends, f"not so within {within} s"
        time.sleep(0.02)


class Process:
    """A program of tests/story/processes.py that is running."""

    def __init__(self, folder: Path, number: int, story: Mapping[str, Any], *, cold: bool = False) -> None:
        """`cold`: it begins from nothing, as where its memory is measured."""
        self.errors = folder / f"process-{number}.err"
        self.said = folder / f"process-{number}.out"
        start = subprocess.Popen if cold else WarmPopen
        with self.errors.open("wb") as errors, self.said.open("wb") as said:
            self._popen = start(
                [sys.executable, "-m", "tests.story.processes"],
                cwd=ROOT,
                env=os.environ | {"STORY": json.dumps(story), "PYTHONWARNINGS": "error::ResourceWarning"},
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=errors,
            )

    @property
    def log(self) -> str:
        return self.errors.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        """What it said, without a line it has only begun."""
        return self.said.read_text().split("\n")[:-1]

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def freeze(self) -> None:
        """Stop it, and wait until it stands still."""
        self._popen.send_signal(signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{self._popen.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def thaw(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def until(self, word: str, within: float = 20.0) -> None:
        """Wait until it has said something."""
        eventually(lambda: word in self.lines or not self.running, within)
        assert word in self.lines, self.log

    def until_logged(self, words: str, within: float = 20.0) -> None:
        eventually(lambda: words in self.log or not self.running, within)
        assert words in self.log, self.log

    def ended(self, within: float = 180.0) -> int:
        """Its exit code, once it has ended."""
        return self._popen.wait(within)

    def close(self) -> None:
        if self.running:
            self._popen.kill()
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
