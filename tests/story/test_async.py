"""What is different when a producer awaits: the event loop goes on, and whoever is cancelled leaves nothing."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from outbox import Entry, NotDurable, Outbox, Refused, SpoolError, State, prepare
from outbox.database import Database
from outbox.errors import ConfigurationError
from outbox.policy import HANDFUL
from outbox.tables import message
from tests.factories import KINDS, an_outbox, count, event, states
from tests.story.conftest import Place
from tests.story.producers import async_engine, awaited

PHOTO = {"photo": b"bytes of a photo"}


@pytest.fixture
def outbox(place: Place) -> Outbox:
    return place.outbox()


class Slow(io.BytesIO):
    """A stream that gives its bytes when it is told to."""

    def __init__(self, content: bytes, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(content)
        self._loop = loop
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    def read(self, size: int | None = -1) -> bytes:
        self._loop.call_soon_threadsafe(self.asked.set)
        asyncio.run_coroutine_threadsafe(self.may.wait(), self._loop).result()
        return super().read(size)


async def test_the_event_loop_goes_on_while_a_file_is_copied(place: Place, outbox: Outbox) -> None:
    stream = Slow(b"bytes of a photo", asyncio.get_running_loop())
    async with async_engine(place.url) as engine, AsyncSession(engine) as session, session.begin():
        enqueuing = asyncio.create_task(outbox.aenqueue(session, "enos", event("a", "photo"), files={"photo": stream}, key="a"))
        await stream.asked.wait()
        stream.may.set()  # nobody could, if copying had kept the loop

        assert (await enqueuing).new

    assert {"a": State.PENDING} == states(place.database)


async def test_who_is_cancelled_while_a_file_is_copied_leaves_no_file(place: Place, outbox: Outbox) -> None:
    stream = Slow(b"bytes of a photo", asyncio.get_running_loop())
    async with async_engine(place.url) as engine, AsyncSession(engine) as session, session.begin():
        enqueuing = asyncio.create_task(outbox.aenqueue(session, "enos", event("a", "photo"), files={"photo": stream}))
        await stream.asked.wait()
        enqueuing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await enqueuing
        stream.may.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)  # for what is to be done when the thread is done

    assert ({}, []) == (states(place.database), place.spooled())


async def test_a_file_is_spooled_ahead_of_a_transaction(place: Place, outbox: Outbox) -> None:
    spooled = await outbox.aspool(b"bytes of a photo")

    async with async_engine(place.url) as engine, engine.begin() as connection:
        await outbox.aenqueue(connection, "enos", event("a", "photo"), files={"photo": spooled}, key="a")

    assert {"a": State.PENDING} == states(place.database)


async def test_an_asynchronous_generator_of_many_is_taken_a_handful_at_a_time(place: Place, outbox: Outbox) -> None:
    async with async_engine(place.url) as engine:
        statements: list[str] = []
        sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        taken = 0

        async def generate() -> AsyncIterator[Any]:
            nonlocal taken
            for number in range(2 * HANDFUL + 1):
                assert taken < (sum("INSERT INTO outbox_message" in each for each in statements) + 1) * HANDFUL
                taken += 1
                yield Entry(event(), key=f"m{number}")

        async with AsyncSession(engine) as session, session.begin():
            enqueued = await outbox.aenqueue_many(session, "enos", generate())

    assert 2 * HANDFUL + 1 == len({each.id for each in enqueued}) == count(place.database, message)


@pytest.mark.parametrize("how", ["a list", "an asynchronous generator"])
async def test_of_many_of_which_one_is_refused_none_is_added(place: Place, outbox: Outbox, how: str) -> None:
    many = [Entry(event(), key=f"m{number}") for number in range(HANDFUL + 2)]
    many[-1] = Entry({"produckKey": "p"})

    async def generate() -> AsyncIterator[Any]:
        for each in many:
            yield each

    async with async_engine(place.url) as engine, AsyncSession(engine) as session, session.begin():
        with pytest.raises(Refused, match=rf"messages\[{HANDFUL + 1}\]"):
            await outbox.aenqueue_many(session, "enos", many if how == "a list" else generate())

    assert {} == states(place.database)


async def test_who_is_cancelled_in_the_midst_of_many_hears_of_that_and_nothing_is_added(place: Place, outbox: Outbox) -> None:
    """What their connection then says is not what happened: a timeout must stay one."""
    async with async_engine(place.url) as engine:
        inserted = 0

        @sa.event.listens_for(engine.sync_engine, "before_cursor_execute")
        def cancel_the_second(*given: Any) -> None:
            nonlocal inserted
            inserted += "INSERT INTO outbox_message" in given[2]
            if inserted == 2:
                enqueuing.cancel()

        async def enqueue() -> None:
            async with AsyncSession(engine) as session, session.begin():
                await outbox.aenqueue_many(session, "enos", (event() for _ in range(HANDFUL + 1)))

        enqueuing = asyncio.create_task(enqueue())
        with pytest.raises(asyncio.CancelledError):
            await enqueuing

    assert (2, {}) == (inserted, states(place.database))


@pytest.mark.postgres
async def test_a_producer_may_use_asyncpg(postgres_place: Place) -> None:
    outbox = postgres_place.outbox()
    engine = prepare(create_async_engine(awaited(postgres_place.url).set(drivername="postgresql+asyncpg")))

    async def produce(*keys: str) -> list[bool]:
        async with AsyncSession(engine) as session, session.begin():
            entries = [Entry(event(key, "photo"), PHOTO, key=key, ordering_key="pump") for key in keys]
            return [each.new for each in await outbox.aenqueue_many(session, "enos", entries)]

    assert [[True], [False, True, True]] == [await produce("a"), await produce("a", "b", "c")]
    async with AsyncSession(engine) as session:
        await outbox.aenqueue(session, "enos", event("x"), key="x")
        await session.rollback()
    await engine.dispose()

    postgres_place.hand(outbox).turn_while_it_moves()
    assert ["a", "b", "c"] == [each.struct["assetId"] for each in postgres_place.receiver.accepted]


@pytest.mark.postgres
async def test_a_connection_of_asyncpg_without_transactions_is_refused(postgres_place: Place) -> None:
    outbox = postgres_place.outbox()
    url = awaited(postgres_place.url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="autocommit mode"):
            await outbox.aenqueue(connection, "enos", event("a", "photo"), files=PHOTO)
    await engine.dispose()

    assert ({}, []) == (states(postgres_place.database), postgres_place.spooled())


async def test_an_error_of_the_spool_leaves_the_transaction_usable(place: Place, outbox: Outbox) -> None:
    gone = await outbox.aspool(b"bytes")
    outbox.spool_store.delete(gone.name)
    outbox.sweep(timedelta(0))

    async with async_engine(place.url) as engine, AsyncSession(engine) as session, session.begin():
        with pytest.raises(SpoolError, match="spool it again"):
            await outbox.aenqueue(session, "enos", event("a", "photo"), files={"photo": gone}, key="a")
        await outbox.aenqueue(session, "enos", event("b"), key="b")

    assert {"b": State.PENDING} == states(place.database)


async def test_an_engine_that_would_lose_a_commit_is_refused_where_that_is_asked_for(place: Place) -> None:
    outbox = place.outbox(durability="strict")
    async with async_engine(place.url) as engine:

        @sa.event.listens_for(engine.sync_engine, "connect")
        def be_careless(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            cursor.execute(KINDS[place.engine.url.get_backend_name()].careless)
            cursor.close()
            connection.commit()

        async with AsyncSession(engine) as session, session.begin():
            with pytest.raises(NotDurable, match="power cut"):
                await outbox.aenqueue(session, "enos", event("a"), key="a")

    assert {} == states(place.database)


async def test_an_outbox_is_made_from_an_asynchronous_engine_or_its_url(place: Place) -> None:
    async with async_engine(place.url) as engine:
        for number, given in enumerate([engine, awaited(place.url), awaited(place.url).render_as_string(hide_password=False)]):
            outbox = an_outbox(given, place.spool)
            async with AsyncSession(engine) as session, session.begin():
                await outbox.aenqueue(session, "enos", event("a"), key=f"m{number}")
            outbox.close()

    assert 3 == len(states(place.database))


@pytest.mark.postgres
def test_what_only_asyncpg_knows_of_a_url_is_said_in_the_words_of_the_driver_that_blocks(postgres_url: str) -> None:
    url = sa.make_url(postgres_url).set(
        drivername="postgresql+asyncpg", query={"ssl": "prefer", "prepared_statement_cache_size": "0", "command_timeout": "60"}
    )
    database = Database(url)
    with database.read() as connection:
        assert 1 == connection.execute(sa.select(1)).scalar_one()
    database.close()

    assert {"sslmode": "prefer"} == database.url.query


async def test_what_goes_the_other_way_is_said_with_the_way_it_goes(place: Place, outbox: Outbox) -> None:
    async with async_engine(place.url) as engine, AsyncSession(engine) as asynchronous:
        with Session(place.engine) as blocking:
            with pytest.raises(TypeError, match=r"got AsyncSession; that one goes with: await outbox\.aenqueue"):
                outbox.enqueue(asynchronous, "enos", event())  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=r"got Session; that one goes with: outbox\.enqueue"):
                await outbox.aenqueue(blocking, "enos", event())  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="AsyncSession or AsyncConnection, got NoneType"):
                await outbox.aenqueue(None, "enos", event())  # type: ignore[arg-type]
        assert prepare(engine) is engine
