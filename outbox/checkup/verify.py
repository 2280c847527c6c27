"""Verify: every byte that is kept is read once, and whatever is not as it was enqueued is named. Nothing is changed.

What a flip of a bit leaves legal and nothing else tells (another minute in the history, another count of failures) cannot be
found without a second copy; what decides about what is sent, to whom and with which bytes, can.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from outbox import migrate
from outbox.app import Outbox
from outbox.checkup import rows, wal
from outbox.checkup.findings import Level, about_mark, in_words
from outbox.checkup.shelf import Found, Shelf, older_than
from outbox.counting import counted, verb
from outbox.errors import FileChanged, FileMissing, SchemaError, SpoolError
from outbox.marks import ForeignSpool, Marks
from outbox.model import State
from outbox.policy import HANDFUL, SWEEP_GRACE
from outbox.store import checking, marking
from outbox.store.checking import Raw
from outbox.tables import file, message, metadata, share, stream

T = TypeVar("T")

#: What reading a damaged database raises: the driver may not even be able to read the words of its own error.
_UNREADABLE = (SQLAlchemyError, ValueError)
#: So many messages are named for each file.
_NAMED = 20
#: So many spots of a table that cannot be read are told.
_SPOTS = 100
#: Tables that are read for what they are themselves; messages and files are looked at more closely.
_OTHERS: tuple[Table, ...] = tuple(each for each in metadata.sorted_tables if each not in (message, file))
_HEX_NAME = 32


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was enqueued. `messages` need it: the first twenty, those that may still be sent before."""

    kind: str
    level: Level
    text: str
    remedy: str
    file: str | None = None
    messages: tuple[int, ...] = ()


@dataclass
class Tally:
    """What was read, and how much of it was found damaged."""

    files: int = 0
    bytes: int = 0
    messages: int = 0
    rows: int = 0
    swept: int = 0  #: files set aside because no row referred to them
    problems: int = 0
    warnings: int = 0
    seconds: float = 0.0


class Progress(Protocol):
    """Is told how far it is."""

    def begin(self, what: str, total: int | None) -> None:
        """A part begins; `total` in its own unit, None when nobody knows."""

    def advance(self, by: int = 1) -> None:
        """So much of it is done."""


class _Silent:
    def begin(self, what: str, total: int | None) -> None:
        pass

    def advance(self, by: int = 1) -> None:
        pass


