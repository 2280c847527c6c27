"""A destination's limits hold across every worker: requests a second, uploads at a time, and a person's pause."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Lane, Outbox, Policy, State, Token, Worker
from outbox.tables import delivery
from outbox.testing import Hold, Receiver, Slow, Status
from outbox.testing.ledger import rate_of
from tests.factories import column, count, event, in_full, outcomes, states
from tests.story.conftest import Hand, Place, eventually

#: Seconds over which a rate is measured at the receiver.
WINDOWS = (0.2, 1.0, 3.0)
#: Requests a second of four processes together: in brief so few that a busy machine, too, would make more if it were let.
RATE = in_full(50, 20)
#: How much of a rate must be used at least, so that nobody who is held back by something else would pass; a machine that is
#: busy with others does not get it all done.
USED = 0.3


@pytest.fixture
def distant(database_url: str, tmp_path: Path) -> Iterator[Place]:
    """A place whose receiver takes 20 ms for an answer."""
    with Receiver(check_token=False, latency=0.02) as receiver:
        place = Place(database_url, tmp_path, receiver)
        yield place
        place.close()


@pytest.fixture
def guarded(database_url: str, tmp_path: Path) -> Iterator[Place]:
    """A place whose receiver wants a token."""
    with Receiver() as receiver:
        place = Place(database_url, tmp_path, receiver)
        yield place
        place.close()


def enqueue_all(place: Place, outbox: Outbox, keys: list[str], **options: Any) -> None:
    """In one transaction."""
    with place.engine.begin() as connection:
        for key in keys:
            outbox.enqueue(connection, "enos", event(key), key=key, **options)
    for key in keys:
        place.acknowledge(key)


def keys_of(number: int, name: str = "m") -> list[str]:
    return [f"{name}{each:04}" for each in range(number)]


def begins_nothing_for(receiver: Receiver, seconds: float) -> bool:
    """Whether no upload begins within that time."""
    known = receiver.begun
    try:
        receiver.wait_for(lambda each: each.begun > known, seconds)
    except TimeoutError:
        return True
    return False


def under_way(place: Place) -> int:
    """Uploads that the database counts as under way."""
    with place.database.read() as connection:
        open_ones = sa.select(sa.func.count()).select_from(delivery).where(delivery.c.finished_at.is_(None))
        return int(connection.execute(open_ones).scalar_one())


@contextmanager
def in_thread(job: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=job)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(20)
    assert not thread.is_alive()


# Four workers, as they are in production: processes of their own


@pytest.mark.slow
@pytest.mark.parametrize(("burst", "messages"), [(None, in_full(320, 100)), pytest.param(5, 260, marks=pytest.mark.full)])
@pytest.mark.long
def test_four_processes_keep_to_one_rate_and_one_number_of_uploads_and_stop_when_paused(
    distant: Place, burst: float | None, messages: int
) -> None:
    limits = {"batch_messages": 1, "rate": RATE, "in_flight": 4} | ({"burst": burst} if burst else {})
    policy = Policy(**limits)  # type: ignore[arg-type]
    outbox, receiver = distant.outbox(policy), distant.receiver
    enqueue_all(distant, outbox, keys_of(messages))
    for _ in range(4):
        distant.run("work", policy=limits, worker={"poll": 0.1})
    receiver.wait_for(lambda each: len(each.requests) >= messages // 2, 60)

    outbox.pause("enos", "maintenance", "ann")
    paused = time.monotonic()
    while (left := paused + 1.0 - time.monotonic()) > 0:
        begins_nothing_for(receiver, left)  # what was claimed before the pause still may
    quiet = begins_nothing_for(receiver, 0.7)
    eventually(lambda: under_way(distant) == 0)
    began_before = [each.started for each in receiver.requests]
    after_pause = Counter(states(distant.database).values())
    taken = len(receiver.accepted)
    outbox.resume("enos", "ann")
    receiver.wait_for(lambda each: len(each.accepted) >= messages, 60)
    eventually(lambda: set(states(distant.database).values()) == {State.DELIVERED})

    measured = {window: receiver.rate_over(window) for window in WINDOWS}
    speed = rate_of(began_before, 1.0)
    latest = max(began_before) - paused
    print(
        f"{measured} in windows, {receiver.concurrent_peak} at once, {speed} in the best second; "
        f"the last one began {latest:+.3f} s after the pause"
    )
    # On the way to the receiver a busy machine lets some catch up with others: as many as may be on the way.
    assert {} == {window: most for window, most in measured.items() if most > policy.rate * window + policy.bucket + 4}
    assert receiver.concurrent_peak <= 4
    assert speed >= USED * RATE
    assert latest <= 1.0
    assert quiet
    assert {State.DELIVERED: taken, State.PENDING: messages - taken} == after_pause
    with distant.database.read() as connection:
        busy = connection.execute(sa.select(delivery.c.worker).distinct()).all()
    assert 4 == len(busy), "all four took part"
    distant.check()


@pytest.mark.long
@pytest.mark.slow
def test_what_was_under_way_at_a_pause_is_finished(distant: Place) -> None:
    outbox, receiver = distant.outbox(), distant.receiver
    enqueue_all(distant, outbox, keys_of(12))
    receiver.misbehave(*[Hold()] * 4)
    limits = {"batch_messages": 1, "in_flight": 4}
    workers = [distant.run("work", policy=limits, worker={"poll": 0.05}) for _ in range(2)]
    receiver.wait_for(lambda each: each.held == 4, 30)

    outbox.pause("enos", "maintenance", "ann")
    receiver.release()
    receiver.wait_for(lambda each: len(each.accepted) == 4)
    eventually(lambda: under_way(distant) == 0)

    assert begins_nothing_for(receiver, 0.7)
    assert {State.DELIVERED: 4, State.PENDING: 8} == Counter(states(distant.database).values())
    assert all(each.running for each in workers)
    outbox.resume("enos", "ann")
    receiver.wait_for(lambda each: len(each.accepted) == 12)
    eventually(lambda: set(states(distant.database).values()) == {State.DELIVERED})
    distant.check()


@pytest.mark.slow
@pytest.mark.long
def test_the_places_of_a_killed_worker_are_free_after_its_rescue(place: Place) -> None:
    outbox, receiver = place.outbox(), place.receiver
    enqueue_all(place, outbox, keys_of(6))
    receiver.misbehave(Hold(), Hold())
    story = {"policy": {"batch_messages": 1, "in_flight": 2}, "worker": {"poll": 0.05, "gone_after": 1.5}}
    first = place.run("work", **story)
    receiver.wait_for(lambda each: each.held == 2, 20)
    second = place.run("work", **story)
    second.until_logged("delivers to")

    full = begins_nothing_for(receiver, 0.5)
    first.kill()
    receiver.wait_for(lambda each: len(each.accepted) == 6, 30)
    receiver.release()
    eventually(lambda: set(states(place.database).values()) == {State.DELIVERED})

    assert full
    assert 2 == sum(("unknown", None) in outcomes(place.database, key) for key in keys_of(6))
    place.stop_processes()
    place.check()


# One limit at a time


@contextmanager
def two_workers(place: Place, policy: Policy) -> Iterator[Outbox]:
    outboxes = [place.outbox(policy) for _ in range(2)]
    workers = [Worker(each, poll=0.05) for each in outboxes]
    with workers[0], workers[1]:
        yield outboxes[0]


@pytest.mark.long
@pytest.mark.parametrize("most", [1, pytest.param(3, marks=pytest.mark.full)])
def test_a_number_of_uploads_alone_is_kept_to_and_used(distant: Place, most: int) -> None:
    policy = Policy(batch_messages=1, in_flight=most)
    enqueue_all(distant, distant.outbox(policy), keys_of(30))

    with two_workers(distant, policy):
        distant.receiver.wait_for(lambda each: len(each.accepted) == 30, 30)

    assert min(most, 2) <= distant.receiver.concurrent_peak <= most
    distant.check()


@pytest.mark.long
def test_a_rate_alone_is_kept_to_and_used(distant: Place) -> None:
    policy = Policy(batch_messages=1, rate=20, burst=10)
    enqueue_all(distant, distant.outbox(policy), keys_of(40))

    with two_workers(distant, policy):
        distant.receiver.wait_for(lambda each: len(each.accepted) == 40, 30)

    starts = sorted(each.started for each in distant.receiver.requests)
    with distant.database.read() as connection:
        claimed = [each.timestamp() for each in connection.execute(sa.select(delivery.c.started_at)).scalars()]
    # At the claim it is exact; on the way to the receiver a busy machine may let some requests catch up with others.
    measured = {window: rate_of(claimed, window) for window in WINDOWS}
    assert {} == {window: most for window, most in measured.items() if most > 20 * window + 10}
    assert distant.receiver.rate_over(3.0) <= 20 * 3.0 + 10 + 8, "with 8 senders"
    assert 39 / (starts[-1] - starts[0]) >= USED * 20
    distant.check()


def test_messages_that_fit_one_request_cost_the_rate_one(place: Place) -> None:
    outbox = place.outbox(Policy(rate=0.5), clock=place.clock)
    enqueue_all(place, outbox, keys_of(100))

    assert place.hand(outbox).turn()

    assert [100] == [len(each.structs) for each in place.receiver.requests]
    place.check()


def requests_by_second(place: Place, hands: list[Hand], seconds: int) -> list[int]:
    """In which second of the moved clock each request was made."""
    made: list[int] = []
    for second in range(seconds):
        known = len(place.receiver.requests)
        for hand in hands * 3:
            hand.turn()
        made += [second] * (len(place.receiver.requests) - known)
        place.clock.move(seconds=1)
    return made


@pytest.mark.long
def test_one_request_in_two_seconds_for_the_whole_fleet(place: Place) -> None:
    policy = Policy(batch_messages=1, rate=0.5)
    hands = [place.hand(place.outbox(policy, clock=place.clock)) for _ in range(2)]
    enqueue_all(place, hands[0].outbox, keys_of(11))

    made = requests_by_second(place, hands, 21)

    assert list(range(0, 21, 2)) == made
    place.check()


@pytest.mark.long
def test_a_quiet_time_saves_up_a_burst_and_no_more(place: Place) -> None:
    policy = Policy(batch_messages=1, rate=0.5, burst=3)
    hands = [place.hand(place.outbox(policy, clock=place.clock)) for _ in range(2)]
    place.enqueue(hands[0].outbox, "first")
    hands[0].turn()
    place.clock.move(days=3)
    enqueue_all(place, hands[0].outbox, keys_of(6))

    assert [0, 0, 0, 2, 4, 6] == requests_by_second(place, hands, 7)
    place.check()


def test_a_fleet_that_never_sent_begins_with_one_request(place: Place) -> None:
    policy = Policy(batch_messages=1, rate=2, burst=10)
    hands = [place.hand(place.outbox(policy, clock=place.clock)) for _ in range(2)]
    enqueue_all(place, hands[0].outbox, keys_of(5))

    assert [0, 1, 1, 2, 2] == requests_by_second(place, hands, 3)
    place.check()


def test_a_worker_knows_how_long_the_rate_lets_it_wait(place: Place) -> None:
    outbox = place.outbox(Policy(batch_messages=1, rate=0.5), clock=place.clock)
    hand = place.hand(outbox)
    enqueue_all(place, outbox, keys_of(2))

    hand.turn()
    hand.turn()
    waits = [hand.dispatcher.wait_for_rate("enos")]
    place.clock.move(seconds=1.5)
    waits.append(hand.dispatcher.wait_for_rate("enos"))

    assert [2.0, 0.5] == waits


def test_a_request_that_was_refused_has_used_the_rate_as_well(place: Place) -> None:
    outbox = place.outbox(Policy(batch_messages=1, rate=0.5), clock=place.clock)
    enqueue_all(place, outbox, keys_of(3))
    place.receiver.refuse(lambda struct: struct["assetId"] == "m0000")

    assert [0, 2, 4] == requests_by_second(place, [place.hand(outbox)], 5)
    assert {State.DEAD: 1, State.DELIVERED: 2} == Counter(states(place.database).values())
    place.check()


@pytest.mark.long
@pytest.mark.parametrize("back", [1, pytest.param(30, marks=pytest.mark.full), 86_400])
def test_a_step_back_of_the_clock_neither_fills_nor_stops_the_rate(place: Place, back: int) -> None:
    policy = Policy(batch_messages=1, rate=0.5, burst=4)
    hands = [place.hand(place.outbox(policy, clock=place.clock)) for _ in range(2)]
    enqueue_all(place, hands[0].outbox, keys_of(60))
    before = requests_by_second(place, hands, 9)

    place.clock.wall -= timedelta(seconds=back)
    seconds = in_full(60, 44)
    after = requests_by_second(place, hands, seconds)

    assert [0, 2, 4, 6, 8] == before
    # A step of some seconds looks like the clocks of a fleet that differ: they are waited for.
    assert (seconds - (back if back < seconds else 0)) // 2 - 2 <= len(after) <= seconds // 2


@pytest.mark.long
def test_a_jump_of_the_clock_is_worth_no_more_than_a_burst(place: Place) -> None:
    policy = Policy(batch_messages=1, rate=0.5, burst=3)
    hands = [place.hand(place.outbox(policy, clock=place.clock)) for _ in range(2)]
    enqueue_all(place, hands[0].outbox, keys_of(12))
    before = requests_by_second(place, hands, 4)

    place.clock.wall += timedelta(days=365)
    there = requests_by_second(place, hands, 4)
    place.clock.wall -= timedelta(days=365)
    back = requests_by_second(place, hands, 8)

    assert [0, 2] == before
    assert [0, 0, 0, 2] == there
    assert [0, 2, 4, 6] == back
    place.check(drained=False)


# Large ones among others


@pytest.mark.long
def test_a_large_upload_leaves_a_place_to_the_small_ones(place: Place) -> None:
    policy = Policy(batch_messages=1, in_flight=2, large_over=1000)
    hands = [place.hand(place.outbox(policy, clock=place.clock)) for _ in range(3)]
    for each in ("large-a", "large-b"):
        place.enqueue(hands[0].outbox, each, {"photo": bytes(5000)})
    place.receiver.misbehave(Hold())
    with in_thread(lambda: hands[0].turn("large")):
        place.receiver.wait_for(lambda each: each.held == 1)

        enqueue_all(place, hands[0].outbox, keys_of(3))
        second_large = hands[1].turn("large")
        small = [hands[1].turn("normal") for _ in range(3)]
        place.receiver.release()
    hands[2].turn_while_it_moves()

    assert not second_large, "one of the two places is the small ones'"
    assert [True] * 3 == small
    assert {State.DELIVERED} == set(states(place.database).values())
    place.check()


@pytest.mark.long
def test_a_single_place_is_shared_by_large_and_small(place: Place) -> None:
    policy = Policy(batch_messages=1, in_flight=1, large_over=1000)
    hands = [place.hand(place.outbox(policy, clock=place.clock)) for _ in range(2)]
    place.enqueue(hands[0].outbox, "large", {"photo": bytes(5000)})
    place.enqueue(hands[0].outbox, "small")
    place.receiver.misbehave(Hold())
    with in_thread(lambda: hands[0].turn("large")):
        place.receiver.wait_for(lambda each: each.held == 1)
        meanwhile = hands[1].turn()
        place.receiver.release()
    hands[1].turn_while_it_moves()

    assert not meanwhile
    assert 1 == place.receiver.concurrent_peak
    place.check()


@pytest.mark.long
def test_a_place_is_free_again_whatever_became_of_the_upload(place: Place) -> None:
    outbox = place.outbox(Policy(batch_messages=1, in_flight=1, breaker_after=9, send_base=0.5), clock=place.clock)
    hand = place.hand(outbox)
    place.enqueue(outbox, "a")
    place.receiver.misbehave(Status(503), Slow(1.5), Status(200, "<html></html>"))

    for _ in range(4):
        hand.turn()

    assert {"a": State.DELIVERED} == states(place.database)
    assert 4 == count(place.database, delivery)
    assert 0 == under_way(place)


# A pause that comes between the claim and the first byte


@pytest.mark.long
def test_an_upload_that_waits_for_its_token_does_not_begin_after_a_pause(guarded: Place) -> None:
    token = Token(guarded.receiver.token_url, "app-key", "app-secret", allow_plain_http=True)
    outbox = guarded.outbox(clock=guarded.clock, token=token)
    hand, receiver = guarded.hand(outbox), guarded.receiver
    guarded.enqueue(outbox, "a")
    receiver.misbehave_for_tokens(Hold())
    with in_thread(hand.turn):
        receiver.wait_for(lambda each: each.held == 1)
        outbox.pause("enos", "maintenance", "ann")
        guarded.clock.move(seconds=1)
        receiver.release()

    assert [] == receiver.requests
    assert [("not_sent", None)] == outcomes(guarded.database, "a")
    assert (State.PENDING, 0, 0) == tuple(column(guarded.database, "a", each) for each in ("state", "failures", "unknowns"))
    assert 0 == under_way(guarded)
    assert not hand.turn()
    outbox.resume("enos", "ann")
    assert hand.turn()
    guarded.check()


@pytest.mark.long
def test_a_token_that_must_be_renewed_after_a_pause_is_not_used(guarded: Place) -> None:
    token = Token(guarded.receiver.token_url, "app-key", "app-secret", allow_plain_http=True)
    outbox = guarded.outbox(clock=guarded.clock, token=token)
    hand, receiver = guarded.hand(outbox), guarded.receiver
    guarded.enqueue(outbox, "a")
    hand.turn()
    guarded.enqueue(outbox, "b")
    receiver.expire_tokens()
    receiver.misbehave_for_tokens(Hold())
    with in_thread(hand.turn):
        receiver.wait_for(lambda each: each.held == 1)
        outbox.pause("enos", "maintenance", "ann")
        guarded.clock.move(seconds=1)
        receiver.release()

    assert [200, 401] == [each.status for each in receiver.requests]
    assert {"a": State.DELIVERED, "b": State.PENDING} == states(guarded.database)
    outbox.resume("enos", "ann")
    hand.turn_while_it_moves()
    assert {"a": State.DELIVERED, "b": State.DELIVERED} == states(guarded.database)
    guarded.check()


@pytest.mark.long
def test_a_pause_holds_for_every_lane_and_for_what_arrives_later(place: Place) -> None:
    outbox = place.outbox(Policy(large_over=1000), clock=place.clock)
    hand = place.hand(outbox)
    outbox.pause("enos", "maintenance", "ann")
    for lane in Lane:
        place.enqueue(outbox, lane.value, lane=lane)
    place.enqueue(outbox, "stream", ordering_key="pump")
    place.enqueue(outbox, "share", ordering_key="fan", ordered=False)

    moved = [hand.turn(lane.value) for lane in Lane]
    place.clock.move(days=1)
    moved += [hand.turn(lane.value) for lane in Lane]

    assert [False] * 8 == moved
    outbox.resume("enos", "ann")
    for lane in Lane:
        hand.turn(lane.value)
    assert {State.DELIVERED} == set(states(place.database).values())
    place.check()
