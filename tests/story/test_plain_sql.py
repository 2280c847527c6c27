"""What is enqueued in plain SQL is a message as any other: the same rows, the same fate."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Destination, Form, KeyConflict, Outbox, State
from outbox.checkup.verify import Verification
from outbox.errors import Fault
from outbox.exchange import Upload
from outbox.explaining import Code
from outbox.model import Batch, Draft, Reason
from outbox.multipart import FieldPart
from outbox.patience import Breaker
from outbox.payload import text as json_text
from outbox.store import breaker
from outbox.tables import head, message, share, stream
from outbox.verdict import Delivered
from outbox.worker import Worker
from tests import plain
from tests.factories import an_outbox, event, reasons, row_of, states
from tests.story.conftest import Place, eventually

LATER = datetime.now(UTC).replace(microsecond=123456) + timedelta(hours=1)
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in another lane": {"lane": "express"},
    "later": {"due_at": LATER},
    "not for ever": {"expires_at": LATER},
    "in order": {"ordering_key": "pump"},
    "in order and later": {"ordering_key": "pump", "due_at": LATER, "lane": "bulk"},
    "in fair turns": {"ordering_key": "pump", "ordered": False},
    "in fair turns and later": {"ordering_key": "pump", "ordered": False, "due_at": LATER},
}
#: What differs between any two messages.
OWN = {"id", "key", "created_at", "due_at"}


def sql(place: Place, asset: str, **options: Any) -> int:
    """One message of its own transaction."""
    with place.engine.begin() as connection:
        return plain.enqueue(connection, "enos", json_text(event(asset)), **options)


def rows(connection: sa.Connection, number: int) -> list[Any]:
    """Everything of a message that says something, but for what SQLite leaves out."""
    mine = row_of(connection, number)
    kept = {name: value for name, value in mine._mapping.items() if name not in OWN}
    kept["due at once"] = mine.due_at == mine.created_at
    if connection.dialect.name == "sqlite":
        kept["digest"] = ""
    heads = [tuple(row) for row in connection.execute(sa.select(head.c.destination, head.c.lane, head.c.scheduled))]
    shares = [tuple(row) for row in connection.execute(sa.select(share.c.ordering_key, share.c.lane, share.c.scheduled))]
    return [kept, heads, shares, connection.execute(sa.select(stream.c.ordering_key, stream.c.last_number)).all()]


@pytest.mark.parametrize("way", WAYS)
def test_it_writes_the_rows_that_enqueue_writes(place: Place, way: str) -> None:
    outbox, options = place.outbox(), WAYS[way]
    found = []
    for by_sql in (True, False):
        with place.engine.connect() as connection:
            if by_sql:
                number = plain.enqueue(connection, "enos", json_text(event("a")), key="a", **options)
            else:
                number = outbox.enqueue(connection, "enos", event("a"), key="a", **options).id
            found.append(rows(connection, number))
            connection.rollback()

    by_sql_, by_enqueue = found
    for each in (by_sql_, by_enqueue):  # numbers are not given twice
        for name in ("stream_id", "share_id"):
            each[0][name] = each[0][name] is not None
    assert by_enqueue == by_sql_


@pytest.mark.parametrize("way", WAYS)
def test_the_second_one_goes_behind_the_first_whoever_wrote_that(place: Place, way: str) -> None:
    outbox, options = place.outbox(), WAYS[way]
    with place.engine.begin() as connection:
        first = outbox.enqueue(connection, "enos", event("a"), key="a", **options).id
        second = plain.enqueue(connection, "enos", json_text(event("b")), key="b", **options)
        third = outbox.enqueue(connection, "enos", event("c"), key="c", **options).id
        placed = [row_of(connection, each) for each in (first, second, third)]

    assert 1 == len({each.stream_id for each in placed}) == len({each.share_id for each in placed})
    expected = [1, 2, 3] if options.get("ordered", True) and "ordering_key" in options else [None] * 3
    assert expected == [each.stream_number for each in placed]


def test_messages_arrive_and_those_of_an_ordering_key_in_their_order(place: Place) -> None:
    keys = [f"{n}" for n in range(6)]
    for key in keys:
        sql(place, key, key=key, ordering_key="pump")
        place.acknowledge(key)
    for key, options in {"alone": {}, "in turn": {"ordering_key": "pump", "ordered": False}}.items():
        sql(place, key, key=key, **options)
        place.acknowledge(key)

    with Worker(place.outbox()):
        eventually(lambda: set(states(place.database).values()) == {State.DELIVERED})

    assets = [each.struct["assetId"] for each in place.receiver.accepted]
    assert keys == [each for each in assets if each in keys]


def test_a_rolled_back_one_never_was(place: Place) -> None:
    with place.engine.connect() as connection:
        plain.enqueue(connection, "enos", json_text(event("a")), ordering_key="pump")
        connection.rollback()

    assert {} == states(place.database)


def test_the_same_key_again_is_the_same_message_to_either(place: Place) -> None:
    outbox = place.outbox()
    number = sql(place, "a", key="a", ordering_key="pump")
    again = sql(place, "a", key="a", ordering_key="pump")
    with place.engine.begin() as connection:
        from_python = outbox.enqueue(connection, "enos", event("a"), key="a", ordering_key="pump")
        theirs = outbox.enqueue(connection, "enos", event("b"), key="b").id

    assert number == again == from_python.id
    assert not from_python.new
    assert theirs == sql(place, "b", key="b")


@pytest.mark.parametrize(("asset", "ordering_key"), [("other", "pump"), ("a", None), ("a", "fan")])
def test_enqueue_sees_that_a_key_names_something_else(place: Place, asset: str, ordering_key: str | None) -> None:
    """Also where no digest was given: then it compares what is there."""
    outbox = place.outbox()
    number = sql(place, "a", key="a", ordering_key="pump")

    with pytest.raises(KeyConflict, match=f"already names message {number}"), place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event(asset), key="a", ordering_key=ordering_key)


def test_a_digest_that_a_producer_has_computed_is_the_one_of_enqueue(sqlite_place: Place) -> None:
    text = json_text(event("ä"))
    given = hashlib.sha256(text.encode() + b"\0" + b"pump").hexdigest()
    sql(sqlite_place, "ä", key="a", ordering_key="pump", digest=given)

    with sqlite_place.engine.begin() as connection:
        again = sqlite_place.outbox().enqueue(connection, "enos", event("ä"), key="a", ordering_key="pump")

    assert not again.new
    assert [] == list(Verification(sqlite_place.outbox()).run())


def test_verify_finds_nothing_wrong_with_them(place: Place) -> None:
    for way, options in WAYS.items():
        sql(place, way, key=way, **options)

    assert [] == list(Verification(place.outbox()).run())


def test_verify_still_finds_one_with_a_digest_changed(place: Place) -> None:
    """That some have none hides no other."""
    place.damaged = True
    sql(place, "a", key="a")
    place.enqueue(place.outbox(), "b")
    with place.engine.begin() as connection:
        connection.execute(sa.update(message).where(message.c.key == "b").values(payload="{}"))

    assert ["message_changed"] == [each.kind for each in Verification(place.outbox()).run()]


def test_one_for_a_destination_that_nobody_declares_waits_and_explain_says_so(place: Place) -> None:
    with place.engine.begin() as connection:
        plain.enqueue(connection, "enso", json_text(event("a")), key="a")
    place.enqueue(outbox := place.outbox(), "b")
    with Worker(outbox):
        eventually(lambda: states(place.database)["b"] == State.DELIVERED)

    (cause, *_) = outbox.explain("a")

    assert State.PENDING == states(place.database)["a"]
    assert Code.NOT_DECLARED == cause.code
    assert "enso" in cause.sentence


class Strict(Destination):
    """Takes objects with a name, and sends that."""

    def check(self, draft: Draft) -> list[Fault]:
        named = isinstance(draft.payload, dict) and isinstance(draft.payload.get("name"), str)
        return [] if named else [Fault("name", "is missing")]

    def encode(self, batch: Batch) -> Upload:
        names = [json.loads(each.text)["name"].upper() for each in batch.messages]
        return Upload(self.url, [FieldPart("names", ",".join(names).encode())])

    def judge(self, answer: Any, batch: Batch, now: datetime) -> Any:
        return Delivered()


BAD = ["[1, 2]", '"x"', "null", "17", '{"nmae": 1}', '{"name": null}', "[" * 40 + "]" * 40]


@pytest.fixture
def strict(place: Place) -> Any:
    made = an_outbox(place.url, place.spool, Strict(name="strict", url=place.receiver.url, allow_plain_http=True))  # type: ignore[arg-type]
    yield made
    made.close()


def test_a_payload_that_cannot_be_made_into_a_request_dies_alone_and_costs_its_destination_nothing(
    place: Place, strict: Outbox
) -> None:
    place.damaged = True
    with place.engine.begin() as connection:
        for number, each in enumerate(BAD):
            plain.enqueue(connection, "strict", each, key=f"bad {number}")
            plain.enqueue(connection, "strict", '{"name": "x"}', key=f"good {number}")

    with Worker(strict):
        eventually(lambda: {State.DELIVERED, State.DEAD} == set(states(strict.database).values()))

    assert {key: State.DEAD if "bad" in key else State.DELIVERED for key in states(strict.database)} == states(strict.database)
    assert {Reason.REJECTED} == set(reasons(strict.database).values())
    with strict.database.read() as connection:
        assert Breaker() == breaker.read(connection, "strict")


NO_STRUCTS = ["[1, 2]", '"x"', "null", "17", "{}", '{"assetId": "a", "time": "soon", "events": {"x": {}}}']


def test_a_payload_that_enos_refuses_dies_alone_and_those_beside_it_arrive(place: Place) -> None:
    """It is sent, since nobody has looked at it, and one code answers for the whole request."""
    place.damaged = True
    outbox = place.outbox()
    with place.engine.begin() as connection:
        for number, each in enumerate(NO_STRUCTS):
            plain.enqueue(connection, "enos", each, key=f"bad {number}")
            plain.enqueue(connection, "enos", json_text(event(f"good {number}")), key=f"good {number}")

    with Worker(outbox):
        eventually(lambda: {State.DELIVERED, State.DEAD} == set(states(place.database).values()))

    found = states(place.database)
    assert {key: State.DEAD if "bad" in key else State.DELIVERED for key in found} == found
    assert {Reason.REJECTED} == set(reasons(place.database).values())


def test_a_form_of_nothing_is_not_sent(place: Place) -> None:
    """As one that is delivered it would be lost without a word."""
    place.damaged = True
    form = an_outbox(place.url, place.spool, Form(name="form", url=place.receiver.url, allow_plain_http=True))  # type: ignore[arg-type]
    with place.engine.begin() as connection:
        plain.enqueue(connection, "form", "[1]", key="a list")
        plain.enqueue(connection, "form", "{}", key="nothing")

    Worker(form).run(until_idle=True)

    assert {"a list": State.DEAD, "nothing": State.DEAD} == states(form.database)
    assert [] == place.receiver.requests
    assert "expected an object" in str(form.explain("a list")[0].sentence)
    form.close()


def test_what_cannot_be_encoded_although_nothing_is_wrong_with_it_is_charged_to_its_destination(
    place: Place, strict: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ever: a bug of ours must not cost the messages."""
    monkeypatch.setattr(Strict, "encode", lambda self, batch: 1 / 0)
    with place.engine.begin() as connection:
        plain.enqueue(connection, "strict", '{"name": "x"}', key="good")

    with Worker(strict):
        eventually(lambda: failures(strict) > 0)

    assert {"good": State.PENDING} == states(strict.database)


def failures(outbox: Outbox) -> int:
    with outbox.database.read() as connection:
        return breaker.read(connection, "strict").failures
