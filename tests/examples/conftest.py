"""The programs of examples/, started as a reader would, and a receiver that they deliver to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from outbox.testing import Receiver
from tests.story.process import eventually

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


class Program:
    """A program in a process of its own; what it says goes to a file."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / f"{len(list(folder.glob('*.log')))}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def until(self, ready: Callable[[], object]) -> None:
        """Wait for something, and no longer than the program lives."""
        eventually(lambda: ready() or self._process.poll() is not None)
        assert self._process.poll() is None, self.said

    def stop(self) -> int:
        """What it ends with when it is asked to."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


Start = Callable[..., Program]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def environment(receiver: Receiver) -> dict[str, str]:
    """What a reader has set, as examples/README.md says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    return clean | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES / 'django_shop'}",
        "PYTHONUNBUFFERED": "1",
        "ENOS_URL": receiver.url,
        "ENOS_TOKEN_URL": receiver.token_url,
        "ENOS_ORG_ID": "o1",
        "ENOS_APP_KEY": "app-key",
        "ENOS_APP_SECRET": "app-secret",
        "ENOS_IS_LOCAL": "1",
    }


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Start `python …` in a folder of its own."""
    started: list[Program] = []

    def begin(*arguments: str, **more: str) -> Program:
        started.append(Program([sys.executable, *arguments], tmp_path, environment | more))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Callable[..., str]:
    """What `python …` says, which must end well."""

    def wait_for(*arguments: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment | more, capture_output=True, text=True, timeout=120
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout

    return wait_for
