"""The ways in which a producer may enqueue, each as one thing that takes the steps of a transaction and says what came of them.

A step is a string, which becomes a row of the producer's own; an Entry, which is enqueued; or steps within a savepoint that is
rolled back. What an Entry is refused with stands in the place of what would have become of it, and the transaction goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from outbox import Enqueued, Entry, Outbox, OutboxError, prepare
from tests.factories import caller_engine

#: The producer's own table.
HOST = sa.Table("host", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(40)))

Outcome: TypeAlias = Enqueued | OutboxError


@dataclass(frozen=True)
class RolledBack:
    """Steps within a savepoint, of which nothing stays."""

    steps: Sequence[str | Entry]


Step: TypeAlias = str | Entry | RolledBack


class Stop(Exception):
    """The producer's own transaction fails."""


def options_of(entry: Entry) -> dict[str, Any]:
    """What `enqueue` takes beside session, destination and payload."""
    return {each.name: getattr(entry, each.name) for each in fields(entry) if each.name != "payload"}


class Way:
    """One way to enqueue, on one database."""

    #: Whether it takes attachments, and checks a payload against its destination at the door.
    whole = True

    def __init__(self, url: str) -> None:
        self.url = url

    def transaction(self, outbox: Outbox, *steps: Step, commit: bool = True, meanwhile: Any = None) -> list[Outcome]:
        """Take the steps and commit, or fail; `meanwhile` is called before that."""
        raise NotImplementedError

    def close(self) -> None:
        """Nobody enqueues this way any more."""