class Verification:
    """One verification of an outbox; `destination` limits it to what is for that one, `fast` looks at lengths only.

    Safe beside workers and producers: what changes under it is looked at again before it is called damaged.
    """

    def __init__(
        self, outbox: Outbox, *, destination: str | None = None, fast: bool = False, progress: Progress | None = None
    ) -> None:
        self._outbox = outbox
        self._destination = outbox.destination(destination).name if destination is not None else None
        self._fast = fast
        self._progress = progress or _Silent()
        self._shelf = Shelf(outbox.spool_store)
        self.tally = Tally()

    def run(self) -> Iterator[Damage]:
        """Everything that is damaged, as it is found. Raises SchemaError for a database that is not of this schema."""
        began = time.monotonic()
        path = self._outbox.database.path
        try:
            if path is not None and self._destination is None:
                yield from map(self._counted, self._log_faults())
            with self._outbox.database.inspecting() as engine:
                for part in self._parts(engine):
                    yield from map(self._counted, part)
        finally:
            self.tally.seconds = time.monotonic() - began

    def _parts(self, engine: Engine) -> Iterator[Iterator[Damage]]:
        faults = list(self._schema(engine))
        yield iter(faults)
        if faults:
            return
        whole = self._destination is None
        if whole and self._outbox.database.path is not None:
            yield self._integrity(engine)
            yield self._definitions(engine)
        yield self._messages(engine)
        if whole:
            yield self._other_rows(engine)
        if not self._shelf.is_there():
            yield self._spool_away(engine)
            return
        yield self._foreign_spool(engine)
        yield self._files(engine)
        if whole:
            yield self._strangers(engine)

    def _counted(self, damage: Damage) -> Damage:
        if damage.level is Level.PROBLEM:
            self.tally.problems += 1
        else:
            self.tally.warnings += 1
        return damage

    def _schema(self, engine: Engine) -> Iterator[Damage]:
        path = self._outbox.database.path
        if path is not None and path.is_dir():
            text = f"the database cannot be read: {path} is a directory"
            yield Damage("database_unreadable", Level.PROBLEM, text, "name the file of the database itself in the settings")
            return
        try:
            with engine.begin() as connection:
                refusal = migrate.standing(connection).refusal
        except _UNREADABLE as error:
            yield _unreadable_database(error)
            return
        if refusal is not None:
            raise SchemaError(refusal)

    def _log_faults(self) -> Iterator[Damage]:
        path = self._outbox.database.path
        if path is None or self._fast:
            return
        self._progress.begin("write-ahead log", None)
        for fault in wal.faults(path, self._progress.advance):
            remedy = (
                "stop what uses the database, and keep its files, -wal and -shm too, before anything opens it again: what was "
                "committed last is passed over then; restore a copy, or enqueue it again; look at the disk and the memory"
            )
            yield Damage("log_damaged", Level.PROBLEM, fault, remedy)

    def _integrity(self, engine: Engine) -> Iterator[Damage]:
        self._progress.begin("database", None)
        try:
            with engine.begin() as connection:
                faults = _interruptibly(connection, lambda: checking.unsound(connection, quick=self._fast))
                gone = {} if self._fast else _interruptibly(connection, lambda: checking.dangling(connection))
        except _UNREADABLE as error:
            yield _unreadable_database(error)
            return
        for fault in faults:
            for line in filter(None, (each.strip() for each in fault.splitlines())):
                yield _damaged_database(line)
        for (table, of), number in gone.items():
            text = f"{counted(number, 'row')} of {table} {verb(number, 'belongs', 'belong')} to a row of {of} that is not there"
            yield Damage("database_damaged", Level.PROBLEM, text, _SAVE)

    def _definitions(self, engine: Engine) -> Iterator[Damage]:
        """SQLite keeps its tables' definitions as text, and a flip in it may leave another valid one; and what they forbid."""
        with engine.begin() as connection:
            found = checking.definitions(connection)
        for name, words in _definitions().items():
            if name in found and found[name] != words:
                yield _damaged_database(f"{name} is defined otherwise than by our migrations")
            elif name not in found and migrate.VERSION_TABLE not in name:  # in a host's history it is not needed
                yield _damaged_database(f"{name} is missing")
        for table in metadata.sorted_tables:
            try:
                with engine.begin() as connection:
                    keys = checking.contradicting(connection, table, _SPOTS)
            except _UNREADABLE as error:
                yield _unreadable_database(error)
                continue
            for key in keys:
                ids = key[:1] if table is message and isinstance(key[0], int) else ()
                text = f"row {_at(key)} of {table.name} contradicts itself"
                yield Damage("row_damaged", Level.PROBLEM, text, _without(ids), messages=ids)

    def _messages(self, engine: Engine) -> Iterator[Damage]:
        total = self._total(engine, message) if self._destination is None else None
        self._progress.begin("messages", total)
        for part in self._pages(engine, message):
            if isinstance(part, Damage):
                yield part
                continue
            self.tally.messages += len(part)
            self._progress.advance(len(part))
            whole = []
            for row in part:
                if wrong := rows.faults(message, row):
                    yield _damaged_row(message, row, wrong)
                else:
                    whole.append(row)
            try:
                suspects = self._contradictions(engine, whole)
            except (*_UNREADABLE, TypeError, LookupError):  # one of them cannot be read: which, each for itself tells
                suspects = {row["id"]: row for row in whole}
            for row in suspects.values():
                yield from self._confirmed(engine, row)
        if self._destination is None:
            yield from self._misplaced(engine)

    def _contradictions(self, engine: Engine, part: Sequence[Raw]) -> dict[int, Raw]:
        """Of these messages, those that contradict themselves or their attachments."""
        if not part:
            return {}
        with engine.begin() as connection:
            attached = checking.attached(connection, [row["id"] for row in part if row["files"]])
            streams = checking.ordering_keys(connection, stream, _ids(part, "stream_id"))
            shares = checking.ordering_keys(connection, share, _ids(part, "share_id"))
        found = {}
        for row in part:
            mine = attached.get(row["id"], [])
            ordering_key = streams.get(row["stream_id"]) or shares.get(row["share_id"])
            if any(rows.message_faults(row, mine, ordering_key)) or _lost_file(row, mine):
                found[row["id"]] = row
        return found

    def _confirmed(self, engine: Engine, suspect: Raw) -> Iterator[Damage]:
        """Look at one message again by itself: a purge may have come between its row and those of its files."""
        try:
            with engine.begin() as connection:
                row = checking.raw_row(connection, message, (suspect["id"],))
                if row is None:
                    return
                mine = checking.attached(connection, [row["id"]]).get(row["id"], [])
                ordering_key = None
                for table, column in ((stream, "stream_id"), (share, "share_id")):
                    if row[column] is not None:
                        known = checking.ordering_keys(connection, table, [row[column]])
                        ordering_key = ordering_key or known.get(row[column])
            faults = list(rows.message_faults(row, mine, ordering_key))
        except (*_UNREADABLE, TypeError, LookupError) as error:
            yield _damaged_row(message, suspect, [f"cannot be put together with what belongs to it ({in_words(error)})"])
            return
        for fault in faults:
            level = _level_of(row)
            remedy = _OVER if level is Level.WARNING else _enqueue_again((row["id"],))
            yield Damage("message_changed", level, f"{_name(row)}: {fault}", remedy, messages=(row["id"],))
        if lost := _lost_file(row, mine):
            text = f"{_name(row)} is {row['state']} and its spooled file {lost} was freed"
            yield Damage("file_missing", Level.PROBLEM, text, _enqueue_again((row["id"],)), lost, (row["id"],))

    def _misplaced(self, engine: Engine) -> Iterator[Damage]:
        try:
            with engine.begin() as connection:
                wrong = checking.misplaced(connection, _SPOTS)
        except _UNREADABLE as error:
            yield _unreadable_database(error)
            return
        for each in wrong:
            text = f"message {each} and the stream or share it waits in contradict each other"
            yield Damage("row_damaged", Level.PROBLEM, text, _SAVE, messages=(each,))

    def _other_rows(self, engine: Engine) -> Iterator[Damage]:
        self._progress.begin("other rows", None)
        for table in _OTHERS:
            for part in self._pages(engine, table):
                if isinstance(part, Damage):
                    yield part
                    continue
                self.tally.rows += len(part)
                self._progress.advance(len(part))
                for row in part:
                    if wrong := rows.faults(table, row):
                        yield _damaged_row(table, row, wrong)

    def _files(self, engine: Engine) -> Iterator[Damage]:
        self._progress.begin("files", self._total(engine, file) if self._destination is None else None)
        for part in self._pages(engine, file):
            if isinstance(part, Damage):
                yield part
                continue
            for row in part:
                self._progress.advance()
                if wrong := rows.faults(file, row):
                    yield _damaged_row(file, row, wrong, file_name=str(row["name"]), users=self._users(engine, row["name"]))
                elif row["freed_at"] is None:
                    self.tally.files += 1
                    yield from self._file(engine, row)

    def _file(self, engine: Engine, row: Raw) -> Iterator[Damage]:
        fault = self._file_fault(row)
        if fault is None:
            return
        try:
            with engine.begin() as connection:
                now = checking.raw_row(connection, file, (row["name"],))
        except _UNREADABLE:
            now = row
        if now is None or now["freed_at"] is not None:
            return  # it was freed while we looked
        kind, text = fault
        users = self._users(engine, row["name"])
        needed = [each for each in users if each.state not in (State.DELIVERED, State.CANCELLED)]
        ids = tuple(each.id for each in users)
        if needed:
            who = ", ".join(f"message {each.id} ({each.key}, {each.state})" for each in needed)
            remedy = self._bring_back(kind, row["name"], needed)
            yield Damage(kind, Level.PROBLEM, f"file {row['name']}: {text}; needed by {who}", remedy, row["name"], ids)
            return
        who = ", ".join(f"message {each.id}, which is {each.state}" for each in users) or "no message"
        remedy = _OVER if users else "spool the file again"
        yield Damage(kind, Level.WARNING, f"file {row['name']}: {text}; it belongs to {who}", remedy, row["name"], ids)

    def _bring_back(self, kind: str, name: str, needed: Sequence[checking.Users]) -> str:
        """What lets the messages that need a file be sent after all."""
        place = "the spool" if self._shelf.root is None else f"the spool as {self._shelf.root / name[-2:] / name}"
        if kind == "file_unreadable":
            return f"let it be read again (its owner, its mode, the disk), or put a copy into {place}; no message dies of this"
        ids = tuple(each.id for each in needed)
        dead = " ".join(str(each.id) for each in needed if each.state == State.DEAD)
        again = f", then: outbox replay {dead}" if dead else ""
        return f"put the bytes that were enqueued back into {place}{again}; or {_enqueue_again(ids)}; look at the disk"

    def _file_fault(self, row: Raw) -> tuple[str, str] | None:
        try:
            found = self._shelf.read(row["name"], fast=self._fast)
        except FileMissing:
            return "file_missing", "it is not in the spool"
        except FileChanged as error:
            return "file_changed", str(error).rpartition(": ")[2]
        except SpoolError as error:
            return "file_unreadable", str(error)
        self.tally.bytes += found.size
        wrong = rows.file_faults(row, *found)
        return None if wrong is None else ("file_changed", wrong)

    def _users(self, engine: Engine, name: str) -> list[checking.Users]:
        try:
            with engine.begin() as connection:
                return checking.users_of(connection, name, _NAMED)
        except _UNREADABLE:
            pass
        try:
            with engine.begin() as connection:
                ids = checking.messages_of(connection, name, _NAMED)
        except _UNREADABLE:
            return []
        return [checking.Users(each, "its row cannot be read", "", "nobody knows its state") for each in ids]

    def _strangers(self, engine: Engine) -> Iterator[Damage]:
        """Bytes without rows, and whatever else is in the spool."""
        self._progress.begin("spool", None)
        found = self._shelf.files()
        while some := list(itertools.islice(found, HANDFUL)):
            self._progress.advance(len(some))
            yield from self._without_row(engine, some)
        for each in self._shelf.foreign():
            if each.name is not None and self._vouched(engine, [each.name]):
                continue  # told with the files
            text = f"{each.path} is a {each.what} and none of ours"
            yield Damage("foreign", Level.WARNING, text, "take it out of the spool")

    def _spool_away(self, engine: Engine) -> Iterator[Damage]:
        try:
            with engine.begin() as connection:
                files, _ = checking.spooled(connection)
        except _UNREADABLE as error:
            yield _unreadable_database(error)
            return
        if files:
            text = f"{self._shelf.root} is not a spool, or not the one that was; {counted(files, 'file')} should be in it"
            remedy = (
                "mount its disk, or restore it from a copy; a new one (outbox init) is empty, and messages die whose files it "
                "should have"
            )
            yield Damage("spool_missing", Level.PROBLEM, text, remedy)

    def _foreign_spool(self, engine: Engine) -> Iterator[Damage]:
        """A mark that is not the database's: a spool of another one, or a mark that is damaged itself."""
        try:
            spool = self._outbox.spool_store.mark()  # before the database's, as in Marking.look
            with engine.begin() as connection:
                database = marking.mark(connection)
            self._outbox.marks.judge(Marks(database, spool))
        except (ForeignSpool, SpoolError) as error:
            text, remedy = about_mark(error)
            yield Damage("spool_foreign", Level.PROBLEM, text, remedy)
        except _UNREADABLE as error:
            yield _unreadable_database(error)

    def _without_row(self, engine: Engine, some: Sequence[Found]) -> Iterator[Damage]:
        now, grace = self._outbox.ambient.now(), SWEEP_GRACE.total_seconds()
        self.tally.swept += sum(each.swept for each in some)
        old = [each for each in some if not each.swept and older_than(each, now, grace)]
        vouched = self._vouched(engine, [each.name for each in old])
        for each in old:
            if each.name not in vouched:
                text = f"no row refers to file {each.name}, last used {each.modified_at:%Y-%m-%d %H:%M}Z"
                remedy = "nothing: a running worker sets it aside within the hour and deletes it after a week"
                yield Damage("file_without_row", Level.WARNING, text, remedy, each.name)

    def _vouched(self, engine: Engine, names: Sequence[str]) -> set[str]:
        try:
            with engine.begin() as connection:
                return checking.vouched(connection, names)
        except _UNREADABLE:
            return set(names)  # that the rows cannot be read has been told

    def _total(self, engine: Engine, table: Table) -> int | None:
        try:
            with engine.begin() as connection:
                return checking.count(connection, table)
        except _UNREADABLE:
            return None

    def _pages(self, engine: Engine, table: Table) -> Iterator[list[Raw] | Damage]:
        """The rows of a table, some at a time; a spot that cannot be read is told and passed over."""
        after: tuple[Any, ...] | None = None
        limit, spots = HANDFUL, 0

        def read(start: tuple[Any, ...] | None, most: int) -> list[Raw]:
            with engine.begin() as connection:
                return checking.page(connection, table, start, most, self._destination)

        while True:
            try:
                found = read(after, limit)
            except _UNREADABLE as error:
                if _is_away(error):
                    yield _unreadable_database(error)
                    return
                if limit > 1:
                    limit = 1
                    continue
                text = f"rows of {table.name} cannot be read: {in_words(error)}"
                spots += 1
                beyond = _next_readable(table, after, lambda start: read(start, 1)) if spots <= _SPOTS else None
                if beyond is None:
                    yield Damage(
                        "database_damaged", Level.PROBLEM, f"{text}; those from {_at(after)} on were not looked at", _SAVE
                    )
                    return
                yield Damage("database_damaged", Level.PROBLEM, f"{text}, after {_at(after)} up to {_at(beyond)}", _SAVE)
                after = beyond
                continue
            if not found:
                return
            yield found
            after = tuple(found[-1][each.name] for each in table.primary_key.columns)
            if len(found) < limit:
                return
            limit = min(HANDFUL, 2 * limit)


