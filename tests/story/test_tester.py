"""A producer is tested with what it enqueues, and with what would go out of it; nothing of that leaves the process."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from outbox import EnosEvents, Entry, News, Outbox, Policy, Token, Webhook, env, migrate
from outbox.ambient import Ambient
from outbox.errors import NotSent
from outbox.exchange import Upload
from outbox.presence import Presence
from outbox.testing import Clock, KitError, Lenient, OutboxTester, Sent
from tests.factories import an_outbox, enos, event


@pytest.fixture
def outbox_destinations() -> list[Any]:
    return [enos(), Lenient(name="test")]


def enqueue(tester: OutboxTester, payload: Any = None, destination: str = "test", **options: Any) -> int:
    with tester.session() as session:
        return tester.outbox.enqueue(session, destination, payload or {"a": 1}, **options).id


# What was enqueued.


def test_a_message_is_found_by_a_part_of_it(outbox_tester: OutboxTester) -> None:
    made = enqueue(outbox_tester, event("turbine-7", "photo"), "enos", key="k", files={"photo": b"bytes"}, ordering_key="o")

    for part in (
        {},
        {"payload": {"assetId": "turbine-7"}},
        {"payload": {"events": {"crack": {"severity": 3}}}},
        {"payload": lambda payload: payload["events"]["crack"]["severity"] > 2},
        {"key": "k"},
        {"ordering_key": "o"},
        {"files": ["photo"]},
        {"files": {"photo": b"bytes"}},
        {"count": 1},
    ):
        (found,) = outbox_tester.assert_enqueued("enos", **part)
        assert made == found.id


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"payload": {"assetId": "turbine-8"}}, "payload.assetId is 'turbine-7', not 'turbine-8'"),
        ({"payload": {"events": {"crack": {"depth": 1}}}}, "payload.events.crack.depth is missing"),
        ({"payload": {"events": {"crack": [1]}}}, "payload.events.crack is {"),
        ({"payload": lambda payload: False}, "its payload is not what the function asks for"),
        ({"key": "other"}, "its key is 'k'"),
        ({"ordering_key": "o"}, "its ordering_key is None"),
        ({"files": []}, "its files are photo"),
        ({"files": {"photo": b"others"}}, "the file photo has other bytes"),
        ({"count": 2}, "1 of 2 messages (for enos); what was enqueued, nearest first"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(outbox_tester: OutboxTester, wanted: dict[str, Any], told: str) -> None:
    enqueue(outbox_tester, event("turbine-7", "photo"), "enos", key="k", files={"photo": b"bytes"})

    with pytest.raises(AssertionError) as failed:
        outbox_tester.assert_enqueued("enos", **wanted)

    assert told in str(failed.value)
    assert "message 1 for enos, key 'k' with photo" in str(failed.value)


def test_the_nearest_is_told_first(outbox_tester: OutboxTester) -> None:
    for severity, asset in ((1, "x"), (3, "turbine-8"), (1, "turbine-7")):
        enqueue(outbox_tester, {"asset": asset, "severity": severity, "kind": "crack"})

    with pytest.raises(AssertionError) as failed:
        outbox_tester.assert_enqueued("test", {"asset": "turbine-7", "severity": 3, "kind": "crack"}, key="k")

    lines = str(failed.value).splitlines()
    assert ["  message 2", "  message 3", "  message 1"] == [line[:11] for line in lines[1:]]


def test_of_very_many_the_first_few_are_told(outbox_tester: OutboxTester) -> None:
    with outbox_tester.session() as session:
        outbox_tester.outbox.enqueue_many(session, "test", [{"n": number} for number in range(30)])

    with pytest.raises(AssertionError, match="and 20 more"):
        outbox_tester.assert_enqueued("test", {"n": 99})


def test_nothing_is_told_as_nothing(outbox_tester: OutboxTester) -> None:
    outbox_tester.assert_nothing_enqueued()

    with pytest.raises(AssertionError, match=r"no message \(for test, payload \{'a': 1\}\); nothing was enqueued"):
        outbox_tester.assert_enqueued("test", {"a": 1})


def test_something_is_told_where_nothing_is_wanted(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, key="k")

    outbox_tester.assert_nothing_enqueued("enos")
    with pytest.raises(AssertionError, match="message 1 for test, key 'k'"):
        outbox_tester.assert_nothing_enqueued()


def test_a_block_counts_what_comes_in_it(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, {"n": 1})

    with outbox_tester.assert_enqueues("test", {"n": 2}, count=1) as found:
        enqueue(outbox_tester, {"n": 2})
    with outbox_tester.assert_enqueues_nothing():
        pass

    assert [2] == [each.id for each in found]
    with pytest.raises(AssertionError, match="nothing was enqueued"), outbox_tester.assert_enqueues("test", {"n": 1}):
        pass
    with pytest.raises(AssertionError, match="message 3"), outbox_tester.assert_enqueues_nothing("test"):
        enqueue(outbox_tester)


def test_an_error_in_a_block_comes_through_as_it_is(outbox_tester: OutboxTester) -> None:
    with pytest.raises(ZeroDivisionError), outbox_tester.assert_enqueues("test"):
        raise ZeroDivisionError


def test_a_transaction_that_is_not_committed_is_seen_by_itself(outbox_tester: OutboxTester) -> None:
    with Session(outbox_tester.engine) as session:
        with outbox_tester.assert_enqueues("test", key="k", session=session):
            outbox_tester.outbox.enqueue(session, "test", {"a": 1}, key="k")
        outbox_tester.assert_enqueued("test", key="k", session=session.connection())
        outbox_tester.assert_nothing_enqueued()
        session.rollback()

    outbox_tester.assert_nothing_enqueued()


def test_only_a_session_has_eyes(outbox_tester: OutboxTester) -> None:
    with pytest.raises(TypeError, match="expected a Session or Connection, got str"):
        outbox_tester.messages(session="session")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"await session.run_sync"):
        outbox_tester.messages(session=AsyncSession())  # type: ignore[arg-type]


# What goes out.


def test_what_goes_out_is_what_a_server_would_see(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, {"a": 1}, key="k", files={"photo": b"\xff\xd8bytes"})

    (sent,) = outbox_tester.drain()

    assert ("test", ["k"], [{"a": 1}], "https://test.example") == (sent.destination, sent.keys, sent.payloads, sent.url)
    assert sent.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert {"message": '{"a":1}'} == sent.fields
    assert {"a": 1} == sent.parts[0].json
    (file,) = sent.files
    assert ("photo", b"\xff\xd8bytes", "application/octet-stream") == (file.name, file.content, file.content_type)
    assert "delivered" == sent.outcome
    assert [sent] == list(outbox_tester.sent)


def test_an_upload_for_enos_is_the_one_of_the_product(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, event("turbine-7", "photo"), "enos", files={"photo": b"bytes"})

    (sent,) = outbox_tester.drain()

    document = sent.parts[0].json
    (name, entry) = next(iter(document["files"].items()))
    assert ("integration.event.post", f"local://{name}") == (
        document["method"],
        document["params"][0]["events"]["crack"]["photo"],
    )
    assert hashlib.md5(b"bytes", usedforsecurity=False).hexdigest() == entry["md5"]
    assert [("enos-file", b"bytes")] == [(file.name, file.content) for file in sent.files]


def test_a_webhook_is_seen_with_its_document_and_its_signature(tmp_path: Path, migrated_sqlite_url: str) -> None:
    secret = f"whsec_{base64.b64encode(bytes(32)).decode()}"
    hook = Webhook(name="hook", url="https://hook.example", secrets=[secret])
    with OutboxTester(an_outbox(migrated_sqlite_url, tmp_path / "spool", hook)) as tester:  # type: ignore[arg-type]
        enqueue(tester, {"a": 1}, "hook", key="k")

        (sent,) = tester.drain()

        assert ({"a": 1}, [], "application/json") == (sent.json, sent.parts, sent.headers["content-type"])
        assert sent.headers["webhook-signature"].startswith("v1,")
        assert "delivered" == sent.outcome


def test_a_form_is_no_document(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester)

    (sent,) = outbox_tester.drain()

    with pytest.raises(ValueError, match="the request to test is a form; look at its fields, files or parts"):
        _ = sent.json


def test_many_travel_together(outbox_tester: OutboxTester) -> None:
    with outbox_tester.session() as session:
        outbox_tester.outbox.enqueue_many(session, "test", [Entry({"n": number}, key=f"k{number}") for number in range(250)])

    drained = outbox_tester.drain()

    assert [100, 100, 50] == [len(sent.keys) for sent in drained]
    assert 250 == len(outbox_tester.delivered)


def test_messages_of_an_ordering_key_go_in_order_and_wait_behind_a_dead_one(outbox_tester: OutboxTester) -> None:
    outbox_tester.answer(status=422, when=lambda sent: "b" in sent.keys)
    for key in "abc":
        enqueue(outbox_tester, key=key, ordering_key="pump")

    outbox_tester.drain()

    assert (["a"], ["b"], ["c"]) == tuple(
        [each.key for each in several] for several in (outbox_tester.delivered, outbox_tester.dead, outbox_tester.pending)
    )


def test_draining_again_sends_nothing(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester)

    assert (1, 0, 1) == (len(outbox_tester.drain()), len(outbox_tester.drain()), len(outbox_tester.sent))


def test_what_is_not_due_waits_until_the_clock_is_moved(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, due_at=outbox_tester.clock.now + timedelta(hours=1))

    assert [] == outbox_tester.drain()
    outbox_tester.clock.move(minutes=59)
    assert [] == outbox_tester.drain()
    outbox_tester.clock.move(minutes=1)
    assert 1 == len(outbox_tester.drain())


def test_a_message_expires_when_the_clock_is_moved(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, expires_at=outbox_tester.clock.now + timedelta(hours=1))
    outbox_tester.clock.now += timedelta(hours=2)

    assert [] == outbox_tester.drain()

    assert ["expired"] == [each.reason for each in outbox_tester.dead]


def test_so_it_does_where_nothing_may_be_sent(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, expires_at=outbox_tester.clock.now + timedelta(hours=1))
    outbox_tester.outbox.pause("test", "for a test", by="a test")
    outbox_tester.clock.move(hours=2)

    assert [] == outbox_tester.drain()

    assert ["expired"] == [each.reason for each in outbox_tester.dead]


def test_a_refusal_kills_the_message_that_travels_alone(outbox_tester: OutboxTester) -> None:
    outbox_tester.answer(status=422, body="no such asset")
    enqueue(outbox_tester)

    outbox_tester.drain()

    (dead,) = outbox_tester.dead
    assert ("rejected", "no such asset") == (dead.reason, dead.words)


def test_answers_are_for_as_many_requests_as_is_said_or_for_those_that_fit(outbox_tester: OutboxTester) -> None:
    def is_bad(sent: Sent) -> bool:
        return {"n": 2} in sent.payloads

    outbox_tester.answer(status=503, times=2)
    outbox_tester.answer(status=422, when=is_bad)
    with outbox_tester.session() as session:
        outbox_tester.outbox.enqueue_many(session, "test", [{"n": number} for number in range(4)])

    outbox_tester.drain()

    assert ["retry", "retry"] == [each.outcome for each in outbox_tester.sent[:2]]
    assert [{"n": 2}] == [each.payload for each in outbox_tester.dead]
    assert 3 == len(outbox_tester.delivered)


def test_json_and_headers_of_an_answer_are_read_by_the_destination(outbox_tester: OutboxTester) -> None:
    outbox_tester.answer(status=503, headers={"Retry-After": "30"}, times=1)
    outbox_tester.answer(json={"code": 1204, "msg": "Model validate failed"}, times=1)
    enqueue(outbox_tester, event(), "enos")

    outbox_tester.drain(at_most=1)
    outbox_tester.clock.move(minutes=5)
    outbox_tester.drain()

    assert ["retry", "reject"] == [each.outcome for each in outbox_tester.sent]


def test_an_exception_is_no_answer(outbox_tester: OutboxTester) -> None:
    outbox_tester.answer(ConnectionResetError("by peer"), times=1)
    outbox_tester.answer(NotSent("the network is down"), times=1)
    enqueue(outbox_tester)

    outbox_tester.drain()

    assert ["unknown", "not_sent", "delivered"] == [each.outcome for each in outbox_tester.sent]
    assert "ConnectionResetError: by peer" == outbox_tester.sent[0].words


def test_an_answer_is_one_thing(outbox_tester: OutboxTester) -> None:
    with pytest.raises(ValueError, match="say one of them"):
        outbox_tester.answer(json={}, body="x")


def test_a_destination_that_stays_down_is_given_up_until_the_clock_is_moved(outbox_tester: OutboxTester) -> None:
    outbox_tester.answer(status=503)
    enqueue(outbox_tester)

    outbox_tester.drain()

    tries = len(outbox_tester.sent)
    assert 1 <= tries < 20
    assert [] == outbox_tester.drain()
    outbox_tester.clock.move(hours=1)
    outbox_tester.answer(status=200)
    outbox_tester.drain()
    assert 1 == len(outbox_tester.delivered)


def test_what_has_no_end_is_told(outbox_tester: OutboxTester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.testing.tester._AT_MOST", 50)

    @outbox_tester.outbox.on_delivered
    def another(news: News) -> None:
        enqueue(outbox_tester)

    enqueue(outbox_tester)

    with pytest.raises(KitError, match="50 requests, and something is still due"):
        outbox_tester.drain()


def test_so_is_what_moves_nothing_again_and_again(tmp_path: Path, migrated_sqlite_url: str) -> None:
    stubborn = Lenient(name="test", policy=Policy(breaker_after=1000, max_failures=1000))
    with OutboxTester(an_outbox(migrated_sqlite_url, tmp_path / "spool", stubborn)) as tester:  # type: ignore[arg-type]
        tester.answer(status=503)
        enqueue(tester)

        with pytest.raises(KitError, match="200 requests in a row have moved nothing, and something is still due to test"):
            tester.drain()


def test_a_transaction_that_was_forgotten_is_told(outbox_tester: OutboxTester) -> None:
    with Session(outbox_tester.engine) as session:
        outbox_tester.outbox.enqueue(session, "test", {"a": 1})
        with pytest.raises(KitError, match="commit it, and then drain"):
            outbox_tester.drain()


def test_hooks_and_middleware_of_the_outbox_work_in_a_drain(outbox_tester: OutboxTester) -> None:
    heard: list[News] = []
    outbox_tester.outbox.on_delivered(heard.append)
    outbox_tester.outbox.middleware(lambda upload, batch: Upload(upload.url, upload.parts, {"X-Signed": "yes"}))
    enqueue(outbox_tester, key="k")

    outbox_tester.drain()

    assert (["k"], "yes") == ([each.key for each in heard], outbox_tester.sent[0].headers["x-signed"])


def test_a_file_that_is_gone_kills_its_message_as_it_would(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, files={"photo": b"bytes"})
    (message,) = outbox_tester.messages()
    outbox_tester.outbox.spool_store.delete(message.files["photo"].spooled)

    assert [] == outbox_tester.drain()

    assert ["file_missing"] == [each.reason for each in outbox_tester.dead]


# Credentials.


def with_token(**options: Any) -> EnosEvents:
    token = Token("https://gateway.example", "app-key", env("TOKEN_OF_THIS_TEST"))
    return EnosEvents(name="enos", url="https://enos.example", org_id="o1", token=token, **options)


def test_a_token_is_given_without_a_service(tmp_path: Path, migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_THIS_TEST", "secret-of-this-test")
    with OutboxTester(an_outbox(migrated_sqlite_url, tmp_path / "spool", with_token())) as tester:
        enqueue(tester, event(), "enos")

        (sent,) = tester.drain()

    assert "token-of-a-test" == sent.headers["apim-accesstoken"]


def test_a_secret_that_is_missing_is_told(tmp_path: Path, migrated_sqlite_url: str) -> None:
    with OutboxTester(an_outbox(migrated_sqlite_url, tmp_path / "spool", with_token())) as tester:
        enqueue(tester, event(), "enos")

        with pytest.raises(KitError, match="TOKEN_OF_THIS_TEST is not set"):
            tester.drain()


# At once, after the commit.


def test_what_is_committed_in_a_block_is_delivered_at_once(outbox_tester: OutboxTester) -> None:
    with outbox_tester.inline():
        with Session(outbox_tester.engine) as session:
            outbox_tester.outbox.enqueue(session, "test", {"a": 1})
            before = len(outbox_tester.sent)
            session.commit()
            after = len(outbox_tester.sent)
        with outbox_tester.engine.connect() as connection:
            outbox_tester.outbox.enqueue(connection, "test", {"a": 2})
            connection.commit()
            then = len(outbox_tester.sent)
    enqueue(outbox_tester)

    assert (0, 1, 2, 2) == (before, after, then, len(outbox_tester.sent))


def test_what_is_rolled_back_in_a_block_is_not(outbox_tester: OutboxTester) -> None:
    with outbox_tester.inline(), Session(outbox_tester.engine) as session:
        outbox_tester.outbox.enqueue(session, "test", {"a": 1})

    assert [] == list(outbox_tester.sent)


def test_an_async_session_delivers_at_once_too(outbox_tester: OutboxTester) -> None:
    url = outbox_tester.engine.url.set(drivername="sqlite+aiosqlite")

    async def produce() -> None:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session, session.begin():
            await outbox_tester.outbox.aenqueue(session, "test", {"a": 1}, key="k")
        await engine.dispose()

    with outbox_tester.inline():
        asyncio.run(produce())

    assert ["k"] == [each.key for each in outbox_tester.delivered]


def test_what_goes_wrong_in_a_block_is_raised_at_its_end(tmp_path: Path, migrated_sqlite_url: str) -> None:
    with OutboxTester(an_outbox(migrated_sqlite_url, tmp_path / "spool", with_token())) as tester:
        with pytest.raises(KitError, match="TOKEN_OF_THIS_TEST"), tester.inline():
            enqueue(tester, event(), "enos")

        assert ["pending"] == [each.state for each in tester.messages()]


def test_a_hook_that_enqueues_is_delivered_in_the_same_block(outbox_tester: OutboxTester) -> None:
    @outbox_tester.outbox.on_delivered
    def answer(news: News) -> None:
        if news.key == "question":
            enqueue(outbox_tester, key="answer")

    with outbox_tester.inline():
        enqueue(outbox_tester, key="question")

    assert {"question", "answer"} == {each.key for each in outbox_tester.delivered}


# A program's own outbox.


def made(database_url: str, folder: Path) -> Outbox:
    outbox = an_outbox(database_url, folder / "spool", Lenient(name="test"))  # type: ignore[arg-type]
    migrate.upgrade(outbox.database)
    return outbox


def test_a_programs_own_outbox_gets_its_time_back(database_url: str, tmp_path: Path) -> None:
    outbox = made(database_url, tmp_path)
    with OutboxTester(outbox) as tester:
        tester.clock.now = datetime(2030, 1, 1, tzinfo=UTC)
        enqueue(tester)
        tester.drain()
        assert 2030 == outbox.ambient.now().year
        assert 1 == len(tester.delivered)
    assert Ambient().now() - outbox.ambient.now() < timedelta(minutes=1)
    outbox.close()


def test_a_function_that_stumbles_over_another_kind_of_message_looks_at_the_next(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester, {"n": 1})
    enqueue(outbox_tester, event("turbine-7"), "enos")
    made = enqueue(outbox_tester, {"order": {"id": 7}})

    (found,) = outbox_tester.assert_enqueued("test", lambda payload: payload["order"]["id"] == 7)

    assert made == found.id
    with pytest.raises(AssertionError, match="the function raised KeyError for its payload: 'order'"):
        outbox_tester.assert_enqueued("test", lambda payload: payload["order"]["id"] == 8)


def test_what_is_not_committed_is_hinted_at(outbox_tester: OutboxTester) -> None:
    with Session(outbox_tester.engine) as session:
        outbox_tester.outbox.enqueue(session, "test", {"a": 1})

        with pytest.raises(AssertionError, match="nothing was enqueued, or it is not committed: session= looks at that"):
            outbox_tester.assert_enqueued("test", {"a": 1})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda tester: tester.answer(503), "an answer is an exception, or is said by name: answer(status=503); got 503"),
        (lambda tester: tester.answer(OSError), "answer(status=503); got <class 'OSError'>"),
        (lambda tester: tester.answer(status="503"), "expected an HTTP status from 200 to 599, got '503'"),
    ],
)
def test_an_answer_that_is_none_is_told_where_it_is_said(
    outbox_tester: OutboxTester, given: Callable[[Any], None], told: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        given(outbox_tester)

    assert told in str(raised.value)


def test_the_next_test_begins_anew(database_url: str, tmp_path: Path) -> None:
    outbox = made(database_url, tmp_path)
    with OutboxTester(outbox) as tester:
        enqueue(tester, key="left")
        enqueue(tester, key="mine", files={"photo": b"bytes"})
        tester.drain(at_most=1)
    with OutboxTester(outbox) as tester:
        tester.assert_nothing_enqueued()
        enqueue(tester, key="mine", files={"photo": b"other bytes"})
        tester.drain()
        assert ["mine"] == [each.key for each in tester.delivered]
    assert [] == outbox.messages()
    outbox.close()


@pytest.mark.parametrize(
    "trouble", ["an outage", "everything refused", "a message too large", "a pause", "a dead one in order"]
)
def test_no_trouble_of_a_test_is_the_next_ones(database_url: str, tmp_path: Path, trouble: str) -> None:
    outbox = made(database_url, tmp_path)
    with OutboxTester(outbox) as tester:
        tester.answer(status={"an outage": 503, "a message too large": 413}.get(trouble, 422))
        if trouble == "a pause":
            outbox.pause("test", "maintenance", by="me")
            outbox.pause("test", "maintenance", by="me", ordering_key="pump")
        for number in range(30):
            enqueue(tester, {"n": number}, ordering_key="pump" if trouble == "a dead one in order" else None)
        tester.drain()
        assert not tester.delivered
    with OutboxTester(outbox) as tester:
        enqueue(tester, {"n": "x" * 1000}, ordering_key="pump")

        tester.drain()

        assert 1 == len(tester.delivered)
    outbox.close()


def test_what_was_so_before_a_test_is_so_after_it(database_url: str, tmp_path: Path) -> None:
    outbox = made(database_url, tmp_path)
    outbox.pause("test", "by hand", by="me")
    with OutboxTester(outbox) as tester:
        outbox.resume("test", by="test")
        enqueue(tester)
        tester.drain()

    assert "by hand" == outbox.status().destinations["test"].stop_text
    outbox.close()


@pytest.mark.postgres
def test_a_transaction_that_is_still_open_when_a_test_ends_is_not_waited_for(postgres_url: str, tmp_path: Path) -> None:
    outbox = made(postgres_url, tmp_path)
    tester = OutboxTester(outbox)
    enqueue(tester, ordering_key="pump")
    tester.drain()
    with tester.engine.connect() as theirs:
        outbox.enqueue(theirs, "test", {"a": 2}, ordering_key="pump")

        tester.close()

        theirs.rollback()
        theirs.invalidate()  # its pool is gone
    outbox.close()


def test_a_name_that_nobody_declares_is_not_looked_for_in_vain(outbox_tester: OutboxTester) -> None:
    told = (
        "no destination named 'tset'; declared: enos, test; if it is your program's, let the fixture outbox_app give its outbox"
    )
    for look in (
        outbox_tester.assert_enqueued,
        outbox_tester.assert_nothing_enqueued,
        lambda name: outbox_tester.assert_enqueues(name).__enter__(),
        lambda name: outbox_tester.assert_enqueues_nothing(name).__enter__(),
    ):
        with pytest.raises(KitError) as raised:
            look("tset")
        assert told == str(raised.value)


def test_a_database_with_messages_that_are_not_finished_is_nobodys_test(database_url: str, tmp_path: Path) -> None:
    outbox = made(database_url, tmp_path)
    with OutboxTester(outbox) as tester, Session(tester.engine) as session:
        outbox.enqueue(session, "test", {"a": 1})
        session.commit()
        now = outbox.ambient.now

        with pytest.raises(KitError, match="give the test a database of its own"):
            OutboxTester(outbox)

        assert now() == outbox.ambient.now()
    outbox.close()


def test_nor_is_one_that_a_worker_works_on(database_url: str, tmp_path: Path) -> None:
    outbox = made(database_url, tmp_path)
    presence = Presence(outbox.database, outbox.ambient)
    presence.arrive()
    with OutboxTester(outbox) as tester, pytest.raises(KitError, match=f"another worker is alive .*{presence.id}"):
        tester.drain()
    outbox.close()


# The clock.


def test_a_clock_stands_still_until_it_is_moved() -> None:
    clock = Clock()
    before, ticks = clock.ambient.now(), clock.ambient.monotonic()

    assert before == clock.ambient.now()
    clock.move(minutes=5)
    assert (before + timedelta(minutes=5), ticks + 300) == (clock.ambient.now(), clock.ambient.monotonic())


def test_a_clock_that_is_set_back_takes_no_time_back() -> None:
    clock = Clock()
    ticks = clock.ambient.monotonic()

    clock.now -= timedelta(days=1)

    assert ticks == clock.ambient.monotonic()


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda clock: clock.move(-1), "time passes forwards"),
        (lambda clock: setattr(clock, "now", datetime(2026, 3, 1)), "an aware instant"),  # noqa: DTZ001
    ],
)
def test_what_no_clock_does_is_refused(act: Callable[[Clock], None], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        act(Clock())


def test_every_name_of_the_package_has_a_home() -> None:
    import outbox.testing

    assert set(outbox.testing.__all__) == set(outbox.testing._HOME_OF)
    assert all(getattr(outbox.testing, name) is not None for name in outbox.testing.__all__)


def test_a_path_where_bytes_are_expected_is_told(outbox_tester: OutboxTester) -> None:
    enqueue(outbox_tester)

    with pytest.raises(TypeError, match="expected the bytes of the file 'photo', got str; read it first"):
        outbox_tester.assert_enqueued("test", files={"photo": "photo.jpg"})  # type: ignore[dict-item]
