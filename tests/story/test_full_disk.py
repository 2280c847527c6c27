"""Full: new messages are refused with a sentence, what is there is delivered and purged, and it goes on by itself."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, OutOfRoom, Policy, SpooledFile, State, Worker
from outbox.errors import SpoolFull
from outbox.policy import MIB, RESERVE
from outbox.reserve import Reserve
from outbox.spool import DirectorySpool
from outbox.tables import file, message, reserve
from outbox.testing import Receiver, Status
from tests.factories import an_outbox, count, event, message_values, states
from tests.story.conftest import Place, eventually
from tests.story.producers import driver_connection

DELIVERED, DEAD, PENDING = State.DELIVERED, State.DEAD, State.PENDING


def bring(place: Place, outbox_: Outbox, key: str, text: int = 0, files: dict[str, bytes] | None = None) -> None:
    """Enqueue and commit a message with so many bytes of text, and note that it must not be lost."""
    with place.engine.begin() as connection:
        payload = event(key, *(files or {}), text="x" * text)
        outbox_.enqueue(connection, "enos", payload, files=files, key=key)
    place.acknowledge(key, files)


def bring_until_refused(place: Place, outbox_: Outbox, text: int, prefix: str = "m") -> tuple[int, OutOfRoom]:
    """How many came in, and what was said to the next one."""
    for number in range(10_000):
        try:
            bring(place, outbox_, f"{prefix}{number}", text)
        except OutOfRoom as refused:
            return number, refused
    raise AssertionError("nobody was refused")


def unfinished(place: Place) -> list[str]:
    return [key for key, state in states(place.database).items() if state in (PENDING, State.CLAIMED)]


def check(place: Place) -> set[str]:
    """Everything adds up, but for delivered messages that were purged before their time; returns these."""
    told = {accepted.struct["assetId"] for accepted in place.receiver.accepted}
    purged = place.acknowledged.keys() - states(place.database).keys()
    assert purged <= told, "what was purged had arrived, and the receiver had said so"
    place.purged |= purged
    place.check()
    return set(purged)


# The quota of the spool


def test_what_would_pass_the_quota_is_refused_before_anything_is_written(place: Place) -> None:
    outbox_ = place.outbox(quota=10_000)
    bring(place, outbox_, "a", files={"photo": b"x" * 9000})

    with place.engine.begin() as connection:
        with pytest.raises(OutOfRoom, match=r"the spool is full: its quota is 9\.8 KiB, 1000 B of it are left and 1\.2 KiB"):
            outbox_.enqueue(connection, "enos", event("b", "photo"), files={"photo": b"x" * 1200}, key="b")
        outbox_.enqueue(connection, "enos", event("c", "photo"), files={"photo": b"x" * 1000}, key="c")
        outbox_.enqueue(connection, "enos", event("d"), key="d")

    assert {"a", "c", "d"} == states(place.database).keys(), "and the transaction was usable"
    assert 2 == len(place.spooled()) == count(place.database, file)


def test_what_is_spooled_ahead_counts(place: Place) -> None:
    outbox_ = place.outbox(quota=10_000)

    ahead = outbox_.spool(b"x" * 9000)
    with pytest.raises(OutOfRoom, match="the spool is full"):
        outbox_.spool(b"x" * 1001)
    with place.engine.begin() as connection:
        outbox_.enqueue(connection, "enos", event("a", "photo"), files={"photo": ahead}, key="a")

    assert isinstance(ahead, SpooledFile), "a file that is there already takes no room again"
    assert ["a"] == list(states(place.database))


def test_a_stream_of_unknown_length_is_cut_off_at_the_quota(place: Place) -> None:
    outbox_ = place.outbox(quota=10_000)

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(max(0, size))

    with place.engine.begin() as connection, pytest.raises(OutOfRoom, match="more bytes than there is room for"):
        outbox_.enqueue(connection, "enos", event("a", "photo"), files={"photo": Endless()}, key="a")  # type: ignore[dict-item]

    assert [] == place.spooled()


@pytest.mark.long
def test_producers_are_served_again_when_files_were_delivered(place: Place) -> None:
    outbox_ = place.outbox(quota=10_000)
    bring(place, outbox_, "a", files={"photo": b"x" * 9500})

    refused = not admitted(outbox_, 5000)
    Worker(outbox_, poll=0.05).run(until_idle=True)
    outbox_.care.keep_room()
    eventually(lambda: admitted(outbox_, 5000))
    bring(place, outbox_, "b", files={"photo": b"x" * 5000})
    Worker(outbox_, poll=0.05).run(until_idle=True)

    assert refused
    assert {"a": DELIVERED, "b": DELIVERED} == states(place.database)
    place.check()


def admitted(outbox_: Outbox, size: int) -> bool:
    with contextlib.suppress(OutOfRoom):
        outbox_.room.admit(size, 0)
        return True
    return False


def test_counting_does_not_wait_for_the_transaction_of_the_caller(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.reserve._BELIEVED", 0.0)
    monkeypatch.setattr("outbox.reserve._COUNTING", 0)
    outbox_ = place.outbox(quota=MIB)
    began = time.monotonic()

    with place.engine.begin() as connection:
        for number in range(20):  # on SQLite the first of them takes the write lock
            files = {"photo": b"bytes"}
            outbox_.enqueue(connection, "enos", event(str(number), "photo"), files=files, key=str(number))

    assert time.monotonic() - began < 10
    assert 20 == count(place.database, message)


def test_nor_for_the_only_connection_of_the_engine_it_lent_us(postgres_place: Place) -> None:
    engine = sa.create_engine(postgres_place.url, pool_size=1, max_overflow=0, pool_timeout=5)
    outbox_ = an_outbox(engine, postgres_place.spool, quota=10_000)
    began = time.monotonic()

    with engine.begin() as connection:
        outbox_.enqueue(connection, "enos", event("a", "photo"), files={"photo": b"x" * 9000}, key="a")
    with engine.begin() as connection:
        outbox_.enqueue(connection, "enos", event("b", "photo"), files={"photo": b"x" * 900}, key="b")

    assert time.monotonic() - began < 5, "it would have waited for as long as the pool lets anybody wait"
    assert {"a", "b"} == states(postgres_place.database).keys()
    engine.dispose()


# The disks


def test_what_would_leave_too_little_of_the_disk_is_refused(place: Place) -> None:
    outbox_ = place.outbox(reserve=2 * shutil.disk_usage(place.folder).free)

    with pytest.raises(OutOfRoom, match=r"the disk of the spool is full: .* are left and .* are kept for finishing"):
        place.enqueue(outbox_, "a", {"photo": b"bytes"})
    with pytest.raises(OutOfRoom, match="the disk of the spool is full"):
        outbox_.spool(b"bytes")

    assert ({}, []) == (states(place.database), place.spooled())


def test_the_disk_of_a_sqlite_database_counts_for_text_alone(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox(reserve=2 * shutil.disk_usage(sqlite_place.folder).free)

    with pytest.raises(OutOfRoom, match=r"the disk of the database is full"):
        sqlite_place.enqueue(outbox_, "a")

    assert {} == states(sqlite_place.database)


def test_the_reserve_takes_blocks_of_the_disk_and_gives_them_back(tmp_path: Path) -> None:
    ours = Reserve(tmp_path / "outbox.db-reserve", RESERVE)

    assert not ours.there
    assert ours.take()
    assert ours.there
    assert ours.path.stat().st_blocks * 512 >= RESERVE
    assert ours.release()
    assert [] == list(tmp_path.iterdir())
    assert not ours.release()


def test_a_reserve_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    ours = Reserve(tmp_path / "nowhere" / "outbox.db-reserve", RESERVE)

    assert not ours.take()
    assert not ours.release()


def test_a_worker_keeps_the_reserve_and_a_producer_does_not(sqlite_place: Place) -> None:
    kept = sqlite_place.folder / "outbox.db-reserve"
    outbox_ = sqlite_place.outbox(reserve=MIB)
    sqlite_place.enqueue(outbox_, "a")
    before = kept.exists()

    with Worker(outbox_, poll=0.05):
        eventually(kept.exists)

    assert (False, MIB) == (before, kept.stat().st_size)


def said_of_room(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "outbox.care"]


def test_that_there_is_no_room_is_said_once(sqlite_place: Place, caplog: pytest.LogCaptureFixture) -> None:
    outbox_ = sqlite_place.outbox(reserve=MIB)
    outbox_.care.keep_room()

    for _ in range(2):
        outbox_.care.give_way(OutOfRoom("the disk is full"))

    assert [
        "the disk is full; messages are refused until there is room again, those that are here are delivered",
        f"the reserve {sqlite_place.folder / 'outbox.db-reserve'} was given back to the disk",
    ] == said_of_room(caplog)


def test_a_disk_that_is_nearly_full_is_said_before_anything_fails_and_no_reserve_is_taken(
    sqlite_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    sqlite_place.enqueue(sqlite_place.outbox(), "a")
    outbox_ = sqlite_place.outbox(reserve=2 * shutil.disk_usage(sqlite_place.folder).free)

    for _ in range(2):
        outbox_.care.keep_room()

    (said,) = said_of_room(caplog)
    assert said.startswith("room is short (")
    assert said.endswith(" left beside the database); what may go is purged")
    assert not (sqlite_place.folder / "outbox.db-reserve").exists()
    assert {"a": PENDING} == states(sqlite_place.database)


def another_thread_meanwhile(engine: sa.Engine | None, act: Callable[[], object]) -> list[object]:
    """What `act` returns that a thread does while another is in the middle of its first statement from now."""
    returned: list[object] = []
    begun = threading.Event()

    def meanwhile(*_: Any) -> None:
        if not begun.is_set():
            begun.set()
            thread = threading.Thread(target=lambda: returned.append(act()), daemon=True)
            thread.start()
            thread.join(10)

    assert engine is not None
    sa.event.listen(engine, "before_cursor_execute", meanwhile)
    return returned


def test_of_two_threads_that_find_no_room_one_makes_some(sqlite_place: Place, caplog: pytest.LogCaptureFixture) -> None:
    outbox_ = sqlite_place.outbox()
    full = OutOfRoom("the disk is full")
    returned = another_thread_meanwhile(outbox_.database.engine, lambda: outbox_.care.give_way(full))

    outbox_.care.give_way(full)

    assert [None] == returned, "it did not wait"
    assert 1 == len(said_of_room(caplog))


def test_of_two_threads_one_tidies_and_the_other_comes_again(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox(clock=sqlite_place.clock)
    assert outbox_.care.tidy() is None
    sqlite_place.clock.move(days=8)
    returned = another_thread_meanwhile(outbox_.database._reader, outbox_.care.tidy)

    assert outbox_.care.tidy() is None

    assert [0.2] == returned, "it did not wait, and comes again soon"


def test_a_server_that_ran_full_counts_as_well_again_when_it_was_quiet_for_a_while_and_nothing_is_purged_for_it(
    postgres_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    outbox_ = postgres_place.outbox(clock=postgres_place.clock)
    postgres_place.enqueue(outbox_, "a")
    postgres_place.hand(outbox_).turn()
    outbox_.care.give_way(OutOfRoom("could not extend file"))

    caplog.clear()
    soon = outbox_.care.keep_room()
    short = said_of_room(caplog)
    postgres_place.clock.move(31)
    outbox_.care.keep_room()

    assert (1.0, []) == (soon, short)
    assert ["there is room again (nobody has run into its end for a while)"] == said_of_room(caplog)
    assert {"a": DELIVERED} == states(postgres_place.database), "purging gives a server's disk nothing back"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size=32m,mode=0700,uid={os.getuid()},gid={os.getgid()}"
    for rights in ([], ["sudo", "-n"]):
        with contextlib.suppress(FileNotFoundError):
            mounting = [*rights, "mount", "-t", "tmpfs", "-o", options, "outbox-test", str(folder)]
            if subprocess.run(mounting, capture_output=True, check=False).returncode == 0:
                yield folder
                subprocess.run([*rights, "umount", "-l", str(folder)], check=True)
                return
    pytest.skip("a file system of limited size cannot be mounted here: this needs root, or sudo without a password")


@pytest.fixture
def disk_place(disk: Path, receiver: Receiver) -> Iterator[Place]:
    place = Place(f"sqlite:///{disk / 'outbox.db'}", disk, receiver, empty=True)
    yield place
    place.close()


def fill(folder: Path) -> Path:
    """Somebody else takes the disk to its last byte."""
    foreign = folder / "foreign"
    with foreign.open("wb", buffering=0) as taken, contextlib.suppress(OSError):
        while True:
            taken.write(bytes(4096))
    return foreign


class Producers:
    """Threads that enqueue as fast as they may, note what was acknowledged, and come again when they are refused."""

    def __init__(self, place: Place, outbox_: Outbox, number: int = 2) -> None:
        self.refused: list[str] = []
        self.unforeseen: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._produce, args=(place, outbox_, f"p{each}")) for each in range(number)]

    def _produce(self, place: Place, outbox_: Outbox, name: str) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                bring(place, outbox_, f"{name}-{number}", 500, {"photo": os.urandom(20_000)})
                number += 1
            except OutOfRoom as refused:
                self.refused.append(str(refused))
                self._stop.wait(0.05)
            except sa.exc.OperationalError as error:  # a COMMIT of the caller's own that found no room: nothing was promised
                self.unforeseen.append(str(error.orig))
                self._stop.wait(0.05)

    def __enter__(self) -> Producers:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()


@pytest.mark.slow
def test_a_disk_that_fills_up_under_load_loses_nothing_and_goes_on_by_itself(
    disk_place: Place, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, kept = disk_place, 4 * MIB
    working = Worker(place.outbox(reserve=kept), poll=0.05)
    with caplog.at_level(logging.WARNING), working, Producers(place, place.outbox(reserve=kept)) as producers:
        eventually((disk / "outbox.db-reserve").exists)
        eventually(lambda: len(place.acknowledged) > 50, 60)
        foreign = fill(disk)

        eventually(lambda: producers.refused, 60)
        promised = set(place.acknowledged)
        eventually(lambda: not promised & set(unfinished(place)), 60)
        eventually(lambda: said_of_room(caplog), 60)  # delivery may be over before the worker has looked at its disk
        foreign.unlink()
        known = len(place.acknowledged)

        eventually(lambda: len(place.acknowledged) > known + 50, 60)
        eventually((disk / "outbox.db-reserve").exists, 60)
    Worker(place.outbox(reserve=0), poll=0.05).run(until_idle=True)

    assert set(producers.unforeseen) <= {"database or disk is full", "disk I/O error"}
    assert all("full" in words and "make room" in words for words in producers.refused)
    said = said_of_room(caplog)
    first = ("room is short", "messages are refused until there is room again")  # it has looked, or has run into it
    assert any(words in said[0] for words in first)
    assert any(words.startswith("there is room again") for words in said)
    assert set() == check(place), "nothing went before its time: it would not have helped"


def test_a_worker_that_starts_on_a_full_disk_gets_in_with_the_reserve(disk_place: Place, disk: Path) -> None:
    place = disk_place
    outbox_ = place.outbox(reserve=2 * MIB)
    for number in range(20):
        bring(place, outbox_, f"m{number}", 500, {"photo": os.urandom(20_000)})
    assert Reserve(disk / "outbox.db-reserve", 2 * MIB).take()
    place.database.checkpoint(shrink=True)
    fill(disk)

    Worker(outbox_, poll=0.05).run(until_idle=True)

    assert not (disk / "outbox.db-reserve").exists()
    assert not unfinished(place)
    place.check()


def test_a_spool_without_room_says_so_and_keeps_nothing(disk: Path) -> None:
    spool = DirectorySpool(disk / "spool")
    spool.prepare()

    with pytest.raises(SpoolFull, match="No space left on device; make room on its disk, and try again"):
        spool.put("a" * 32, io.BytesIO(bytes(40 * MIB)))

    assert [] == [path for path in (disk / "spool").rglob("*") if path.is_file()]
    left = spool.left()
    assert left is not None
    assert left > 31 * MIB


# A database that may grow no more


@pytest.fixture
def few_pages() -> Iterator[int]:
    """Every connection to SQLite that is made from now on may have so many pages in its database."""
    most = 1200

    def limit(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        if type(connection).__module__.startswith("sqlite3"):
            cursor.execute(f"PRAGMA max_page_count = {most}")
        cursor.close()

    sa.event.listen(sa.Engine, "connect", limit)
    yield most
    sa.event.remove(sa.Engine, "connect", limit)


@pytest.fixture
def small_place(few_pages: int, sqlite_place: Place) -> Place:
    return sqlite_place


def test_a_database_that_may_grow_no_more_refuses_and_keeps_the_transaction(small_place: Place) -> None:
    outbox_ = small_place.outbox(reserve=0)
    came, refused = bring_until_refused(small_place, outbox_, 10_000)

    with small_place.engine.begin() as connection:
        with pytest.raises(OutOfRoom):
            outbox_.enqueue(connection, "enos", event("late", text="x" * 10_000), key="late")
        connection.exec_driver_sql("CREATE TABLE host (id)")
        connection.exec_driver_sql("INSERT INTO host VALUES (1)")

    assert came > 100
    assert str(refused).startswith("the database is full: it may have 1200 pages (PRAGMA max_page_count)")
    assert came == count(small_place.database, message)
    with small_place.engine.connect() as connection:
        assert 1 == connection.exec_driver_sql("SELECT count(*) FROM host").scalar_one()


@pytest.mark.slow
def test_it_delivers_what_it_has_and_takes_messages_again_by_itself(
    small_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    outbox_ = small_place.outbox(reserve=0)
    came, _ = bring_until_refused(small_place, outbox_, 10_000)

    with caplog.at_level(logging.WARNING), Worker(small_place.outbox(reserve=0), poll=0.05):
        later = 0
        ends = time.monotonic() + 60
        while later < came and time.monotonic() < ends:
            try:
                bring(small_place, outbox_, f"later-{later}", 10_000)
                later += 1
            except OutOfRoom:
                time.sleep(0.02)
        eventually(lambda: not unfinished(small_place), 60)

    assert came == later, "as many as it can hold came once more"
    assert check(small_place)
    said = [record.getMessage() for record in caplog.records if record.name == "outbox.care"]
    assert any("delivered messages are purged before their time" in words for words in said)


@pytest.mark.slow
def test_what_is_pending_or_dead_is_never_purged_to_make_room(small_place: Place) -> None:
    outbox_ = small_place.outbox(Policy(probe_first=0.05, probe_cap=0.05), reserve=0)
    small_place.receiver.refuse(lambda struct: struct["assetId"] == "bad")
    bring(small_place, outbox_, "bad")
    Worker(outbox_, poll=0.05).run(until_idle=True)
    small_place.receiver.always(Status(503))
    bring_until_refused(small_place, outbox_, 10_000)

    with Worker(small_place.outbox(Policy(probe_first=0.05, probe_cap=0.05), reserve=0), poll=0.05):
        small_place.receiver.wait_for(lambda receiver: len(receiver.requests) > 10, 30)
        found = states(small_place.database)
        with pytest.raises(OutOfRoom):
            bring(small_place, outbox_, "late", 10_000)
        small_place.receiver.never()
        eventually(lambda: not unfinished(small_place), 60)

    assert found.keys() == small_place.acknowledged.keys()
    assert DEAD == states(small_place.database)["bad"]
    check(small_place)


def test_a_search_for_what_may_be_purged_early_is_not_begun_again_at_once(small_place: Place) -> None:
    outbox_ = small_place.outbox(clock=small_place.clock)
    with small_place.database.begin() as connection:
        rows = [message_values(PENDING, key=str(number), payload="x" * 40_000) for number in range(95)]
        connection.execute(sa.insert(message), rows)
    while outbox_.care.keep_room() != 1.0:  # until it has found nothing
        pass

    with small_place.database.begin() as connection:
        connection.execute(sa.update(message).values(state=DELIVERED, finished_at=small_place.clock.wall))
    outbox_.care.keep_room()
    at_once = count(small_place.database, message)
    small_place.clock.move(1.1)
    outbox_.care.keep_room()

    assert (95, 0) == (at_once, count(small_place.database, message))


def test_what_is_purged_early_goes_a_handful_at_a_time_oldest_first(
    small_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.care.HANDFUL", 5)
    outbox_ = small_place.outbox(clock=small_place.clock)
    with small_place.database.begin() as connection:
        kept = {"finished_at": small_place.clock.wall, "payload": "x" * 40_000}
        rows = [message_values(DELIVERED, key=f"{number:02}", **kept) for number in range(95)]
        connection.execute(sa.insert(message), rows)

    left = []
    for _ in range(2):
        outbox_.care.keep_room()
        left.append(sorted(states(small_place.database)))

    assert [(90, "05"), (85, "10")] == [(len(each), each[0]) for each in left]


def test_the_reserve_inside_is_given_back_and_taken_again(small_place: Place) -> None:
    outbox_ = small_place.outbox(reserve=0)
    outbox_.care.keep_room()
    taken = count(small_place.database, reserve)
    before = outbox_.database.pages()

    outbox_.care.give_way(OutOfRoom("the database is full"))
    given = count(small_place.database, reserve)
    after = outbox_.database.pages()
    while outbox_.care.keep_room() is not None:
        pass

    assert (1, 0, 1) == (taken, given, count(small_place.database, reserve))
    assert before is not None
    assert after is not None
    assert after.room - before.room > 500_000


def test_a_statement_that_finds_no_page_left_says_so_and_the_transaction_goes_on(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox(reserve=0)
    pages = sqlite_place.database.pages()
    assert pages is not None

    with sqlite_place.engine.begin() as connection:
        outbox_.enqueue(connection, "enos", event("a"), key="a")
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages.used}")  # after the door has looked
        with pytest.raises(OutOfRoom, match="database or disk is full"):
            outbox_.enqueue(connection, "enos", event("b", text="x" * 300_000), key="b")

    assert ["a"] == list(states(sqlite_place.database))


def test_a_transaction_that_the_database_rolled_back_cannot_be_taken_for_committed(
    disk_place: Place, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox_ = disk_place.outbox(reserve=0)

    with disk_place.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA cache_size = 5")  # what is written goes to the disk before COMMIT
        outbox_.enqueue(connection, "enos", event("a"), key="a")
        monkeypatch.setattr(outbox_.room, "admit", lambda *_: None)  # the disk fills up behind the door
        foreign = fill(disk)
        with pytest.raises(OutOfRoom, match="database or disk is full"):
            outbox_.enqueue(connection, "enos", event("b", text="x" * 500_000), key="b")
        foreign.unlink()

        with pytest.raises(sa.exc.InvalidRequestError, match="rolled back"):
            connection.commit()

    assert {} == states(disk_place.database)


def test_nor_can_one_of_the_drivers_own(disk_place: Place, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would begin another one by itself, and commit what came after the error alone."""
    outbox_ = disk_place.outbox(reserve=0)
    connection = driver_connection(disk_place.url)
    connection.execute("PRAGMA cache_size = 5")
    outbox_.enqueue_dbapi(connection, "enos", event("a"), key="a")
    monkeypatch.setattr(outbox_.room, "admit", lambda *_: None)
    foreign = fill(disk)
    with pytest.raises(OutOfRoom, match="database or disk is full"):
        outbox_.enqueue_dbapi(connection, "enos", event("b", text="x" * 500_000), key="b")
    foreign.unlink()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        outbox_.enqueue_dbapi(connection, "enos", event("c"), key="c")

    assert {} == states(disk_place.database)
