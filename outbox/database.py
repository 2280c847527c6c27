"""Opening a database and caring for it; this file and `dialects` alone know which one it is."""

from __future__ import annotations

import contextlib
import operator
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakSet

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Text,
    bindparam,
    create_engine,
    event,
    func,
    literal,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from outbox import nudging
from outbox.ambient import uuid7
from outbox.errors import ConfigurationError, DatabaseDamaged, OutOfRoom, SchemaError
from outbox.nudging import FileNudges, Nudges, ServerNudges
from outbox.secret import remember
from outbox.waiting import comes_free, look_often

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

AnyEngine = TypeVar("AnyEngine", Engine, "AsyncEngine")

#: Seconds a SQLite writer waits for its turn.
_BUSY_TIMEOUT = 60
#: Seconds that a Postgres transaction of ours may stand still; ours never pause for as long.
_IDLE_TIMEOUT = 10
#: Seconds that a Postgres server may take to let us in, unless the URL or PGCONNECT_TIMEOUT say something else: its own drivers
#: wait for minutes, or for ever, where a machine takes a connection and says nothing.
_CONNECT_TIMEOUT = 10
#: A server that has lost its power, or a network that has forgotten us, says nothing any more: noticed after a minute, and not
#: after the quarter of an hour or the two hours that systems take. Seconds, but the last: milliseconds.
_UNTIL_NOTICED = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
#: What we ask of a session, and what of a transaction where a pooler gives each of them another session.
_ASKED = (
    "SELECT set_config('idle_in_transaction_session_timeout', '{seconds}s', {only_now}), "
    "CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', {only_now}) END"
)
_ASKED_OF_SESSION = _ASKED.format(seconds=_IDLE_TIMEOUT, only_now="false")
_ASKED_OF_TRANSACTION = _ASKED.format(seconds=_IDLE_TIMEOUT, only_now="true")
#: What a connection of the driver's remembers: that a pooler stands between it and the server.
_POOLED = "outbox.pooled"
#: And which destinations a Postgres transaction has notified of, with the transaction.
_NOTIFIED = "outbox.notified"
#: And which outbox's database it was found to be on.
_BESIDE = "outbox.beside"
#: The dialects of engines whose savepoints are part of a transaction; an engine and those made of it share theirs.
_well_begun: WeakSet[Dialect] = WeakSet()
#: Workers checkpoint far more often than this; it only bounds the WAL (about 80 MB) while none is running. SQLite before
#: 3.51.3 can lose a race between two checkpointers, so in the normal course of things there is only one.
_AUTOCHECKPOINT_PAGES = 20_000


#: A WAL with more bytes is emptied even if others wait for a moment, and how many seconds they do at most.
_WAL_KEPT = 64 * 1024 * 1024
_MOMENT = 0.25
#: SQLite's codes: full; damaged, or no database at all; and what it may say instead of full: I/O error, cannot open.
_FULL = 13
_CORRUPT = (11, 26)
_PERHAPS_FULL = (10, 14)
#: Bytes of free disk that count as none.
_NOTHING_LEFT = 256 * 1024
#: Pages that SQLite allows where nobody has set a limit; older versions have the lower one.
_ENDLESS = 2**30 - 1
_INCREMENTAL = 2
_NOT_THERE = (
    "there is no database {path}; if there was one, look first whether its disk is mounted; "
    "if there was none: outbox init, or outbox db upgrade"
)
_GONE = (
    "the database {path} was deleted or replaced while it was in use; nothing was put in its place: "
    "restore a copy if it is gone, and start what uses it again"
)


