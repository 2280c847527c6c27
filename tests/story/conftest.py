"""A database with its spool and receiver, workers whose turns are taken by hand, and processes to be killed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import EnosEvents, Outbox, Policy, migrate
from outbox.database import Database
from outbox.dispatcher import Dispatcher
from outbox.errors import DatabaseDamaged, SchemaError
from outbox.presence import Presence
from outbox.store import breaker
from outbox.tables import audit, message
from outbox.testing import Received, Receiver
from outbox.transport import RequestsTransport
from tests import ledger
from tests.factories import NOW, Clock, an_outbox, caller_engine, enos, event, held_up
from tests.ledger import trail
from tests.ledger.soundness import database_sound
from tests.postgres import Postgres, create_database
from tests.story.process import ROOT, Process, eventually

__all__ = ["ROOT", "Hand", "Place", "Process", "eventually"]


class Place:
    """One database with its spool and a receiver, and what was promised to producers there."""

    def __init__(self, url: str, folder: Path, receiver: Receiver, *, empty: bool = False) -> None:
        """`empty`: its database has no schema yet."""
        self.url = url
        self.folder = folder
        self.spool = folder / "spool"
        self.receiver = receiver
        self.clock = Clock()
        self.acknowledged: dict[str, dict[str, str]] = {}
        #: A story says what it harms on purpose, and what a full disk purges: else all is there when everybody is gone.
        self.damaged = False
        self.purged: set[str] = set()
        self.database = Database(url)
        if empty:
            migrate.upgrade(self.database)
        self.engine = caller_engine(url)
        self._processes: list[Process] = []
        self._outboxes: list[Outbox] = []

    def outbox(self, policy: Policy | None = None, *, clock: Clock | None = None, **options: Any) -> Outbox:
        """An outbox here; with a clock, in that clock's time."""
        mine = {key: options.pop(key) for key in list(options) if key in EnosEvents.__dataclass_fields__}
        destination = enos(self.receiver.url, policy=policy, **mine)
        ambient = {"ambient": clock.ambient} if clock else {}
        self._outboxes.append(an_outbox(self.url, self.spool, destination, **ambient, **options))
        return self._outboxes[-1]

    def enqueue(self, outbox: Outbox, key: str, files: Mapping[str, bytes] | None = None, **options: Any) -> int:
        """Enqueue and commit one message, and note that it must not be lost."""
        with self.engine.begin() as connection:
            enqueued = outbox.enqueue(connection, "enos", event(key, *(files or {})), files=files, key=key, **options)
        self.acknowledge(key, files)
        return enqueued.id

    def acknowledge(self, key: str, files: Mapping[str, bytes] | None = None) -> None:
        self.acknowledged[key] = {name: hashlib.sha256(content).hexdigest() for name, content in (files or {}).items()}

    def hand(self, outbox: Outbox, worker: str | None = None) -> Hand:
        """A worker without threads."""
        return Hand(outbox)

    def run(self, program: str, *, cold: bool = False, **story: Any) -> Process:
        """Start a program of processes.py here."""
        if not self._processes:
            # What several of them do with a message only the database can tell in order; if it is there, and nobody locks it.
            with suppress(sa.exc.OperationalError):
                trail.install(self.url, patience=0.2)
        here = {"database": self.url, "spool": str(self.spool), "url": self.receiver.url, "program": program}
        process = Process(self.folder, len(self._processes), here | story, cold=cold)
        self._processes.append(process)
        return process

    def freeze(self, process: Process) -> None:
        """Stop a worker between two transactions; what one in the middle of a transaction holds up is another story."""
        process.freeze()
        while held_up(self.engine):
            process.thaw()
            # What it has missed is all due at once: frozen again before that is done, it would never come to an end of it.
            eventually(lambda: not any(held_up(self.engine) for _ in range(5)))
            process.freeze()

    def check(self, *, rolled_back: Collection[str] = (), **options: Any) -> ledger.Balance:
        """Everything adds up: promises, rows, requests and the spool, and the trail once a process was started here."""
        promises = ledger.promised(self.acknowledged, rolled_back)
        options = {"spool": self.spool, "harmed": True, "thorough": False, "purged": self.purged} | options
        balance = ledger.examine(self.database, self.receiver.requests, promises, **options)
        assert balance.adds_up, balance.faults
        return balance

    def begun(self) -> list[Received]:
        """Every request in the order they began. Closes the receiver: one whose client is gone may take long to notice."""
        self.receiver.close()
        return sorted(self.receiver.requests, key=lambda request: request.number)

    def spooled(self) -> list[str]:
        """Every file below the spool, with the folder it is in."""
        return sorted(
            str(path.relative_to(self.spool))
            for path in self.spool.rglob("*")
            if path.is_file() and path != self.spool / ".outbox"
        )

    def stop_processes(self) -> None:
        for each in self._processes:
            each.close()

    def close(self) -> None:
        self.stop_processes()
        for outbox in self._outboxes:
            outbox.close()
        left = self._left()
        self.engine.dispose()
        self.database.close()
        assert [] == left, left

    def _left(self) -> list[str]:
        """What is wrong with what a story leaves, unless it meant to; one that took its database away looks for itself."""
        if self.damaged:
            return []
        with suppress(DatabaseDamaged, SchemaError, sa.exc.OperationalError):
            unsound = list(database_sound(self.database, thorough=False))
            with self.database.read() as connection:
                there = set(connection.execute(sa.select(message.c.key)).scalars())
                by_hand = connection.execute(sa.select(audit.c.id).where(audit.c.action == "purge")).first()
            if by_hand is not None or self.clock.wall >= NOW + timedelta(days=1):
                return unsound  # a person has purged something, or time may have
            lost = self.acknowledged.keys() - there - self.purged
            return unsound + [f"{key} was committed and is lost" for key in sorted(lost)]
        return []


