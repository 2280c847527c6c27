"""Whoever waits to write to SQLite gets in when the lock is free, however short that is, and however busy the other is."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from outbox import prepare


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    return tmp_path / "app.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = prepare(create_engine(f"sqlite:///{path}"))
    yield engine
    engine.dispose()


class Hog:
    """Somebody who hardly lets go of the write lock: for 20 ms at a time, and never when SQLite itself would look first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self.has_it = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.gaps = 0

    def __enter__(self) -> Hog:
        self._thread.start()
        assert self.has_it.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, timeout=60, isolation_level=None)) as connection:
            while not self._stop.is_set():
                connection.execute("BEGIN IMMEDIATE")
                self.has_it.set()
                self._stop.wait(0.24)
                self.has_it.clear()
                connection.execute("ROLLBACK")
                self.gaps += 1
                self._stop.wait(0.02)


@contextlib.contextmanager
def lock_in_hand(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def insert(connection: Connection) -> None:
    connection.execute(text("INSERT INTO orders DEFAULT VALUES"))


def begins_explicitly(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def leave_it_to_us(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.mark.parametrize("how", ["as the driver begins", "with a BEGIN of its own", "many rows at once"])
def test_a_producer_beside_somebody_who_hardly_lets_go_needs_a_gap_or_two_for_each_commit(
    engine: Engine, path: Path, how: str
) -> None:
    if how == "with a BEGIN of its own":
        begins_explicitly(engine)
    commits = 3
    with Hog(path) as hog:
        for number in range(commits):
            assert hog.has_it.wait(10)
            with engine.begin() as connection:
                if how == "many rows at once":
                    rows = [{"id": 1000 * number + each} for each in range(1, 4)]
                    connection.execute(text("INSERT INTO orders (id) VALUES (:id)"), rows)
                else:
                    insert(connection)

    assert hog.gaps <= 2 * commits


def test_patience_ends_when_the_callers_own_busy_timeout_does(path: Path) -> None:
    engine = prepare(create_engine(f"sqlite:///{path}"))

    @event.listens_for(engine, "connect")
    def hurry(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA busy_timeout = 50")

    with (
        lock_in_hand(path),
        engine.connect() as connection,
        connection.begin(),
        pytest.raises(OperationalError, match="database is locked"),
    ):
        insert(connection)
    engine.dispose()


def test_a_connection_waits_for_everything_else_as_before(engine: Engine) -> None:
    with engine.begin() as connection:
        insert(connection)
        patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()

    assert patience == 60_000


def test_what_was_read_before_somebody_else_wrote_is_refused_at_once(engine: Engine, path: Path) -> None:
    begins_explicitly(engine)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT * FROM orders")).all()
        with lock_in_hand(path) as other:
            other.execute("INSERT INTO orders DEFAULT VALUES")
            other.execute("COMMIT")

        with pytest.raises(OperationalError) as refused:
            insert(connection)

    assert isinstance(refused.value.orig, sqlite3.OperationalError)
    assert refused.value.orig.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"


def test_a_fault_that_is_no_lock_comes_through(engine: Engine) -> None:
    with engine.connect() as connection, connection.begin(), pytest.raises(OperationalError, match="no such table"):
        connection.execute(text("INSERT INTO nowhere DEFAULT VALUES"))