def connect(url: str | URL) -> Engine:
    """An engine of our own for a database URL.

    SQLite: WAL with synchronous=FULL, so that a commit survives a power cut, and transactions that take the write lock when
    they begin, so that a transaction never fails halfway with "database is locked". Postgres: any driver of SQLAlchemy's.
    Raises ConfigurationError for a URL that is none, or for another database; SchemaError when there is no such SQLite file:
    a database that is gone is never replaced by an empty one.
    """
    url = parsed(url)
    name = url.get_backend_name()
    if name == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ConfigurationError("an outbox needs a database file: a SQLite database in memory is lost with its process")
        # One connection is the process's place in the queue for SQLite's write lock: threads wait for it in turn, instead of
        # racing each other through the busy handler, which is not fair.
        if not url.database.startswith("file:") and not Path(url.database).exists():
            raise SchemaError(_NOT_THERE.format(path=url.database))
        engine = create_engine(url, hide_parameters=True, pool_size=1, max_overflow=0, pool_timeout=2 * _BUSY_TIMEOUT)
        _open_only(engine)
        _begin_with(engine, "BEGIN IMMEDIATE")
        prepare(engine)
        return engine
    if name == "postgresql":
        try:
            engine = create_engine(
                url,
                hide_parameters=True,
                isolation_level="READ COMMITTED",
                pool_pre_ping=True,
                pool_size=10,
                max_overflow=20,
                connect_args=_impatient(url),
            )
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"the driver of {url.drivername} is not installed ({error.name}); write postgresql+psycopg:// and "
                "pip install 'durable-outbox[postgres]'"
            ) from None
        _set_sessions_up(engine)
        return engine
    raise ConfigurationError(f"expected a SQLite or Postgres database, got {name!r}")


def parsed(url: str | URL) -> URL:
    """A database URL in its parts. Raises ConfigurationError, without repeating it: it may hold a password."""
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "cannot read the database URL; expected something like sqlite:///outbox.db or postgresql+psycopg://user@host/name, "
            "with @ : / in a password written as %40 %3A %2F"
        ) from None
    if "@" in (found.host or ""):  # what is behind the first one is taken for the host, and would be shown as that
        raise ConfigurationError("the database URL has an @ too many; in a password write it as %40")
    return found


def _create_privately(path: Path) -> None:
    """A new database file is its owner's alone; the files that SQLite puts beside it follow its mode.

    It appears complete: in WAL mode, and able to give purged pages back, which can only be said before the first table.
    """
    if path.exists():
        return
    unfinished = path.with_name(f".{path.name}.{uuid7()}")
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            with contextlib.closing(sqlite3.connect(unfinished)) as connection:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
            try:
                path.hardlink_to(unfinished)  # and not a rename: somebody else may have been faster
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot create the database {path}: {error.strerror}") from None


def prepare(engine: AnyEngine) -> AnyEngine:
    """Set up a caller's own engine, or AsyncEngine, so that what it commits survives a power cut; returns it.

    On SQLite each new connection gets WAL, synchronous=FULL, a patient busy timeout and foreign keys, and looks often
    whether it is its turn to write. How transactions begin is not changed: readers stay readers. On Postgres
    there is nothing to do.
    """
    _prepared(_beneath(engine))
    return engine


def _beneath(given: Engine | AsyncEngine) -> Engine:
    """The engine that does the work of an asynchronous one, or itself."""
    return given if isinstance(given, Engine) else given.sync_engine


#: The drivers that are awaited, and those of the same databases that we work with ourselves.
_BLOCKING = {
    "sqlite+aiosqlite": "sqlite",
    "postgresql+asyncpg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
}


#: What asyncpg takes in a URL that libpq knows, too, under its own names. The rest is about how it works, and not about where.
_OF_ASYNCPG = {each: each for each in ("host", "port", "passfile", "service", "target_session_attrs", "krbsrvname", "gsslib")}
_OF_ASYNCPG |= {"ssl": "sslmode", "timeout": "connect_timeout"}


def _blocking(url: URL) -> URL:
    """The same database by a driver that blocks: workers have threads, and no event loop."""
    if url.drivername == "postgresql+asyncpg":
        url = url.set(query={_OF_ASYNCPG[name]: value for name, value in url.query.items() if name in _OF_ASYNCPG})
    return url.set(drivername=_BLOCKING.get(url.drivername, url.drivername))


