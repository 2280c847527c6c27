"""Batches, back-off and the breaker, as pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import ConfigurationError
from outbox.model import Lane
from outbox.policy import (
    Breaker,
    Passage,
    Policy,
    Stop,
    after_fault,
    after_probe_began,
    after_success,
    backoff,
    clamp,
    doubling,
    fill,
    lane_order,
    passage,
    send_deadline,
)
from tests.pure.making import NOW

POLICY = Policy(breaker_after=3, probe_first=4.0, probe_cap=60.0, send_base=20.0, slowest_rate=1000)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


# Filling a request.


@dataclass(frozen=True)
class Waiting:
    size: int
    file_bytes: int = 0
    batch_limit: int | None = None


def sizes(*numbers: int) -> list[Waiting]:
    return [Waiting(number) for number in numbers]


@pytest.mark.parametrize(
    ("queue", "messages", "total", "text", "expected"),
    [
        ([], 10, 100, None, 0),
        (sizes(1, 1, 1), 10, 100, None, 3),
        (sizes(1, 1, 1), 2, 100, None, 2),
        (sizes(50, 50, 1), 10, 100, None, 2),
        (sizes(50, 51, 1), 10, 100, None, 1),
        (sizes(500, 1), 10, 100, None, 1),
        (sizes(30, 30, 30), 10, 100, 60, 2),
        ([Waiting(1, 99), Waiting(1)], 10, 100, None, 1),
        ([Waiting(1, 500), Waiting(1)], 10, 1000, 2, 2),
        ([Waiting(1, batch_limit=1), Waiting(1)], 10, 100, None, 1),
        ([Waiting(1), Waiting(1, batch_limit=1)], 10, 100, None, 1),
        ([Waiting(1), Waiting(1, batch_limit=2), Waiting(1)], 10, 100, None, 2),
        ([Waiting(1, batch_limit=3), *sizes(1, 1, 1)], 10, 100, None, 3),
        ([Waiting(1, batch_limit=50), *sizes(1, 1, 1)], 2, 100, None, 2),
    ],
)
def test_a_request_takes_the_head_of_the_queue_that_fits(
    queue: list[Waiting], messages: int, total: int, text: int | None, expected: int
) -> None:
    assert queue[:expected] == fill(queue, messages, total, text)


@given(
    queue=st.lists(st.builds(Waiting, st.integers(0, 40), st.integers(0, 40), st.none() | st.integers(1, 5)), max_size=30),
    messages=st.integers(1, 8),
    total=st.integers(1, 120),
    text=st.none() | st.integers(1, 60),
)
def test_whatever_waits_a_request_keeps_every_limit_and_starves_nobody(
    queue: list[Waiting], messages: int, total: int, text: int | None
) -> None:
    taken = fill(queue, messages, total, text)

    assert queue[: len(taken)] == taken
    assert bool(taken) == bool(queue)
    assert len(taken) <= messages
    assert all(len(taken) <= each.batch_limit for each in taken if each.batch_limit)
    if len(taken) > 1:
        assert sum(each.size + each.file_bytes for each in taken) <= total
        assert text is None or sum(each.size for each in taken) <= text
    if len(taken) < len(queue):
        more = queue[: len(taken) + 1]
        limits = [each.batch_limit for each in more if each.batch_limit]
        crowded = len(more) > min([messages, *limits])
        heavy = sum(each.size + each.file_bytes for each in more) > total
        wordy = text is not None and sum(each.size for each in more) > text
        assert crowded or heavy or wordy, "one more would have fitted"


# Waiting.


@pytest.mark.parametrize(
    ("times", "expected"), [(-1, 2.0), (0, 2.0), (1, 2.0), (2, 4.0), (3, 8.0), (4, 10.0), (1000, 10.0), (10**9, 10.0)]
)
def test_a_wait_doubles_up_to_its_cap(times: int, expected: float) -> None:
    assert expected == doubling(times, 2.0, 10.0)


@given(failures=st.integers(0, 10**6), dice=st.floats(0, 1))
def test_a_back_off_is_jittered_over_its_whole_range(failures: int, dice: float) -> None:
    policy = Policy()

    wait = backoff(failures, policy, dice)

    assert seconds(0) <= wait <= seconds(policy.backoff_cap)
    assert wait == dice * backoff(failures, policy, 1.0)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_larger_send_may_take_longer(one: int, other: int) -> None:
    assert (send_deadline(one, POLICY) <= send_deadline(other, POLICY)) == (one <= other)


def test_a_send_may_take_a_base_and_its_bytes_at_the_slowest_rate() -> None:
    assert 25.0 == send_deadline(5000, POLICY)


@pytest.mark.parametrize(("away", "expected"), [(-100, -100), (0, 0), (59, 59), (60, 60), (86_400 * 365, 60)])
def test_an_instant_is_never_further_away_than_its_maximum(away: float, expected: float) -> None:
    assert NOW + seconds(expected) == clamp(NOW + seconds(away), NOW, 60.0)


# A destination's breaker.


@pytest.mark.parametrize(
    ("breaker", "expected"),
    [
        (Breaker(), Passage.FREE),
        (Breaker(failures=2), Passage.FREE),
        (Breaker(3, NOW + seconds(1)), Passage.NONE),
        (Breaker(3, NOW), Passage.PROBE),
        (Breaker(3, NOW - timedelta(days=30)), Passage.PROBE),
        (Breaker(1, NOW + seconds(1), Stop.CREDENTIALS), Passage.NONE),
        (Breaker(1, NOW, Stop.CREDENTIALS), Passage.PROBE),
        (Breaker(stop=Stop.PAUSE), Passage.NONE),
        (Breaker(3, NOW, Stop.PAUSE), Passage.NONE),
        (Breaker(stop=Stop.REJECT_STREAK), Passage.NONE),
        (Breaker(3, NOW, Stop.REJECT_STREAK), Passage.NONE),
    ],
)
def test_a_door_lets_pass(breaker: Breaker, expected: Passage) -> None:
    assert expected is passage(breaker, NOW, POLICY)


@pytest.mark.parametrize("stop", [None, Stop.CREDENTIALS])
def test_a_clock_that_stepped_back_a_day_does_not_shut_a_destination_for_a_day(stop: Stop | None) -> None:
    """The instant is further away than any that was ever invented, so it was invented by another clock."""
    opened = Breaker(5, NOW + timedelta(days=1), stop)

    waits = (seconds(step * 60) for step in range(24 * 60))
    until_probe = next(wait for wait in waits if passage(opened, NOW + wait, Policy()) is Passage.PROBE)

    assert until_probe < timedelta(hours=6)


@pytest.mark.parametrize("size", [0, 100_000, 100_000_000])
def test_while_a_probe_is_under_way_nobody_else_passes(size: int) -> None:
    policy = Policy()
    opened = after_probe_began(Breaker(5, NOW), NOW, size, policy)
    last = NOW + seconds(send_deadline(size, policy) - 1)

    assert [Passage.NONE, Passage.NONE] == [passage(opened, NOW, policy), passage(opened, last, policy)]


def test_a_probe_that_died_heals_when_it_could_have_ended() -> None:
    opened = after_probe_began(Breaker(5, NOW), NOW, 40_000, POLICY)

    assert Breaker(5, NOW + seconds(60)) == opened
    assert Passage.PROBE is passage(opened, NOW + seconds(60), POLICY)


@pytest.mark.parametrize(("failures", "expected"), [(0, 20.0), (1, 20.0), (4, 32.0), (5, 60.0), (99, 60.0)])
def test_a_probe_shuts_the_door_for_the_longer_of_its_interval_and_its_send(failures: int, expected: float) -> None:
    assert NOW + seconds(expected) == after_probe_began(Breaker(failures, NOW), NOW, 0, POLICY).open_until


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Breaker(), Breaker()),
        (Breaker(2), Breaker()),
        (Breaker(9, NOW), Breaker()),
        (Breaker(9, NOW, Stop.CREDENTIALS), Breaker()),
        (Breaker(9, NOW, Stop.PAUSE), Breaker(stop=Stop.PAUSE)),
        (Breaker(9, NOW, Stop.REJECT_STREAK), Breaker(stop=Stop.REJECT_STREAK)),
    ],
)
def test_a_delivery_opens_every_door_but_one_that_a_person_must_open(before: Breaker, after: Breaker) -> None:
    assert after == after_success(before)


@pytest.mark.parametrize(
    ("failures", "wait", "expected"),
    [
        (0, None, None),
        (1, None, None),
        (2, None, 4.0),
        (3, None, 8.0),
        (4, None, 16.0),
        (9, None, 60.0),
        (0, 2.0, 4.0),
        (0, 30.0, 30.0),
        (0, 10**9, 60.0),
        (4, 1.0, 16.0),
    ],
)
def test_the_breaker_opens_after_its_number_of_failures_or_when_asked_to_wait(
    failures: int, wait: float | None, expected: float | None
) -> None:
    breaker = after_fault(Breaker(failures), NOW, POLICY, 1.0, wait, credentials=False)

    assert Breaker(failures + 1, NOW + seconds(expected) if expected is not None else None) == breaker


@given(failures=st.integers(0, 100), wait=st.none() | st.floats(0, 1e8), dice=st.floats(0, 1), credentials=st.booleans())
def test_an_open_breaker_is_probed_within_its_cap(failures: int, wait: float | None, dice: float, credentials: bool) -> None:
    breaker = after_fault(Breaker(failures), NOW, POLICY, dice, wait, credentials=credentials)

    assert failures + 1 == breaker.failures
    assert breaker.open_until is None or NOW < breaker.open_until <= NOW + seconds(POLICY.probe_cap)


def test_refused_credentials_stop_at_once_and_are_tried_again_at_the_longest_interval() -> None:
    assert Breaker(1, NOW + seconds(60), Stop.CREDENTIALS) == after_fault(Breaker(), NOW, POLICY, 0.0, None, credentials=True)


def test_a_failure_of_another_kind_says_nothing_about_the_credentials() -> None:
    before = Breaker(5, NOW, Stop.CREDENTIALS)

    after = after_fault(before, NOW, POLICY, 1.0, None, credentials=False)

    assert (Stop.CREDENTIALS, True) == (after.stop, after.is_open)


def test_a_probe_that_fails_leaves_the_breaker_open_however_few_the_failures() -> None:
    opened = after_fault(Breaker(), NOW, POLICY, 1.0, 30.0, credentials=False)

    assert after_fault(opened, NOW, POLICY, 1.0, None, credentials=False).is_open


@pytest.mark.parametrize("stop", [Stop.PAUSE, Stop.REJECT_STREAK])
@pytest.mark.parametrize("credentials", [False, True])
def test_a_failure_leaves_stopped_what_a_person_must_start(stop: Stop, credentials: bool) -> None:
    before = Breaker(4, None, stop)

    assert replace(before, failures=5) == after_fault(before, NOW, POLICY, 1.0, None, credentials=credentials)


# Lanes.


@given(start=st.integers(0, 10**9))
def test_thirteen_turns_serve_every_lane_in_its_share(start: int) -> None:
    firsts = [lane_order(start + turn)[0] for turn in range(13)]

    assert {Lane.EXPRESS: 8, Lane.NORMAL: 4, Lane.BULK: 1} == {lane: firsts.count(lane) for lane in set(firsts)}


@given(st.integers(0, 10**9))
def test_a_turn_that_finds_its_lane_empty_serves_the_others(turn: int) -> None:
    first, *others = lane_order(turn)

    assert {Lane.EXPRESS, Lane.NORMAL, Lane.BULK} == {first, *others}
    assert others == sorted(others, key=list(Lane).index)


# Setting it up.


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_messages": 0},
        {"batch_bytes": 0},
        {"senders": 0},
        {"slowest_rate": 0},
        {"max_failures": 0},
        {"max_unknown": 0},
        {"breaker_after": 0},
        {"connect_timeout": 0},
        {"send_base": -1},
        {"backoff_first": 0},
        {"backoff_cap": float("nan")},
        {"probe_first": 0},
        {"probe_cap": 0},
        {"large_senders": -1},
        {"large_over": -1},
        {"on_unknown": "maybe"},
    ],
    ids=repr,
)
def test_a_policy_that_cannot_work_is_refused_by_the_name_of_its_mistake(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Policy(**wrong)


def test_instants_stay_aware() -> None:
    opened = after_probe_began(Breaker(), NOW, 0, POLICY).open_until

    assert isinstance(opened, datetime)
    assert opened.tzinfo is not None