class Hand:
    """A worker without threads: its turns are taken by hand."""

    def __init__(self, outbox: Outbox) -> None:
        self.stopping = False
        self.outbox = outbox
        self.presence = Presence(outbox.database, outbox.ambient)
        self.transport = RequestsTransport()
        self.dispatcher = Dispatcher(
            outbox.database,
            outbox.spool_store,
            outbox.destinations,
            outbox.ambient,
            self.transport,
            lambda: self.presence.id,
            lambda: self.stopping,
            outbox.hooks.watcher,
            outbox.hooks.finished,
        )
        with outbox.database.begin() as connection:
            breaker.declare(connection, outbox.destinations)
        self.presence.arrive()

    def turn(self, *lanes: str) -> bool:
        from outbox import Lane

        return self.dispatcher.turn("enos", [Lane(lane) for lane in lanes] or [Lane.EXPRESS, Lane.NORMAL, Lane.LARGE])

    def turn_while_it_moves(self, at_most: int = 100) -> int:
        """Turns until one moves nothing; how many moved something."""
        for taken in range(at_most):
            if not self.turn():
                return taken
        raise AssertionError(f"still moving after {at_most} turns")

    def breaker(self) -> Any:
        with self.outbox.database.read() as connection:
            return breaker.read(connection, "enos")


@pytest.fixture
def sqlite_url(migrated_sqlite_url: str) -> str:
    return migrated_sqlite_url


@pytest.fixture
def postgres_url(migrated_postgres_url: str) -> str:
    return migrated_postgres_url


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(check_token=False) as receiver:
        yield receiver


@pytest.fixture
def place(database_url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Place]:
    place = Place(database_url, tmp_path, receiver)
    yield place
    place.close()


@pytest.fixture
def sqlite_place(sqlite_url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Place]:
    """For what is a matter of SQLite's alone."""
    place = Place(sqlite_url, tmp_path, receiver)
    yield place
    place.close()


@pytest.fixture
def postgres_place(postgres_url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Place]:
    """For what only a database with many writers at a time can show."""
    place = Place(postgres_url, tmp_path, receiver)
    yield place
    place.close()


@pytest.fixture
def private_place(private_postgres: Postgres, tmp_path: Path, receiver: Receiver) -> Iterator[Place]:
    """On a server that may be stopped and killed."""
    place = Place(create_database(private_postgres.url), tmp_path, receiver, empty=True)
    yield place
    place.close()


@pytest.fixture
def statements() -> Callable[[sa.Engine], list[str]]:
    """Every statement that an engine executes from now on."""

    def listen(engine: sa.Engine) -> list[str]:
        heard: list[str] = []

        @sa.event.listens_for(engine, "before_cursor_execute")
        def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            heard.append(statement)

        return heard

    return listen
