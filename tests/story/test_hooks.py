"""Hooks hear of what is committed, and of nothing else; and what one of them does wrong harms no work."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from outbox import Entry, Lane, News, Outbox, Policy, Reason, State, Worker
from outbox.errors import KeyConflict
from outbox.exchange import Upload
from outbox.model import Batch, Message, Outcome
from outbox.multipart import FieldPart
from outbox.testing import Answer, Receiver, Status
from outbox.verdict import Delivered, Result
from outbox.watching import Recorded
from tests.conftest import missing
from tests.factories import claim, column, deliveries, event, outcomes, settlement, states
from tests.postgres import NoBinariesError, Postgres, create_database
from tests.story.conftest import Hand, Place


@pytest.fixture
def outbox_here(place: Place) -> Outbox:
    return place.outbox(clock=place.clock)


@pytest.fixture
def hand(place: Place, outbox_here: Outbox) -> Hand:
    return place.hand(outbox_here)


def async_url(place: Place) -> sa.URL:
    url = sa.make_url(place.url)
    return url.set(drivername={"sqlite": "sqlite+aiosqlite"}.get(url.get_backend_name(), url.drivername))


def keys(heard: list[News]) -> list[str]:
    return [each.key for each in heard]


# What is enqueued.


def test_a_session_is_told_of_when_it_is_committed(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    with Session(place.engine) as session:
        made = outbox_here.enqueue(session, "enos", event("a"), key="a")
        before = list(heard)
        session.commit()

    assert [] == before
    assert [News(made.id, "a", "enos", State.PENDING)] == heard


def test_it_is_there_by_then(place: Place, outbox_here: Outbox) -> None:
    seen: list[dict[str, str]] = []
    outbox_here.on_enqueued(lambda news: seen.append(states(place.database)))

    with place.engine.begin() as connection:
        outbox_here.enqueue(connection, "enos", event("a"), key="a")

    assert [{"a": "pending"}] == seen


def test_each_transaction_of_a_connection_tells_of_its_own(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    with place.engine.connect() as connection:
        outbox_here.enqueue(connection, "enos", event("a"), key="a")
        connection.commit()
        first = keys(heard)
        outbox_here.enqueue(connection, "enos", event("b"), key="b")
        connection.rollback()
        outbox_here.enqueue(connection, "enos", event("c"), key="c")
        connection.commit()

    assert (["a"], ["a", "c"]) == (first, keys(heard))


def test_what_is_rolled_back_is_not_told_of(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    with place.engine.connect() as connection:
        outbox_here.enqueue(connection, "enos", event("a"), key="a")
    with place.engine.begin() as connection:  # the same one of the driver's, most likely
        outbox_here.enqueue(connection, "enos", event("b"), key="b")

    assert ["b"] == keys(heard)


def test_what_a_savepoint_took_back_is_not_told_of(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    with Session(place.engine) as session, session.begin():
        outbox_here.enqueue(session, "enos", event("a"), key="a")
        with session.begin_nested():
            outbox_here.enqueue(session, "enos", event("b"), key="b")
        with session.begin_nested() as savepoint:
            outbox_here.enqueue(session, "enos", event("c"), key="c")
            savepoint.rollback()
        outbox_here.enqueue(session, "enos", event("d"), key="d")

    assert ["a", "b", "d"] == keys(heard)


def test_nor_what_one_took_back_that_was_made_before_anybody_asked(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []

    with Session(place.engine) as session, session.begin():
        outbox_here.enqueue(session, "enos", event("a"), key="a")
        with session.begin_nested() as savepoint:
            outbox_here.on_enqueued(heard.append)
            outbox_here.enqueue(session, "enos", event("b"), key="b")
            savepoint.rollback()

    assert ([], {"a": "pending"}) == (heard, states(place.database))


def test_a_session_inside_of_somebody_elses_transaction_tells_when_that_is_committed(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    with place.engine.connect() as connection:
        outer = connection.begin()
        with Session(connection) as session:
            outbox_here.enqueue(session, "enos", event("a"), key="a")
            session.commit()
        before = list(heard)
        outer.commit()

    assert ([], ["a"]) == (before, keys(heard))


def test_many_are_told_of_one_by_one_and_none_when_one_of_them_was_refused(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    with place.engine.begin() as connection:
        outbox_here.enqueue_many(connection, "enos", [Entry(event(), key=f"m{number}") for number in range(3)])
        conflicting = [*(Entry(event(), key=f"n{number}") for number in range(600)), Entry(event("other"), key="m0")]
        with pytest.raises(KeyConflict):
            outbox_here.enqueue_many(connection, "enos", conflicting)

    assert ["m0", "m1", "m2"] == keys(heard)
    assert 3 == len(states(place.database))


def test_a_key_that_was_there_already_is_no_news(place: Place, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    place.enqueue(outbox_here, "a")

    assert [] == heard


def test_a_key_that_we_made_up_is_told(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    with place.engine.begin() as connection:
        outbox_here.enqueue(connection, "enos", event("a"))

    assert list(states(place.database)) == keys(heard)


def test_an_async_session_is_told_of_when_it_is_committed(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    async def produce() -> list[News]:
        engine = create_async_engine(async_url(place))
        async with AsyncSession(engine) as session:
            await outbox_here.aenqueue(session, "enos", event("a"), key="a")
            before = list(heard)
            await session.commit()
        await engine.dispose()
        return before

    assert [] == asyncio.run(produce())
    assert ["a"] == keys(heard)


def test_many_that_are_awaited_are_told_of_or_none_of_them(place: Place, outbox_here: Outbox) -> None:
    heard: list[News] = []
    outbox_here.on_enqueued(heard.append)

    async def produce() -> None:
        engine = create_async_engine(async_url(place))
        async with AsyncSession(engine) as session, session.begin():
            await outbox_here.aenqueue_many(session, "enos", [Entry(event(), key=f"m{number}") for number in range(3)])
            conflicting = [*(Entry(event(), key=f"n{number}") for number in range(600)), Entry(event("other"), key="m0")]
            with pytest.raises(KeyConflict):
                await outbox_here.aenqueue_many(session, "enos", conflicting)
        await engine.dispose()

    asyncio.run(produce())

    assert ["m0", "m1", "m2"] == keys(heard)
    assert 3 == len(states(place.database))


@pytest.mark.merge
def test_a_commit_in_two_phases_is_told_of_after_the_second(tmp_path: Path, receiver: Receiver) -> None:
    try:
        server = Postgres(settings={"max_prepared_transactions": "5"})
    except NoBinariesError as error:
        missing(str(error))
    with server:
        place = Place(create_database(server.url), tmp_path, receiver, empty=True)
        outbox = place.outbox(nudge=False)
        heard: list[News] = []
        outbox.on_enqueued(heard.append)

        with Session(place.engine, twophase=True) as session:
            outbox.enqueue(session, "enos", event("a"), key="a")
            session.prepare()
            before = list(heard)
            session.commit()

        assert ([], ["a"]) == (before, keys(heard))

        # With other drivers SQLAlchemy rolls back what it began for the second phase.
        other = sa.create_engine(place.url)
        dialect: Any = other.dialect
        commit = dialect.do_commit_twophase
        dialect.do_commit_twophase = lambda given, *how, **more: (
            commit(given, *how, **more),
            dialect.do_rollback(given.connection),
        )
        with Session(other, twophase=True) as session:
            outbox.enqueue(session, "enos", event("b"), key="b")
            session.commit()

        assert ["a", "b"] == keys(heard)
        other.dispose()
        place.close()


def test_what_a_hook_raises_is_logged_and_the_next_one_hears_all_the_same(
    place: Place, outbox_here: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[News] = []

    @outbox_here.on_enqueued
    def stumble(news: News) -> None:
        raise RuntimeError("no good")

    outbox_here.on_enqueued(heard.append)
    with place.engine.begin() as connection:
        outbox_here.enqueue(connection, "enos", event("a"), key="a")

    assert ["a"] == keys(heard)
    assert "stumble failed for message 1 to enos; the work goes on" in caplog.text


def test_whoever_has_no_hook_leaves_a_callers_engine_alone(place: Place, outbox_here: Outbox) -> None:
    untouched = type(place.engine.dialect).do_commit

    place.enqueue(outbox_here, "a")

    assert untouched == place.engine.dialect.do_commit.__func__


# What becomes of it.


def test_a_delivery_is_told_with_what_was_answered(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    tried: list[News] = []
    delivered: list[News] = []
    outbox_here.on_attempt(tried.append)
    outbox_here.on_delivered(delivered.append)
    ids = [place.enqueue(outbox_here, key) for key in "ab"]

    hand.turn()

    assert tried == delivered
    assert [(ids[0], "a"), (ids[1], "b")] == [(each.id, each.key) for each in delivered]
    told = delivered[0]
    assert ("enos", State.DELIVERED, None, 1, Outcome.DELIVERED) == (
        told.destination,
        told.state,
        told.reason,
        told.attempt,
        told.outcome,
    )
    assert (200, 0, 2, hand.presence.id) == (told.status, told.code, told.messages, told.worker)
    assert told.seconds is not None
    assert told.delivery == deliveries(place.database)[0].id


def test_it_is_committed_by_then(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    seen: list[dict[str, str]] = []
    outbox_here.on_delivered(lambda news: seen.append(states(place.database)))
    place.enqueue(outbox_here, "a")

    hand.turn()

    assert [{"a": "delivered"}] == seen


def test_a_failure_is_an_attempt_and_no_end(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    tried: list[News] = []
    ended: list[News] = []
    outbox_here.on_attempt(tried.append)
    outbox_here.on_delivered(ended.append)
    outbox_here.on_dead(ended.append)
    place.receiver.misbehave(Status(503))
    place.enqueue(outbox_here, "a")

    hand.turn()

    (told,) = tried
    assert (State.PENDING, Outcome.RETRY, 503, []) == (told.state, told.outcome, told.status, ended)


def test_a_message_that_was_refused_is_dead_with_the_reason(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    died: list[News] = []
    outbox_here.on_dead(died.append)
    place.receiver.misbehave(Answer(1204, "Model validate failed"))
    place.enqueue(outbox_here, "a")

    hand.turn()

    (told,) = died
    assert (State.DEAD, Reason.REJECTED, 1204) == (told.state, told.reason, told.code)
    assert "Model validate failed" in (told.words or "")


def test_a_message_whose_time_is_over_is_dead_without_an_attempt(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    died: list[News] = []
    tried: list[News] = []
    outbox_here.on_dead(died.append)
    outbox_here.on_attempt(tried.append)
    at = place.clock.wall
    place.enqueue(outbox_here, "a", expires_at=at + timedelta(seconds=5))
    place.enqueue(outbox_here, "b", expires_at=at + timedelta(seconds=5))
    place.clock.move(6)

    hand.turn()  # a claim finds two
    place.enqueue(outbox_here, "c", expires_at=at + timedelta(seconds=9))
    outbox_here.pause("enos", "so that no claim looks", by="a test")
    place.clock.move(6)
    hand.dispatcher.expire()  # and a look for those that no claim finds the third

    assert [("a", "expired"), ("b", "expired"), ("c", "expired")] == [(each.key, each.reason) for each in died]
    assert [] == tried


def test_what_was_rolled_back_did_not_die(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    """What is recorded and what is claimed next are one transaction, and a commit may fail."""
    died: list[tuple[str, str]] = []
    outbox_here.on_dead(lambda news: died.append((news.key, states(place.database)[news.key])))
    place.enqueue(outbox_here, "a")
    asked: list[Lane] = []
    commits: list[sa.Connection] = []

    def lanes() -> list[Lane]:
        asked.append(Lane.NORMAL)
        if len(asked) == 2:
            place.enqueue(outbox_here, "b", expires_at=place.clock.wall + timedelta(seconds=5))
            place.clock.move(6)
            sa.event.listen(outbox_here.database.engine, "commit", fail)
        return asked[:1]

    def fail(connection: sa.Connection) -> None:
        commits.append(connection)
        if len(commits) == 1:
            raise sa.exc.OperationalError("COMMIT", None, Exception("the server is gone"))

    with pytest.raises(sa.exc.OperationalError):
        hand.dispatcher.work("enos", lanes)
    hand.dispatcher.record_leftovers()
    before = list(died)
    hand.turn()

    assert ([], [("b", "dead")]) == (before, died)


def test_who_looks_twice_in_one_claim_tells_of_all_that_it_gave_up(place: Place) -> None:
    outbox = place.outbox(Policy(batch_messages=1), clock=place.clock)
    hand = place.hand(outbox)
    died: list[News] = []
    outbox.on_dead(died.append)
    place.enqueue(outbox, "a")
    place.clock.move(0.1)
    place.enqueue(outbox, "b", expires_at=place.clock.wall + timedelta(seconds=1))
    hand.turn()  # and where it ended the next one begins to look
    place.clock.move(1.5)

    hand.turn()

    assert ({"a": "delivered", "b": "dead"}, ["b"]) == (states(place.database), keys(died))


def test_a_rescue_tells_for_the_worker_that_is_gone(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    tried: list[News] = []
    outbox_here.on_attempt(tried.append)
    place.enqueue(outbox_here, "a")
    with place.database.begin() as connection:
        claim(connection, "gone", now=place.clock.wall)

    hand.dispatcher.rescue()

    (told,) = tried
    assert (State.PENDING, Outcome.UNKNOWN, "the worker is gone") == (told.state, told.outcome, told.words)
    assert (None, "gone") == (told.seconds, told.worker)


def test_a_message_whose_claim_was_lost_is_not_told_of(outbox_here: Outbox) -> None:
    tried: list[News] = []
    outbox_here.on_attempt(tried.append)
    lost, ours = (Message(number, key, "{}", 1, 0, 0, None, 2, 0) for number, key in ((1, "lost"), (2, "ours")))

    result = Result(7, "w1", "enos", (lost, ours), 2, Delivered())
    outbox_here.hooks.watcher.recorded(Recorded(result, {2: settlement()}))

    assert ["ours"] == keys(tried)


def test_what_a_hook_raises_keeps_no_worker_from_its_work(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    outbox = place.outbox()

    @outbox.on_attempt
    @outbox.on_delivered
    def stumble(news: News) -> None:
        raise RuntimeError("no good")

    place.enqueue(outbox, "a")
    Worker(outbox).run(until_idle=True)

    assert {"a": "delivered"} == states(place.database)
    assert 2 == caplog.text.count("stumble failed for message")


def test_what_is_no_function_is_refused(outbox_here: Outbox) -> None:
    with pytest.raises(Exception, match="expected a function to call, got str"):
        outbox_here.on_dead("print")  # type: ignore[type-var]


# Middleware.


def test_a_middleware_changes_headers_of_each_request(place: Place) -> None:
    outbox = place.outbox()

    @outbox.middleware
    def sign(upload: Upload, batch: Batch) -> Upload:
        return Upload(upload.url, upload.parts, {**upload.headers, "X-Batch": str(len(batch.messages))})

    place.enqueue(outbox, "a")
    Worker(outbox).run(until_idle=True)

    (request,) = place.receiver.requests
    assert "1" == request.headers["x-batch"]


def test_each_sees_what_the_one_before_has_made(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    def add(name: str) -> Any:
        return lambda upload, batch: Upload(upload.url, upload.parts, {**upload.headers, name: str(len(upload.headers))})

    outbox_here.middleware(add("X-First"))
    outbox_here.middleware(add("X-Second"))
    place.enqueue(outbox_here, "a")

    hand.turn()

    (request,) = place.receiver.requests
    assert int(request.headers["x-first"]) + 1 == int(request.headers["x-second"])


def test_what_it_raises_keeps_the_request_from_being_sent(
    place: Place, outbox_here: Outbox, hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    @outbox_here.middleware
    def stumble(upload: Upload, batch: Batch) -> Upload:
        raise RuntimeError("no good")

    place.enqueue(outbox_here, "a")
    hand.turn()

    assert ([("not_sent", None)], []) == (outcomes(place.database, "a"), place.receiver.requests)
    assert ("pending", 0) == (states(place.database)["a"], column(place.database, "a", "failures"))
    assert "failed on our side" in caplog.text


def replaced(upload: Upload, batch: Batch) -> Upload:
    return Upload(upload.url, [FieldPart("other", b"")], upload.headers)


def in_place(upload: Upload, batch: Batch) -> Upload:
    upload.parts.pop()  # type: ignore[attr-defined]
    return upload


def without_files(upload: Upload, batch: Batch) -> Upload:
    return Upload(upload.url, [each for each in upload.parts if isinstance(each, FieldPart)], upload.headers)


def nothing(upload: Upload, batch: Batch) -> Any:
    return None


def another_scheme(upload: Upload, batch: Batch) -> Upload:
    return Upload("ftp://enos.example", upload.parts, upload.headers)


def broken_header(upload: Upload, batch: Batch) -> Upload:
    return Upload(upload.url, upload.parts, {"X-Bad": "a\r\nb"})


@pytest.mark.parametrize("middleware", [replaced, in_place, without_files, nothing, another_scheme, broken_header])
def test_what_cannot_be_sent_in_its_place_is_not_sent_and_says_so(
    place: Place, outbox_here: Outbox, hand: Hand, middleware: Any
) -> None:
    outbox_here.middleware(middleware)
    place.enqueue(outbox_here, "a", {"photo": b"bytes"})

    hand.turn()

    assert ([], "pending") == (place.receiver.requests, states(place.database)["a"])
    assert outcomes(place.database, "a")[0][0] in ("retry", "not_sent")
    outbox_here.hooks.middlewares = ()
    outbox_here.resume("enos", by="a test")
    hand.turn()
    assert {"a": "delivered"} == states(place.database)


def test_a_middleware_that_changes_content_stops_the_destination(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    outbox_here.middleware(replaced)
    place.enqueue(outbox_here, "a")

    hand.turn()

    told = outbox_here.status().destinations["enos"]
    assert "credentials" == told.stop
    assert "the middleware replaced has changed the content" in (told.stop_text or "")


def test_a_header_that_no_request_may_hold_is_named_without_its_value(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    outbox_here.middleware(broken_header)
    place.enqueue(outbox_here, "a")

    hand.turn()

    told = outbox_here.status().destinations["enos"].stop_text or ""
    assert told.startswith("the header 'X-Bad' holds what is not printable ASCII")


def test_it_is_asked_again_for_a_second_try(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    asked: list[int] = []

    @outbox_here.middleware
    def note(upload: Upload, batch: Batch) -> Upload:
        asked.append(batch.messages[0].attempt)
        return upload

    place.receiver.misbehave(Status(503))
    place.enqueue(outbox_here, "a")
    hand.turn()
    hand.turn()

    assert [1, 2] == asked


@pytest.fixture(autouse=True)
def _loud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
