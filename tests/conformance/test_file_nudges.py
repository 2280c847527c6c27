"""Who waits for others to write to a SQLite database hears of their commits, soon after, and is woken by little else."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from outbox.bell import Bell
from outbox.nudging import ANY, FileNudges
from tests.conformance.test_bell import SOON


class Waiter:
    """Waits on a thread of its own for writes to a database, whose version is what we say it is."""

    def __init__(self, path: Path) -> None:
        self.looks = 0
        self.theirs: Callable[[], int] = lambda: 0
        self.ours: Callable[[], int] = lambda: 0
        self.nudges = FileNudges(str(path), self._version)
        self._thread = ThreadPoolExecutor(1)
        assert {ANY} == self.waits(0)  # nobody knows what was there before the first look

    def _version(self) -> tuple[int, int]:
        self.looks += 1
        return self.theirs(), self.ours()

    def waits(self, seconds: float = SOON) -> set[str]:
        """What it hears."""
        return self._thread.submit(self.nudges.wait, seconds).result()

    def close(self) -> None:
        self.nudges.interrupt()
        self._thread.shutdown()
        self.nudges.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def wal(path: Path) -> Path:
    wal = path.with_name("outbox.db-wal")
    wal.write_bytes(b"frames")
    return wal


@pytest.fixture(params=["told", "not told"])
def waiter(path: Path, wal: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiter]:
    """By the kernel, of writes."""
    if request.param == "not told":
        monkeypatch.setattr(Bell, "watch", lambda _: False)
    waiter = Waiter(path)
    yield waiter
    waiter.close()


@pytest.mark.parametrize("looks", [1, 2, 5, 9])
def test_a_commit_is_heard_however_many_looks_after_its_write(waiter: Waiter, wal: Path, looks: int) -> None:
    """A slow disk has it a while later; and nothing else is written then."""
    begins = waiter.looks + 12  # it looks less often by then

    def version() -> int:
        if waiter.looks == begins:
            wal.write_bytes(b"more frames")
        return int(waiter.looks >= begins + looks)

    waiter.theirs = version

    assert {ANY} == waiter.waits()


def test_what_we_write_ourselves_wakes_nobody(waiter: Waiter, wal: Path) -> None:
    written = itertools.count()

    def version() -> int:
        number = next(written)
        wal.write_bytes(b"frames" * number)
        return number

    waiter.ours = version

    assert set() == waiter.waits(1.0)
    assert waiter.looks <= 20  # once in 65 ms; twice as many, were it not known to be ours


@pytest.mark.parametrize("behind_a_link", [False, True])
def test_at_rest_it_looks_seldom(path: Path, wal: Path, tmp_path: Path, behind_a_link: bool) -> None:
    """Also behind a link: what belongs to a database SQLite keeps beside the file itself."""
    link = tmp_path / "links" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    waiter = Waiter(link if behind_a_link else path)
    assert set() == waiter.waits(2.0)
    before = waiter.looks

    assert set() == waiter.waits(2.0)
    assert waiter.looks - before <= 4
    waiter.close()


def test_where_nobody_tells_of_writes_it_looks_often(path: Path, wal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bell, "watch", lambda _: False)
    waiter = Waiter(path)
    assert set() == waiter.waits(2.0)
    before = waiter.looks

    assert set() == waiter.waits(1.0)
    assert waiter.looks - before >= 5
    waiter.close()


@pytest.mark.parametrize(
    ("written", "touched", "ours", "pause"),
    [
        pytest.param(True, True, False, 0.001, id="somebody has written"),
        pytest.param(True, True, True, 0.065, id="we have"),
        pytest.param(True, False, False, 0.065, id="something else was written"),
        pytest.param(False, True, False, 0.001, id="somebody has written before we were told of it"),
        pytest.param(False, False, False, 2.0, id="nothing was written"),
    ],
)
def test_after_a_long_rest(waiter: Waiter, written: bool, touched: bool, ours: bool, pause: float) -> None:
    """It depends on what has ended it when the next look is taken."""
    nudges = waiter.nudges
    assert 2.0 == max(nudges._next_pause(written=False, touched=False, ours=False) for _ in range(12))

    assert pause == nudges._next_pause(written, touched, ours)


def test_who_writes_something_else_in_the_folder_does_not_wake_it_each_time(waiter: Waiter, tmp_path: Path) -> None:
    over = threading.Event()

    def log() -> None:
        with (tmp_path / "service.log").open("ab", buffering=0) as file:
            while not over.is_set():
                file.write(b"a line\n")

    busy = threading.Thread(target=log)
    busy.start()
    try:
        assert set() == waiter.waits(1.0)
    finally:
        over.set()
        busy.join()
    assert waiter.looks <= 60


def test_a_commit_of_another_connection_is_heard(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as ours:
        ours.execute("PRAGMA journal_mode = WAL")
        ours.execute("CREATE TABLE things (id INTEGER)")
        waiter = Waiter(path)
        waiter.theirs = lambda: int(ours.execute("PRAGMA data_version").fetchone()[0])
        waiter.waits(0)
        with ThreadPoolExecutor(1) as thread, closing(sqlite3.connect(path, isolation_level=None)) as theirs:
            waiting = thread.submit(waiter.waits)
            theirs.execute("INSERT INTO things VALUES (1)")

            assert {ANY} == waiting.result()
        waiter.close()
