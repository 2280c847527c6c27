"""What is said of facts that a story cannot vary as freely: words, order, and where two rules meet."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from outbox.explaining import Cause, Code, Found, in_order, of_destination, of_message
from outbox.explaining.causes import Weight, found
from outbox.explaining.facts import (
    SILENT_AFTER,
    Answered,
    DestinationFacts,
    MessageFacts,
    Neighbour,
    StreamFacts,
    Upload,
    WorkerSeen,
)
from outbox.explaining.words import COUNTED, brief, counted, nth
from outbox.limits import Bucket, Learned, Traffic
from outbox.model import Lane, Outcome, Reason, State
from outbox.patience import Breaker, Stop
from outbox.policy import GONE_AFTER, Policy
from outbox.timekeeping import When
from tests.pure.making import NOW, seconds

WORKER = WorkerSeen("w1", "gateway", 7, NOW - seconds(60), NOW, gone=False, stop_asked=False, serves=None)


def place(**changes: Any) -> DestinationFacts:
    """A destination in whose way nothing stands."""
    well = DestinationFacts(
        name="enos",
        declared=True,
        policy=Policy(),
        when=When.certain(NOW),
        breaker=Breaker(),
        bucket=Bucket(),
        learned=Learned(),
        stop_text=None,
        stopped_by=None,
        stopped_at=None,
        last_failure=None,
        traffic=Traffic(0, 0),
        probe=None,
        workers=(WORKER,),
        suspect_under_way=False,
        due=True,
        smaller_due=True,
        next_due=None,
        blocked_keys=0,
    )
    return replace(well, **changes)


def a_message(**changes: Any) -> MessageFacts:
    """A pending message that goes with the next turn."""
    waiting = MessageFacts(
        id=12,
        key="k",
        destination="enos",
        lane=Lane.NORMAL,
        state=State.PENDING,
        reason=None,
        reason_text=None,
        attempt=0,
        failures=0,
        unknowns=0,
        batch_limit=None,
        suspect=False,
        size=100,
        file_bytes=0,
        files=0,
        due_at=NOW,
        scheduled=False,
        expires_at=None,
        clock_plausible=True,
        finished_at=None,
        claimed_by=None,
        last=None,
        last_with_others=None,
        upload=None,
        stream=None,
        attached=(),
        before=0,
        before_it="message",
    )
    return replace(waiting, **changes)


def codes(causes: list[Found]) -> list[Code]:
    return [each.code for each in in_order(causes)]


def the(code: Code, causes: list[Found]) -> Cause:
    (one,) = [each.cause for each in causes if each.cause.code is code]
    return one


def test_a_message_and_a_destination_in_good_order_are_ready() -> None:
    assert [Code.READY] == codes(of_message(a_message(), place()))
    assert [Code.READY] == codes(of_destination(place()))


@pytest.mark.parametrize("state", list(State))
def test_there_is_always_something_to_say(state: State) -> None:
    ended = {"finished_at": NOW, "reason": Reason.REJECTED if state is State.DEAD else None}

    assert of_message(a_message(state=state, **(ended if state not in (State.PENDING, State.CLAIMED) else {})), place())


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_of_death_has_a_remedy_that_names_the_message(reason: Reason) -> None:
    cause = the(Code.DEAD, of_message(a_message(state=State.DEAD, reason=reason, finished_at=NOW), place()))

    assert f"({reason})" in cause.sentence
    assert "outbox replay 12" in cause.next
    assert "outbox cancel 12" in cause.next


@pytest.mark.parametrize("stop", list(Stop))
def test_every_stop_holds_a_message_up(stop: Stop) -> None:
    stopped = place(breaker=Breaker(stop=stop, open_until=NOW + seconds(10)), stopped_at=NOW)

    assert [Code(stop) if stop is not Stop.PAUSE else Code.PAUSED] == codes(of_message(a_message(), stopped))


def test_what_needs_somebody_comes_first_and_then_what_takes_longest() -> None:
    def cause(weight: Weight, code: Code, at: datetime | None = None) -> Found:
        return found(weight, code, "", "", at)

    causes = [
        cause(Weight.NOTE, Code.EXPIRES, NOW),
        cause(Weight.WAIT, Code.RATE, NOW + seconds(1)),
        cause(Weight.WAIT, Code.NOT_DUE, NOW + seconds(9)),
        cause(Weight.WAIT, Code.ORDER_BEHIND),
        cause(Weight.ACT, Code.NO_WORKER),
        cause(Weight.ACT, Code.PAUSED, NOW),
        cause(Weight.FIRST, Code.CLOCK),
    ]

    expected = [Code.CLOCK, Code.PAUSED, Code.NO_WORKER, Code.NOT_DUE, Code.RATE, Code.ORDER_BEHIND, Code.EXPIRES]
    assert expected == codes(causes)
    assert expected == codes([*causes, *causes])


def test_an_open_until_that_a_wrong_clock_wrote_lets_a_probe_through() -> None:
    absurd = place(breaker=Breaker(failures=5, open_until=NOW + timedelta(days=365)))

    cause = the(Code.BREAKER, of_message(a_message(), absurd))

    assert ("one message is tried with the next turn; if it is delivered, the others go", None) == (cause.next, cause.at)


def test_a_back_off_that_a_wrong_clock_wrote_is_over() -> None:
    when = When.certain(NOW)._replace(beyond=NOW + seconds(3660))
    far = a_message(due_at=NOW + timedelta(days=365), failures=1)

    assert [Code.READY] == codes(of_message(far, place(when=when)))
    assert [Code.BACKOFF] == codes(of_message(far, place()))
    assert [Code.NOT_DUE] == codes(of_message(replace(far, scheduled=True), place(when=when)))


def test_an_end_that_a_person_chose_does_not_count_by_a_clock_that_was_not_set() -> None:
    unset = When.certain(datetime(1970, 1, 1, tzinfo=UTC))

    cause = the(Code.EXPIRES, of_message(a_message(expires_at=NOW), place(when=unset)))

    expected = "message 12 expires at 2026-03-01 12:00:00Z, but no such time counts while this machine's clock has not been set"
    assert expected == cause.sentence
    assert "it is tried until the clock has been set and says that it is over" == cause.next


def test_the_time_until_an_instant_that_a_person_chose_counts_by_the_clock_that_it_comes_by() -> None:
    jumped = When(now=NOW + seconds(86_400), chosen=NOW, invented=NOW + seconds(86_400))
    message = a_message(due_at=NOW + seconds(60), scheduled=True, expires_at=NOW + seconds(90))

    causes = of_message(message, place(when=jumped))

    assert "is not due before 2026-03-01 12:01:00Z, in 1 min: its producer chose that" in the(Code.NOT_DUE, causes).sentence
    assert the(Code.EXPIRES, causes).sentence.endswith("expires at 2026-03-01 12:01:30Z, in 1 min 30 s")


def test_a_message_that_is_put_off_without_having_failed_is_not_due_yet() -> None:
    later = NOW + seconds(90)

    cause = the(Code.NOT_DUE, of_message(a_message(due_at=later), place()))

    expected = "message 12 is not due before 2026-03-01 12:01:30Z, in 1 min 30 s"
    assert Cause(Code.NOT_DUE, expected, "it is due then, and goes with the next turn", later) == cause


def test_a_rate_that_is_not_used_up_is_no_cause() -> None:
    saved = place(policy=Policy(rate=0.5), bucket=Bucket(1.0, NOW))
    spent = place(policy=Policy(rate=0.5), bucket=Bucket(0.0, NOW))

    assert ([Code.READY], [Code.RATE]) == (codes(of_message(a_message(), saved)), codes(of_message(a_message(), spent)))


def test_a_message_of_the_large_lane_is_not_the_one_that_probes_while_something_smaller_is_due() -> None:
    trouble = place(breaker=Breaker(failures=5, open_until=NOW - seconds(1)))

    large = the(Code.BREAKER, of_message(a_message(lane=Lane.LARGE), trouble))
    alone = the(Code.BREAKER, of_message(a_message(lane=Lane.LARGE), replace(trouble, smaller_due=False)))

    assert "one message is tried with the next turn, a smaller one before those of the large lane; " in large.next
    assert "smaller" not in alone.next


def test_nothing_is_probed_for_a_destination_without_anything_due() -> None:
    trouble = place(breaker=Breaker(failures=5, open_until=NOW + seconds(9)), due=False)

    cause = the(Code.BREAKER, of_destination(trouble))

    assert "one message is tried then, if one is due; if it is delivered, the others go" == cause.next
    assert [Code.BREAKER, Code.IDLE] == codes(of_destination(trouble))


UPLOAD = Upload(3, "w1", WORKER, NOW - seconds(500), 1, 0, Lane.NORMAL)


def test_an_upload_whose_time_is_over_waits_for_its_worker() -> None:
    claimed = a_message(state=State.CLAIMED, claimed_by="w1", upload=UPLOAD)
    probing = place(breaker=Breaker(failures=5, open_until=NOW + seconds(5)), probe=replace(UPLOAD, id=4))

    cause, probe = the(Code.CLAIMED, of_message(claimed, place())), the(Code.PROBE, of_message(a_message(), probing))

    assert cause.next.startswith("its time is over, unless a token had to be asked for meanwhile; ")
    assert ("nothing else goes before its worker has recorded what became of it", None) == (probe.next, probe.at)
    assert cause.at is None


def test_a_probe_whose_worker_is_gone_does_not_hold_the_next_for_long() -> None:
    orphan = replace(UPLOAD, id=4, worker=None)
    probing = place(breaker=Breaker(failures=5, open_until=NOW + seconds(5)), probe=orphan)

    cause = the(Code.PROBE, of_message(a_message(), probing))

    assert "its worker is gone: when another has taken it back, the next probe may begin" == cause.next


def test_a_delivery_without_a_row_is_no_crash() -> None:
    lost = a_message(state=State.CLAIMED, claimed_by="w1", upload=None)

    assert the(Code.ABANDONED, of_message(lost, place())).sentence == (
        "message 12 is claimed by worker w1, in a delivery that has no row"
    )


@pytest.mark.parametrize(("age", "silent"), [(SILENT_AFTER, False), (SILENT_AFTER + 1, True), (-3600, False)])
def test_a_worker_is_silent_when_its_beat_is_older_than_clocks_may_differ(age: float, silent: bool) -> None:
    assert silent == replace(WORKER, beat_at=NOW - seconds(age)).is_silent(NOW)


def test_a_silent_worker_beside_a_live_one_is_not_worth_a_word() -> None:
    dead = replace(WORKER, id="w0", beat_at=NOW - seconds(600))

    assert [Code.READY] == codes(of_message(a_message(), place(workers=(dead, WORKER))))


@pytest.mark.parametrize("workers", [(), (replace(WORKER, serves="other"),), (replace(WORKER, beat_at=NOW - seconds(600)),)])
def test_while_nobody_can_write_no_worker_is_said_to_be_missing(workers: tuple[WorkerSeen, ...]) -> None:
    held = place(workers=workers, locked=True)

    assert [Code.LOCKED] == codes(of_message(a_message(), held)) == codes(of_destination(held))
    assert Code.LOCKED not in codes(of_message(a_message(), replace(held, locked=False)))


def test_a_worker_of_an_older_version_is_as_patient_as_usual() -> None:
    assert [GONE_AFTER, 40.0] == [replace(WORKER, gone_after=each).patience for each in (None, 40.0)]


def test_a_worker_that_was_asked_to_stop_is_not_counted_on_to_take_a_claim_back() -> None:
    silent = replace(WORKER, id="w0", beat_at=NOW - seconds(600))
    claimed = a_message(state=State.CLAIMED, claimed_by="w0", upload=replace(UPLOAD, worker_id="w0", worker=silent))

    stopping = the(Code.ABANDONED, of_message(claimed, place(workers=(silent, replace(WORKER, stop_asked=True)))))
    serving = the(Code.ABANDONED, of_message(claimed, place(workers=(silent, WORKER))))

    assert ("there is no worker of enos to take it back; start one: outbox worker", None) == (stopping.next, stopping.at)
    assert NOW == serving.at


@pytest.mark.parametrize(
    ("serves", "may"), [(None, True), ("enos", True), ("a enos b", True), ("enos-b", False), ("enos2 xenos", False)]
)
def test_a_worker_serves_what_it_names_in_full(serves: str | None, may: bool) -> None:
    assert may == replace(WORKER, serves=serves).may_serve("enos")


def neighbour(number: int, **changes: Any) -> Neighbour:
    return replace(Neighbour(number, "first", NOW, scheduled=False, reason=None, reason_text=None), **changes)


def test_a_stream_that_was_left_marked_as_under_way_is_freed_by_a_worker() -> None:
    stream = StreamFacts("pump", "w9", None, neighbour(12), None, before=0, behind=0)

    cause = the(Code.ORDER_UNDER_WAY, of_message(a_message(stream=stream), place()))

    assert "which worker w9 has left marked as under way" in cause.sentence
    assert "a worker frees it at its next look" == cause.next


def test_the_ordering_key_in_a_command_is_quoted_for_a_shell() -> None:
    dead = neighbour(5, reason="rejected", reason_text="no $money")
    stream = StreamFacts("it's; rm", None, dead, neighbour(12), None, before=0, behind=0)

    cause = the(Code.ORDER_DEAD, of_message(a_message(stream=stream), place()))

    assert cause.next.endswith("""or outbox resume enos --key 'it'"'"'s; rm'""")


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (None, "a request that carried it with others went wrong"),
        (
            Answered(Outcome.REJECT, 200, 1204, "bad", 4),
            "the request that carried it with 3 others was refused (HTTP 200, code",
        ),
        (Answered(Outcome.UNKNOWN, None, None, None, 2), "with 1 other had no answer (unknown, without a word)"),
        (Answered(Outcome.RETRY, 500, None, "x", 2), "with 1 other failed (HTTP 500: x)"),
        (Answered(Outcome.NOT_SENT, None, None, "refused", None), "the request that carried it failed (refused)"),
    ],
)
def test_why_it_travels_alone(last: Answered | None, words: str) -> None:
    cause = the(Code.ALONE, of_message(a_message(batch_limit=1, last_with_others=last), place()))

    assert words in cause.sentence


def test_what_is_too_large_stays_while_the_destination_refuses_everything() -> None:
    taught = place(learned=Learned(50, NOW))
    streak = replace(taught, breaker=Breaker(stop=Stop.REJECT_STREAK, reject_streak=20, open_until=NOW + seconds(9)))

    dies, stays = (the(Code.TOO_LARGE, of_message(a_message(), each)) for each in (taught, streak))

    assert "it goes alone; if that is refused too, it is dead (too_large)" == dies.next
    assert stays.next.endswith("it stays: none dies of that while enos refuses one message after the other")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111])
def test_ordinal_numbers(number: int) -> None:
    ends = {1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 22: "22nd"}

    assert nth(number) == (ends | {101: "101st", 111: "111th"})[number]


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 messages"), (1, "1 message"), (COUNTED, "10,000 messages"), (COUNTED + 1, "more than 10,000 messages")],
)
def test_counts_end_at_a_bound(number: int, words: str) -> None:
    assert words == counted(number, "message")
    assert counted(2, "delivery") == "2 deliveries"


def test_long_words_are_cut_and_lines_joined() -> None:
    assert brief("a\nb  c") == "a b c"
    assert (300, True) == (len(brief("x" * 999)), brief("x" * 999).endswith("…"))
    assert brief(None) == ""
