"""`Outbox`: the composition root, and enqueue."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from outbox import entering, intake
from outbox.ambient import Ambient
from outbox.care import Care
from outbox.database import Database, in_our_words, insert_may_nudge, missing_tables, not_power_safe, nudge_at_commit
from outbox.destinations.base import Destination
from outbox.errors import (
    NO_SCHEMA,
    ConfigurationError,
    DurabilityWarning,
    Fault,
    FileMissing,
    NotDurable,
    OutOfRoom,
    Refused,
    SchemaError,
    SpoolError,
)
from outbox.marks import Marking
from outbox.model import Attachment, Enqueued, Entry, FileSource, Lane, SpooledFile
from outbox.operations import Operations
from outbox.policy import HANDFUL, RESERVE, SWEEP_GRACE, Retention
from outbox.reserve import Room, spoiled
from outbox.spool.base import Oversize, Spool
from outbox.spool.directory import DirectorySpool
from outbox.store import arriving, keeping
from outbox.timekeeping import Timekeeper
from outbox.tracing import current_context
from outbox.units import bytes_in_words
from outbox.views import Views
from outbox.why import Explaining

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

log = logging.getLogger("outbox.app")


class Outbox(Operations, Explaining, Views):
    """A database, a spool and the destinations; what a program enqueues through and a worker works on.

    `database` is a URL, or an engine on the database that the program uses itself. `spool` is a directory or a Spool, this
    database's alone: both get the same mark, and what belongs to another database is refused with ConfigurationError. `roots`
    are the directories that files given by path must lie in, under that name alone; none means anywhere. `durability` says what
    happens when a caller's connection would lose a commit at a power cut: "warn" once, "strict" refuses, "ignore" is for tests.
    `retention` says how long what is over is kept. `quota` is how many bytes of files the spool may hold. `reserve` is how many
    bytes of a disk producers leave alone, and the length of the file beside a SQLite database that a worker gives back when it
    is full. `nudge` is whether an enqueue wakes idle workers, and workers wait for that; without, they look twice a second.
    On Postgres it is a NOTIFY, which rules out commits in two phases (PREPARE TRANSACTION).

    Making one opens nothing: not the database, not the spool, not the network.
    """

    def __init__(
        self,
        database: str | URL | Engine,
        *,
        spool: str | os.PathLike[str] | Spool,
        destinations: Iterable[Destination],
        roots: Iterable[str | os.PathLike[str]] = (),
        durability: Literal["warn", "strict", "ignore"] = "warn",
        retention: Retention | None = None,
        quota: int | None = None,
        reserve: int = RESERVE,
        nudge: bool = True,
        ambient: Ambient | None = None,
    ) -> None:
        self.database = Database(database)
        self.spool_store: Spool = DirectorySpool(spool) if isinstance(spool, str | os.PathLike) else spool
        self.ambient = ambient or Ambient()
        self.destinations: dict[str, Destination] = {}
        for destination in destinations:
            if destination.name in self.destinations:
                raise ConfigurationError(f"two destinations are named {destination.name!r}")
            self.destinations[destination.name] = destination
        self._roots = tuple(Path(root).resolve() for root in roots)
        if durability not in ("warn", "strict", "ignore"):
            raise ConfigurationError(f"expected durability to be 'warn', 'strict' or 'ignore', got {durability!r}")
        self._durability = durability
        self._spool_minded = False
        self._warn_lock = threading.Lock()
        self._time = Timekeeper(self.ambient)
        if quota is not None and quota < 1:
            raise ConfigurationError(f"expected quota to be a number of bytes of at least 1, or None, got {quota}")
        if reserve < 0:
            raise ConfigurationError(f"expected reserve to be a number of bytes of at least 0, got {reserve}")
        self.quota = quota
        self.nudge = nudge
        self.retention = retention or Retention()
        self.room = Room(self.database, self.spool_store, quota, reserve)
        self.marks = Marking(self.database, self.spool_store, self.ambient)
        self.care = Care(self.database, self.spool_store, self.ambient, self.destinations, self.retention, self.room)

    def __repr__(self) -> str:
        return f"Outbox({self.database!r}, destinations={sorted(self.destinations)})"

    def enqueue(
        self,
        session: Session | Connection | scoped_session[Any],
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
        return self._enqueue(_checked(session), self.destination(destination), [entry])[0]

    def enqueue_many(
        self, session: Session | Connection | scoped_session[Any], destination: str, messages: Iterable[Any]
    ) -> list[Enqueued]:
        """Add messages to one destination inside the caller's transaction, many with a statement; what became of each.

        Each is a payload, or an Entry, which takes the rest of what `enqueue` takes. They are looked at and written by the
        hundred, so that a generator may give millions. Of a key that is in it twice, the first is made.

        Raises what `enqueue` does, the faults of the n-th from 0 under `messages[n]`; then none of them was added.
        """
        checked, target = _checked(session), self.destination(destination)
        done: list[Enqueued] = []
        waiting = iter(messages)
        try:
            while chunk := [each if isinstance(each, Entry) else Entry(each) for each in itertools.islice(waiting, HANDFUL)]:
                done += self._enqueue(checked, target, chunk, len(done))
        except BaseException:
            if added := [each.id for each in done if each.new]:
                entering.withdraw(_connection(checked), added, self.ambient.now())
            raise
        return done

    def spool(self, source: FileSource) -> SpooledFile:
        """Copy a file into the spool ahead of a transaction, to keep that short, or for several messages to share.

        Takes what `files=` of `enqueue` takes. Call it before your transaction writes: it has a short one of its own.
        """
        found = intake.offer("file", source, self._roots)
        if not isinstance(found, intake.Offered):
            raise Refused(found)
        if isinstance(found.source, SpooledFile):
            return found.source
        self._mind_spool()
        self.room.admit(found.size or 0, 0)
        spooled = self._copy(found, None)
        written = False
        try:
            with self.database.begin() as connection:
                now = self.ambient.now()
                arriving.add_file(connection, spooled, now, free_at=now + SWEEP_GRACE)
                written = True
        except BaseException as error:
            # Of a COMMIT nobody may know whether it was done: bytes without a row are swept, a row must not be without bytes.
            if not written or isinstance(error, OutOfRoom):
                self._drop([spooled])
            if isinstance(error, DBAPIError) and missing_tables(error):
                raise SchemaError(NO_SCHEMA) from error
            raise
        return spooled

    def sweep(self, grace: timedelta = SWEEP_GRACE) -> int:
        """Set aside files in the spool that no row vouches for and that are older than `grace`; returns how many.

        Such files are left by rolled-back transactions and killed producers. They can be taken back for seven times the grace
        and are deleted then. `grace` must exceed the longest transaction: zero is for a system that stands still, and deletes
        at once.

        Raises ConfigurationError, and touches nothing, when the spool belongs to another database. One that has no mark yet
        gets it here: call this outside of your transactions.
        """
        try:
            self.mark_spool()
        except OutOfRoom as error:  # sweeping makes room
            log.warning("the spool cannot be marked for now: %s", error)
        now = self.ambient.now()
        swept = 0
        old = (entry.name for entry in self.spool_store.list() if entry.modified_at <= now - grace)
        for name in self._without_row(old):
            self.spool_store.park(name)
            swept += 1
        # What was parked just now carries the present time, so a grace of zero takes it too.
        forgotten = self.ambient.now() - 7 * grace
        for name in self._without_row(entry.name for entry in self.spool_store.parked() if entry.modified_at <= forgotten):
            self.spool_store.delete(name)
        self.spool_store.clean(self.ambient.now() - grace)
        return swept

    def mark_spool(self, *, adopt: bool = False) -> None:
        """Give this database and its spool the same mark, as far as they have none; a worker does so when it starts.

        Raises ConfigurationError, and changes nothing, when the spool belongs to another database, or to this one before it was
        lost. With `adopt` it is this database's from now on, and the one that had it must be used no more: files that no row of
        this database vouches for are swept after a day, and gone a week later. A spool that is not there is not made. Call this
        outside of your transactions.
        """
        self.marks.settle(adopt=adopt)

    def _without_row(self, names: Iterator[str]) -> Iterator[str]:
        """Of these files, those that no row vouches for, a handful at a time."""
        while handful := list(itertools.islice(names, HANDFUL)):
            with self.database.read() as connection:
                rubbish = keeping.without_row(connection, handful)
            yield from sorted(rubbish)

    def free_files(self) -> int:
        """Delete the bytes of files that nothing needs any more; returns how many, a handful at most.

        Of messages that were delivered an hour ago (`Retention.free_after`) or purged, and of those spooled ahead a day ago and
        never given to a message.
        """
        return self.care.free_files()

    def close(self) -> None:
        """Close our own connections; the caller's are the caller's."""
        self.database.close()

    def _enqueue(
        self,
        session: Session | Connection | scoped_session[Any],
        target: Destination,
        entries: Sequence[Entry],
        first: int | None = None,
    ) -> list[Enqueued]:
        """Look at messages, put their files at rest, and write their rows; `first` is how many were there before, of many."""
        when = self._time.read()
        context = current_context()
        examined = intake.examine_all(
            target,
            entries,
            self._roots,
            when.invented,  # an age counts from the later of two times: a clock that is set right ends no message early
            context,
            first,
        )
        text = sum([each.size for each in examined])
        self.room.admit(sum([file.size or 0 for each in examined for file in each.files if _comes_in(file)]), text)
        arrivals: list[entering.Arrival] = []
        connection: Connection | None = None
        try:
            for request in examined:
                arrivals.append(self._arrival(request))  # noqa: PERF401 (those before one that fails must be known)
            # Only now, with the files at rest: the first statement may take SQLite's write lock.
            connection = _connection(session)
            self._mind_durability(connection)
            self.room.admit_inside(connection, text)
            by_itself = self.nudge and insert_may_nudge(connection, target.name)
            entered = entering.enter(connection, arrivals, when.now, self.ambient.new_id, nudge=by_itself)
            if self.nudge and any(each.enqueued.new for each in entered):
                nudge_at_commit(connection, target.name, said=by_itself)
        except DBAPIError as error:
            self._drop_fresh(arrivals)
            if missing_tables(error):
                raise SchemaError(NO_SCHEMA) from error
            known = in_our_words(error, self.database.path)
            if known is None:
                raise
            if connection is not None:  # it may not even have been made
                spoiled(connection, error)
            raise known from error
        except BaseException:
            self._drop_fresh(arrivals)
            raise
        self._drop([file for each in entered for file in each.unneeded])
        return [each.enqueued for each in entered]

    def _mind_durability(self, connection: Connection) -> None:
        fault = not_power_safe(connection, arriving.TAKE_WRITE_LOCK)
        if fault is None or self._durability == "ignore":
            return
        if self._durability == "strict":
            raise NotDurable(fault)
        with self._warn_lock:
            if self._durability == "warn":
                self._durability = "ignore"
                warnings.warn(fault, DurabilityWarning, stacklevel=4)

    def _spool_all(self, request: intake.Request) -> tuple[list[Attachment], list[SpooledFile]]:
        """Every file of a request at rest in the spool, and those of them that were copied just now."""
        attachments: list[Attachment] = []
        fresh: list[SpooledFile] = []
        if request.files:
            self._mind_spool()
        try:
            for offered in request.files:
                if isinstance(offered.source, SpooledFile):
                    file = offered.source
                    try:
                        self.spool_store.touch(file.name)
                    except FileMissing:
                        raise SpoolError(entering.spool_again(offered.name)) from None
                else:
                    file = self._copy(offered, request.destination.file_limit)
                    fresh.append(file)
                attachments.append(Attachment(offered.name, file, offered.filename, offered.content_type))
        except BaseException:
            self._drop(fresh)
            raise
        return attachments, fresh

    def _mind_spool(self) -> None:
        """Raises SpoolError when the spool is gone that the database has files in, ForeignSpool when it is another's.

        One made anew, on the disk that a mount should have covered, would make them look lost. Nothing is written: the caller
        may hold the write lock, and whoever sweeps writes the mark first.
        """
        if self._spool_minded or self.database.exhausted:
            return  # the next enqueue asks; this one would wait for the connection that its own caller holds
        if not self.spool_store.is_there():
            with self.database.read() as connection:
                kept = keeping.any_kept(connection)
            # Another program may have made it, and committed, since we looked.
            if kept and not self.spool_store.is_there():
                raise SpoolError(f"{self.spool_store!r} is not there, and the database has files in it; is the disk mounted?")
        if self.spool_store.mark() is None:
            return  # nobody has begun to sweep it
        try:
            self.marks.check_at_door()
        except SQLAlchemyError:
            return  # whatever it is, the statements of the enqueue will say it
        self._spool_minded = True

    def _copy(self, offered: intake.Offered, limit: int | None) -> SpooledFile:
        source = intake.open_source(offered)
        ours = source is not offered.source
        most = limit if offered.size is not None else self.room.most_of_a_file(limit)
        try:
            copied = self.spool_store.put(self.ambient.new_id(), source, most)
        except Oversize as error:
            if most != limit:
                raise OutOfRoom(
                    f"file {offered.name!r} has more bytes than there is room for ({bytes_in_words(error.limit)}); deliver, "
                    "cancel or purge messages with files, raise the quota, or make room on the disk of the spool"
                ) from None
            raise Refused(
                [Fault(f"files.{offered.name}", f"has more than {error.limit} bytes, which is the most allowed")]
            ) from None
        except (TypeError, ValueError) as error:
            fault = Fault(f"files.{offered.name}", "cannot be read as bytes; give a stream that is open, and open as binary")
            raise Refused([fault]) from error
        finally:
            if ours:
                source.close()
        self.room.added(copied.size)
        return SpooledFile(copied.name, copied.size, copied.sha256, copied.md5, offered.filename)

    def _arrival(self, request: intake.Request) -> entering.Arrival:
        return entering.Arrival(request, *self._spool_all(request)) if request.files else entering.Arrival(request, (), ())

    def _drop_fresh(self, arrivals: Iterable[entering.Arrival]) -> None:
        self._drop(file for each in arrivals for file in each.fresh)

    def _drop(self, files: Iterable[SpooledFile]) -> None:
        """Remove copies that no row refers to; what cannot be removed now, a sweep finds."""
        for file in files:
            with contextlib.suppress(SpoolError):
                self.spool_store.delete(file.name)


def _comes_in(offered: intake.Offered) -> bool:
    """Whether a file takes room in the spool that it does not have yet."""
    return not isinstance(offered.source, SpooledFile)


def _checked(session: Any) -> Session | Connection | scoped_session[Any]:
    if isinstance(session, Connection) or _is_session(session):
        return session
    raise TypeError(f"expected a SQLAlchemy Session or Connection, got {type(session).__name__}")


def _connection(session: Session | Connection | scoped_session[Any]) -> Connection:
    return session if isinstance(session, Connection) else session.connection()


def _is_session(given: Any) -> TypeGuard[Session | scoped_session[Any]]:
    """Whether it is one of SQLAlchemy's ORM, which is not imported for that: whoever has a session has imported it.

    It is a fifth of what a producer without it imports. And threads that begin to import it at once trip over each other.
    """
    orm = sys.modules.get("sqlalchemy.orm")
    kinds = (getattr(orm, "Session", None), getattr(orm, "scoped_session", None))
    return isinstance(given, tuple(kind for kind in kinds if kind is not None))
