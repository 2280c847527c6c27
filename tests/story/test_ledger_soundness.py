"""The ledger's looks at a database and a spool: each kind of damage is seen, and what is sound is left alone."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import migrate
from outbox.database import Database
from outbox.tables import file
from outbox.testing import Receiver
from tests.factories import event, wipe
from tests.ledger.bounds import Size
from tests.ledger.soundness import database_sound
from tests.ledger.spooled import left_open, spool_agrees
from tests.postgres import create_database, drop_database
from tests.story.conftest import Place


@pytest.fixture
def sound(place: Place) -> Place:
    """One message delivered, and one with a file still to be."""
    outbox = place.outbox(clock=place.clock)
    place.enqueue(outbox, "a", ordering_key="pump")
    place.hand(outbox).turn_while_it_moves()
    place.enqueue(outbox, "b", {"photo": b"bytes"})
    return place


def test_what_is_sound_is_left_alone(sound: Place) -> None:
    assert [] == list(database_sound(sound.database))
    assert [] == list(spool_agrees(sound.database, sound.spool, swept=True))


# Databases.


def spoil_sqlite(place: Place, *statements: str) -> None:
    """Execute these with a SQLite that minds neither references nor CHECKs."""
    place.database.close()
    with closing(sqlite3.connect(str(place.database.path), isolation_level=None)) as connection:
        for pragma in ("ignore_check_constraints", "writable_schema"):
            connection.execute(f"PRAGMA {pragma} = ON")
        for statement in statements:
            connection.execute(statement)


UNSOUND_SQLITE = {
    "a CHECK is broken": (
        ["UPDATE outbox_message SET state = 'dead' WHERE key = 'b'"],
        "1 rows of outbox_message break ck_outbox_message_dead_has_reason",
    ),
    "a reference leads nowhere": (
        ["DELETE FROM outbox_file"],
        "row 1 of outbox_attachment refers to a row of outbox_file that is not there",
    ),
    "an index has not what its table has": (
        ["UPDATE sqlite_master SET sql = replace(sql, 'created_at', 'freed_at') WHERE name = 'ix_outbox_file_kept'"],
        "row 1 missing from index ix_outbox_file_kept",
    ),
}


@pytest.mark.parametrize("name", UNSOUND_SQLITE)
def test_damage_in_sqlite_is_seen(sqlite_place: Place, name: str) -> None:
    statements, words = UNSOUND_SQLITE[name]
    sqlite_place.damaged = True
    sqlite_place.enqueue(sqlite_place.outbox(), "b", {"photo": b"bytes"})

    spoil_sqlite(sqlite_place, *statements)

    assert words in "; ".join(database_sound(sqlite_place.database))


@pytest.fixture(scope="module")
def spare_postgres(postgres_server_url: str) -> Iterator[str]:
    """A database that may be spoilt for ever."""
    url = create_database(postgres_server_url)
    with closing(Database(url)) as database:
        migrate.upgrade(database)
    yield url
    drop_database(url)


UNSOUND_POSTGRES = {
    "a CHECK is broken": (
        [
            "ALTER TABLE outbox_message DROP CONSTRAINT ck_outbox_message_dead_has_reason",
            "UPDATE outbox_message SET state = 'dead', finished_at = now()",
        ],
        "1 rows of outbox_message break ck_outbox_message_dead_has_reason",
    ),
    "a reference leads nowhere": (
        ["SET session_replication_role = replica", "DELETE FROM outbox_file"],
        "1 rows of outbox_attachment refer to rows of outbox_file that are not there",
    ),
    "an index has not what its table has": (
        [
            "UPDATE pg_index SET indisready = false WHERE indexrelid = 'ix_outbox_message_due'::regclass",
            "UPDATE outbox_message SET due_at = due_at + interval '1 hour'",
            "UPDATE pg_index SET indisready = true WHERE indexrelid = 'ix_outbox_message_due'::regclass",
        ],
        "ix_outbox_message_due is damaged: heap tuple",
    ),
}


@pytest.mark.merge
@pytest.mark.postgres
@pytest.mark.parametrize("name", UNSOUND_POSTGRES)
def test_damage_in_postgres_is_seen(spare_postgres: str, tmp_path: Path, receiver: Receiver, name: str) -> None:
    statements, words = UNSOUND_POSTGRES[name]
    wipe(spare_postgres)
    place = Place(spare_postgres, tmp_path, receiver)
    place.damaged = True
    place.enqueue(place.outbox(), "b", {"photo": b"bytes"})

    with closing(Database(spare_postgres)) as another, another.engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
            connection.commit()
    found = "; ".join(database_sound(place.database))
    place.close()

    assert words in found


# Spools.


def path_of(place: Place) -> Path:
    """Where the bytes of the only file are."""
    with place.database.read() as connection:
        name = connection.execute(sa.select(file.c.name)).scalar_one()
    return place.spool / name[-2:] / name


def free(place: Place) -> None:
    with place.database.begin() as connection:
        connection.execute(sa.update(file).values(freed_at=place.clock.wall))
    path_of(place).unlink()


def leave_a_stranger(place: Place) -> None:
    stranger = place.spool / "ab" / ("0" * 30 + "ab")
    stranger.parent.mkdir(exist_ok=True)
    stranger.touch()


SPOILT: dict[str, tuple[Callable[[Place], object], str]] = {
    "no bytes": (lambda place: path_of(place).unlink(), "has a row and no bytes"),
    "fewer bytes": (lambda place: path_of(place).write_bytes(b"byte"), "has 4 bytes in the spool and 5 by its row"),
    "other bytes": (lambda place: path_of(place).write_bytes(b"BYTES"), "has other bytes in the spool than were given"),
    "freed too early": (free, "b is pending and its file"),
    "bytes without a row": (leave_a_stranger, "ab is in the spool and no row knows of it"),
    "half a copy": (
        lambda place: (place.spool / ".unfinished" / "half").touch(),
        "half is in the spool and no row knows of it",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spool_that_its_rows_do_not_agree_with_is_seen(sqlite_place: Place, name: str) -> None:
    spoil, words = SPOILT[name]
    sqlite_place.enqueue(sqlite_place.outbox(), "b", {"photo": b"bytes"})

    spoil(sqlite_place)

    (found,) = spool_agrees(sqlite_place.database, sqlite_place.spool, swept=True)
    assert words in found


def test_a_file_that_was_swept_by_mistake_is_still_there(sqlite_place: Place) -> None:
    outbox = sqlite_place.outbox()
    sqlite_place.enqueue(outbox, "b", {"photo": b"bytes"})

    outbox.spool_store.park(path_of(sqlite_place).name)

    assert [] == list(spool_agrees(sqlite_place.database, sqlite_place.spool, swept=True))


def test_what_a_transaction_that_was_rolled_back_has_left_is_gone_after_one_sweep(sqlite_place: Place) -> None:
    outbox = sqlite_place.outbox()
    with sqlite_place.engine.connect() as connection:
        outbox.enqueue(connection, "enos", event("a", "photo"), files={"photo": b"bytes"}, key="a")
        connection.rollback()
    left = list(spool_agrees(sqlite_place.database, sqlite_place.spool, swept=True))

    outbox.sweep(timedelta(0))

    assert 1 == len(left)
    assert [] == list(spool_agrees(sqlite_place.database, sqlite_place.spool, swept=True))


def test_a_file_that_is_left_open_is_seen(sqlite_place: Place) -> None:
    sqlite_place.enqueue(sqlite_place.outbox(), "b", {"photo": b"bytes"})
    path = path_of(sqlite_place)

    with path.open("rb"):
        open_then = left_open(os.getpid(), sqlite_place.spool)

    assert [f"process {os.getpid()} keeps {path.relative_to(sqlite_place.spool)} open"] == open_then
    assert [] == left_open(os.getpid(), sqlite_place.spool)


def test_how_large_a_process_and_its_log_are_is_measured(sqlite_place: Place) -> None:
    sqlite_place.enqueue(sqlite_place.outbox(), "a")

    size = Size.of(os.getpid(), sqlite_place.database.path)

    assert None not in (size.memory, size.descriptors, size.threads, size.log)
    assert size.memory > 10_000, "KiB"
    assert size.log > 4096, "bytes"
