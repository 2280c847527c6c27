"""Many at once: the same as one after the other, with few statements, and all of them or none."""

from __future__ import annotations

import itertools
import json
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox import Entry, KeyConflict, Lane, Outbox, Refused, State, prepare
from outbox.policy import HANDFUL
from outbox.store import arriving
from outbox.tables import attachment, file, head, message, stream
from tests.factories import NOW, count, event, in_full, states
from tests.story.conftest import Place

PHOTO = {"photo": b"bytes of a photo"}


@pytest.fixture
def outbox(place: Place) -> Outbox:
    return place.outbox()


def rows(place: Place, *names: str) -> list[tuple[Any, ...]]:
    with place.database.read() as connection:
        found = connection.execute(sa.select(*(message.c[name] for name in names)).order_by(message.c.id))
        return [tuple(row) for row in found]


def test_payloads_become_messages_in_their_order(place: Place, outbox: Outbox) -> None:
    given = [event(f"turbine-{number}") for number in range(3)]

    with Session(place.engine) as session, session.begin():
        enqueued = outbox.enqueue_many(session, "enos", given)

    assert [(each.new, each.state) for each in enqueued] == [(True, State.PENDING)] * 3
    payloads = dict(rows(place, "id", "payload"))
    assert [f"turbine-{number}" in payloads[each.id] for number, each in enumerate(enqueued)] == [True] * 3


def test_a_row_is_what_enqueue_would_have_made_of_it(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    soon, later = NOW + timedelta(hours=1), NOW + timedelta(days=1)
    options: dict[str, Any] = {"due_at": soon, "expires_at": later, "lane": "bulk", "files": PHOTO}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event("é", "photo"), key="one", traceparent=trace, **options)
        entry = Entry(event("é", "photo"), key="many", traceparent=trace, **options)
        outbox.enqueue_many(connection, "enos", [entry, event("other")])

    with place.database.read() as connection:
        one, many, _ = connection.execute(sa.select(message).order_by(message.c.id)).mappings()
    itself = {"id", "key"}
    assert {name: many[name] for name in many if name not in itself} == {name: one[name] for name in one if name not in itself}
    assert (soon, later, Lane.BULK, 1) == (many["due_at"], many["expires_at"], many["lane"], many["files"])


def test_a_generator_of_many_is_taken_a_handful_at_a_time(place: Place, outbox: Outbox) -> None:
    statements: list[str] = []
    sa.event.listen(place.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    taken = itertools.count()

    def generate() -> Iterator[dict[str, Any]]:
        for _ in range(3 * HANDFUL):
            written = sum("INSERT INTO outbox_message" in each for each in statements)
            assert next(taken) < (written + 1) * HANDFUL
            yield event()

    with place.engine.begin() as connection:
        enqueued = outbox.enqueue_many(connection, "enos", generate())

    assert 3 * HANDFUL == len({each.id for each in enqueued}) == count(place.database, message)
    assert sum("INSERT INTO outbox_message" in each for each in statements) == 3


def test_nothing_to_enqueue_is_nothing_done(place: Place, outbox: Outbox) -> None:
    with place.engine.begin() as connection:
        assert [] == outbox.enqueue_many(connection, "enos", [])

    assert {} == states(place.database)


def test_a_key_that_is_there_already_says_so(place: Place, outbox: Outbox) -> None:
    first = place.enqueue(outbox, "a")

    with place.engine.begin() as connection:
        enqueued = outbox.enqueue_many(connection, "enos", [Entry(event("b"), key="b"), Entry(event("a"), key="a")])

    assert [True, False] == [each.new for each in enqueued]
    assert enqueued[1].id == first
    assert {"a": State.PENDING, "b": State.PENDING} == states(place.database)


def test_a_key_that_is_there_already_says_so_among_messages_without_one(place: Place, outbox: Outbox) -> None:
    first = place.enqueue(outbox, "a")

    with place.engine.begin() as connection:
        enqueued = outbox.enqueue_many(connection, "enos", [event("b"), Entry(event("a"), key="a"), event("c")])

    assert [True, False, True] == [each.new for each in enqueued]
    assert enqueued[1].id == first
    assert 3 == count(place.database, message)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "plain",
        "'\";--\\",
        "zwölf Boxkämpfer 🥊",
        "\t\n\r\x1d\x1e\x1f\x00",
        "%s %(rows)s ? :rows $1",
        "NULL",
        "{}",
        "x" * 100_000,
    ],
)
def test_a_payload_arrives_as_it_was_whatever_it_says(place: Place, outbox: Outbox, words: str) -> None:
    given = [event("a", says=words), event("b"), event("c", says=[words])]

    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", given)

    assert given == [json.loads(text) for (text,) in rows(place, "payload")]


def test_a_key_arrives_as_it_was_whatever_it_says(place: Place, outbox: Outbox) -> None:
    keys = ["'\";--\\", "zwölf Boxkämpfer 🥊", "%s %(rows)s ? :rows $1", "NULL", " ", "{a,b}"]

    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", [Entry(event(), key=each) for each in keys])

    assert keys == [key for (key,) in rows(place, "key")]


