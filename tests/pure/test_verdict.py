"""The state machine: what becomes of a message after each verdict, row by row of the design's table."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.model import Outcome, Reason, State
from outbox.policy import Policy
from outbox.verdict import (
    ANSWER_KEPT,
    TEXT_LIMIT,
    Delivered,
    Facts,
    NotSent,
    Reject,
    Retry,
    Settlement,
    Unknown,
    Verdict,
    charges_destination,
    cleaned,
    fit_for_a_row,
    outcome,
    settle,
)
from tests.pure.making import NOW, message

POLICY = Policy(max_failures=3, max_unknown=2, backoff_first=10.0, backoff_cap=25.0)
CAUTIOUS = replace(POLICY, on_unknown="dead")
P, D, X = State.PENDING, State.DELIVERED, State.DEAD


def settled(
    verdict: Verdict,
    batch: int = 1,
    *,
    policy: Policy = POLICY,
    recovered: bool = False,
    spared: bool = False,
    **fields: Any,
) -> Settlement:
    return settle(message(7, **fields), verdict, batch, policy, NOW, 1.0, recovered=recovered, spared=spared)


# One line of the design's table each: what happened, and (state, reason, failures, unknowns, batch_limit) afterwards, where
# the message had 1 failure, 1 unknown and no limit before.
ROWS: list[tuple[str, Verdict, int, bool, Policy, tuple[Any, ...]]] = [
    ("delivered alone", Delivered(), 1, False, POLICY, (D, None, 1, 1, None)),
    ("delivered in a batch", Delivered(), 9, True, POLICY, (D, None, 1, 1, None)),
    ("rejected alone", Reject(), 1, False, POLICY, (X, Reason.REJECTED, 1, 1, 1)),
    ("rejected alone, as too large", Reject(reason=Reason.TOO_LARGE), 1, False, POLICY, (X, Reason.TOO_LARGE, 1, 1, 1)),
    ("rejected in a batch of 2", Reject(), 2, False, POLICY, (P, None, 1, 1, 1)),
    ("rejected in a batch of 3", Reject(), 3, False, POLICY, (P, None, 1, 1, 2)),
    ("rejected in a batch of 100", Reject(), 100, True, POLICY, (P, None, 1, 1, 50)),
    ("too large in a batch", Reject(reason=Reason.TOO_LARGE), 7, False, POLICY, (P, None, 1, 1, 4)),
    ("destination's fault", Retry(), 1, False, POLICY, (P, None, 1, 1, None)),
    ("destination's fault, in a batch", Retry(), 8, False, POLICY, (P, None, 1, 1, None)),
    ("destination's fault, which recovered since", Retry(), 1, True, POLICY, (P, None, 2, 1, None)),
    ("the same, in a batch", Retry(), 8, True, POLICY, (P, None, 1, 1, 4)),
    ("the same, in a batch of 3", Retry(), 3, True, POLICY, (P, None, 1, 1, 2)),
    ("credentials refused", Retry(credentials=True), 1, False, POLICY, (P, None, 1, 1, None)),
    ("not sent", NotSent(), 1, False, POLICY, (P, None, 1, 1, None)),
    ("not sent, in a batch", NotSent(), 8, False, POLICY, (P, None, 1, 1, None)),
    ("not sent, destination recovered since", NotSent(), 1, True, POLICY, (P, None, 2, 1, None)),
    ("the same, in a batch of 9", NotSent(), 9, True, POLICY, (P, None, 1, 1, 5)),
    ("stop asked before the send", NotSent(charged=False), 1, True, POLICY, (P, None, 1, 1, None)),
    ("stop asked, in a batch", NotSent(charged=False), 8, True, POLICY, (P, None, 1, 1, None)),
    ("unknown alone", Unknown(), 1, False, POLICY, (P, None, 1, 1, None)),
    ("unknown alone, destination recovered since", Unknown(), 1, True, POLICY, (P, None, 1, 2, None)),
    ("unknown in a batch of 5", Unknown(), 5, False, POLICY, (P, None, 1, 1, 3)),
    ("unknown in a batch of 5, destination recovered since", Unknown(), 5, True, POLICY, (P, None, 1, 1, 3)),
    ("the worker is gone, alone", Unknown(gone=True), 1, True, POLICY, (P, None, 1, 2, None)),
    ("the worker is gone, with a batch of 5", Unknown(gone=True), 5, True, POLICY, (P, None, 1, 1, 3)),
    ("unknown in a batch of 2", Unknown(), 2, False, POLICY, (P, None, 1, 1, 1)),
    ("unknown alone, on_unknown=dead", Unknown(), 1, False, CAUTIOUS, (X, Reason.OUTCOME_UNKNOWN, 1, 2, None)),
]


@pytest.mark.parametrize(
    ("verdict", "batch", "recovered", "policy", "expected"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS]
)
def test_a_message_becomes_what_the_table_says(
    verdict: Verdict, batch: int, recovered: bool, policy: Policy, expected: tuple[Any, ...]
) -> None:
    after = settled(verdict, batch, policy=policy, recovered=recovered, attempt=3, failures=1, unknowns=1)

    assert expected == (after.state, after.reason, after.failures, after.unknowns, after.batch_limit)
    assert outcome(verdict) is after.outcome


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    "verdict", [Retry(credentials=True), Retry(renew=True, credentials=True), NotSent(begun=False)], ids=repr
)
def test_what_no_message_can_have_caused_is_charged_to_none(verdict: Verdict, batch: int) -> None:
    after = settled(verdict, batch, recovered=True, attempt=99, failures=2, batch_limit=50)

    assert (P, 2, 0, 50, None) == (after.state, after.failures, after.unknowns, after.batch_limit, after.due_at)


def test_an_unknown_batch_is_dead_as_a_whole_where_a_second_copy_is_worse_than_none() -> None:
    after = settled(Unknown(), 5, policy=CAUTIOUS)

    assert (State.DEAD, Reason.OUTCOME_UNKNOWN) == (after.state, after.reason)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [(0, (P, None, 1)), (1, (P, None, 2)), (2, (X, Reason.EXHAUSTED, 3)), (9, (X, Reason.EXHAUSTED, 10))],
)
@pytest.mark.parametrize("verdict", [Retry(), NotSent()], ids=["retry", "not sent"])
def test_the_last_failure_that_counts_kills(verdict: Verdict, failures: int, expected: tuple[Any, ...]) -> None:
    after = settled(verdict, recovered=True, failures=failures)

    assert expected == (after.state, after.reason, after.failures)


@pytest.mark.parametrize(("unknowns", "expected"), [(0, (P, None, 1)), (1, (P, None, 2)), (2, (X, Reason.OUTCOME_UNKNOWN, 3))])
def test_only_past_the_limit_of_unknowns_it_is_dead(unknowns: int, expected: tuple[Any, ...]) -> None:
    after = settled(Unknown(), unknowns=unknowns, recovered=True)

    assert expected == (after.state, after.reason, after.unknowns)


@pytest.mark.parametrize("unknowns", [0, 1, 2])
def test_a_destination_that_never_answers_anybody_kills_no_message(unknowns: int) -> None:
    after = settled(Unknown(), unknowns=unknowns)

    assert (P, None, unknowns) == (after.state, after.reason, after.unknowns)


@pytest.mark.parametrize("failures", [0, 2, 3, 99])
@pytest.mark.parametrize("verdict", [Retry(), NotSent()], ids=["retry", "not sent"])
def test_an_outage_costs_nothing_however_often_it_was_tried(verdict: Verdict, failures: int) -> None:
    after = settled(verdict, attempt=500, failures=failures)

    assert (State.PENDING, failures, None) == (after.state, after.failures, after.due_at)


@pytest.mark.parametrize("limit", [1, 4, 50])
@pytest.mark.parametrize("verdict", [Retry(), NotSent(), NotSent(charged=False), Unknown(), Delivered()], ids=repr)
def test_a_batch_limit_outlives_what_is_no_refusal_of_a_batch(verdict: Verdict, limit: int) -> None:
    assert limit == settled(verdict, batch_limit=limit).batch_limit


@pytest.mark.parametrize("failures", [0, 1])
def test_a_failure_that_counts_waits_for_its_back_off(failures: int) -> None:
    after = settled(Retry(), recovered=True, failures=failures)

    assert NOW + timedelta(seconds=(10.0, 20.0)[failures]) == after.due_at


@pytest.mark.parametrize(
    ("verdict", "batch"),
    [(Reject(), 2), (Unknown(), 2), (Unknown(), 1), (Retry(), 1), (NotSent(), 1), (NotSent(charged=False), 1)],
)
def test_everything_else_leaves_the_due_time_alone(verdict: Verdict, batch: int) -> None:
    assert settled(verdict, batch).due_at is None


@pytest.mark.parametrize("verdict", [Retry(), NotSent(), Unknown(), Unknown(gone=True), Reject()], ids=repr)
def test_a_halved_batch_goes_on_at_once(verdict: Verdict) -> None:
    after = settled(verdict, 2, recovered=True, failures=1, unknowns=1)

    assert (State.PENDING, 1, None, 1, 1) == (
        after.state,
        after.batch_limit,
        after.due_at,
        after.failures,
        after.unknowns,
    )


@pytest.mark.parametrize("unknowns", [0, 1])
def test_an_unknown_that_counts_waits_for_its_back_off(unknowns: int) -> None:
    after = settled(Unknown(), recovered=True, unknowns=unknowns)

    assert NOW + timedelta(seconds=(10.0, 20.0)[unknowns]) == after.due_at


def test_a_worker_that_died_has_cost_time_enough_already() -> None:
    assert settled(Unknown(gone=True), recovered=True).due_at is None


def test_a_schedule_is_kept_to_whatever_the_dice_say() -> None:
    policy = replace(POLICY, backoff_schedule=(5, 60))

    waits = [settle(message(failures=n), Retry(), 1, policy, NOW, 0.1, recovered=True).due_at for n in (0, 1)]

    assert [NOW + timedelta(seconds=5), NOW + timedelta(seconds=60)] == waits


# One that was refused where everything is refused.


@pytest.mark.parametrize("reason", [Reason.REJECTED, Reason.TOO_LARGE])
def test_a_message_that_is_spared_stays_alive_and_goes_alone(reason: Reason) -> None:
    after = settled(Reject(reason=reason), spared=True, failures=1, unknowns=1, batch_limit=4)

    assert Settlement(State.PENDING, Outcome.REJECT, 1, 1, 1) == after


def test_nobody_is_spared_of_whom_nothing_is_said() -> None:
    assert State.DEAD is settle(message(7), Reject(), 1, POLICY, NOW, 1.0, recovered=True).state


def test_a_batch_that_is_refused_is_halved_all_the_same() -> None:
    assert settled(Reject(), 4) == settled(Reject(), 4, spared=True)


@pytest.mark.parametrize(
    "verdict", [Delivered(), Retry(), Unknown(), NotSent(), NotSent(accused=7, reason=Reason.FILE_MISSING)], ids=repr
)
@pytest.mark.parametrize("recovered", [False, True])
def test_nothing_but_a_refusal_is_spared(verdict: Verdict, recovered: bool) -> None:
    last = {"recovered": recovered, "failures": 2, "unknowns": 2}

    assert settled(verdict, **last) == settled(verdict, spared=True, **last)


# One that a worker may have died of.


def test_a_message_that_travelled_alone_when_its_worker_died_is_suspect() -> None:
    assert settled(Unknown(gone=True), recovered=True).suspect


@pytest.mark.parametrize("batch", [2, 100])
def test_of_a_batch_whose_worker_died_nobody_is_suspect_yet(batch: int) -> None:
    assert not settled(Unknown(gone=True), batch, recovered=True).suspect


@pytest.mark.parametrize("recovered", [False, True])
def test_no_answer_makes_nobody_suspect(recovered: bool) -> None:
    assert not settled(Unknown(), recovered=recovered).suspect


@pytest.mark.parametrize("recovered", [False, True])
@pytest.mark.parametrize(
    ("verdict", "spared"),
    [(Retry(), False), (NotSent(), False), (NotSent(charged=False), False), (Unknown(), False), (Reject(), True)],
    ids=repr,
)
def test_suspicion_lasts_until_the_end(verdict: Verdict, spared: bool, recovered: bool) -> None:
    assert settled(verdict, recovered=recovered, spared=spared, suspect=True).suspect


def test_a_message_that_kills_every_worker_is_dead_in_the_end() -> None:
    here, deaths = message(7), 0
    while True:
        after = settle(here, Unknown(gone=True), 1, POLICY, NOW, 1.0, recovered=True)
        deaths += 1
        if after.state is State.DEAD:
            break
        here = here._replace(unknowns=after.unknowns, suspect=after.suspect)

    assert (Reason.OUTCOME_UNKNOWN, POLICY.max_unknown + 1) == (after.reason, deaths)


# What is kept of the words.

WORDS = Facts(400, 1204, "Model validate failed")


@pytest.mark.parametrize(
    ("verdict", "policy", "fields"),
    [
        (Reject(WORDS), POLICY, {}),
        (Reject(WORDS, Reason.TOO_LARGE), POLICY, {}),
        (Retry(WORDS), POLICY, {"failures": 2}),
        (NotSent(WORDS), POLICY, {"failures": 2}),
        (NotSent(WORDS, charged=False, accused=7, reason=Reason.FILE_MISSING), POLICY, {}),
        (Unknown(WORDS), POLICY, {"unknowns": 2}),
        (Unknown(WORDS), CAUTIOUS, {}),
    ],
    ids=repr,
)
def test_a_dead_message_keeps_what_was_said_about_it(verdict: Verdict, policy: Policy, fields: dict[str, Any]) -> None:
    after = settled(verdict, policy=policy, recovered=True, **fields)

    assert (State.DEAD, "Model validate failed") == (after.state, after.text)


@pytest.mark.parametrize(
    ("verdict", "batch"), [(Reject(WORDS), 2), (Retry(WORDS), 1), (Unknown(WORDS), 1), (Delivered(WORDS), 1)], ids=repr
)
def test_words_about_a_message_that_is_not_dead_are_its_deliverys_alone(verdict: Verdict, batch: int) -> None:
    assert settled(verdict, batch).text is None


@pytest.mark.parametrize("recovered", [False, True])
@pytest.mark.parametrize(
    ("verdict", "remembered"),
    [(Retry(), True), (NotSent(), True), (NotSent(charged=False), False), (Unknown(), True), (Delivered(), False)],
    ids=repr,
)
def test_only_what_the_destination_is_charged_for_is_remembered_as_its_fault(
    verdict: Verdict, remembered: bool, recovered: bool
) -> None:
    assert remembered == settled(verdict, recovered=recovered).faulted


@pytest.mark.parametrize("reason", [Reason.FILE_MISSING, Reason.FILE_CHANGED])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_broken_file_kills_the_message_it_belongs_to_and_no_other(reason: Reason, batch: int) -> None:
    broken = NotSent(charged=False, accused=7, reason=reason)

    guilty = settle(message(7), broken, batch, POLICY, NOW, 1.0, recovered=True)
    neighbour = settle(message(8), broken, batch, POLICY, NOW, 1.0, recovered=True)

    assert Settlement(State.DEAD, Outcome.NOT_SENT, 0, 0, None, reason) == guilty
    assert Settlement(State.PENDING, Outcome.NOT_SENT, 0, 0, None) == neighbour


@pytest.mark.parametrize(
    ("verdict", "charged"),
    [
        (Delivered(), False),
        (Reject(), False),
        (Retry(), True),
        (Unknown(), True),
        (NotSent(), True),
        (NotSent(charged=False), False),
    ],
    ids=repr,
)
def test_the_breaker_counts_what_is_no_answer_about_a_message(verdict: Verdict, charged: bool) -> None:
    assert charged == charges_destination(verdict)


def test_a_contradictory_row_cannot_be_made() -> None:
    words = "^a message is dead exactly when it has a reason$"
    with pytest.raises(AssertionError, match=words):
        Settlement(State.DEAD, Outcome.REJECT, 0, 0, None)
    with pytest.raises(AssertionError, match=words):
        Settlement(State.PENDING, Outcome.REJECT, 0, 0, None, Reason.REJECTED)


VERDICTS = st.one_of(
    st.just(Delivered()),
    st.builds(Retry, wait=st.none() | st.floats(0, 1e6), credentials=st.booleans()),
    st.builds(Reject, reason=st.sampled_from([Reason.REJECTED, Reason.TOO_LARGE])),
    st.builds(Unknown, gone=st.booleans()),
    st.builds(NotSent, charged=st.booleans()),
    st.builds(NotSent, charged=st.just(False), accused=st.sampled_from([1, 2]), reason=st.just(Reason.FILE_CHANGED)),
)


@given(
    walk=st.lists(st.tuples(VERDICTS, st.integers(1, 100), st.booleans(), st.booleans(), st.floats(0, 1)), max_size=40),
    policy=st.builds(
        Policy,
        max_failures=st.integers(1, 6),
        max_unknown=st.integers(1, 4),
        on_unknown=st.sampled_from(["resend", "dead"]),
    ),
)
def test_on_any_way_counters_never_fall_and_the_end_is_the_end(
    walk: list[tuple[Verdict, int, bool, bool, float]], policy: Policy
) -> None:
    here = message(1, attempt=0)
    for verdict, fellows, recovered, spared, dice in walk:
        size = min(fellows, here.batch_limit or fellows)
        here = here._replace(attempt=here.attempt + 1)

        after = settle(here, verdict, size, policy, NOW, dice, recovered=recovered, spared=spared)

        assert after.failures in (here.failures, here.failures + 1)
        assert after.unknowns in (here.unknowns, here.unknowns + 1)
        assert after.failures + after.unknowns <= here.attempt
        assert (after.state is State.DEAD) == (after.reason is not None)
        assert after.state in (State.PENDING, State.DELIVERED, State.DEAD)
        assert (after.state is State.DELIVERED) == isinstance(verdict, Delivered)
        assert after.due_at is None or (after.state is State.PENDING and after.due_at >= NOW)
        if after.batch_limit != here.batch_limit:
            assert after.batch_limit == (size + 1) // 2 <= (here.batch_limit or size)
        assert size == 1 or (here.failures, here.unknowns) == (after.failures, after.unknowns) or after.state is State.DEAD
        if after.state is State.PENDING:
            assert after.failures < policy.max_failures
            assert after.unknowns <= policy.max_unknown
        else:
            return
        here = here._replace(
            failures=after.failures,
            unknowns=after.unknowns,
            batch_limit=after.batch_limit,
            suspect=after.suspect,
        )


@given(st.integers(1, 10_000))
def test_a_batch_refused_again_and_again_comes_down_to_one_message(given_size: int) -> None:
    size, rounds = given_size, 0
    while size > 1:
        after = settled(Reject(), size)
        assert after.batch_limit is not None
        assert size / 2 <= after.batch_limit < size
        size = after.batch_limit
        rounds += 1

    assert settled(Reject(), size).state is State.DEAD
    assert math.ceil(math.log2(given_size)) == rounds


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("größer 温度 🙂", "größer 温度 🙂"),
        ("a\x00b", "a b"),
        ("two\r\nlines", "two  lines"),
        ("\x1b[31mred\x9b", " [31mred "),
        ("half \ud83d", "half ?"),
        ("rtl \u202e, line \u2028", "rtl  , line  "),
    ],
)
def test_words_of_the_other_side_are_cleaned(given_text: str, expected: str) -> None:
    assert expected == cleaned(given_text)


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [(5, 5, "xxxxx"), (6, 5, "xxxx…"), (10**7, 5, "xxxx…"), (3, 5, "xxx")],
)
def test_long_words_are_shortened_and_say_so(length: int, limit: int, expected: str) -> None:
    assert expected == cleaned("x" * length, limit)


@given(st.text(st.characters(exclude_categories=()), max_size=3000))
def test_cleaned_words_fit_any_row_log_and_terminal(text: str) -> None:
    shown = cleaned(text)

    assert len(shown) <= TEXT_LIMIT
    assert shown.isprintable()
    assert shown == shown.encode().decode()
    assert shown == cleaned(shown)


def test_facts_that_fit_are_kept_as_they_are() -> None:
    facts = Facts(500, 1002, "text", "request", "answer")

    assert facts == fit_for_a_row(facts)
    assert Facts() == fit_for_a_row(Facts())


@pytest.mark.parametrize(
    ("given_code", "kept"),
    [(2**63 - 1, 2**63 - 1), (2**63, None), (1 - 2**63, 1 - 2**63), (-(2**63), None), (0, 0)],
)
def test_a_code_is_kept_as_far_as_a_column_of_eight_bytes_goes(given_code: int, kept: int | None) -> None:
    assert kept == fit_for_a_row(Facts(code=given_code)).code


@pytest.mark.parametrize(("name", "limit"), [("text", TEXT_LIMIT), ("request_id", 255), ("answer", ANSWER_KEPT)])
def test_facts_are_kept_as_far_as_their_columns_go(name: str, limit: int) -> None:
    kept = fit_for_a_row(Facts(**{name: "x" * limit}))
    shortened = fit_for_a_row(Facts(**{name: "x" * limit + "y"}))
    on_one_line = fit_for_a_row(Facts(**{name: "two\nlines"}))

    assert Facts(**{name: "x" * limit}) == kept
    assert Facts(**{name: "x" * (limit - 1) + "…"}) == shortened
    assert Facts(**{name: "two lines"}) == on_one_line
