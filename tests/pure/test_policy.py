"""How a destination is treated: what can be set, and the waits that follow from it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import ConfigurationError
from outbox.model import State
from outbox.policy import Policy, Retention, backoff, clamp, doubling, send_deadline
from tests.pure.making import NOW, seconds

POLICY = Policy(send_base=20.0, slowest_rate=1000)

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


@pytest.mark.parametrize(("failures", "expected"), [(0, 5), (1, 5), (2, 60), (3, 600), (4, 600), (10**6, 600)])
@pytest.mark.parametrize("dice", [0.0, 0.3, 1.0])
def test_a_schedule_is_kept_to_the_second_and_its_last_wait_repeats(failures: int, expected: float, dice: float) -> None:
    assert seconds(expected) == backoff(failures, Policy(backoff_schedule=(5, 60, 600)), dice)


def test_a_schedule_may_begin_without_a_wait() -> None:
    policy = Policy(backoff_schedule=(0, 7))

    assert [seconds(0), seconds(7)] == [backoff(failures, policy, 1.0) for failures in (1, 2)]


def test_a_schedule_that_its_author_goes_on_changing_is_not_changed() -> None:
    waits = [5.0, 60.0]
    policy = Policy(backoff_schedule=waits)

    waits.append(600.0)

    assert (5.0, 60.0) == policy.backoff_schedule
    assert {policy} == {policy, Policy(backoff_schedule=[5.0, 60.0])}, "and it can be told from others"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), 3600.0),
        (Policy(backoff_cap=7.0), 7.0),
        (Policy(backoff_schedule=(5, 600, 60)), 600.0),
        (Policy(backoff_schedule=(5,), backoff_cap=9.0), 5.0),
    ],
)
def test_the_longest_back_off_is_that_of_the_schedule_if_there_is_one(policy: Policy, expected: float) -> None:
    assert expected == policy.longest_backoff


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_larger_send_may_take_longer(one: int, other: int) -> None:
    assert (send_deadline(one, POLICY) <= send_deadline(other, POLICY)) == (one <= other)


def test_a_send_may_take_a_base_and_its_bytes_at_the_slowest_rate() -> None:
    assert 25.0 == send_deadline(5000, POLICY)


@pytest.mark.parametrize(("away", "expected"), [(-100, -100), (0, 0), (59, 59), (60, 60), (86_400 * 365, 60)])
def test_an_instant_is_never_further_away_than_its_maximum(away: float, expected: float) -> None:
    assert NOW + timedelta(seconds=expected) == clamp(NOW + timedelta(seconds=away), NOW, 60.0)


# Setting it up.


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), 1.0),
        (Policy(rate=0.1), 1.0),
        (Policy(rate=2.0), 1.0),
        (Policy(rate=50.0), 25.0),
        (Policy(rate=50.0, burst=3), 3.0),
        (Policy(rate=0.5, burst=10), 10.0),
    ],
)
def test_a_rate_saves_up_half_a_second_and_never_less_than_one_request(policy: Policy, expected: float) -> None:
    assert expected == policy.bucket


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("batch_messages", "batch_bytes", "senders", "slowest_rate", "max_failures", "max_unknown")),
        *({name: 0} for name in ("breaker_after", "in_flight", "burst", "ramp_first", "ramp_until", "reject_streak")),
        *({name: 0} for name in ("connect_timeout", "backoff_first", "probe_first", "probe_cap", "max_age", "rate")),
        *({name: -1} for name in ("in_flight", "rate", "burst", "max_age", "ramp_first", "ramp_until", "reject_streak")),
        *({name: NAN} for name in ("backoff_cap", "rate", "burst", "max_age")),
        {"burst": 0.5},
        {"send_base": -1},
        {"large_senders": 0},
        {"large_over": -1},
        {"on_unknown": "maybe"},
        {"on_dead": "forget"},
        {"backoff_schedule": ()},
        {"backoff_schedule": (5, -1)},
        {"backoff_schedule": (5, NAN)},
    ],
    ids=repr,
)
def test_a_policy_that_cannot_work_is_refused_by_the_name_of_its_mistake(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()

    with pytest.raises(ConfigurationError, match=f"^expected {name} to be ") as refused:
        Policy(**wrong)

    assert str(refused.value).endswith(f", got {value!r}"), "it says what was given"


@pytest.mark.parametrize(
    "unusual",
    [
        {"in_flight": 1},
        {"rate": 0.001},
        {"rate": 1, "burst": 1},
        {"max_age": 0.5},
        {"on_dead": "skip"},
        {"ordered": False},
        {"ramp_first": 16, "ramp_until": 1},
        {"reject_streak": 1},
        {"backoff_schedule": [0]},
        {"large_over": 0},
    ],
    ids=repr,
)
def test_what_is_unusual_and_can_work_is_allowed(unusual: dict[str, Any]) -> None:
    Policy(**unusual)


# How long what is over is kept.

DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (State.PENDING, None),
        (State.CLAIMED, None),
        (State.DELIVERED, 7 * DAY),
        (State.CANCELLED, 7 * DAY),
        (State.DEAD, 90 * DAY),
    ],
)
def test_what_is_delivered_is_kept_a_week_and_the_dead_for_three_months(state: State, kept: timedelta | None) -> None:
    assert kept == Retention().of(state)


def test_uploads_that_delivered_nothing_are_kept_as_long_as_the_dead() -> None:
    kept = Retention(delivered=DAY, dead=2 * DAY)

    assert [DAY, 2 * DAY, 2 * DAY] == [kept.of_delivery(outcome) for outcome in ("delivered", "reject", "unknown")]


@pytest.mark.parametrize("name", ["delivered", "cancelled", "dead", "free_after"])
def test_anything_can_be_kept_for_ever(name: str) -> None:
    assert getattr(Retention(**{name: None}), name) is None


@pytest.mark.parametrize("name", ["delivered", "cancelled", "free_after"])
def test_anything_that_waits_for_nobody_need_not_be_kept_at_all(name: str) -> None:
    assert timedelta(0) == getattr(Retention(**{name: timedelta(0)}), name)


@pytest.mark.parametrize("length", [timedelta(0), timedelta(seconds=90), timedelta(minutes=59)], ids=str)
def test_the_dead_are_kept_until_a_person_can_have_seen_them(length: timedelta) -> None:
    words = "^expected dead to be at least 1 h, got .*: what was given up would be deleted before a person has seen it$"
    with pytest.raises(ConfigurationError, match=words):
        Retention(dead=length)


def test_the_least_and_the_most_that_can_be_kept_are_allowed() -> None:
    longest = timedelta(days=36_500)

    least, most = Retention(dead=timedelta(hours=1)), Retention(delivered=longest, cancelled=longest, dead=longest)

    assert timedelta(hours=1) == least.of(State.DEAD)
    assert longest == most.of(State.DELIVERED)


def test_what_is_kept_for_ever_excuses_no_mistake_beside_it() -> None:
    with pytest.raises(ConfigurationError, match="free_after"):
        Retention(delivered=None, free_after=-DAY)


@pytest.mark.parametrize("name", ["delivered", "cancelled", "dead", "free_after"])
def test_a_length_that_no_date_can_be_put_off_by_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"expected {name} to be at most 36,500 days, or for ever, got 4,000,000 days"):
        Retention(**{name: timedelta(days=4_000_000)})


@pytest.mark.parametrize("name", ["delivered", "cancelled", "dead", "free_after"])
@pytest.mark.parametrize("wrong", [7, "7d", -DAY], ids=repr)
def test_a_retention_that_cannot_be_is_refused_by_the_name_of_its_mistake(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"expected {name} to be a timedelta") as refused:
        Retention(**{name: wrong})

    assert repr(wrong) in str(refused.value)