class Blocking(Way):
    """With a connection that blocks; how it enqueues is for subclasses."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.engine = caller_engine(url)

    def transaction(self, outbox: Outbox, *steps: Step, commit: bool = True, meanwhile: Any = None) -> list[Outcome]:
        found: list[Outcome] = []
        with contextlib.suppress(Stop), self.begin() as given:
            for step in steps:
                if isinstance(step, RolledBack):
                    savepoint = given.begin_nested()
                    for inner in step.steps:
                        self.take(outbox, given, inner)
                    savepoint.rollback()
                elif (outcome := self.take(outbox, given, step)) is not None:
                    found.append(outcome)
            if meanwhile is not None:
                meanwhile()
            if not commit:
                raise Stop
        return found

    @contextlib.contextmanager
    def begin(self) -> Iterator[Any]:
        with self.engine.begin() as connection:
            yield connection

    def take(self, outbox: Outbox, given: Any, step: str | Entry) -> Outcome | None:
        if isinstance(step, str):
            given.execute(sa.insert(HOST).values(name=step))
            return None
        try:
            return self.enqueue(outbox, given, step)
        except OutboxError as error:
            return error

    def enqueue(self, outbox: Outbox, given: Any, entry: Entry) -> Enqueued:
        return outbox.enqueue(given, "enos", entry.payload, **options_of(entry))

    def close(self) -> None:
        self.engine.dispose()


class InConnection(Blocking):
    """`outbox.enqueue(connection, …)`"""


class InSession(Blocking):
    """`outbox.enqueue(session, …)`"""

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        with Session(self.engine) as session, session.begin():
            yield session


class Many(InSession):
    """`outbox.enqueue_many(session, …)`"""

    def enqueue(self, outbox: Outbox, given: Any, entry: Entry) -> Enqueued:
        return outbox.enqueue_many(given, "enos", (each for each in [entry]))[0]


class InDriver(Way):
    """`outbox.enqueue_dbapi(cursor, …)`"""

    def transaction(self, outbox: Outbox, *steps: Step, commit: bool = True, meanwhile: Any = None) -> list[Outcome]:
        found: list[Outcome] = []
        with contextlib.closing(driver_connection(self.url)) as given, contextlib.suppress(Stop):
            cursor = given.cursor()
            for step in steps:
                if isinstance(step, RolledBack):
                    cursor.execute("SAVEPOINT theirs")
                    for inner in step.steps:
                        self.take(outbox, cursor, inner)
                    cursor.execute("ROLLBACK TO theirs")
                elif (outcome := self.take(outbox, cursor, step)) is not None:
                    found.append(outcome)
            if meanwhile is not None:
                meanwhile()
            if not commit:
                raise Stop
            given.commit()
        return found

    def take(self, outbox: Outbox, cursor: Any, step: str | Entry) -> Outcome | None:
        if isinstance(step, str):
            cursor.execute(f"INSERT INTO host (name) VALUES ('{step}')")
            return None
        try:
            return self.enqueue(outbox, cursor, step)
        except OutboxError as error:
            return error

    def enqueue(self, outbox: Outbox, cursor: Any, entry: Entry) -> Enqueued:
        return outbox.enqueue_dbapi(cursor, "enos", entry.payload, **options_of(entry))


class ManyInDriver(InDriver):
    """`outbox.enqueue_many_dbapi(cursor, …)`"""

    def enqueue(self, outbox: Outbox, cursor: Any, entry: Entry) -> Enqueued:
        return outbox.enqueue_many_dbapi(cursor, "enos", [entry])[0]


def driver_connection(url: str, **options: Any) -> Any:
    """A connection of the driver itself, without SQLAlchemy."""
    address = sa.make_url(url)
    if address.get_backend_name() == "sqlite":
        return sqlite3.connect(str(address.database), **options)
    return psycopg.connect(address.set(drivername="postgresql").render_as_string(hide_password=False), **options)


class Awaited(Way):
    """With an asynchronous connection; how it enqueues is for subclasses."""

    def transaction(self, outbox: Outbox, *steps: Step, commit: bool = True, meanwhile: Any = None) -> list[Outcome]:
        return asyncio.run(self._transaction(outbox, steps, commit, meanwhile))

    async def _transaction(self, outbox: Outbox, steps: Sequence[Step], commit: bool, meanwhile: Any) -> list[Outcome]:
        found: list[Outcome] = []
        async with async_engine(self.url) as engine:
            with contextlib.suppress(Stop):
                async with self.begin(engine) as given:
                    for step in steps:
                        if isinstance(step, RolledBack):
                            savepoint = await given.begin_nested()
                            for inner in step.steps:
                                await self.take(outbox, given, inner)
                            await savepoint.rollback()
                        elif (outcome := await self.take(outbox, given, step)) is not None:
                            found.append(outcome)
                    if meanwhile is not None:
                        meanwhile()
                    if not commit:
                        raise Stop
        return found

    @contextlib.asynccontextmanager
    async def begin(self, engine: AsyncEngine) -> AsyncIterator[Any]:
        async with engine.begin() as connection:
            yield connection

    async def take(self, outbox: Outbox, given: Any, step: str | Entry) -> Outcome | None:
        if isinstance(step, str):
            await given.execute(sa.insert(HOST).values(name=step))
            return None
        try:
            return await self.enqueue(outbox, given, step)
        except OutboxError as error:
            return error

    async def enqueue(self, outbox: Outbox, given: Any, entry: Entry) -> Enqueued:
        return await outbox.aenqueue(given, "enos", entry.payload, **options_of(entry))


class InAsyncConnection(Awaited):
    """`await outbox.aenqueue(async_connection, …)`"""


class InAsyncSession(Awaited):
    """`await outbox.aenqueue(async_session, …)`"""

    @contextlib.asynccontextmanager
    async def begin(self, engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session, session.begin():
            yield session


class InAsyncScopedSession(Awaited):
    """`await outbox.aenqueue(async_scoped_session, …)`"""

    @contextlib.asynccontextmanager
    async def begin(self, engine: AsyncEngine) -> AsyncIterator[async_scoped_session[AsyncSession]]:
        scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        async with scoped(), scoped.begin():
            yield scoped
        await scoped.remove()


class ManyAwaited(InAsyncSession):
    """`await outbox.aenqueue_many(async_session, …)`"""

    async def enqueue(self, outbox: Outbox, given: Any, entry: Entry) -> Enqueued:
        async def generate() -> AsyncIterator[Entry]:
            yield entry

        return (await outbox.aenqueue_many(given, "enos", generate()))[0]


@contextlib.asynccontextmanager
async def async_engine(url: str) -> AsyncIterator[AsyncEngine]:
    """A caller's asynchronous engine as our documentation tells callers to make it."""
    engine = prepare(create_async_engine(awaited(url)))
    try:
        yield engine
    finally:
        await engine.dispose()


def awaited(url: str) -> sa.URL:
    """The same database by a driver that is awaited."""
    found = sa.make_url(url)
    driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg_async"}[found.get_backend_name()]
    return found.set(drivername=driver)


WAYS: dict[str, type[Way]] = {
    "Session": InSession,
    "Connection": InConnection,
    "AsyncSession": InAsyncSession,
    "AsyncConnection": InAsyncConnection,
    "async_scoped_session": InAsyncScopedSession,
    "enqueue_dbapi": InDriver,
    "enqueue_many": Many,
    "enqueue_many_dbapi": ManyInDriver,
    "aenqueue_many": ManyAwaited,
}

__all__ = ["HOST", "WAYS", "RolledBack", "Step", "Way", "async_engine", "awaited", "driver_connection"]
