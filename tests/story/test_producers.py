"""One contract for whoever enqueues: the same cases by every way there is, on both databases."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Entry, KeyConflict, Lane, Outbox, Policy, Refused, State
from outbox.tables import attachment, file, message, stream
from tests.factories import NOW, count, event, states
from tests.story.conftest import Place
from tests.story.producers import HOST, WAYS, RolledBack, Way

PHOTO = {"photo": b"bytes of a photo"}
HOUR = timedelta(hours=1)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, place: Place) -> Iterator[Way]:
    with place.engine.begin() as connection:
        HOST.drop(connection, checkfirst=True)
        HOST.create(connection)
    way = WAYS[request.param](place.url)
    yield way
    way.close()
    with place.engine.begin() as connection:
        HOST.drop(connection)


@pytest.fixture
def outbox(place: Place) -> Outbox:
    return place.outbox(clock=place.clock)


def laden(way: Way, key: str, **options: Any) -> Entry:
    """A message, with a photo where the way takes one."""
    if way.whole:
        return Entry(event(key, "photo"), PHOTO, key=key, **options)
    return Entry(event(key), key=key, **options)


def own_rows(place: Place) -> list[str]:
    with place.database.read() as connection:
        return list(connection.execute(sa.select(HOST.c.name).order_by(HOST.c.id)).scalars())


def delivered(place: Place) -> list[str]:
    return [each.struct["assetId"] for each in place.receiver.accepted]


def nothing_stayed(place: Place, outbox: Outbox) -> bool:
    """No message; and no file after one sweep."""
    outbox.sweep(timedelta(0))
    return (
        not states(place.database)
        and not any(count(place.database, each) for each in (attachment, file, stream))
        and (not place.spooled())
    )


def test_what_is_committed_is_there_with_the_producers_own_rows_and_is_delivered(
    place: Place, outbox: Outbox, way: Way
) -> None:
    (enqueued,) = way.transaction(outbox, "inspection", laden(way, "a"))

    assert (True, State.PENDING) == (enqueued.new, enqueued.state)
    assert ["inspection"] == own_rows(place)
    place.hand(outbox).turn()
    assert ["a"] == delivered(place)
    assert {"a": State.DELIVERED} == states(place.database)
    if way.whole:
        assert [hashlib.sha256(PHOTO["photo"]).hexdigest()] == [
            each.sha256 for each in place.receiver.accepted[0].files.values()
        ]


def test_what_is_not_committed_never_was(place: Place, way: Way) -> None:
    outbox = place.outbox()  # in true time, as the files have it that are swept
    way.transaction(outbox, "inspection", laden(way, "a", ordering_key="pump"), commit=False)

    assert [] == own_rows(place)
    assert nothing_stayed(place, outbox)


def test_nobody_sees_it_before_the_commit(place: Place, outbox: Outbox, way: Way) -> None:
    seen: list[Any] = []

    way.transaction(outbox, laden(way, "a"), meanwhile=lambda: seen.append(states(place.database)))

    assert [{}, {"a": State.PENDING}] == [*seen, states(place.database)]


def test_a_savepoint_that_is_rolled_back_takes_its_messages_along(place: Place, outbox: Outbox, way: Way) -> None:
    way.transaction(outbox, "before", laden(way, "a"), RolledBack(["within", laden(way, "b", ordering_key="k")]), "after")

    assert (["before", "after"], {"a": State.PENDING}) == (own_rows(place), states(place.database))


def test_the_same_key_again_returns_the_message_that_is_there(place: Place, outbox: Outbox, way: Way) -> None:
    (first,) = way.transaction(outbox, laden(way, "a"))
    place.hand(outbox).turn()

    again, other = way.transaction(outbox, laden(way, "a"), laden(way, "b"))

    assert (first.id, False, State.DELIVERED) == (again.id, again.new, again.state)
    assert other.new
    assert {"a": State.DELIVERED, "b": State.PENDING} == states(place.database)


def test_the_same_key_twice_in_one_transaction_is_one_message(place: Place, outbox: Outbox, way: Way) -> None:
    first, second = way.transaction(outbox, laden(way, "a"), laden(way, "a"))

    assert (first.id, True, False) == (second.id, first.new, second.new)
    assert 1 == count(place.database, message)


def test_the_same_key_with_other_content_is_a_conflict_and_the_transaction_goes_on(
    place: Place, outbox: Outbox, way: Way
) -> None:
    (first,) = way.transaction(outbox, laden(way, "a"))

    other = Entry(event("another"), key="a")
    conflict, fine = way.transaction(outbox, "inspection", other, Entry(event("b"), key="b"))

    assert isinstance(conflict, KeyConflict)
    assert (first.id, True) == (conflict.message_id, fine.new)
    assert (["inspection"], {"a": State.PENDING, "b": State.PENDING}) == (own_rows(place), states(place.database))


def test_messages_of_an_ordering_key_are_numbered_and_delivered_in_commit_order(place: Place, outbox: Outbox, way: Way) -> None:
    way.transaction(outbox, laden(way, "a", ordering_key="pump"), laden(way, "x", ordering_key="other"))
    way.transaction(outbox, laden(way, "gone", ordering_key="pump"), commit=False)
    way.transaction(outbox, laden(way, "b", ordering_key="pump"), laden(way, "c", ordering_key="pump"))

    with place.database.read() as connection:
        numbered = sa.select(message.c.key, message.c.stream_number).join(stream).where(stream.c.ordering_key == "pump")
        assert {("a", 1), ("b", 2), ("c", 3)} == {tuple(row) for row in connection.execute(numbered)}
    place.hand(outbox).turn_while_it_moves()
    assert ["a", "b", "c"] == [each for each in delivered(place) if each != "x"]


def test_messages_of_an_ordering_key_without_order_take_fair_turns(place: Place, way: Way) -> None:
    outbox = place.outbox(Policy(batch_messages=2), clock=place.clock)
    way.transaction(outbox, *(laden(way, f"a{number}", ordering_key="a", ordered=False) for number in range(4)))
    way.transaction(outbox, laden(way, "b", ordering_key="b", ordered=False))

    place.hand(outbox).turn()

    assert {"a0", "b"} == set(delivered(place))


def test_a_message_waits_for_the_time_that_was_chosen_for_it(place: Place, outbox: Outbox, way: Way) -> None:
    way.transaction(outbox, laden(way, "later", due_at=NOW + HOUR), laden(way, "now"))
    hand = place.hand(outbox)

    hand.turn_while_it_moves()
    before = delivered(place)
    place.clock.move(hours=1)
    hand.turn_while_it_moves()

    assert (["now"], ["now", "later"]) == (before, delivered(place))


def test_a_message_is_given_up_at_the_time_that_was_chosen_for_that(place: Place, outbox: Outbox, way: Way) -> None:
    way.transaction(outbox, laden(way, "a", expires_at=NOW + HOUR))

    place.clock.move(hours=1)
    place.hand(outbox).dispatcher.expire()

    assert {"a": State.DEAD} == states(place.database)


def test_an_express_message_goes_before_the_others(place: Place, way: Way) -> None:
    outbox = place.outbox(Policy(batch_messages=1), clock=place.clock)
    way.transaction(outbox, laden(way, "a"), laden(way, "alarm", lane=Lane.EXPRESS))

    place.hand(outbox).turn()

    assert ["alarm"] == delivered(place)


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        (Entry(event("a"), key="inspection-None"), "key"),
        (Entry(event("a"), key=""), "key"),
        (Entry(event("a"), key="x" * 256), "key"),
        (Entry(event("a"), ordering_key=""), "ordering_key"),
        (Entry(event("a"), lane="fast"), "lane"),
        (Entry(event("a"), due_at=NOW + HOUR, expires_at=NOW), "expires_at"),
    ],
    ids=["a None in the key", "an empty key", "a long key", "an empty ordering key", "no such lane", "over before it is due"],
)
def test_bad_input_is_refused_at_the_door_and_the_transaction_goes_on(
    place: Place, outbox: Outbox, way: Way, entry: Entry, path: str
) -> None:
    refused, fine = way.transaction(outbox, "inspection", entry, laden(way, "b"))

    assert isinstance(refused, Refused)
    assert path in str(refused)
    assert fine.new
    assert (["inspection"], {"b": State.PENDING}) == (own_rows(place), states(place.database))


def test_the_row_is_what_enqueue_would_have_made(place: Place, outbox: Outbox, way: Way) -> None:
    options: dict[str, Any] = {"due_at": NOW + HOUR, "expires_at": NOW + 2 * HOUR, "lane": Lane.BULK, "ordering_key": "é"}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    payload = {"assetId": "ünï\U0001f95a", "time": 1, "events": {"a": {"b": [1.5, None, True, "\\\"'%s:x ?"]}}}

    way.transaction(outbox, Entry(payload, key="theirs", traceparent=trace, **options))
    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", payload, key="ours", traceparent=trace, **options)

    own = {"id", "key", "stream_number", "created_at"}
    with place.database.read() as connection:
        theirs, ours = connection.execute(sa.select(message).order_by(message.c.id)).mappings()
    assert {name: value for name, value in theirs.items() if name not in own} == {
        name: value for name, value in ours.items() if name not in own
    }


def test_a_worker_that_waits_in_this_process_is_woken_by_the_commit(place: Place, outbox: Outbox, way: Way) -> None:
    nudges = outbox.database.nudges()
    assert nudges is not None
    while nudges.wait(0.3):  # until it listens, and all that was there before is old
        pass
    heard: list[set[str]] = []
    waiting = threading.Thread(target=lambda: heard.append(nudges.wait(30)))
    waiting.start()

    way.transaction(outbox, laden(way, "a"))

    waiting.join()
    nudges.close()
    assert heard
    assert heard[0] in ({"enos"}, {""})
