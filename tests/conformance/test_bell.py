"""A bell is rung by threads, and on Linux by whoever writes into a folder; the thread that waits hears it, and no other."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from outbox.bell import Bell
from tests.story.conftest import eventually

#: Seconds within which what is done at once is done on a busy machine; more than that; and for which one waits for what must
#: not come.
SOON, LONG, SHORTLY = 20.0, 40.0, 0.05

#: A process in which nobody minds the signal that is used, while ten thousand writes and rings come: it would die of one.
WRITES = """
import sys, threading
from pathlib import Path
from outbox.bell import Bell
folder, stop, woken = Path(sys.argv[1]), threading.Event(), 0
bell = Bell(str(folder))
def listen():
    global woken
    while not stop.is_set():
        assert bell.watch()
        woken += bell.wait(20.0, watching=True)
listener = threading.Thread(target=listen)
listener.start()
for number in range(10_000):
    folder.joinpath("file").write_text(str(number))
    bell.ring()
stop.set()
bell.ring()
listener.join()
bell.close()
bell.ring()
assert woken, "no write was heard"
"""


class Listener:
    """The thread that waits."""

    def __init__(self, folder: Path) -> None:
        self.bell = Bell(str(folder))
        self._thread = ThreadPoolExecutor(1)

    def watch(self) -> bool:
        return self._thread.submit(self.bell.watch).result()

    def wait(self, seconds: float = LONG, *, watching: bool = True) -> Future[bool]:
        return self._thread.submit(self.bell.wait, seconds, watching=watching)

    def close(self) -> None:
        self._thread.shutdown()
        self.bell.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path)
    yield listener
    listener.close()


def write(folder: Path) -> None:
    folder.joinpath("written").write_text("something")


def test_a_write_ends_the_wait_of_who_watches(listener: Listener, tmp_path: Path) -> None:
    assert listener.watch()
    waiting = listener.wait()
    write(tmp_path)

    assert waiting.result(SOON)


def test_so_does_one_of_another_process(listener: Listener, tmp_path: Path) -> None:
    assert listener.watch()
    waiting = listener.wait()
    subprocess.run([sys.executable, "-c", "open('written', 'w').write('x')"], cwd=tmp_path, check=True)

    assert waiting.result(SOON)


def test_and_one_that_came_before_it_waited(listener: Listener, tmp_path: Path) -> None:
    assert listener.watch()
    write(tmp_path)

    assert listener.wait().result(SOON)


@pytest.mark.parametrize("watching", [True, False])
def test_another_thread_ends_the_wait_and_that_is_no_write(listener: Listener, watching: bool) -> None:
    assert listener.watch()
    waiting = listener.wait(watching=watching)
    if watching:
        eventually(lambda: listener.bell._watching is not None)
    listener.bell.ring()

    assert not waiting.result(SOON)


def test_who_rings_before_anybody_waits_is_heard_once(listener: Listener) -> None:
    listener.bell.ring()
    listener.bell.ring()
    assert not listener.wait(watching=False).result(SOON)
    assert listener.watch()

    second = listener.wait(SHORTLY)
    assert not second.result(SOON)


def test_a_watch_tells_of_one_write_and_not_of_what_was_written_before_it(listener: Listener, tmp_path: Path) -> None:
    assert listener.watch()
    write(tmp_path)
    write(tmp_path)
    assert listener.watch()

    assert not listener.wait(SHORTLY).result(SOON)


def test_a_write_to_a_folder_within_it_is_no_news(listener: Listener, tmp_path: Path) -> None:
    tmp_path.joinpath("spool").mkdir()
    assert listener.watch()
    write(tmp_path / "spool")

    assert not listener.wait(SHORTLY).result(SOON)


@pytest.mark.parametrize("refused", ["folder", "kernel"])
def test_where_nobody_tells_of_writes_threads_still_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(22, "Invalid argument")

    if refused == "kernel":
        monkeypatch.setattr(fcntl, "fcntl", refuse)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (only how many)
    listener = Listener(tmp_path / "nowhere" if refused == "folder" else tmp_path)

    assert not listener.watch()
    assert not listener.watch()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    waiting = listener.wait(watching=False)
    listener.bell.ring()
    assert not waiting.result(SOON)
    listener.close()


def test_the_signal_reaches_nobody_else(tmp_path: Path) -> None:
    """Neither who writes nor another thread; and nobody rings for a thread that has ended."""
    subprocess.run([sys.executable, "-c", WRITES, str(tmp_path)], check=True, timeout=6 * SOON)


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208 (only how many)
    listener = Listener(tmp_path)
    assert listener.watch()
    listener.close()
    write(tmp_path)

    assert (before, threads) == (len(os.listdir("/proc/self/fd")), threading.active_count())  # noqa: PTH208
