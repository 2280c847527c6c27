"""Enqueue through somebody else's DB-API connection: their transaction decides, and nothing of theirs is changed."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from outbox import Entry, KeyConflict, News, NotDurable, OutOfRoom, Refused, State
from outbox.errors import ConfigurationError
from outbox.tables import message, share, stream
from outbox.worker import Worker
from tests.factories import an_outbox, count, enos, event, states
from tests.story.conftest import Place, eventually
from tests.story.producers import driver_connection

Connect = Callable[[], Any]


@pytest.fixture
def connect(place: Place) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as ending:
        yield lambda **options: ending.enter_context(contextlib.closing(driver_connection(place.url, **options)))


def test_a_message_is_there_when_its_owner_commits_and_never_was_if_not(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(), connect()

    outbox.enqueue_dbapi(connection.cursor(), "enos", event("a"), key="a")
    connection.rollback()
    outbox.enqueue_dbapi(connection, "enos", event("b"), key="b")
    seen_by_others = states(place.database)
    connection.commit()

    assert ({}, {"b": State.PENDING}) == (seen_by_others, states(place.database))


def test_it_is_one_transaction_with_what_its_owner_writes(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(), connect()
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE IF NOT EXISTS dbapi_orders (id INTEGER)")
    connection.commit()

    cursor.execute("INSERT INTO dbapi_orders VALUES (1)")
    outbox.enqueue_dbapi(cursor, "enos", event("a"), key="a")
    connection.rollback()
    cursor.execute("SELECT count(*) FROM dbapi_orders")

    assert ((0,), {}) == (cursor.fetchone(), states(place.database))
    cursor.execute("DROP TABLE dbapi_orders")
    connection.commit()


def test_all_that_enqueue_takes_goes_this_way_and_is_delivered(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(), connect()

    place.acknowledge("a", {"photo": b"bytes"})
    outbox.enqueue_dbapi(connection, "enos", event("a", "photo"), files={"photo": b"bytes"}, key="a", ordering_key="pump")
    for key, options in {"b": {"ordering_key": "pump", "ordered": False}, "c": {"lane": "express"}}.items():
        place.acknowledge(key)
        outbox.enqueue_dbapi(connection, "enos", event(key), key=key, **options)
    later = datetime.now(UTC) + timedelta(days=1)
    outbox.enqueue_dbapi(connection, "enos", event("d"), key="d", due_at=later, expires_at=later + timedelta(days=1))
    connection.commit()

    assert (1, 1) == (count(place.database, stream), count(place.database, share))
    with Worker(outbox):
        place.receiver.wait_for(lambda each: len(each.accepted) == 3, 30)
        eventually(lambda: list(states(place.database).values()).count(State.DELIVERED) == 3)
    assert State.PENDING == states(place.database)["d"]


def test_many_go_with_few_statements(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(), connect()

    entries = [Entry(event(str(n)), key=str(n), ordering_key="pump") for n in range(250)]
    made = outbox.enqueue_many_dbapi(connection, "enos", entries)
    connection.commit()

    assert 250 == len({each.id for each in made}) == count(place.database, message)


def test_a_repeated_key_and_a_conflict_are_told_as_ever_and_the_transaction_goes_on(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(), connect()
    first = outbox.enqueue_dbapi(connection, "enos", event("a"), key="a")

    again = outbox.enqueue_dbapi(connection, "enos", event("a"), key="a")
    with pytest.raises(KeyConflict):
        outbox.enqueue_dbapi(connection, "enos", event("other"), key="a")
    with pytest.raises(Refused, match="assetId"):
        outbox.enqueue_dbapi(connection, "enos", {"asetId": "a"})
    connection.commit()

    assert ((first.id, False), {"a": State.PENDING}) == ((again.id, again.new), states(place.database))


def test_without_a_transaction_it_is_refused_with_how_to_begin_one(place: Place, connect: Callable[..., Any]) -> None:
    outbox = place.outbox()
    alone = {"isolation_level": None} if place.database.kind == "sqlite" else {"autocommit": True}
    connection = connect(**alone)

    with pytest.raises(ConfigurationError, match=r"begin one first.*transaction\.atomic"):
        outbox.enqueue_dbapi(connection.cursor(), "enos", event("a"))

    connection.execute("BEGIN")
    outbox.enqueue_dbapi(connection.cursor(), "enos", event("a"), key="a")
    connection.execute("COMMIT")
    assert {"a": State.PENDING} == states(place.database)


@pytest.mark.postgres
def test_a_block_of_psycopgs_on_an_autocommit_connection_is_a_transaction(postgres_place: Place) -> None:
    outbox = postgres_place.outbox()
    with driver_connection(postgres_place.url, autocommit=True) as connection, connection.transaction():
        outbox.enqueue_dbapi(connection, "enos", event("a"), key="a")
        with contextlib.suppress(ZeroDivisionError), connection.transaction():
            outbox.enqueue_dbapi(connection, "enos", event("in a savepoint"), key="in a savepoint")
            raise ZeroDivisionError
        outbox.enqueue_dbapi(connection, "enos", event("b"), key="b")

    assert {"a": State.PENDING, "b": State.PENDING} == states(postgres_place.database)


@pytest.mark.postgres
def test_in_pipeline_mode_it_is_refused_before_anything_is_written(postgres_place: Place) -> None:
    """What is on its way would be committed, and its files would not be there."""
    outbox = postgres_place.outbox()
    with driver_connection(postgres_place.url) as connection:
        outbox.enqueue_dbapi(connection, "enos", event("a"), key="a")
        with connection.pipeline(), pytest.raises(ConfigurationError, match="pipeline mode"):
            outbox.enqueue_dbapi(connection, "enos", event("b", "photo"), files={"photo": b"bytes"}, key="b")

    assert ({"a": State.PENDING}, []) == (states(postgres_place.database), postgres_place.spooled())


def test_a_savepoint_takes_its_message_back(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(), connect()
    cursor = connection.cursor()

    outbox.enqueue_dbapi(cursor, "enos", event("a"), key="a")
    cursor.execute("SAVEPOINT here")
    outbox.enqueue_dbapi(cursor, "enos", event("b"), key="b")
    cursor.execute("ROLLBACK TO here")
    outbox.enqueue_dbapi(cursor, "enos", event("c"), key="c")
    connection.commit()

    assert {"a": State.PENDING, "c": State.PENDING} == states(place.database)


@pytest.mark.parametrize("how", ["rows by name", "bytes for text", "cursors of their own"])
def test_what_its_owner_has_set_is_left_and_does_not_trouble_us(place: Place, connect: Connect, how: str) -> None:
    outbox, connection = place.outbox(), connect()
    before = CUSTOMS[place.database.kind, how](connection)
    added = outbox.enqueue_dbapi(connection, "enos", event("a"), key="a", ordering_key="pump")

    again = outbox.enqueue_dbapi(connection, "enos", event("a"), key="a", ordering_key="pump")

    connection.commit()
    assert (added.id, False) == (again.id, again.new)
    for name, value in before.items():
        assert getattr(connection, name) is value


def _set(**attributes: Any) -> Callable[[Any], dict[str, Any]]:
    def change(connection: Any) -> dict[str, Any]:
        for name, value in attributes.items():
            setattr(connection, name, value)
        return attributes

    return change


class _Odd(psycopg.ClientCursor[Any]):
    def execute(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("is its owner's alone")


def _reads_text_as_bytes(connection: Any) -> dict[str, Any]:
    class Raw(psycopg.adapt.Loader):
        def load(self, data: Any) -> bytes:
            return bytes(data)

    for name in ("text", "varchar", "int8", "bool"):
        connection.adapters.register_loader(name, Raw)
    return {}


CUSTOMS: dict[tuple[str, str], Callable[[Any], dict[str, Any]]] = {
    ("sqlite", "rows by name"): _set(row_factory=sqlite3.Row),
    ("sqlite", "bytes for text"): _set(text_factory=bytes),
    ("sqlite", "cursors of their own"): _set(row_factory=lambda *_: None),
    ("postgresql", "rows by name"): _set(row_factory=dict_row),
    ("postgresql", "bytes for text"): _reads_text_as_bytes,
    ("postgresql", "cursors of their own"): _set(cursor_factory=_Odd),
}


def test_what_is_no_connection_of_a_driver_is_refused_with_what_goes_instead(place: Place) -> None:
    outbox = place.outbox()

    with pytest.raises(TypeError, match=r"got str; a Session or Connection of SQLAlchemy goes with: outbox\.enqueue"):
        outbox.enqueue_dbapi("shop.db", "enos", event("a"))
    with place.engine.connect() as connection, pytest.raises(TypeError, match="got Connection"):
        outbox.enqueue_dbapi(connection, "enos", event("a"))


def test_a_transaction_that_never_commits_wakes_nobody_and_leaves_nothing_behind(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(), connect()
    with Worker(outbox, poll=60):
        outbox.enqueue_dbapi(connection, "enos", event("never"), key="never")
        connection.rollback()
        outbox.enqueue_dbapi(connection, "enos", event("a"), key="a")
        connection.commit()

        place.receiver.wait_for(lambda each: len(each.accepted) == 1, 30)
        eventually(lambda: states(place.database) == {"a": State.DELIVERED})


class Watched(sqlite3.Connection):
    """One that a weak reference may be made to."""


def test_every_message_begins_with_a_write_so_that_no_other_writer_locks_it_out(sqlite_place: Place) -> None:
    """A transaction of SQLite's that reads first cannot write any more when somebody else did so in between."""
    outbox = sqlite_place.outbox()
    heard: list[str] = []
    with contextlib.closing(driver_connection(sqlite_place.url, factory=Watched, isolation_level=None)) as connection:
        for _ in range(2):
            connection.execute("BEGIN")
            connection.set_trace_callback(heard.append)
            outbox.enqueue_dbapi(connection, "enos", event("a"))
            connection.set_trace_callback(None)
            connection.execute("COMMIT")
            first, *_ = heard
            heard.clear()
            assert first.startswith(("UPDATE", "INSERT"))