@functools.cache
def _definitions() -> dict[str, str]:
    """How our migrations define each table and index of SQLite's."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(migrate.sql("sqlite"))
        return checking.defined(connection.execute(checking.DEFINITIONS))


_SAVE = (
    "stop what uses the database, keep its files as they are (of SQLite -wal and -shm too), and restore a copy, or save what "
    "can be read (sqlite3 .recover, or pg_dump table by table); look at the disk and the memory"
)
_OVER = "nothing needs it any more; it goes with its time"


def _enqueue_again(ids: Sequence[int]) -> str:
    again = "it again from the original under another key" if len(ids) == 1 else "them again from the original under other keys"
    return f"enqueue {again}, and: outbox cancel {' '.join(map(str, ids))}"


def _without(ids: Sequence[int]) -> str:
    """What to do about rows of these messages. One that cannot be read keeps every message claimed with it from being sent."""
    if not ids:
        return _SAVE
    go_on = f"go on without it: outbox cancel {' '.join(map(str, ids))}, so that it holds nobody up, and enqueue that again"
    return f"{_SAVE}; or keep the files and {go_on} under another key"


def _damaged_database(said: str) -> Damage:
    return Damage("database_damaged", Level.PROBLEM, f"the database is damaged: {said}", _SAVE)


#: What SQLite says of a database that somebody else has, or that we may not open: its bytes may be as they should.
_NOT_OURS_TO_READ = frozenset(
    {sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
)
#: Classes of what Postgres says when it is away, full, or does not let us in; none at all is said of a connection.
_AWAY = ("", "08", "28", "3D", "53", "57")


def _is_away(error: Exception) -> bool:
    """Whether the database was not read at all, so that nothing is known of its bytes."""
    match getattr(error, "orig", None):
        case sqlite3.Error() as said:
            return getattr(said, "sqlite_errorcode", 0) & 0xFF in _NOT_OURS_TO_READ
        case None:
            return isinstance(error, SQLAlchemyError)  # its pool's own words
        case said:
            state = getattr(said, "sqlstate", None) or ""
            return isinstance(error, OperationalError | InterfaceError) and state[:2] in _AWAY


def _unreadable_database(error: Exception) -> Damage:
    if not _is_away(error):
        return _damaged_database(in_words(error))
    text = f"the database cannot be read: {in_words(error)}"
    return Damage("database_unreadable", Level.PROBLEM, text, _REACH_IT)


#: What is to be done about a database that cannot be read, and about which nothing else is known.
_REACH_IT = "look whether it is up, at its address, user and password in the settings; and of a file, whether we may read it"


def _damaged_row(
    table: Table, row: Raw, wrong: Sequence[str], *, file_name: str | None = None, users: Sequence[checking.Users] = ()
) -> Damage:
    text = f"row {_at(tuple(row[each.name] for each in table.primary_key.columns))} of {table.name}: {'; '.join(wrong)}"
    ids = tuple(each.id for each in users)
    if table is message and isinstance(row["id"], int):
        ids = (row["id"],)
    elif "message_id" in table.c and isinstance(row["message_id"], int):
        ids = (row["message_id"],)
    return Damage("row_damaged", Level.PROBLEM, text, _without(ids), file_name, ids)


def _level_of(row: Raw) -> Level:
    """What was delivered, or given up by a person, does no harm any more."""
    return Level.WARNING if row["state"] in (State.DELIVERED, State.CANCELLED) else Level.PROBLEM


def _name(row: Raw) -> str:
    return f"message {_at((row['id'],))} ({_at((row['key'],))})"


def _ids(part: Sequence[Raw], column: str) -> list[int]:
    return sorted({row[column] for row in part if row[column] is not None})


def _lost_file(row: Raw, attached: Sequence[Raw]) -> str | None:
    """A file that was freed although the message may yet be sent."""
    if row["state"] not in (State.PENDING, State.CLAIMED):
        return None
    return next((each["file"] for each in attached if each["freed_at"] is not None), None)


def _at(key: tuple[Any, ...] | None) -> str:
    return "its beginning" if key is None else ", ".join(str(each).encode("ascii", "backslashreplace").decode() for each in key)


def _next_readable(
    table: Table, after: tuple[Any, ...] | None, read: Callable[[tuple[Any, ...]], object]
) -> tuple[Any, ...] | None:
    """A key behind which rows can be read again, as near as may be; None when none is found."""
    if after is None:
        after = tuple(0 if each.type.python_type is int else "" for each in table.primary_key.columns)

    def readable(step: int) -> bool:
        start = _stepped(after, step)
        try:
            return start is not None and bool(read(start))
        except _UNREADABLE:
            return False

    far = next((1 << power for power in range(_FURTHEST) if readable(1 << power)), None)
    if far is None:
        return None
    near = far // 2
    while far - near > 1:
        middle = (near + far) // 2
        near, far = (near, middle) if readable(middle) else (middle, far)
    return _stepped(after, far)


#: Steps of two to the power of this are the longest that are tried: a name in the spool has 128 bits.
_FURTHEST = 128


def _stepped(after: tuple[Any, ...], step: int) -> tuple[Any, ...] | None:
    """The key so many steps behind: numbers, and names in the spool, which are numbers with 32 hexadecimal digits."""
    first, *rest = after
    if isinstance(first, int):
        return None if first + step >= 2**63 else (first + step, *(0 for _ in rest))
    try:
        number = (int(first, 16) if first else 0) + step
    except ValueError:
        return None
    return None if rest or number >= 16**_HEX_NAME else (f"{number:0{_HEX_NAME}x}",)


def _interruptibly(connection: Connection, work: Callable[[], T]) -> T:
    """Do one long statement of SQLite's on another thread, so that Ctrl-C ends it."""
    done: list[T | BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 (raised below)
            done.append(error)

    thread = threading.Thread(target=run, name="outbox-verify", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except BaseException:
        driver: Any = connection.connection.dbapi_connection
        driver.interrupt()
        thread.join()
        raise
    (result,) = done
    if isinstance(result, BaseException):
        raise result
    return result
