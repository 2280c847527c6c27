"""One process of a torture: to be watched, frozen, woken and killed."""

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

from tests.ledger import history
from tests.warm import WarmPopen

ROOT = Path(__file__).parents[2]


class Odd(Exception):
    """Something happened that no fault explains."""


def until(so: Callable[[], object], within: float, or_else: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + within
    while not so():
        meanwhile()
        if time.monotonic() > ends:
            raise Odd(f"{or_else} within {within:.0f} s")
        time.sleep(0.005)


class Victim:
    """One life of a producer, a worker or an operator."""

    def __init__(self, folder: Path, name: str, story: Mapping[str, Any]) -> None:
        self.program, self.name = story["program"], name
        self.history = Path(story["history"])
        self.errors = folder / f"{name}.err"
        with self.errors.open("wb") as errors:
            self._popen = WarmPopen(
                [sys.executable, "-m", "tests.torture.victims"],
                cwd=ROOT,
                env=os.environ | {"STORY": json.dumps(story)},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )

    @property
    def pid(self) -> int:
        return int(self._popen.pid)

    @property
    def log(self) -> str:
        return self.errors.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def at_work(self) -> bool:
        """Whether it has begun to do what it is there for."""
        return self.history.exists() and self.history.stat().st_size > 0

    @property
    def last_said(self) -> str:
        """The last line of its history, as far as it is short."""
        if not self.history.exists():
            return ""
        with self.history.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            return file.read().rstrip(b"\n").rpartition(b"\n")[2].decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def freeze(self) -> None:
        """Stop it wherever it is, and wait until it stands still."""
        self.send(signal.SIGSTOP)
        stat = Path(f"/proc/{self.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] in "TZ", 10, f"{self.name} does not stand still")

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def ended(self, within: float) -> int:
        return int(self._popen.wait(within))

    def under_way(self) -> list[history.Line]:
        """What it had begun and not ended when it died."""
        return history.open_steps(history.lines([self.history])) if self.history.exists() else []
