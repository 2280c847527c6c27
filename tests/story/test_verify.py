"""Verify, beside what is merely damaged: what changes under it, what is away, and what is no damage at all."""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from outbox import DirectorySpool
from outbox.checkup import Level, Verification, wal
from outbox.store import keeping
from outbox.tables import attachment, file, message
from tests.factories import an_outbox
from tests.story.conftest import Place
from tests.story.test_damage import at_rest, committed_and_not_moved, flip, harm_row, verified
from tests.story.test_looks import Elsewhere


class When:
    """Does something once, when a part of a verification begins, or when it has read the first rows of it."""

    def __init__(self, part: str, act: Callable[[], None], *, has_read: bool = False) -> None:
        self._wanted, self._act, self._has_read = part, act, has_read
        self._part = ""
        self.done = False

    def begin(self, what: str, total: int | None) -> None:
        self._part = what
        if not self._has_read:
            self._look()

    def advance(self, by: int = 1) -> None:
        self._look()

    def _look(self) -> None:
        if self._part == self._wanted and not self.done:
            self.done = True
            self._act()


# What changes meanwhile


def test_a_message_that_is_purged_while_it_is_looked_at_is_no_damage(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    sqlite_place.enqueue(outbox_, "a", {"photo": b"bytes"})
    sqlite_place.purged.add("a")

    def purge() -> None:
        with sqlite_place.database.begin() as connection:
            for table in (attachment, message, file):
                connection.execute(sa.delete(table))

    purging = When("messages", purge, has_read=True)
    found = verified(outbox_, progress=purging)

    assert ([], True) == (found, purging.done)


def test_a_server_that_goes_away_midway_is_told_as_that_and_not_as_damage(postgres_place: Place) -> None:
    place, url = postgres_place, sa.make_url(postgres_place.url)
    outbox_ = place.outbox()
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    server = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def lets_in(anybody: bool) -> None:
        with server.connect() as connection:
            connection.exec_driver_sql(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS {anybody}')
            all_of_them = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
            connection.exec_driver_sql(all_of_them, (url.database,))

    leaving = When("files", lambda: lets_in(False))
    try:
        found = verified(outbox_, progress=leaving)
    finally:
        lets_in(True)

    assert leaving.done
    assert {("database_unreadable", Level.PROBLEM)} == {(each.kind, each.level) for each in found}
    assert "look whether it is up" in found[0].remedy


# What is no damage


def test_an_old_file_that_a_row_vouches_for_is_no_finding(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    sqlite_place.enqueue(outbox_, "a", {"photo": b"bytes"})
    os.utime(at_rest(sqlite_place, "a"), (0, 0))

    assert [] == verified(outbox_)


def test_room_that_is_reserved_in_the_database_is_no_finding(sqlite_place: Place) -> None:
    with sqlite_place.database.begin() as connection:
        keeping.take_reserve(connection, 100)
    verification = Verification(sqlite_place.outbox())

    assert [] == list(verification.run())
    assert verification.tally.rows > 0


def _flipped(index: Path) -> None:
    """In either copy of its header, so that both say alike that there are more frames."""
    for copy in (0, 48):
        flip(index, copy + 18)


def _being_written(index: Path) -> None:
    """One copy of its header is the next one already, with its sums."""
    raw = bytearray(index.read_bytes())
    (frames,) = struct.unpack_from("=I", raw, 16)
    struct.pack_into("=I", raw, 16, frames + 1)
    struct.pack_into("=2I", raw, 40, *wal._added("<" if sys.byteorder == "little" else ">", raw[:40], (0, 0)))
    index.write_bytes(raw)


@pytest.mark.parametrize("harm", [_flipped, _being_written])
def test_an_index_that_is_not_in_order_says_nothing_about_the_log(sqlite_place: Place, harm: Callable[[Path], None]) -> None:
    """SQLite makes it anew from the log, whatever is in it."""
    database = committed_and_not_moved(sqlite_place)
    harm(database.with_name("outbox.db-shm"))
    outbox_ = an_outbox(f"sqlite:///{database}", sqlite_place.spool)

    found = verified(outbox_)

    outbox_.close()
    assert [] == found


# What is told


def test_an_index_of_ours_that_is_missing_is_told(sqlite_place: Place) -> None:
    with closing(sqlite3.connect(sqlite_place.folder / "outbox.db")) as connection:
        (name,) = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'outbox_message' AND sql IS NOT NULL LIMIT 1"
        ).fetchone()
        connection.execute(f"DROP INDEX {name}")
    sqlite_place.damaged = True

    (found,) = verified(sqlite_place.outbox())

    assert ("database_damaged", Level.PROBLEM) == (found.kind, found.level)
    assert f"the database is damaged: {name} is missing" == found.text


def test_the_only_message_is_told_once_when_its_row_is_damaged(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    sqlite_place.enqueue(outbox_, "a")
    harm_row(sqlite_place, "outbox_message SET payload = payload || char(7)")

    (found,) = verified(outbox_)

    assert ("row_damaged", (1,)) == (found.kind, found.messages)
    assert "payload holds control characters" in found.text


def test_what_somebody_put_at_the_top_of_the_spool_is_told_and_what_is_hidden_is_not(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox()
    outbox_.spool_store.prepare()
    for name in ("notes.txt", ".hidden"):
        (sqlite_place.spool / name).write_text("x")

    verification = Verification(outbox_)
    (found,) = verification.run()

    assert (0, 1) == (verification.tally.problems, verification.tally.warnings)
    assert ("foreign", f"{sqlite_place.spool / 'notes.txt'} is a file and none of ours") == (found.kind, found.text)


def test_files_of_a_spool_that_is_no_directory_are_read_through_it(sqlite_place: Place) -> None:
    spool: Any = Elsewhere(DirectorySpool(sqlite_place.spool))
    sqlite_place._outboxes.append(outbox_ := an_outbox(sqlite_place.url, spool))
    sqlite_place.enqueue(outbox_, "a", {"photo": b"bytes"})
    assert [] == verified(outbox_)
    flip(at_rest(sqlite_place, "a"), 0)
    (sqlite_place.spool / "notes.txt").write_text("whose else this place may be, nobody knows")

    (found,) = verified(outbox_)

    assert ("file_changed", (1,)) == (found.kind, found.messages)
    assert "put the bytes that were enqueued back into the spool; or enqueue it again" in found.remedy
