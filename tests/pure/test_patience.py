"""A destination's patience: its breaker, the ramp after it, and its stops."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.patience import (
    Breaker,
    Passage,
    Stop,
    after_delivered,
    after_fault,
    after_probe_began,
    after_rejected,
    after_silent_probe,
    passage,
    paused,
    resumed,
    spares,
)
from outbox.policy import Policy
from tests.pure.making import NOW, seconds

POLICY = Policy(
    breaker_after=3,
    probe_first=4.0,
    probe_cap=60.0,
    send_base=20.0,
    slowest_rate=1000,
    ramp_first=1,
    ramp_until=4,
    reject_streak=3,
)
LATER = NOW + seconds(60)


def fault(
    breaker: Breaker, now: datetime = NOW, dice: float = 1.0, wait: float | None = None, *, credentials: bool = False
) -> Breaker:
    return after_fault(breaker, now, POLICY, dice, wait, credentials=credentials)


def rejected(breaker: Breaker, *, alone: bool = True, probe: bool = False, policy: Policy = POLICY) -> Breaker:
    return after_rejected(breaker, NOW, policy, alone=alone, probe=probe)


BREAKERS = st.builds(
    Breaker,
    failures=st.integers(0, 30),
    open_until=st.none() | st.integers(-3600, 3600).map(lambda away: NOW + seconds(away)),
    stop=st.none() | st.sampled_from(Stop),
    reject_streak=st.integers(0, 5),
    ramp=st.none() | st.integers(1, 3),
)

# What may pass.


@pytest.mark.parametrize(
    ("breaker", "expected"),
    [
        (Breaker(), Passage.FREE),
        (Breaker(failures=2), Passage.FREE),
        (Breaker(ramp=1), Passage.FREE),
        (Breaker(reject_streak=2), Passage.FREE),
        (Breaker(3, NOW + seconds(1)), Passage.NONE),
        (Breaker(3, NOW), Passage.PROBE),
        (Breaker(3, NOW - timedelta(days=30)), Passage.PROBE),
        (Breaker(1, NOW + seconds(1), Stop.CREDENTIALS), Passage.NONE),
        (Breaker(1, NOW, Stop.CREDENTIALS), Passage.PROBE),
        (Breaker(0, NOW + seconds(1), Stop.REJECT_STREAK, 3), Passage.NONE),
        (Breaker(0, NOW, Stop.REJECT_STREAK, 3), Passage.PROBE),
        (Breaker(0, None, Stop.REJECT_STREAK, 3), Passage.PROBE),
        (Breaker(0, None, Stop.CREDENTIALS), Passage.PROBE),
        (Breaker(stop=Stop.PAUSE), Passage.NONE),
        (Breaker(3, NOW, Stop.PAUSE), Passage.NONE),
        (Breaker(3, NOW - timedelta(days=30), Stop.PAUSE), Passage.NONE),
        (Breaker(3, NOW + timedelta(days=3000), Stop.PAUSE), Passage.NONE),
    ],
)
def test_a_door_lets_pass(breaker: Breaker, expected: Passage) -> None:
    assert expected is passage(breaker, NOW, POLICY)


@pytest.mark.parametrize("stop", [None, Stop.CREDENTIALS, Stop.REJECT_STREAK])
def test_a_clock_that_stepped_back_a_day_does_not_shut_a_destination_for_a_day(stop: Stop | None) -> None:
    """The instant is further away than any that was ever invented, so it was invented by another clock."""
    opened = Breaker(5, NOW + timedelta(days=1), stop)

    waits = (seconds(step * 60) for step in range(24 * 60))
    until_probe = next(wait for wait in waits if passage(opened, NOW + wait, Policy()) is Passage.PROBE)

    assert until_probe <= timedelta(seconds=Policy().probe_cap)


# Probes.


def test_of_those_who_would_probe_the_first_shuts_the_door_for_the_others() -> None:
    opened = after_probe_began(Breaker(3, NOW), NOW, POLICY)

    assert [Passage.NONE, Passage.PROBE] == [passage(opened, NOW + seconds(wait), POLICY) for wait in (3.9, 4)]


@pytest.mark.parametrize(("failures", "expected"), [(0, 4.0), (3, 4.0), (4, 8.0), (5, 16.0), (99, 60.0)])
def test_a_probe_shuts_the_door_for_the_usual_interval(failures: int, expected: float) -> None:
    assert NOW + seconds(expected) == after_probe_began(Breaker(failures, NOW), NOW, POLICY).open_until


@given(BREAKERS)
def test_a_probe_that_begins_changes_nothing_but_the_door(before: Breaker) -> None:
    opened = after_probe_began(before, NOW, POLICY)

    assert replace(before, open_until=opened.open_until) == opened
    assert opened.open_until is not None
    assert opened.open_until.tzinfo is not None


@pytest.mark.parametrize("stop", [None, Stop.CREDENTIALS, Stop.REJECT_STREAK])
def test_after_a_probe_that_never_knocked_another_may_at_once(stop: Stop | None) -> None:
    silent = after_silent_probe(Breaker(5, LATER, stop, 2), NOW)

    assert Breaker(5, NOW, stop, 2) == silent
    assert Passage.PROBE is passage(silent, NOW, POLICY)


def test_a_probe_that_never_knocked_does_not_shut_a_door_that_somebody_opened_meanwhile() -> None:
    assert Breaker(ramp=1) == after_silent_probe(Breaker(ramp=1), NOW)


# Faults.


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
    opened = fault(Breaker(failures), wait=wait)

    assert Breaker(failures + 1, NOW + seconds(expected) if expected is not None else None) == opened


@given(before=BREAKERS, wait=st.none() | st.floats(0, 1e8), dice=st.floats(0, 1), credentials=st.booleans())
def test_an_open_breaker_is_probed_within_its_cap(before: Breaker, wait: float | None, dice: float, credentials: bool) -> None:
    after = fault(before, dice=dice, wait=wait, credentials=credentials)

    assert before.failures + 1 == after.failures
    if before.stop is not Stop.PAUSE:
        assert after.open_until is None or NOW < after.open_until <= NOW + seconds(POLICY.probe_cap)


def test_refused_credentials_stop_at_once_and_are_tried_again_at_the_longest_interval() -> None:
    assert Breaker(1, LATER, Stop.CREDENTIALS) == fault(Breaker(), dice=0.0, credentials=True)


def test_a_failure_of_another_kind_says_nothing_about_the_credentials() -> None:
    after = fault(Breaker(5, NOW, Stop.CREDENTIALS))

    assert (Stop.CREDENTIALS, True) == (after.stop, after.is_open)


def test_a_probe_that_fails_leaves_the_breaker_open_however_few_the_failures() -> None:
    opened = fault(Breaker(), wait=30.0)

    assert fault(opened).is_open


# Deliveries, and the ramp after an outage.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Breaker(), Breaker()),
        (Breaker(2), Breaker()),
        (Breaker(9, NOW), Breaker(ramp=1)),
        (Breaker(9, NOW, Stop.CREDENTIALS), Breaker(ramp=1)),
        (Breaker(0, NOW, Stop.REJECT_STREAK, 3), Breaker(ramp=1)),
        (Breaker(reject_streak=2), Breaker()),
        (Breaker(9, NOW, Stop.PAUSE), Breaker(stop=Stop.PAUSE, ramp=1)),
        (Breaker(stop=Stop.PAUSE), Breaker(stop=Stop.PAUSE)),
    ],
)
def test_a_delivery_opens_every_door_but_one_that_a_person_must_open(before: Breaker, after: Breaker) -> None:
    assert after == after_delivered(before, POLICY)


@pytest.mark.parametrize(
    ("first", "until", "expected"),
    [
        (1, 4, [1, 2, 3, None, None]),
        (2, 5, [2, 3, 4, None, None]),
        (1, 2, [1, None, None, None, None]),
        (1, 1, [None, None, None, None, None]),
        (8, 4, [None, None, None, None, None]),
    ],
)
def test_after_an_outage_uploads_grow_by_one_with_each_delivery_until_there_is_no_limit(
    first: int, until: int, expected: list[int | None]
) -> None:
    policy = Policy(ramp_first=first, ramp_until=until)
    ramps: list[int | None] = []
    breaker = Breaker(7, NOW)

    for _ in expected:
        breaker = after_delivered(breaker, policy)
        ramps.append(breaker.ramp)

    assert expected == ramps


def test_a_destination_that_was_never_open_has_no_ramp() -> None:
    assert after_delivered(Breaker(2), POLICY).ramp is None


def test_a_refusal_is_an_answer_too_and_the_ramp_goes_on() -> None:
    probed = rejected(Breaker(9, NOW), probe=True)

    assert [Breaker(reject_streak=1, ramp=1), Breaker(reject_streak=1, ramp=2)] == [probed, rejected(probed, alone=False)]


@pytest.mark.parametrize("ramp", [1, 3])
@pytest.mark.parametrize("failures", [0, 1, 5])
def test_a_fault_during_the_ramp_opens_the_breaker_at_once(ramp: int, failures: int) -> None:
    opened = fault(Breaker(failures, ramp=ramp))

    assert (True, None) == (opened.is_open, opened.ramp)
    assert Passage.NONE is passage(opened, NOW, POLICY)


def test_the_ramp_begins_anew_after_it_was_broken_off() -> None:
    broken_off = fault(Breaker(ramp=3))

    assert Breaker(ramp=1) == after_delivered(broken_off, POLICY)


def test_after_the_ramp_single_faults_are_borne_again() -> None:
    breaker = Breaker(9, NOW)
    for _ in range(4):
        breaker = after_delivered(breaker, POLICY)

    assert Breaker(1) == fault(breaker)


# One refusal after the other.


def test_exactly_so_many_messages_die_one_after_the_other_and_then_they_are_spared() -> None:
    breaker, deaths = Breaker(), 0
    for _ in range(20):
        deaths += not spares(breaker, POLICY)
        breaker = rejected(breaker)

    assert POLICY.reject_streak == deaths


def test_the_last_of_a_streak_stops_the_destination_until_the_longest_pause_is_over() -> None:
    breakers = [Breaker()]
    for _ in range(3):
        breakers.append(rejected(breakers[-1]))

    assert [Breaker(reject_streak=1), Breaker(reject_streak=2)] == breakers[1:3]
    assert Breaker(open_until=LATER, stop=Stop.REJECT_STREAK, reject_streak=3) == breakers[3]
    passages = [passage(breakers[3], now, POLICY) for now in (NOW, LATER - seconds(1), LATER)]
    assert [Passage.NONE, Passage.NONE, Passage.PROBE] == passages


def test_a_streak_of_one_stops_with_the_first() -> None:
    policy = replace(POLICY, reject_streak=1)

    assert Stop.REJECT_STREAK is rejected(Breaker(), policy=policy).stop
    assert not spares(Breaker(), policy)


def test_a_refused_batch_says_nothing_about_a_streak() -> None:
    assert Breaker(reject_streak=2) == rejected(Breaker(reject_streak=2), alone=False)


def test_a_delivery_breaks_the_streak_off() -> None:
    assert 0 == after_delivered(Breaker(reject_streak=2), POLICY).reject_streak


def test_a_probe_that_is_refused_under_a_streak_is_spared_and_the_next_waits_the_longest_interval() -> None:
    stopped = Breaker(open_until=NOW + seconds(20), stop=Stop.REJECT_STREAK, reject_streak=3)

    assert spares(stopped, POLICY)
    assert Breaker(open_until=LATER, stop=Stop.REJECT_STREAK, reject_streak=4) == rejected(stopped, probe=True)


def test_refusals_of_what_was_sent_before_the_stop_move_no_probe() -> None:
    stopped = Breaker(open_until=NOW + seconds(20), stop=Stop.REJECT_STREAK, reject_streak=3)

    assert stopped == rejected(stopped)
    assert spares(stopped, POLICY)


def test_a_delivery_of_what_was_sent_before_lifts_a_streak() -> None:
    assert Breaker(ramp=1) == after_delivered(Breaker(0, LATER, Stop.REJECT_STREAK, 5), POLICY)


@pytest.mark.parametrize("credentials", [False, True])
def test_a_fault_under_a_streak_leaves_the_stop_and_waits_the_longest_interval(credentials: bool) -> None:
    stopped = Breaker(0, NOW, Stop.REJECT_STREAK, 3)

    assert Breaker(1, LATER, Stop.REJECT_STREAK, 3) == fault(stopped, dice=0.0, credentials=credentials)


def test_a_refusal_of_a_message_says_that_our_credentials_are_good() -> None:
    assert Breaker(reject_streak=1, ramp=1) == rejected(Breaker(4, NOW, Stop.CREDENTIALS), probe=True)


# What a person says.


@given(BREAKERS)
def test_a_pause_wins_over_everything_and_keeps_what_the_destination_was_waiting_for(before: Breaker) -> None:
    assert replace(before, stop=Stop.PAUSE) == paused(before)
    assert Passage.NONE is passage(paused(before), NOW, POLICY)


@given(BREAKERS, st.booleans(), st.booleans(), st.booleans())
def test_whatever_comes_back_during_a_pause_does_not_end_it(
    before: Breaker, alone: bool, probe: bool, credentials: bool
) -> None:
    held = paused(before)

    ends = [
        after_delivered(held, POLICY),
        rejected(held, alone=alone, probe=probe),
        fault(held, credentials=credentials),
        after_silent_probe(held, NOW),
    ]

    assert [Stop.PAUSE] * 4 == [each.stop for each in ends]


@pytest.mark.parametrize("credentials", [False, True])
def test_a_failure_during_a_pause_is_counted_and_no_more(credentials: bool) -> None:
    before = Breaker(4, LATER, Stop.PAUSE, 2, 3)

    assert replace(before, failures=5) == fault(before, credentials=credentials)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (Breaker(stop=Stop.PAUSE), Passage.FREE),
        (Breaker(2, stop=Stop.PAUSE), Passage.FREE),
        (Breaker(stop=Stop.PAUSE, ramp=2), Passage.FREE),
        (Breaker(5, LATER, Stop.PAUSE), Passage.PROBE),
        (Breaker(5, LATER), Passage.PROBE),
        (Breaker(1, LATER, Stop.CREDENTIALS), Passage.PROBE),
        (Breaker(0, LATER, Stop.REJECT_STREAK, 3), Passage.PROBE),
        (Breaker(), Passage.FREE),
    ],
)
def test_who_is_let_go_on_does_so_at_once_but_by_a_probe_if_it_was_in_trouble(before: Breaker, expected: Passage) -> None:
    after = resumed(before, NOW)

    assert (None, 0) == (after.stop, after.reject_streak)
    assert expected is passage(after, NOW, POLICY)


def test_who_was_in_trouble_before_the_pause_is_probed_after_it() -> None:
    for trouble in (Breaker(5, LATER), Breaker(1, LATER, Stop.CREDENTIALS), Breaker(0, LATER, Stop.REJECT_STREAK, 3)):
        assert Passage.PROBE is passage(resumed(paused(trouble), NOW), NOW, POLICY)


def test_who_is_let_go_on_during_the_ramp_keeps_to_it() -> None:
    assert Breaker(ramp=2) == resumed(paused(Breaker(ramp=2)), NOW)


def test_after_a_person_let_it_go_on_a_whole_new_streak_is_borne() -> None:
    breaker = resumed(Breaker(0, LATER, Stop.REJECT_STREAK, 7), NOW)
    deaths = 0
    while breaker.stop is None:
        deaths += not spares(breaker, POLICY)
        breaker = rejected(breaker, probe=breaker.is_open)

    assert POLICY.reject_streak == deaths


def test_a_probe_that_is_refused_during_a_pause_does_not_make_the_streak_forgotten() -> None:
    held = paused(after_probe_began(Breaker(0, NOW, Stop.REJECT_STREAK, 3), NOW, POLICY))

    after = resumed(rejected(held, probe=True), NOW)

    assert Passage.PROBE is passage(after, NOW, POLICY)