def _prepared(engine: Engine, *, reads: bool = False) -> Engine:
    """The same; one that only `reads` leaves a file alone that is empty, and would be a database from then on."""
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def set_up(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT * 1000}")
            if not (reads and _is_empty(Path(engine.url.database or ""))):
                # Whoever only reads does without, where a caller of ours has begun to write to one that has another mode.
                with contextlib.suppress(sqlite3.OperationalError) if reads else contextlib.nullcontext():
                    cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = ON")
            cursor.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}")
            cursor.execute("PRAGMA journal_size_limit = 67108864")
            cursor.close()

        @event.listens_for(engine, "savepoint")
        def begin_first(connection: Connection, _name: str) -> None:
            # The driver begins no transaction for a savepoint: as the first act, releasing it would commit what is in it.
            driver: Any = connection.connection.driver_connection
            if not driver.in_transaction:
                connection.exec_driver_sql("BEGIN")

        _well_begun.add(engine.dialect)
        look_often(engine)
        engine.dispose()
    return engine


def _reading(engine: Engine) -> Engine:
    """An engine for what only reads. SQLite's readers have connections of their own: a writer that waits has ours."""
    if engine.dialect.name != "sqlite":
        return engine
    readers = create_engine(engine.url, hide_parameters=True, pool_size=4, max_overflow=8)
    _open_only(readers)
    _begin_with(readers, "BEGIN")
    return _prepared(readers, reads=True)


def _is_empty(path: Path) -> bool:
    """Whether it is a file without a byte, as `touch` and a crash leave it."""
    return path.is_file() and path.stat().st_size == 0


#: Text as it is in the database; a damaged one too, which must not hold up all the others. Called for each text that is read.
_any_text = operator.methodcaller("decode", "utf-8", "surrogateescape")


@contextmanager
def _as_a_statement(words: str) -> Iterator[None]:
    """What the driver raises, as SQLAlchemy would have raised it."""
    try:
        yield
    except sqlite3.Error as error:
        raise DBAPIError(words, None, error, hide_parameters=True) from error


def _open_only(engine: Engine) -> None:
    """SQLite puts an empty database where one was deleted; a connection of ours never does."""

    @event.listens_for(engine, "do_connect")
    def open_what_is_there(_dialect: Any, _record: Any, args: Any, named: dict[str, Any]) -> None:
        if named.get("uri") or not args:
            return  # whoever writes the URI says how it is opened
        path = Path(args[0])
        if not path.exists():
            raise DatabaseDamaged(_GONE.format(path=path))
        args[0] = f"{path.as_uri()}?mode=rw"
        named["uri"] = True