@pytest.mark.parametrize("style", ["qmark", "named", "numeric"])
def test_an_engine_may_mark_its_parameters_as_it_likes(sqlite_place: Place, style: Any) -> None:
    outbox = sqlite_place.outbox()
    engine = prepare(sa.create_engine(sqlite_place.url, paramstyle=style))

    with engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", [event(f"turbine-{number}") for number in range(3)])

    engine.dispose()
    payloads = [json.loads(text) for (text,) in rows(sqlite_place, "payload")]
    assert ["turbine-0", "turbine-1", "turbine-2"] == [each["assetId"] for each in payloads]


@pytest.mark.parametrize("number", [2, 3, 4, 5, HANDFUL - 1, HANDFUL, HANDFUL + 2])
def test_as_many_are_made_as_are_given(place: Place, outbox: Outbox, number: int) -> None:
    with place.engine.begin() as connection:
        enqueued = outbox.enqueue_many(connection, "enos", [event(f"{each}") for each in range(number)])

    assets = {each: json.loads(text)["assetId"] for each, text in rows(place, "id", "payload")}
    assert [f"{each}" for each in range(number)] == [assets.pop(each.id) for each in enqueued]
    assert {} == assets


def test_of_a_key_that_is_given_twice_the_first_is_made(place: Place, outbox: Outbox) -> None:
    with place.engine.begin() as connection:
        enqueued = outbox.enqueue_many(
            connection,
            "enos",
            [Entry(event("a", "photo"), key="a", files=PHOTO), Entry(event("a", "photo"), key="a", files=PHOTO)],
        )

    assert [True, False] == [each.new for each in enqueued]
    assert enqueued[0].id == enqueued[1].id
    assert 1 == count(place.database, file) == count(place.database, attachment) == len(place.spooled())


def test_every_fault_of_every_message_is_told_with_its_place(place: Place, outbox: Outbox) -> None:
    bad = {"assetId": "", "time": "now", "events": {"crack": {}}}

    with place.engine.begin() as connection, pytest.raises(Refused) as refused:
        outbox.enqueue_many(connection, "enos", [event(), bad, Entry(event(), key="")])

    assert {"messages[1].assetId", "messages[1].time", "messages[2].key"} == {each.path for each in refused.value.faults}
    assert {} == states(place.database)


def test_a_fault_far_behind_leaves_nothing_although_the_caller_commits(place: Place, outbox: Outbox) -> None:
    given = [Entry(event(f"{number}", "photo"), files=PHOTO) if number < 2 else event() for number in range(HANDFUL + 5)]

    with place.engine.begin() as connection:
        with pytest.raises(Refused, match=rf"messages\[{HANDFUL + 5}\]"):
            outbox.enqueue_many(connection, "enos", [*given, {"assetId": "a"}])
        kept = outbox.enqueue(connection, "enos", event("kept"), key="kept")

    assert {"kept": State.PENDING} == states(place.database)
    assert [(kept.id,)] == rows(place, "id")
    assert 0 == count(place.database, attachment)


def test_files_of_what_was_taken_back_are_freed_in_time(place: Place, outbox: Outbox) -> None:
    ahead = outbox.spool(b"for another message, later")
    laden = [
        Entry(event("one", "photo"), files=PHOTO),
        Entry(event("two", "photo"), files={"photo": ahead}),
        *(event() for _ in range(HANDFUL)),
    ]
    with place.engine.begin() as connection:
        with pytest.raises(Refused):
            outbox.enqueue_many(connection, "enos", [*laden, {"assetId": "a"}])
        outbox.enqueue(connection, "enos", event("kept", "photo"), files=PHOTO, key="kept")

    assert 1 == outbox.free_files()
    assert 2 == len(place.spooled())


def test_a_generator_that_fails_leaves_nothing(place: Place, outbox: Outbox) -> None:
    def generate() -> Iterator[dict[str, Any]]:
        for _ in range(HANDFUL + 1):
            yield event()
        raise LookupError("the sensor is gone")

    with place.engine.begin() as connection, pytest.raises(LookupError):
        outbox.enqueue_many(connection, "enos", generate())

    assert {} == states(place.database)


