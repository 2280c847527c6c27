"""Enqueue: one message or many become part of the caller's transaction, be it one that blocks or one that is awaited."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Unpack

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from outbox import borrowed, entering, intake
from outbox.ambient import Ambient
from outbox.callers import connection_of, require_async, require_sync
from outbox.database import (
    Database,
    in_our_words,
    insert_may_nudge,
    missing_tables,
    not_held_together,
    not_power_safe,
    nudge_at_commit,
)
from outbox.destinations.base import Destination
from outbox.errors import NO_SCHEMA, DurabilityWarning, NotDurable, OutOfRoom, Refused, SchemaError
from outbox.hooks import Hooks
from outbox.model import Enqueued, Entry, FileSource, Lane, SpooledFile
from outbox.policy import HANDFUL, SWEEP_GRACE
from outbox.reserve import Room, spoiled
from outbox.spooling import Spooling
from outbox.store import arriving
from outbox.timekeeping import Timekeeper, When
from outbox.tracing import current_context

if TYPE_CHECKING:
    from outbox.borrowed import Options
    from outbox.callers import AsyncCaller, Caller

T = TypeVar("T")


class _Ready(NamedTuple):
    """Messages that were found in order, with their files at rest: all that is left is to write their rows."""

    target: Destination
    arrivals: Sequence[entering.Arrival]
    text: int  #: bytes of their texts
    when: When


class Producing:
    """The part of an Outbox that is for producers."""

    database: Database
    ambient: Ambient
    hooks: Hooks
    nudge: bool
    room: Room
    _durability: Literal["warn", "strict", "ignore"]
    _files: Spooling
    _roots: Sequence[Any]
    _time: Timekeeper
    _warn_lock: threading.Lock

    def destination(self, name: str) -> Destination:
        """A destination by name."""
        raise NotImplementedError

    def enqueue(
        self,
        session: Caller,
        destination: str,
        payload: Any,
        *,
        files: Mapping[str, FileSource] | None = None,
        key: str | None = None,
        ordering_key: str | None = None,
        ordered: bool | None = None,
        due_at: datetime | None = None,
        expires_at: datetime | None = None,
        lane: Lane | str | None = None,
        traceparent: str | None = None,
    ) -> Enqueued:
        """Add a message inside the caller's transaction: it is due when that commits, and never was if it rolls back.

        Files are copied into the spool and synced before the first statement. `key` names the message, once for each
        destination: enqueued again with the same content it returns the message that is there (`new` is False), with other
        content it raises KeyConflict. Messages with the same `ordering_key` are delivered in commit order; with `ordered=False`
        (default: the destination's) they only take fair turns with those of other keys. `due_at` is when to try first (aware;
        default now), `expires_at` when to give up, `lane` which queue to wait in (default: normal, or large for big files).
        `traceparent` is the trace context that the delivery shall be linked to (the W3C's form; default: the current span of
        OpenTelemetry, if this program uses that).

        A key is remembered for as long as its message is kept.

        Raises Refused with every fault found, before anything is written; UnknownDestination; KeyConflict; OutOfRoom when the
        quota, a disk or the database is full; SpoolError when the spool cannot take a file; ConfigurationError when it belongs
        to another database; NotDurable with durability="strict". The transaction stays usable after each of them, unless a
        database that ran full in the middle of a statement has rolled it back: then its connection says so.
        """
        entry = Entry(payload, files, key, ordering_key, ordered, due_at, expires_at, lane, traceparent)
        return self._enqueue(require_sync(session), self.destination(destination), [entry])[0]

    async def aenqueue(
        self,
        session: AsyncCaller,
        destination: str,
        payload: Any,
        *,
        files: Mapping[str, FileSource] | None = None,
        key: str | None = None,
        ordering_key: str | None = None,
        ordered: bool | None = None,
        due_at: datetime | None = None,
        expires_at: datetime | None = None,
        lane: Lane | str | None = None,
        traceparent: str | None = None,
    ) -> Enqueued:
        """`enqueue` for SQLAlchemy's AsyncSession and AsyncConnection: the same rules, the same rows.

        Files are copied in a thread, so that the event loop goes on meanwhile.
        """
        entry = Entry(payload, files, key, ordering_key, ordered, due_at, expires_at, lane, traceparent)
        return (await self._aenqueue(require_async(session), self.destination(destination), [entry]))[0]

    def enqueue_many(self, session: Caller, destination: str, messages: Iterable[Any]) -> list[Enqueued]:
        """Add messages to one destination inside the caller's transaction, many with a statement; what became of each.

        Each is a payload, or an Entry, which takes the rest of what `enqueue` takes. They are looked at and written by the
        hundred, so that a generator may give any number. Of a key that is in it twice, the first is made.

        The rows of ordering keys are locked in one order, so that no two who do this at the same time wait for each other: of
        a list in that of all its keys, of a generator in that of each few hundred. Who has more of several keys than that, and
        is not alone, gives a list, or sorts them by their keys.

        Raises what `enqueue` does, the faults of the n-th from 0 under `messages[n]`; then none of them was added.
        """
        checked, target = require_sync(session), self.destination(destination)
        done: dict[int, Enqueued] = {}
        try:
            for numbers, entries in _chunks(_in_turn(target, messages)):
                done.update(zip(numbers, self._enqueue(checked, target, entries, numbers), strict=True))
        except BaseException:
            if added := [each.id for each in done.values() if each.new]:
                self._withdraw(checked, added)
            raise
        return [done[number] for number in range(len(done))]

    async def aenqueue_many(
        self, session: AsyncCaller, destination: str, messages: Iterable[Any] | AsyncIterable[Any]
    ) -> list[Enqueued]:
        """`enqueue_many` for SQLAlchemy's AsyncSession and AsyncConnection; an asynchronous generator will do, too."""
        checked, target = require_async(session), self.destination(destination)
        done: dict[int, Enqueued] = {}
        try:
            async for numbers, entries in _chunks_in_time(target, messages):
                done.update(zip(numbers, await self._aenqueue(checked, target, entries, numbers), strict=True))
        except BaseException:
            if added := [each.id for each in done.values() if each.new]:
                await checked.run_sync(self._withdraw, added)
            raise
        return [done[number] for number in range(len(done))]

    def enqueue_dbapi(self, cursor: Any, destination: str, payload: Any, **options: Unpack[Options]) -> Enqueued:
        """`enqueue` without SQLAlchemy: in the transaction of a DB-API cursor or connection, of sqlite3 or psycopg 3.

        Django's will do, inside `transaction.atomic()`: `outbox.enqueue_dbapi(connection.cursor(), ...)`. Options and errors
        are those of `enqueue`. Raises ConfigurationError where there is no transaction, and TypeError for another driver. A
        connection to a SQLite database that ran full, and has rolled its transaction back for that, is closed.
        """
        with borrowed.lent(cursor) as connection:
            return self.enqueue(connection, destination, payload, **options)

    def enqueue_many_dbapi(self, cursor: Any, destination: str, messages: Iterable[Any]) -> list[Enqueued]:
        """`enqueue_many` for a DB-API cursor or connection, as `enqueue_dbapi`."""
        with borrowed.lent(cursor) as connection:
            return self.enqueue_many(connection, destination, messages)

    def spool(self, source: FileSource) -> SpooledFile:
        """Copy a file into the spool ahead of a transaction, to keep that short, or for several messages to share.

        Takes what `files=` of `enqueue` takes. Call it before your transaction writes: it has a short one of its own.
        """
        found = intake.offer("file", source, self._roots)
        if not isinstance(found, intake.Offered):
            raise Refused(found)
        if isinstance(found.source, SpooledFile):
            return found.source
        self._files.mind()
        self.room.admit(found.size or 0, 0)
        spooled = self._files.copy(found, None)
        written = False
        try:
            with self.database.begin() as connection:
                now = self.ambient.now()
                arriving.add_file(connection, spooled, now, free_at=now + SWEEP_GRACE)
                written = True
        except BaseException as error:
            # Of a COMMIT nobody may know whether it was done: bytes without a row are swept, a row must not be without bytes.
            if not written or isinstance(error, OutOfRoom):
                self._files.drop([spooled])
            if isinstance(error, DBAPIError) and missing_tables(error):
                raise SchemaError(NO_SCHEMA) from error
            raise
        return spooled

    async def aspool(self, source: FileSource) -> SpooledFile:
        """`spool` in a thread, so that the event loop goes on meanwhile."""
        return await _aside(lambda: self.spool(source), lambda _: None)  # one that nobody uses is freed a day later

    def _enqueue(
        self, session: Caller, target: Destination, entries: Sequence[Entry], numbers: Sequence[int] | None = None
    ) -> list[Enqueued]:
        """Look at messages, put their files at rest, and write their rows; `numbers` are their places among many."""
        requests, when = self._examined(target, entries, numbers)
        return self._written(session, self._at_rest(target, requests, when))

    async def _aenqueue(
        self, session: Any, target: Destination, entries: Sequence[Entry], numbers: Sequence[int] | None = None
    ) -> list[Enqueued]:
        requests, when = self._examined(target, entries, numbers)
        if any(each.files for each in requests):
            ready = await _aside(
                lambda: self._at_rest(target, requests, when), lambda unused: self._files.drop_fresh(unused.arrivals)
            )
        else:
            ready = self._at_rest(target, requests, when)
        written: list[Enqueued] = await session.run_sync(self._written, ready)
        return written

    def _examined(
        self, target: Destination, entries: Sequence[Entry], numbers: Sequence[int] | None
    ) -> tuple[list[intake.Request], When]:
        when = self._time.read()
        # An age counts from the later of two times: a clock that is set right ends no message early.
        return intake.examine_all(target, entries, self._roots, when.invented, current_context(), numbers), when

    def _at_rest(self, target: Destination, requests: Sequence[intake.Request], when: When) -> _Ready:
        text = sum([each.size for each in requests])
        self.room.admit(sum([file.size or 0 for each in requests for file in each.files if _comes_in(file)]), text)
        return _Ready(target, self._files.lay_down(requests), text, when)

    def _written(self, session: Caller, ready: _Ready) -> list[Enqueued]:
        """The rows of messages whose files are at rest: the first statement may take SQLite's write lock."""
        name, arrivals = ready.target.name, ready.arrivals
        connection: Connection | None = None
        try:
            connection = connection_of(session)
            self.database.require_same(connection)
            self._mind_durability(connection)
            self.room.admit_inside(connection, ready.text)
            by_itself = self.nudge and insert_may_nudge(connection, name)
            entered = entering.enter(connection, arrivals, ready.when.now, self.ambient.new_id, nudge=by_itself)
            if self.nudge and any(each.enqueued.new for each in entered):
                nudge_at_commit(connection, name, said=by_itself)
        except DBAPIError as error:
            self._files.drop_fresh(arrivals)
            if missing_tables(error):
                raise SchemaError(NO_SCHEMA) from error
            known = in_our_words(error, self.database.path)
            if known is None:
                raise
            if connection is not None:  # it may not even have been made
                spoiled(connection, error)
            raise known from error
        except BaseException:
            self._files.drop_fresh(arrivals)
            raise
        self._files.drop([file for each in entered for file in each.unneeded])
        if self.hooks.enqueued:
            self.hooks.note(connection, name, entered)
        return [each.enqueued for each in entered]

    def _withdraw(self, session: Caller, ids: Sequence[int]) -> None:
        """Take back what was added, since the rest of it cannot be."""
        with contextlib.suppress(Exception):  # of a connection that is lost the transaction is, too: what was raised says so
            connection = connection_of(session)
            entering.withdraw(connection, ids, self.ambient.now())
            self.hooks.withdraw(connection, ids)

    def _mind_durability(self, connection: Connection) -> None:
        fault = not_power_safe(connection, arriving.TAKE_WRITE_LOCK) or not_held_together(connection)
        if fault is None or self._durability == "ignore":
            return
        if self._durability == "strict":
            raise NotDurable(fault)
        with self._warn_lock:
            if self._durability == "warn":
                self._durability = "ignore"
                warnings.warn(fault, DurabilityWarning, stacklevel=5)


