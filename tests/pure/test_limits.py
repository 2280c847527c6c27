"""How much may go at once: batches, lanes, rates and learned sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outbox.limits import (
    LEARNED_LEAST,
    Bucket,
    Learned,
    Traffic,
    drawn,
    fill,
    has_room,
    lane_order,
    learned_limit,
    refill_wait,
    refilled,
    taught,
)
from outbox.model import Lane
from outbox.policy import MIB, Policy
from tests.pure.making import NOW, seconds

# Filling a request.


@dataclass(eq=False)
class Waiting:
    size: int
    file_bytes: int = 0
    batch_limit: int | None = None
    suspect: bool = False
    bad: bool = False


def sizes(*numbers: int) -> list[Waiting]:
    return [Waiting(number) for number in numbers]


def limits(*numbers: int | None) -> list[Waiting]:
    return [Waiting(1, batch_limit=number) for number in numbers]


@pytest.mark.parametrize(
    ("queue", "messages", "total", "text", "expected"),
    [
        ([], 10, 100, None, []),
        (sizes(1, 1, 1), 10, 100, None, [0, 1, 2]),
        (sizes(1, 1, 1), 2, 100, None, [0, 1]),
        (sizes(50, 50, 1), 10, 100, None, [0, 1]),
        (sizes(50, 51, 1), 10, 100, None, [0]),
        (sizes(500, 1), 10, 100, None, [0]),
        (sizes(30, 30, 30), 10, 100, 60, [0, 1]),
        ([Waiting(1, 99), Waiting(1)], 10, 100, None, [0]),
        ([Waiting(1, 500), Waiting(1)], 10, 1000, 2, [0, 1]),
        (limits(1, None), 10, 100, None, [0]),
        (limits(None, 1), 10, 100, None, [0]),
        (limits(None, 1, None, 2, None), 10, 100, None, [0, 2, 4]),
        (limits(3, None, 3, 2, 3, 3), 10, 100, None, [0, 2, 4]),
        (limits(2, 3, 2, 2), 10, 100, None, [0, 2]),
        (limits(1, 1, 1), 10, 100, None, [0]),
        (limits(50, 50, 50), 2, 100, None, [0, 1]),
        ([Waiting(1, suspect=True), *sizes(1, 1)], 10, 100, None, [0]),
        ([Waiting(1, suspect=True), Waiting(1, suspect=True)], 10, 100, None, [0]),
        ([Waiting(1), Waiting(1, suspect=True), Waiting(1)], 10, 100, None, [0, 2]),
        ([Waiting(1, suspect=True, batch_limit=5), *limits(5, 5)], 10, 100, None, [0]),
        ([Waiting(1), Waiting(200, batch_limit=2), Waiting(1)], 10, 100, None, [0, 2]),
    ],
)
def test_a_request_takes_the_head_of_the_queue_and_its_like_that_fit(
    queue: list[Waiting], messages: int, total: int, text: int | None, expected: list[int]
) -> None:
    taken = fill(queue, messages, total, text)

    assert expected == [queue.index(each) for each in taken]


@given(
    queue=st.lists(
        st.builds(Waiting, st.integers(0, 40), st.integers(0, 40), st.none() | st.integers(1, 5), st.booleans()), max_size=30
    ),
    messages=st.integers(1, 8),
    total=st.integers(1, 120),
    text=st.none() | st.integers(1, 60),
)
def test_whatever_waits_a_request_keeps_every_limit_and_starves_nobody(
    queue: list[Waiting], messages: int, total: int, text: int | None
) -> None:
    taken = fill(queue, messages, total, text)

    assert bool(taken) == bool(queue)
    if not queue:
        return
    head = queue[0]
    like = [each for each in queue if each.batch_limit == head.batch_limit and not each.suspect] if not head.suspect else [head]
    assert like[: len(taken)] == taken, "the first of the head's like, in their order"
    most = 1 if head.suspect else min(messages, head.batch_limit or messages)
    assert len(taken) <= most
    if len(taken) > 1:
        assert sum(each.size + each.file_bytes for each in taken) <= total
        assert text is None or sum(each.size for each in taken) <= text
    if len(taken) < min(most, len(like)):
        more = like[: len(taken) + 1]
        heavy = sum(each.size + each.file_bytes for each in more) > total
        wordy = text is not None and sum(each.size for each in more) > text
        assert heavy or wordy, "one more would have fitted"


@settings(max_examples=300)
@given(
    batch=st.integers(1, 100),
    bad=st.lists(st.booleans() | st.just(False), max_size=300),
    window=st.booleans(),
)
@example(batch=100, bad=[place in (0, 99, 100, 250) for place in range(300)], window=True)
@example(batch=100, bad=[True] * 100, window=False)
@example(batch=1, bad=[True, False], window=False)
def test_bad_messages_are_found_among_good_ones_in_few_requests(batch: int, bad: list[bool], window: bool) -> None:
    """`window`: a claim reads no more of the queue than may fit in one request."""
    queue = [Waiting(1, bad=each) for each in bad]
    requests, dead, delivered = 0, 0, 0
    while queue:
        taken = fill(queue[:batch] if window else queue, batch, 10**9, None)
        requests += 1
        if len(taken) > 1 and any(each.bad for each in taken):
            for each in taken:
                each.batch_limit = (len(taken) + 1) // 2
            continue
        dead += sum(each.bad for each in taken)
        delivered += sum(not each.bad for each in taken)
        for each in taken:
            queue.remove(each)

    assert (sum(bad), len(bad) - sum(bad)) == (dead, delivered)
    assert requests <= math.ceil(len(bad) / batch) + sum(bad) * (2 * math.ceil(math.log2(batch)) + 2)


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


# Uploads at a time.


@pytest.mark.parametrize(
    ("small", "large", "lane", "in_flight", "ramp", "expected"),
    [
        (99, 99, Lane.NORMAL, None, None, True),
        (99, 99, Lane.LARGE, None, None, True),
        (0, 0, Lane.NORMAL, 1, None, True),
        (1, 0, Lane.NORMAL, 1, None, False),
        (0, 0, Lane.LARGE, 1, None, True),
        (0, 1, Lane.NORMAL, 1, None, False),
        (1, 0, Lane.LARGE, 1, None, False),
        (3, 0, Lane.EXPRESS, 4, None, True),
        (3, 1, Lane.EXPRESS, 4, None, False),
        (2, 1, Lane.BULK, 4, None, True),
        (0, 2, Lane.LARGE, 4, None, True),
        (0, 3, Lane.LARGE, 4, None, False),
        (0, 3, Lane.NORMAL, 4, None, True),
        (3, 0, Lane.LARGE, 4, None, True),
        (4, 0, Lane.LARGE, 4, None, False),
        (9, 0, Lane.NORMAL, 4, None, False),
        (0, 0, Lane.NORMAL, None, 1, True),
        (1, 0, Lane.NORMAL, None, 1, False),
        (0, 5, Lane.NORMAL, None, 1, True),
        (5, 0, Lane.LARGE, None, 1, True),
        (0, 1, Lane.LARGE, None, 1, False),
        (2, 0, Lane.NORMAL, None, 3, True),
        (1, 0, Lane.NORMAL, 9, 1, False),
        (1, 0, Lane.NORMAL, 1, 9, False),
    ],
)
def test_one_more_upload_has_room(
    small: int, large: int, lane: Lane, in_flight: int | None, ramp: int | None, expected: bool
) -> None:
    assert expected == has_room(Traffic(small, large), lane, in_flight, ramp)


@given(lanes=st.lists(st.sampled_from(Lane), max_size=40), in_flight=st.integers(1, 8), ramp=st.none() | st.integers(1, 8))
def test_whoever_asks_the_fleet_keeps_its_limit_and_large_uploads_leave_one_to_the_others(
    lanes: list[Lane], in_flight: int, ramp: int | None
) -> None:
    traffic = Traffic(0, 0)
    for lane in lanes:
        if has_room(traffic, lane, in_flight, ramp):
            large = lane is Lane.LARGE
            traffic = Traffic(traffic.small + (not large), traffic.large + large)

    assert traffic.small + traffic.large <= in_flight
    assert traffic.large <= max(1, in_flight - 1)
    assert ramp is None or max(traffic.small, traffic.large) <= ramp


# The rate.


def draws(policy: Policy, instants: list[datetime], bucket: Bucket = Bucket()) -> list[datetime]:  # noqa: B008 (frozen)
    """When a request went out, of those who asked for one at these instants."""
    went = []
    for now in instants:
        left = drawn(refilled(bucket, now, policy))
        if left is not None:
            assert left.tokens is not None
            assert 0 <= left.tokens <= policy.bucket
            bucket = left
            went.append(now)
    return went


RATES = st.builds(Policy, rate=st.floats(0.01, 500), burst=st.none() | st.floats(1, 50))


@given(policy=RATES, pauses=st.lists(st.floats(0, 3) | st.floats(0, 600), max_size=60))
def test_in_no_window_more_go_out_than_the_rate_and_what_was_saved_up(policy: Policy, pauses: list[float]) -> None:
    went = draws(policy, [NOW + seconds(passed) for passed in accumulate(pauses)])

    assert policy.rate is not None
    for first, begins in enumerate(went):
        for last in range(first, len(went)):
            window = (went[last] - begins).total_seconds()
            assert last - first + 1 <= policy.rate * window + policy.bucket + 1e-6


@given(policy=RATES, asked=st.integers(1, 100))
def test_a_fleet_that_never_sent_begins_with_one_request_and_not_with_a_burst(policy: Policy, asked: int) -> None:
    assert [NOW] == draws(policy, [NOW] * asked)


@given(
    policy=RATES,
    steps=st.lists(st.floats(0, 3) | st.floats(-59, 59) | st.floats(-1e7, 1e7), max_size=60),
)
def test_whatever_the_clock_does_the_bucket_is_neither_overdrawn_nor_overfull(policy: Policy, steps: list[float]) -> None:
    # `draws` looks into the bucket each time.
    draws(policy, [NOW + seconds(away) for away in accumulate(steps)])


@pytest.mark.parametrize("back", [1, 59, 61, 86_400])
def test_a_step_back_of_the_clock_does_not_fill_the_bucket(back: float) -> None:
    policy = Policy(rate=10, burst=5)
    empty = Bucket(0.0, NOW)

    assert 1.0 >= (refilled(empty, NOW - seconds(back), policy).tokens or 0.0)


@pytest.mark.parametrize("back", [61, 86_400, 10 * 365 * 86_400])
def test_a_step_back_of_the_clock_does_not_stop_the_rate(back: float) -> None:
    policy = Policy(rate=10, burst=5)

    stepped = refilled(Bucket(0.0, NOW), NOW - seconds(back), policy)

    assert Bucket(1.0, NOW - seconds(back)) == stepped


def test_clocks_that_differ_a_little_do_not_fill_the_bucket_twice() -> None:
    instants = [NOW + seconds(tick + ahead) for tick in range(100) for ahead in (0, 5)]

    went = draws(Policy(rate=1, burst=5), instants)

    assert len(went) <= 100 + 5 + 5


@pytest.mark.parametrize("ahead", [61, 86_400 * 365])
def test_a_jump_ahead_fills_the_bucket_once_and_no_more(ahead: float) -> None:
    policy = Policy(rate=1, burst=3)

    assert 3 == len(draws(policy, [NOW + seconds(ahead)] * 10, Bucket(0.0, NOW)))


@given(policy=RATES, tokens=st.floats(0, 1, exclude_max=True))
def test_who_waits_as_long_as_it_says_is_let_through(policy: Policy, tokens: float) -> None:
    empty = Bucket(tokens, NOW)
    wait = refill_wait(empty, policy)

    assert 0 <= wait <= 1 / (policy.rate or 1) + 1e-9
    # Clocks count microseconds; the last of them may be rounded off.
    assert drawn(refilled(empty, NOW + seconds(wait) + timedelta(microseconds=2), policy)) is not None


def test_a_request_in_the_bucket_is_not_waited_for() -> None:
    assert 0.0 == refill_wait(Bucket(2.5, NOW), Policy(rate=1))


# The size a destination taught us.


@pytest.mark.parametrize("limit", [20_000, 300_000, 1_000_000])
def test_after_a_few_refusals_requests_are_as_small_as_the_destination_wants(limit: int) -> None:
    learned, refusals, size = Learned(), 0, MIB
    while size > limit:
        learned = taught(learned, size, NOW)
        refusals += 1
        size = min(MIB, learned_limit(learned, NOW) or MIB)

    assert limit / 2 < size <= limit
    assert refusals <= math.ceil(math.log2(MIB / limit))


def test_nothing_is_known_before_the_first_refusal() -> None:
    assert learned_limit(Learned(), NOW) is None


@pytest.mark.parametrize(("days", "expected"), [(0, 150_000), (0.5, 212_132), (1, 300_000), (3, 1_200_000)])
def test_a_learned_size_is_forgotten_by_doubling_every_day(days: float, expected: int) -> None:
    assert expected == learned_limit(Learned(150_000, NOW), NOW + timedelta(days=days))


def test_a_size_learned_ages_ago_is_still_a_number() -> None:
    assert 150_000 * 2**30 == learned_limit(Learned(150_000, NOW), NOW + timedelta(days=40_000))


def test_a_step_back_of_the_clock_leaves_a_learned_size_as_it_is() -> None:
    assert 150_000 == learned_limit(Learned(150_000, NOW), NOW - timedelta(days=400))


def test_a_refusal_above_a_regrown_size_falls_back_to_what_held() -> None:
    later = NOW + timedelta(days=1.5)

    learned = taught(Learned(150_000, NOW), 420_000, later)

    assert Learned(150_000, later) == learned
    assert 150_000 == learned_limit(learned, later)


def test_a_refusal_of_what_held_so_far_halves_it() -> None:
    assert Learned(75_000, NOW) == taught(Learned(150_000, NOW), 150_000, NOW)


def test_refusals_of_what_went_out_together_halve_the_size_once() -> None:
    learned = Learned()
    for _ in range(4):
        learned = taught(learned, MIB, NOW)

    assert Learned(MIB // 2, NOW) == learned


@pytest.mark.parametrize("refused", [1, LEARNED_LEAST - 1, LEARNED_LEAST])
@pytest.mark.parametrize("before", [Learned(), Learned(LEARNED_LEAST, NOW), Learned(150_000, NOW)])
def test_a_refusal_of_next_to_nothing_teaches_nothing(refused: int, before: Learned) -> None:
    assert before == taught(before, refused, NOW + seconds(1))


@given(st.lists(st.tuples(st.integers(0, 10 * MIB), st.floats(-1e6, 1e6)), max_size=40))
def test_whatever_is_refused_a_learned_size_never_falls_below_its_floor(refusals: list[tuple[int, float]]) -> None:
    learned, now = Learned(), NOW
    for refused, passed in refusals:
        now += seconds(passed)
        learned = taught(learned, refused, now)

        assert learned.size is None or learned.size >= LEARNED_LEAST == 16 * 1024
        limit = learned_limit(learned, now)
        assert limit is None or limit >= LEARNED_LEAST
