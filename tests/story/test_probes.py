"""While a destination is down one probe knocks now and then: who may is told by `open_until`, and by nothing that can die."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from outbox import Lane, Policy, State
from outbox.model import Batch
from outbox.testing import Hold, Status
from tests.factories import deliveries, outcomes, states
from tests.story.conftest import Hand, Place, eventually

#: A claim locks no more than it could take: beside it there is something left to run for.
ONE_AT_A_TIME = Policy(batch_messages=1, breaker_after=2, probe_first=5.0, probe_cap=900.0)
FIRST = timedelta(seconds=ONE_AT_A_TIME.probe_first)


def shut(place: Place, hand: Hand, messages: int = 3) -> None:
    """Let a destination fail until its breaker is open, and time pass until it may be probed."""
    for number in range(messages):
        place.enqueue(hand.outbox, f"m{number}")
    place.receiver.always(Status(503))
    for _ in range(ONE_AT_A_TIME.breaker_after):
        hand.turn()
    assert hand.breaker().is_open
    place.clock.move((open_until(hand) - place.clock.wall).total_seconds())
    place.receiver.never()


def open_until(hand: Hand) -> datetime:
    until = hand.breaker().open_until
    assert until is not None
    return until


def claim(hand: Hand, connection: sa.Connection) -> Batch | None:
    """A claim in this transaction, of which nothing is sent."""
    return hand.dispatcher._claims.claim(connection, "enos", [Lane.NORMAL])


def knocks_and_dies(hand: Hand) -> Batch:
    """A worker is killed right after the claim of its probe; by and by somebody finds out."""
    with hand.outbox.database.begin() as connection:
        probe = claim(hand, connection)
    hand.presence.leave()
    assert probe is not None
    return probe


@pytest.fixture
def hand(place: Place) -> Hand:
    return place.hand(place.outbox(ONE_AT_A_TIME, clock=place.clock))


@pytest.fixture
def other(place: Place) -> Hand:
    return place.hand(place.outbox(ONE_AT_A_TIME, clock=place.clock))


def test_a_probe_moves_open_until_forward_as_it_begins(place: Place, hand: Hand, other: Hand) -> None:
    shut(place, hand)
    before = open_until(hand)

    with hand.outbox.database.begin() as connection:
        probe = claim(hand, connection)

    assert probe is not None
    assert before == place.clock.wall
    assert place.clock.wall + FIRST == open_until(other) == probe.probe_until


def test_what_would_be_a_probe_and_finds_nothing_to_send_moves_nothing(place: Place, hand: Hand) -> None:
    shut(place, hand)
    before = hand.breaker()

    with hand.outbox.database.begin() as connection:
        nothing = hand.dispatcher._claims.claim(connection, "enos", [Lane.BULK])

    assert nothing is None
    assert before == hand.breaker()


def test_of_two_who_run_for_the_probe_at_the_same_moment_one_gets_it(postgres_place: Place) -> None:
    """Both have read that it may be probed, and each has a message of its own, before either has said so."""
    place = postgres_place
    first, second = (place.hand(place.outbox(ONE_AT_A_TIME, clock=place.clock)) for _ in range(2))
    shut(place, first)
    won: list[Batch | None] = []

    def run() -> None:
        with second.outbox.database.begin() as connection:
            won.append(claim(second, connection))

    runner = threading.Thread(target=run)
    with first.outbox.database.begin() as connection:
        won.append(claim(first, connection))
        runner.start()
        eventually(lambda: waits_for_a_lock(place.engine))
    runner.join(20)

    probe, nothing = won
    assert probe is not None
    assert nothing is None
    assert [True] == [each.probe for each in deliveries(place.database) if each.finished_at is None]
    assert place.clock.wall + FIRST == open_until(first)


def waits_for_a_lock(engine: sa.Engine) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with engine.connect() as connection:
        return bool(connection.execute(sa.text(waiting)).scalar_one())


def test_after_a_prober_died_the_next_one_knocks_when_open_until_has_come_and_not_before(
    place: Place, hand: Hand, other: Hand
) -> None:
    shut(place, hand)
    probe = knocks_and_dies(hand)

    rescued = other.dispatcher.rescue()
    at_once = other.turn()
    place.clock.move(FIRST.total_seconds() - 0.001)
    early = other.turn()
    place.clock.move(0.001)
    in_time = other.turn()

    assert (1, False, False, True) == (rescued, at_once, early, in_time)
    assert [probe.delivery] == [each.id for each in deliveries(place.database) if each.outcome == "unknown"]
    other.turn_while_it_moves()
    assert {State.DELIVERED} == set(states(place.database).values())
    place.check()


def test_a_prober_that_died_holds_nobody_up_once_it_is_rescued_however_late_that_is(
    place: Place, hand: Hand, other: Hand
) -> None:
    shut(place, hand)
    knocks_and_dies(hand)
    place.clock.move(hours=1)

    before = other.turn()
    other.dispatcher.rescue()
    after = other.turn()

    assert (False, True) == (before, after)
    other.turn_while_it_moves()
    assert {State.DELIVERED} == set(states(place.database).values())
    place.check()


def test_probers_that_die_one_after_the_other_shut_nothing_for_ever(place: Place, hand: Hand) -> None:
    shut(place, hand, messages=1)
    for _ in range(3):
        prober = place.hand(place.outbox(ONE_AT_A_TIME, clock=place.clock))
        knocks_and_dies(prober)
        hand.dispatcher.rescue()
        place.clock.move(FIRST.total_seconds())

    moved = hand.turn()

    assert moved
    assert {"m0": State.DELIVERED} == states(place.database)
    place.check()


@pytest.mark.long
def test_a_breaker_heals_by_itself_after_its_prober_was_killed(place: Place) -> None:
    """With processes and true clocks: a worker is killed in the middle of its probe, and another one knocks in its time."""
    policy = {"batch_messages": 1, "breaker_after": 1, "probe_first": 0.5, "senders": 1}
    worker = {"gone_after": 1.5, "poll": 0.05}
    place.receiver.misbehave(Status(503), Hold())
    place.enqueue(place.outbox(), "a")
    place.enqueue(place.outbox(), "b")
    prober = place.run("work", worker=worker, policy=policy)
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 20)

    prober.kill()
    place.receiver.release()
    place.run("work", worker=worker, policy=policy)

    eventually(lambda: set(states(place.database).values()) == {State.DELIVERED})
    assert [True] == [each.probe for each in deliveries(place.database) if each.outcome == "unknown"]
    assert ("unknown", None) in outcomes(place.database, "a") + outcomes(place.database, "b")
    place.check()