def _comes_in(offered: intake.Offered) -> bool:
    """Whether a file takes room in the spool that it does not have yet."""
    return not isinstance(offered.source, SpooledFile)


def _entry(given: Any) -> Entry:
    return given if isinstance(given, Entry) else Entry(given)


def _in_turn(target: Destination, messages: Iterable[Any]) -> Iterator[tuple[int, Entry]]:
    """Messages with their places, those that are all there in the order in which the rows of their ordering keys are locked."""
    numbered = ((number, _entry(each)) for number, each in enumerate(messages))
    if not isinstance(messages, Sequence):
        return numbered
    several = list(numbered)
    if any(entry.ordering_key is not None for _, entry in several):
        several.sort(key=lambda each: _lock_order(target, each[1]))
    return iter(several)


def _lock_order(target: Destination, entry: Entry) -> tuple[int, str]:
    """First those without an ordering key, which lock nothing; then streams, then shares, as `entering` has them."""
    if entry.ordering_key is None:
        return 0, ""
    ordered = target.policy.ordered if entry.ordered is None else entry.ordered
    return 1 if ordered else 2, str(entry.ordering_key)


def _chunks(messages: Iterator[tuple[int, Entry]]) -> Iterator[tuple[Sequence[int], Sequence[Entry]]]:
    while chunk := list(itertools.islice(messages, HANDFUL)):
        numbers, entries = zip(*chunk, strict=True)
        yield numbers, entries


async def _chunks_in_time(
    target: Destination, messages: Iterable[Any] | AsyncIterable[Any]
) -> AsyncIterator[tuple[Sequence[int], Sequence[Entry]]]:
    if not isinstance(messages, AsyncIterable):
        for chunk in _chunks(_in_turn(target, messages)):
            yield chunk
        return
    entries: list[Entry] = []
    first = 0
    async for each in messages:
        entries.append(_entry(each))
        if len(entries) == HANDFUL:
            yield range(first, first + HANDFUL), entries
            first, entries = first + HANDFUL, []
    if entries:
        yield range(first, first + len(entries)), entries


async def _aside(work: Callable[[], T], undo: Callable[[T], None]) -> T:
    """Do it in a thread. What comes of it when its caller was cancelled meanwhile is undone: nobody else knows of it."""
    context = contextvars.copy_context()
    doing = asyncio.get_running_loop().run_in_executor(None, context.run, work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        doing.add_done_callback(lambda done: None if done.cancelled() or done.exception() else undo(done.result()))
        raise