def test_hooks_are_not_told_of_what_nobody_can_know_to_be_committed(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(), connect()
    heard: list[News] = []
    outbox.on_enqueued(heard.append)

    outbox.enqueue_dbapi(connection, "enos", event("a"), key="a")
    connection.rollback()
    outbox.enqueue_dbapi(connection, "enos", event("b"), key="b")
    connection.commit()
    place.enqueue(outbox, "c")

    assert (["c"], {"b", "c"}) == ([each.key for each in heard], set(states(place.database)))


def test_nothing_holds_a_connection_that_its_owner_lets_go(sqlite_place: Place) -> None:
    outbox, connection = sqlite_place.outbox(), driver_connection(sqlite_place.url, factory=Watched)
    outbox.enqueue_dbapi(connection, "enos", event("a"), key="a")
    connection.commit()
    connection.close()
    watched = weakref.ref(connection)

    del connection
    gc.collect()

    assert watched() is None


def test_an_error_of_the_database_comes_in_our_words(sqlite_place: Place) -> None:
    outbox = sqlite_place.outbox()
    with contextlib.closing(driver_connection(sqlite_place.url)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(OutOfRoom, match="max_page_count"):
            outbox.enqueue_dbapi(connection, "enos", event("a"))


def test_a_connection_that_would_lose_a_commit_is_refused_where_that_was_asked(place: Place, connect: Connect) -> None:
    outbox, connection = place.outbox(durability="strict"), connect()
    careless = {"sqlite": "PRAGMA synchronous = OFF", "postgresql": "SET synchronous_commit = off"}
    connection.execute(careless[place.database.kind])
    connection.commit()

    for _ in range(2):
        with pytest.raises(NotDurable):
            outbox.enqueue_dbapi(connection, "enos", event("a"))
    connection.rollback()


def test_a_second_outbox_and_a_second_thread_borrow_their_own(place: Place, connect: Connect, tmp_path: Any) -> None:
    """There is one engine for each driver, whoever enqueues."""
    one, other = place.outbox(), an_outbox(place.url, place.spool, enos(name="other"))
    connection = connect()

    one.enqueue_dbapi(connection, "enos", event("a"), key="a")
    other.enqueue_dbapi(connection, "other", event("b"), key="b")
    connection.commit()

    assert {"a", "b"} == set(states(place.database))
    other.close()