def test_a_conflict_leaves_nothing_of_the_others(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a")
    given = [Entry(event("b", "photo"), key="b", files=PHOTO), Entry(event("a", severity=4), key="a")]

    with place.engine.begin() as connection, pytest.raises(KeyConflict):
        outbox.enqueue_many(connection, "enos", given)

    assert {"a": State.PENDING} == states(place.database)
    assert [] == place.spooled()


def test_streams_number_theirs_in_the_order_they_are_given(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "before", ordering_key="pump")
    keys = ["pump", "fan", "pump", "fan", "pump"]
    given = [Entry(event(each), key=f"{number}", ordering_key=each) for number, each in enumerate(keys)]

    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", given)

    with place.database.read() as connection:
        placed = connection.execute(
            sa.select(message.c.key, stream.c.ordering_key, message.c.stream_number).join(stream).order_by(message.c.key)
        )
        found = [tuple(row) for row in placed]
        heads = connection.execute(sa.select(sa.func.count()).select_from(head).where(head.c.due_at.is_not(None))).scalar()
    assert [
        ("0", "pump", 2),
        ("1", "fan", 1),
        ("2", "pump", 3),
        ("3", "fan", 2),
        ("4", "pump", 4),
        ("before", "pump", 1),
    ] == found
    assert heads == 2


def test_what_is_enqueued_together_is_delivered(place: Place, outbox: Outbox) -> None:
    given = [
        Entry(event("one", "photo"), key="one", files=PHOTO),
        Entry(event("two"), key="two", ordering_key="pump"),
        Entry(event("three"), key="three", ordering_key="pump"),
        Entry(event("four"), key="four", ordering_key="fan", ordered=False),
    ]
    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", given)
    for each in given:
        place.acknowledge(str(each.key), PHOTO if each.files else None)

    hand = place.hand(outbox)
    while hand.turn():
        pass

    assert {State.DELIVERED} == set(states(place.database).values())
    place.check()


def test_a_file_spooled_ahead_serves_several(place: Place, outbox: Outbox) -> None:
    ahead = outbox.spool(b"bytes of a photo")
    given = [Entry(event(f"{number}", "photo"), files={"photo": ahead}) for number in range(3)]

    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", given)

    assert (3, 1) == (count(place.database, attachment), count(place.database, file))


def test_producers_that_share_streams_do_not_deadlock(postgres_place: Place) -> None:
    """They take them in the same order, whatever theirs is."""
    outbox = postgres_place.outbox()
    order: list[str] = []
    real = arriving.next_in_stream

    def noted(connection: sa.Connection, new: arriving.NewMessage, ordering_key: str, *given: int) -> tuple[int, int]:
        order.append(ordering_key)
        return real(connection, new, ordering_key, *given)

    with pytest.MonkeyPatch.context() as between, postgres_place.engine.begin() as connection:
        between.setattr(arriving, "next_in_stream", noted)
        outbox.enqueue_many(connection, "enos", [Entry(event(), ordering_key=each) for each in ("c", "a", "b", "a")])

    assert ["a", "b", "c"] == order


@pytest.mark.parametrize("ordered", [True, False])
def test_two_who_give_lists_of_the_same_ordering_keys_never_wait_for_each_other(postgres_place: Place, ordered: bool) -> None:
    outbox = postgres_place.outbox()
    keys = [f"pump-{number:04}" for number in range(HANDFUL + 100)]
    both = threading.Barrier(2)

    def produce(given: list[str]) -> list[Any]:
        with postgres_place.engine.begin() as connection:
            both.wait()
            entries = [Entry(event(), ordering_key=each, ordered=ordered) for each in given]
            return outbox.enqueue_many(connection, "enos", entries)

    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(produce, [keys, keys[::-1]]))
        assert [len(keys)] * 2 == [len({each.id for each in those}) for those in done]


def test_what_became_of_each_stands_at_its_place_whatever_the_order_of_its_key(place: Place, outbox: Outbox) -> None:
    keys = [f"pump-{7 * number % 10}" for number in range(10)]
    given = [Entry(event(), key=f"m{number}", ordering_key=key) for number, key in enumerate(keys)]

    with place.engine.begin() as connection:
        enqueued = outbox.enqueue_many(connection, "enos", given)

    with place.database.read() as connection:
        found = {row.id: row.key for row in connection.execute(sa.select(message.c.id, message.c.key))}
    assert [f"m{number}" for number in range(10)] == [found[each.id] for each in enqueued]


def test_a_fault_is_told_by_its_place_whatever_the_order_of_its_key(place: Place, outbox: Outbox) -> None:
    given = [Entry(event(), ordering_key="b"), Entry({"time": 1}, ordering_key="a")]

    with place.engine.begin() as connection, pytest.raises(Refused, match=r"messages\[1\]\.assetId"):
        outbox.enqueue_many(connection, "enos", given)


@pytest.mark.merge
def test_a_generator_of_many_costs_no_more_memory_than_a_handful_and_what_became_of_each(place: Place, outbox: Outbox) -> None:
    number, filler = in_full(100_000, 20_000), "x" * 2000

    def generate() -> Iterator[dict[str, Any]]:
        for each in range(number):
            yield event(note=f"{each}{filler}")

    tracemalloc.start()
    with place.engine.begin() as connection:
        enqueued = outbox.enqueue_many(connection, "enos", generate())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert number == len(enqueued) == count(place.database, message)
    handful = 8 * HANDFUL * 2 * len(filler)  # a document of a handful, and what it is made from
    assert peak < handful + 250 * number


def test_who_loses_the_connection_in_the_midst_of_many_hears_of_that(place: Place, outbox: Outbox) -> None:
    with place.engine.connect() as connection:

        def generate() -> Iterator[Any]:
            for _ in range(HANDFUL):
                yield event()
            connection.invalidate()
            raise ZeroDivisionError("the network is gone")

        with pytest.raises(ZeroDivisionError, match="the network is gone"):
            outbox.enqueue_many(connection, "enos", generate())

    assert {} == states(place.database)
