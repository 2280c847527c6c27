"""Somebody else's DB-API connection, lent to us for some statements: they join its transaction, and it is left as it was."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypedDict
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.pool import NullPool

from outbox.errors import ConfigurationError, OutOfRoom
from outbox.model import FileSource, Lane

_BEGIN_FIRST = (
    "this connection has no transaction, and would commit a message by itself: begin one first; with sqlite3 execute BEGIN "
    "IMMEDIATE, with psycopg use connection.transaction(), in Django transaction.atomic()"
)
_OUT_OF_THE_PIPELINE = (
    "this connection is in pipeline mode, where no statement is answered at once: leave connection.pipeline() first"
)
#: From a cursor, through what a framework puts around it, to the connection: no more steps than so many.
_STEPS = 5


class Options(TypedDict, total=False):
    """What `enqueue_dbapi` takes beside the payload: the same as `enqueue`."""

    files: Mapping[str, FileSource] | None
    key: str | None
    ordering_key: str | None
    ordered: bool | None
    due_at: datetime | None
    expires_at: datetime | None
    lane: Lane | str | None
    traceparent: str | None


@contextlib.contextmanager
def lent(given: Any) -> Iterator[Connection]:
    """SQLAlchemy's view of a DB-API connection, or of a cursor's: of sqlite3, or psycopg 3, or what Django puts around them.

    What is executed on it is part of the transaction that is there, which only its owner commits or rolls back. Raises
    ConfigurationError where there is none, and in psycopg's pipeline mode, and TypeError for anything else.
    """
    driver, kind = _driver_of(given)
    if not kind.in_transaction(driver):
        raise ConfigurationError(_BEGIN_FIRST)
    under_way = getattr(driver, "in_transaction", False)  # of SQLite's: with something of its owner's in it
    with kind.plain(driver) as cursor:
        _handed.over = _Lent(driver, cursor)
        try:
            connection = _engine(kind.url).connect()
        finally:
            _handed.over = None
        try:
            connection.info.update(_remembered(driver))
            yield connection
            _remembered(driver).update({name: connection.info[name] for name in _REMEMBER if name in connection.info})
        except OutOfRoom:
            if under_way and connection.invalidated:  # SQLite has rolled back: what came before is not to be committed in part
                driver.close()
            raise
        finally:
            connection.close()


class _Lent:
    """A connection that ends no transaction and cannot be closed, with cursors as they come, whatever its owner has set."""

    autocommit = False  # there is a transaction

    def __init__(self, driver: Any, cursor: Callable[[], Any]) -> None:
        self._driver = driver
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def cursor(self) -> Any:
        return self._cursor()

    def commit(self) -> None:
        """Its owner does that."""

    rollback = close = commit


_handed = threading.local()


@functools.cache
def _engine(url: str) -> Engine:
    """One for each driver, for what SQLAlchemy has compiled. Without what `create_engine` does to a connection that is new."""
    address = make_url(url)
    made: Any = address.get_dialect()
    dialect = made(dbapi=made.import_dbapi())
    # What SQLAlchemy asks a server when it first meets it; all that we write with has been the same for long.
    return Engine(NullPool(lambda: _handed.over, reset_on_return=None), dialect, address, hide_parameters=True)


#: What need not be found out again for each message: how durable a session is, and whether its database may grow. Nothing that
#: belongs to a transaction; and both or none: asking for the first is what begins to write, before the second is read.
_REMEMBER = ("outbox.power_safe", "outbox.pages_limited")
_known: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def _remembered(driver: Any) -> dict[str, Any]:
    try:
        return _known.setdefault(driver, {})
    except TypeError:  # one of sqlite3, where it costs nothing to ask again
        return {}


class _Kind(NamedTuple):
    """A driver: its address for SQLAlchemy, whether a transaction is there or begins by itself, and its plain cursors."""

    url: str
    in_transaction: Callable[[Any], bool]
    plain: Callable[[Any], contextlib.AbstractContextManager[Callable[[], Any]]]


def _driver_of(given: Any) -> tuple[Any, _Kind]:
    """The connection of the driver's, and its kind. Raises TypeError for what is none."""
    psycopg = sys.modules.get("psycopg")  # whoever has a connection of it has imported it
    server: Any = getattr(psycopg, "Connection", ())
    found = given
    for _ in range(_STEPS):
        if isinstance(found, sqlite3.Connection):
            return found, _SQLITE
        if isinstance(found, server):
            return found, _PSYCOPG
        if type(found).__module__.startswith("sqlalchemy."):
            break
        found = getattr(found, "connection", None)
    if found is None and hasattr(given, "ensure_connection"):  # Django's, before its first statement
        raise ConfigurationError(_BEGIN_FIRST)
    raise TypeError(
        f"expected a cursor or connection of sqlite3 or psycopg 3, or Django's, got {type(given).__name__}; "
        "a Session or Connection of SQLAlchemy goes with: outbox.enqueue(…)"
    )


def _sqlite_in_transaction(driver: sqlite3.Connection) -> bool:
    by_itself = driver.isolation_level is not None and getattr(driver, "autocommit", False) is not True
    return driver.in_transaction or by_itself


@contextlib.contextmanager
def _plain_sqlite(driver: sqlite3.Connection) -> Iterator[Callable[[], Any]]:
    def cursor() -> sqlite3.Cursor:
        made = driver.cursor()
        made.row_factory = None
        return made

    read_as, driver.text_factory = driver.text_factory, str
    try:
        yield cursor
    finally:
        driver.text_factory = read_as


def _server_in_transaction(driver: Any) -> bool:
    if driver.info.pipeline_status:  # we would take a row that is on its way for none, and go on
        raise ConfigurationError(_OUT_OF_THE_PIPELINE)
    idle = driver.info.transaction_status == sys.modules["psycopg"].pq.TransactionStatus.IDLE
    return not (driver.autocommit and idle)


@contextlib.contextmanager
def _plain_server(driver: Any) -> Iterator[Callable[[], Any]]:
    yield functools.partial(_plain_cursor(), driver)


@functools.cache
def _plain_cursor() -> Any:
    """Cursors of psycopg as it has them, whatever row factory, cursor class and types its connection was given."""
    from psycopg import Cursor, adapters
    from psycopg.adapt import AdaptersMap
    from psycopg.rows import tuple_row

    class Plain(Cursor[Any]):
        def __init__(self, connection: Any) -> None:
            super().__init__(connection, row_factory=tuple_row)
            self._adapters = AdaptersMap(adapters)

    return Plain


_SQLITE = _Kind("sqlite://", _sqlite_in_transaction, _plain_sqlite)
_PSYCOPG = _Kind("postgresql+psycopg://", _server_in_transaction, _plain_server)
