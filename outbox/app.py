"""`Outbox`: the composition root."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import URL, Engine

from outbox.ambient import Ambient
from outbox.care import Care
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.errors import ConfigurationError, OutOfRoom
from outbox.hooks import Hookable, Hooks
from outbox.marks import Marking
from outbox.operations import Operations
from outbox.policy import HANDFUL, RESERVE, SWEEP_GRACE, Retention
from outbox.producing import Producing
from outbox.reserve import Room
from outbox.spool.base import Spool
from outbox.spool.directory import DirectorySpool
from outbox.spooling import Spooling
from outbox.store import keeping
from outbox.timekeeping import Timekeeper
from outbox.views import Views
from outbox.why import Explaining

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger("outbox.app")


class Outbox(Operations, Producing, Explaining, Views, Hookable):
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
        database: str | URL | Engine | AsyncEngine,
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
        self._warn_lock = threading.Lock()
        self._time = Timekeeper(self.ambient)
        if quota is not None and quota < 1:
            raise ConfigurationError(f"expected quota to be a number of bytes of at least 1, or None, got {quota}")
        if reserve < 0:
            raise ConfigurationError(f"expected reserve to be a number of bytes of at least 0, got {reserve}")
        self.quota = quota
        self.nudge = nudge
        self.hooks = Hooks()
        self.retention = retention or Retention()
        self.room = Room(self.database, self.spool_store, quota, reserve)
        self.marks = Marking(self.database, self.spool_store, self.ambient)
        self._files = Spooling(self.database, self.spool_store, self.room, self.marks, self.ambient)
        self.care = Care(self.database, self.spool_store, self.ambient, self.destinations, self.retention, self.room)

    def __reduce__(self) -> str:
        raise TypeError("an Outbox is not pickled; make it in a module that every process imports, or in each process anew")

    def __repr__(self) -> str:
        return f"Outbox({self.database!r}, destinations={sorted(self.destinations)})"

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

    def at(self, database: str | URL | Engine | AsyncEngine, *, spool: str | os.PathLike[str] | Spool) -> Outbox:
        """An outbox with the same destinations, rules and hooks in another place: for a test, or a second database."""
        other = Outbox(
            database,
            spool=spool,
            destinations=self.destinations.values(),
            roots=self._roots,
            durability=self._durability,
            retention=self.retention,
            quota=self.quota,
            reserve=self.room.reserve,
            nudge=self.nudge,
            ambient=self.ambient,
        )
        other.hooks = self.hooks
        return other

    def close(self) -> None:
        """Close our own connections; the caller's are the caller's."""
        self.database.close()