def _begin_with(engine: Engine, words: str) -> None:
    @event.listens_for(engine, "connect")
    def hand_over(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver leaves transactions to us
        connection.text_factory = _any_text

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(words)


def _impatient(url: URL) -> dict[str, Any]:
    """For how long the drivers on libpq wait, as far as the URL says nothing of it; others call it something else."""
    if url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    ours = _UNTIL_NOTICED if "PGCONNECT_TIMEOUT" in os.environ else _UNTIL_NOTICED | {"connect_timeout": _CONNECT_TIMEOUT}
    return {name: value for name, value in ours.items() if name not in url.query}


def _set_sessions_up(engine: Engine) -> None:
    """What our transactions ask of a Postgres server, of each session once; nothing is left in one that is not ours alone.

    The server ends those that stand still: a stopped or unplugged worker would keep its locks for as long. And none is
    answered before it is on the disk, whatever the server's default: a claim that it forgot would be sent twice.
    """

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT pg_backend_pid()")
        pooled = record.info[_POOLED] = _promised_pid(connection) not in (None, cursor.fetchone()[0])
        if pooled and hasattr(connection, "prepare_threshold"):
            connection.prepare_threshold = None  # psycopg's: what one session prepared, the next does not know
        elif not pooled:
            cursor.execute(_ASKED_OF_SESSION)
        cursor.close()
        connection.commit()

    @event.listens_for(engine, "begin")
    def set_up_again(connection: Connection) -> None:
        if connection.info.get(_POOLED):
            connection.exec_driver_sql(_ASKED_OF_TRANSACTION)


def _is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between a connection that we did not make and the server."""
    served_by = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    return _promised_pid(connection.connection.dbapi_connection) not in (None, served_by)


def _promised_pid(connection: Any) -> int | None:
    """The process that serves a connection, as it was told when it was made; a pooler has to make that up."""
    return getattr(getattr(connection, "info", None), "backend_pid", None)


class Pages(NamedTuple):
    """The pages of a SQLite database; sizes in bytes."""

    size: int  #: of one
    used: int  #: how many there are, those included that are free
    free: int  #: how many of them hold nothing
    most: int  #: how many there may be
    shrinks: bool  #: free ones can be given back in small steps

    @property
    def limited(self) -> bool:
        """Whether somebody has limited them; else only the disk does."""
        return self.most < _ENDLESS

    @property
    def room(self) -> int:
        """Bytes that may still come."""
        return (self.most - self.used + self.free) * self.size


class Holder(NamedTuple):
    """A transaction, or what else keeps Postgres from vacuuming what was deleted since it began."""

    what: str  #: in words: its process, application, user and state, or the name of a prepared one
    seconds: float  #: how long it has been open


class Database:
    """Our engine on one database, opened when it is first used and dropped in a forked child.

    Given a caller's engine, a SQLite database is opened anew, since how transactions begin is a matter of the engine; a
    Postgres engine is used as it is, unless it is an asynchronous one.
    """

    def __init__(self, given: str | URL | Engine | AsyncEngine) -> None:
        self._lent: Engine | None = None
        if isinstance(given, Engine) and given.dialect.name == "postgresql" and not given.dialect.is_async:
            # What a caller says about isolation is for the caller: ours counts on locks that last until COMMIT, and on seeing
            # what was committed while one was waited for.
            self._lent = given.execution_options(isolation_level="READ COMMITTED")
        self._url = _blocking(parsed(given) if isinstance(given, str | URL) else given.url)
        self._path = _path_of(self._url)
        for each in (self._url.password, *(value for name, value in self._url.query.items() if "password" in name)):
            if each is not None:
                remember(str(each), lasting=True)
        self._engine: Engine | None = None
        self._reader: Engine | None = None
        self._file: tuple[int, int] | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Database({self._url.set(query={}).render_as_string(hide_password=True)})"

    @property
    def engine(self) -> Engine:
        if self._engine is None or self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    # The pool's connections are the parent's: using or closing them here would corrupt its work.
                    for inherited in (self._engine, self._reader, self._lent):
                        if inherited is not None:
                            inherited.dispose(close=False)
                    self._engine = self._reader = None
                    self._pid = os.getpid()
                if self._engine is None:
                    self._engine = self._lent or connect(self._url)
                    self._reader = _reading(self._engine)
                    nudging.is_ours(self._engine)
        return self._engine

    def create(self) -> None:
        """SQLite: make the file if there is none, for its owner alone. Elsewhere nothing."""
        path = self._url.database
        if self._url.get_backend_name() == "sqlite" and path and path != ":memory:" and not path.startswith("file:"):
            _create_privately(Path(path))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One short transaction: committed at the end, rolled back on an exception.

        Raises OutOfRoom when the database or its disk is full, and DatabaseDamaged when it is damaged, or not the one any more
        that was opened.
        """
        with self._watched(), self.engine.begin() as connection:
            self._same_file()
            known = connection.info
            yield connection
        nudging.tell(known, self._path)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that only reads: on SQLite it waits for no writer and makes none wait, not even ours.

        Also for one whose first statement is a write, which is when it takes SQLite's write lock: as a caller's own does.
        """
        with self._watched(), self._connected() as connection, connection.begin():
            self._same_file()
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """As `read`, with statements that all see one moment: for several that are only true together."""
        with self._watched(), self._connected() as connection:
            if self.kind == "postgresql":  # on SQLite every transaction sees one
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                self._same_file()
                yield connection

    def _connected(self) -> Connection:
        engine = self.engine
        return (self._reader or engine).connect()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if (known := in_our_words(error, self.path)) is not None:
                raise known from error
            raise

    def _same_file(self) -> None:
        """Raises DatabaseDamaged when another file, or none, is where the database was when it was opened."""
        path = self.path
        if path is None:
            return
        try:
            found = path.stat()
        except OSError:
            raise DatabaseDamaged(_GONE.format(path=path)) from None
        if self._file is None:
            self._file = (found.st_dev, found.st_ino)
        if self._file != (found.st_dev, found.st_ino):
            raise DatabaseDamaged(_GONE.format(path=path))

    def checkpoint(self, *, shrink: bool = False) -> None:
        """SQLite: move the WAL into the database file without making anyone wait. Elsewhere nothing.

        A WAL that has grown all the same, since somebody always reads or writes, is emptied in a moment that others wait for;
        with `shrink` it always is, so that its disk is free again.
        """
        path = self.path
        if path is None or self._lent is not None:
            return
        with self._watched():
            self._checkpoint("PASSIVE", _BUSY_TIMEOUT)
            if shrink or wal_of(path) > _WAL_KEPT:
                self._checkpoint("TRUNCATE", _MOMENT)

    def _checkpoint(self, how: str, patience: float) -> None:
        with self.engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            driver.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}")
            try:
                with _as_a_statement(f"wal_checkpoint({how})"):
                    driver.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
            finally:
                driver.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT * 1000}")

    def takes_writers(self, within: float) -> bool:
        """SQLite: whether a writer would get its turn within so many seconds; nothing is written. Elsewhere True."""
        path = self.path
        if path is None:
            return True
        with self._watched(), _as_a_statement("BEGIN IMMEDIATE"):
            return comes_free(path, within)

    def pages(self) -> Pages | None:
        """SQLite: the pages of the database, as a connection of ours that writes may use them. Elsewhere None."""
        if self.kind != "sqlite":
            return None
        with self._watched(), self.engine.connect() as connection:
            return pages_of(connection)

    def give_back(self, pages: int) -> None:
        """SQLite: return up to so many pages that are free to the file system, at the next checkpoint. Elsewhere nothing.

        Only a database that was created by us can, or one with `auto_vacuum = INCREMENTAL`.
        """
        if self.kind != "sqlite":
            return
        # As a script: it makes a step for each page, and of a statement without columns Python makes only one.
        with self._watched(), self.engine.connect() as connection:
            self._same_file()
            driver: Any = connection.connection.dbapi_connection
            with _as_a_statement(f"incremental_vacuum({pages})"):
                driver.executescript(f"PRAGMA incremental_vacuum({pages})")

    def oldest_transaction(self) -> Holder | None:
        """Postgres: who has kept deleted rows from being vacuumed for longest. Elsewhere None, and None when nobody does.

        Without the role pg_read_all_stats, only the sessions of our own user tell what they are.
        """
        if self.kind != "postgresql":
            return None
        with self.read() as connection:
            row = connection.execute(_OLDEST).one_or_none()
        return None if row is None else Holder(row.what, float(row.seconds))

    @property
    def url(self) -> URL:
        """Where it is, for an engine of the caller's own. It holds the password, which `str` hides."""
        return self._url

    @property
    def path(self) -> Path | None:
        """The file of a SQLite database; None elsewhere."""
        return None if self._path is None else Path(self._path)

    def require_same(self, connection: Connection) -> None:
        """Raises ConfigurationError when a caller's SQLite database is not this one; asked once for each connection."""
        known: dict[str, Any] = connection.info
        if self._path is None or known.get(_BESIDE) == self._path:
            return
        there = None if connection.dialect.name != "sqlite" else _path_of(connection.engine.url)
        if there not in (None, self._path) and Path(there).exists() and not Path(self._path).samefile(there):
            raise ConfigurationError(
                f"this transaction is on the database {there}, and the outbox on {self._path}: a message there would never be "
                "delivered; give both the same database"
            )
        known[_BESIDE] = self._path

    def nudges(self) -> Nudges | None:
        """Where to wait for nudges; None where none can come. Whoever waits there closes it."""
        if self.kind == "postgresql":
            engine = self.engine
            listens = engine.dialect.driver == "psycopg" and isinstance(engine.pool, QueuePool | NullPool)
            return ServerNudges(lambda: self._listener(engine)) if listens else None
        return None if self._path is None else FileNudges(self._path, self._version)

    def _version(self) -> tuple[tuple[int, int], int]:
        """What changes when somebody else has written, and what when we have, as the connection sees it that we write with."""
        ours = self.engine.raw_connection()
        try:
            driver: Any = ours.dbapi_connection
            return (id(driver), driver.execute("PRAGMA data_version").fetchone()[0]), driver.total_changes
        finally:
            ours.close()

    def _listener(self, engine: Engine) -> tuple[Any, Callable[[], None]] | None:
        """A connection that is in no pool, and what closes it; None behind a pooler, which gives nobody a session to keep."""
        connection = engine.connect()
        try:
            pooled = connection.info[_POOLED] if _POOLED in connection.info else _is_pooled(connection)
            connection.rollback()
            if pooled:
                connection.close()
                return None
            connection.detach()
            driver: Any = connection.connection.dbapi_connection
            driver.autocommit = True
        except BaseException:
            connection.close()
            raise
        return driver, connection.close

    @contextmanager
    def inspecting(self) -> Iterator[Engine]:
        """An engine for looking at what may be damaged: it changes nothing, and reads any text, whatever its bytes.

        Ours would not do: closing the last connection to a SQLite database moves its WAL into it.
        """
        path = self.path
        if path is None:
            yield self.engine.execution_options(postgresql_readonly=self.kind == "postgresql")
            return
        if not path.exists():
            raise SchemaError(_NOT_THERE.format(path=path))
        query = {"mode": "ro", "uri": "true"}
        url = URL.create("sqlite", database=path.as_uri().replace("file://", "file:", 1), query=query)
        engine = create_engine(url, hide_parameters=True, connect_args={"timeout": _BUSY_TIMEOUT})
        _begin_with(engine, "BEGIN")

        try:
            yield engine
        finally:
            engine.dispose()

    def close(self) -> None:
        """Close every connection of ours; those of a caller's engine are the caller's."""
        for ours in (self._engine, self._reader):
            if ours is not None and ours is not self._lent:
                ours.dispose(close=self._pid == os.getpid())
        self._engine = self._reader = self._file = None

    @property
    def exhausted(self) -> bool:
        """Whether a look would have to wait for callers, who have all the connections of the engine that they lent us."""
        pool: Any = None if self._lent is None else self._lent.pool
        most = getattr(pool, "_max_overflow", -1)  # SQLAlchemy tells it nowhere else
        return isinstance(pool, QueuePool) and most >= 0 and pool.checkedout() >= pool.size() + most

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._url.get_backend_name()

    @property
    def writers(self) -> int:
        """How many transactions that write are worth having at once: on SQLite each waits for the one before anyhow."""
        return 1 if self.kind == "sqlite" else 2


def _path_of(url: URL) -> str | None:
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name == ":memory:" or name.startswith("file:"):
        return None
    return str(Path(name).absolute())


def nudge_at_commit(connection: Connection, name: str, *, said: bool = False) -> None:
    """Let workers know, when this transaction commits, that it has something for a destination. Costs next to nothing.

    On Postgres once for each transaction and destination, after which the transaction cannot be prepared for a commit in two
    phases; nothing is sent if an INSERT has `said` so.
    """
    if connection.dialect.name != "postgresql":
        nudging.mark(connection, lambda: _path_of(connection.engine.url), name)
    elif said or not _is_said(connection, name):
        if not said:
            connection.execute(_NOTIFY, {"name": name})
        known: dict[str, Any] = connection.info
        transaction, (said_in, names) = _innermost(connection), known.get(_NOTIFIED, (None, frozenset()))
        known[_NOTIFIED] = (transaction, names | {name} if said_in is transaction else {name})


def insert_may_nudge(connection: Connection, name: str) -> bool:
    """Whether a nudge is due in this transaction that an INSERT can say with its `nudging_column`."""
    return connection.dialect.name == "postgresql" and not _is_said(connection, name)


def _is_said(connection: Connection, name: str) -> bool:
    said_in, names = connection.info.get(_NOTIFIED, (None, frozenset()))
    return name in names and said_in is _innermost(connection)


def _innermost(connection: Connection) -> Any:
    """The transaction, or a savepoint in it: what that took back with it was not said."""
    return connection.get_nested_transaction() or connection.get_transaction()


def nudging_column(name: str) -> ColumnElement[Any]:
    """What an INSERT on Postgres may return so that it nudges the destination in its parameter `name` by itself.

    In a query of its own it is said once, and only if there is a row.
    """
    said = func.pg_notify(literal(nudging.CHANNEL, Text), bindparam(name, type_=Text))
    return select(said).scalar_subquery().label("nudged")


_NOTIFY = text("SELECT pg_notify(:channel, :name)").bindparams(channel=nudging.CHANNEL)


def begin_to_write(connection: Connection) -> None:
    """SQLite: let a caller's transaction begin, if it has not, since the driver begins none for a change of the schema.

    Raises ConfigurationError on a connection that commits each statement by itself.
    """
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        if not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    _require_transaction(connection, "a migration that fails would stay half done")


def lock_for_migration(connection: Connection) -> None:
    """Nobody else migrates this database before the transaction ends. SQLite's write lock is ours already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7814920365110)"))


def not_power_safe(connection: Connection, take_write_lock: Any) -> str | None:
    """Why a commit on this connection might not survive a power cut, and the remedy; None when it does.

    Asked once for each connection of the driver's: it remembers. On SQLite `take_write_lock`, a statement that writes nothing,
    goes first: a transaction that begins by reading could fail with "database is locked" at its first write.
    """
    known: dict[str, Any] = connection.info
    _require_transaction(connection)
    if "outbox.power_safe" not in known:
        if connection.dialect.name == "sqlite":
            connection.execute(take_write_lock)
            journal = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar()).lower()
            synchronous = int(connection.exec_driver_sql("PRAGMA synchronous").scalar() or 0)
            known["outbox.power_safe"] = _sqlite_fault(journal, synchronous)
        elif connection.dialect.name == "postgresql":
            settings = {row.name: row.setting for row in connection.execute(_POSTGRES_SETTINGS)}
            known["outbox.power_safe"] = _postgres_fault(settings)
        else:
            raise ConfigurationError(f"expected a SQLite or Postgres connection, got {connection.dialect.name!r}")
    fault: str | None = known["outbox.power_safe"]
    return fault


def not_held_together(connection: Connection) -> str | None:
    """Why what is written inside a savepoint might outlive a rollback of the transaction around it; None where it does not.

    SQLite's driver in Python begins no transaction for a savepoint: if it comes first, releasing it commits what is in it.
    """
    if connection.dialect.name != "sqlite" or connection.get_nested_transaction() is None:
        return None
    if connection.dialect in _well_begun or getattr(connection.connection.driver_connection, "isolation_level", "") is None:
        return None
    return (
        "a savepoint that SQLite's driver has begun no transaction for keeps what is in it when the transaction around it is "
        "rolled back; call outbox.prepare(engine) once for your engine"
    )


def _require_transaction(connection: Connection, otherwise: str = "a message would be there before its files") -> None:
    """Raises ConfigurationError on a connection that commits each statement by itself, where nothing belongs together."""
    pooled = connection.connection
    driver, adapted = pooled.driver_connection, pooled.dbapi_connection
    # SQLite's driver leaves transactions to its user when it has no isolation level, and then there must be one by now.
    left_alone = getattr(driver, "isolation_level", "") is None and getattr(driver, "in_transaction", True) is False
    # Of those that are awaited, asyncpg does not know it itself: what SQLAlchemy puts around it does.
    by_itself = driver if adapted is driver or hasattr(driver, "autocommit") else adapted
    if getattr(by_itself, "autocommit", False) is True or (left_alone and connection.dialect.name == "sqlite"):
        raise ConfigurationError(f"this connection is in autocommit mode: {otherwise}; use one with transactions")


def pages_of(connection: Connection) -> Pages | None:
    """The pages of a SQLite database, as this connection may use them; None for another database."""
    if connection.dialect.name != "sqlite":
        return None

    def ask(name: str) -> int:
        # Past SQLAlchemy, which would begin a transaction for it, and with our own connections take the write lock.
        cursor: Any = connection.connection.cursor()
        try:
            cursor.execute(f"PRAGMA {name}")
            return int(cursor.fetchone()[0])
        finally:
            cursor.close()

    return Pages(
        ask("page_size"), ask("page_count"), ask("freelist_count"), ask("max_page_count"), ask("auto_vacuum") == _INCREMENTAL
    )


def wal_of(path: Path) -> int:
    """Bytes of the WAL beside a SQLite database."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        return 0


def rolled_back(connection: Connection) -> bool:
    """Whether the database itself has rolled this connection's transaction back, as SQLite may when it is full."""
    if connection.dialect.name != "sqlite":  # of others the driver may have lost the connection, and nothing can be asked of it
        return False
    return getattr(connection.connection.driver_connection, "in_transaction", True) is False


def in_our_words(error: DBAPIError, path: Path | None = None) -> OutOfRoom | DatabaseDamaged | None:
    """What a database says when it is full, or damaged, as an error of ours; None for anything else.

    `path` is that of a SQLite database: what it calls an I/O error is a full disk if there is no room on it.
    """
    words, code, state = _first_line(error.orig), getattr(error.orig, "sqlite_errorcode", 0) & 0xFF, _state_of(error.orig)
    where = f"the database {path}" if path else "the database"
    if code in _CORRUPT or state in ("XX001", "XX002"):
        return DatabaseDamaged(
            f"{where} is damaged ({words}); nothing was replaced: stop what uses it, keep what is there, and restore a copy"
        )
    if code == _FULL or state == "53100":
        return OutOfRoom(f"{where} or its disk is full ({words}); make room or purge messages, and try again")
    if state == "53200":
        return OutOfRoom(f"the server of {where} is out of memory ({words}); try again later")
    if code in _PERHAPS_FULL and path is not None and _nothing_left(path.parent):
        return OutOfRoom(f"the disk of {where} is full ({words}); make room or purge messages, and try again")
    return None


def _nothing_left(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NOTHING_LEFT
    except OSError:  # it is gone, or its disk is: the database's own words say it better
        return False


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _state_of(error: object) -> str:
    return str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")


def missing_tables(error: DBAPIError) -> bool:
    """Whether a statement failed because our tables are not there."""
    words = str(error.orig)
    return "outbox_" in words and ("no such table" in words or "does not exist" in words)


# What keeps deleted rows from being vacuumed: transactions that see the past or have written, and prepared ones.
_OLDEST = text("""
    SELECT what, extract(epoch FROM clock_timestamp() - since) AS seconds FROM (
        SELECT 'the transaction of process ' || pid || coalesce(' (' || nullif(application_name, '') || ')', '')
               || coalesce(', user ' || usename, '') || coalesce(', ' || state, '') AS what, xact_start AS since
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
              AND backend_type = 'client backend' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        UNION ALL
        SELECT 'the prepared transaction ' || gid, prepared FROM pg_prepared_xacts WHERE database = current_database()
    ) AS held ORDER BY since LIMIT 1
""")
_POSTGRES_SETTINGS = text(
    "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')"
)


def _sqlite_fault(journal: str, synchronous: int) -> str | None:
    full, extra = 2, 3
    safe = synchronous >= extra or (synchronous == full and journal in ("wal", "truncate"))
    if safe and journal not in ("memory", "off"):
        return None
    return (
        f"SQLite with journal_mode={journal} and synchronous={synchronous} may lose the last commit at a power cut; "
        "call outbox.prepare(engine) once for your engine (WAL with synchronous=FULL)"
    )


def _postgres_fault(settings: dict[str, str]) -> str | None:
    off = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if settings.get(name) == "off"]
    if not off:
        return None
    return f"Postgres with {', '.join(off)} switched off may lose commits at a power cut; switch them on"
