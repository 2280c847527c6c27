"""Why it is not moving: every cause is made real, and told in a sentence with what happens next and when."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Lane, NoSuchMessage, Outbox, Policy, Retention, State, Token, migrate
from outbox.errors import DatabaseDamaged, OutOfRoom, SchemaError
from outbox.explaining import Cause, Code
from outbox.explaining.words import COUNTED
from outbox.model import Reason, Selection
from outbox.policy import GONE_AFTER, SILENT_AFTER
from outbox.presence import Presence
from outbox.store import living
from outbox.tables import attachment, delivery, file, message, metadata, worker
from outbox.testing import Answer, HangUp, Hold, Receiver, Status
from tests import warm
from tests.factories import an_outbox, column, enos, event, message_values, reasons, states
from tests.story.conftest import ROOT, Hand, Place, eventually

pytestmark = pytest.mark.long
HERE = f"on {socket.gethostname()} (pid {os.getpid()})"


def fails_for(key: str) -> Callable[[dict[str, Any]], bool]:
    return lambda struct: struct["assetId"] == key


def the(code: Code, causes: list[Cause]) -> Cause:
    """The one cause with that code."""
    (found,) = [each for each in causes if each.code == code]
    return found


def codes(causes: list[Cause]) -> list[Code]:
    return [each.code for each in causes]


def at(place: Place, **more: float) -> datetime:
    """So long from now, by the place's clock."""
    return place.clock.wall + timedelta(**more)


def told(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}Z"


def many(place: Place, outbox: Outbox, number: int, **options: Any) -> list[int]:
    return [place.enqueue(outbox, f"m{each}", **options) for each in range(number)]


def change(place: Place, table: sa.Table, *conditions: sa.ColumnElement[bool], **values: Any) -> None:
    """What no verb of ours does: another hand, or another time."""
    with place.database.begin() as connection:
        connection.execute(sa.update(table).where(*conditions).values(values))


def spooled_file(place: Place) -> Path:
    """The one file at rest in the spool."""
    (found,) = [each for each in place.spooled() if not each.startswith(".")]
    return place.spool / found


@contextmanager
def sending(place: Place, hand: Hand, *lanes: str) -> Iterator[None]:
    """While this is entered, a turn's upload is under way: the receiver holds its answer."""
    place.receiver.misbehave(Hold())
    with taking_its_turn(place, hand, *lanes):
        yield


@contextmanager
def taking_its_turn(place: Place, hand: Hand, *lanes: str) -> Iterator[None]:
    """While this is entered, a turn goes on that the receiver was told to hold."""
    held = place.receiver.held
    thread = threading.Thread(target=hand.turn, args=lanes)
    thread.start()
    try:
        place.receiver.wait_for(lambda receiver: receiver.held > held)
        yield
    finally:
        place.receiver.release()
        thread.join(20)
    assert not thread.is_alive()


# Nothing is in its way


def test_nothing_stands_in_the_way_of_what_goes_with_the_next_turn(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a")

    causes, of_all = outbox.explain(number), outbox.explain("enos")

    message_goes = f"nothing stands in the way of message {number}: it goes with the next turn"
    assert [Cause(Code.READY, message_goes, "a worker of enos takes it at its next look")] == causes
    all_goes = "nothing stands in the way of enos: what is due goes with the next turn"
    assert [Cause(Code.READY, all_goes, "a worker takes it at its next look")] == of_all
    assert hand.turn()
    place.check()


def test_a_destination_for_which_nothing_is_due_says_when_something_will_be(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)

    empty = outbox.explain("enos")
    later = at(place, hours=2)
    place.enqueue(outbox, "a", due_at=later)

    assert [Cause(Code.IDLE, "nothing is due for enos", "what is enqueued goes at once")] == empty
    assert [Cause(Code.IDLE, "nothing is due for enos", "the next message is due then", later)] == outbox.explain("enos")
    assert not hand.turn()
    place.clock.move(hours=2)
    assert hand.turn()


@pytest.mark.parametrize("ordered", [True, False])
def test_what_waits_in_streams_and_shares_is_due_for_the_destination_too(place: Place, ordered: bool) -> None:
    outbox = place.outbox(clock=place.clock)
    place.hand(outbox)
    later = at(place, minutes=5)
    place.enqueue(outbox, "a", ordering_key="pump", ordered=ordered, due_at=later)

    (cause,) = outbox.explain("enos")

    assert (Code.IDLE, later) == (cause.code, cause.at)


@pytest.mark.parametrize(
    ("hold", "code"),
    [
        (lambda hand: hand.outbox.pause("enos", "maintenance", "ann"), Code.PAUSED),
        (lambda hand: hand.presence.leave(), Code.NO_WORKER),
    ],
)
def test_what_is_enqueued_does_not_go_at_once_where_something_holds_it_up(
    place: Place, hold: Callable[[Hand], object], code: Code
) -> None:
    outbox = place.outbox(clock=place.clock)
    hold(place.hand(outbox))

    causes = outbox.explain("enos")
    place.enqueue(outbox, "a", due_at=at(place, hours=1))
    later = outbox.explain("enos")

    idle = Cause(Code.IDLE, "nothing is due for enos", "what is enqueued waits for what holds enos up")
    assert (code, [idle]) == (causes[0].code, causes[1:])
    idle = Cause(Code.IDLE, "nothing is due for enos", "the next message is due then", at(place, hours=1))
    assert (code, [idle]) == (later[0].code, later[1:])


# Final


def over(place: Place, retention: Retention) -> tuple[Outbox, int, int]:
    """A message that was delivered, and one that was cancelled."""
    outbox = place.outbox(clock=place.clock, retention=retention)
    hand = place.hand(outbox)
    gone = place.enqueue(outbox, "a")
    hand.turn()
    kept = place.enqueue(outbox, "b")
    outbox.cancel(Selection(ids=(kept,)), by="ann")
    return outbox, gone, kept


def test_a_delivered_and_a_cancelled_message_say_when_and_for_how_long_they_are_kept(place: Place) -> None:
    outbox, gone, kept = over(place, Retention(delivered=timedelta(days=3), cancelled=timedelta(days=5)))
    when, soon, later = told(place.clock.wall), at(place, days=3), at(place, days=5)

    delivered, cancelled = outbox.explain("a"), outbox.explain("b")

    next_ = "nothing more: it is kept until then and purged soon after, or before if room runs short"
    assert [Cause(Code.DELIVERED, f"message {gone} was delivered at {when}", next_, soon)] == delivered
    next_ = f"nothing more: it is kept until then and purged soon after; to send it after all: outbox replay {kept}"
    assert [Cause(Code.CANCELLED, f"message {kept} was cancelled by a person at {when}", next_, later)] == cancelled
    for instant, key in ((soon, "a"), (later, "b")):
        place.clock.move((instant - place.clock.wall).total_seconds() - 1)
        outbox.care.tidy()
        assert key in states(place.database)
        place.clock.move(2)
        outbox.care.tidy()
        assert key not in states(place.database)


def test_a_message_that_is_kept_for_ever_says_so(place: Place) -> None:
    outbox, _, kept = over(place, Retention(delivered=None, cancelled=None))

    (delivered,), (cancelled,) = outbox.explain("a"), outbox.explain("b")

    assert ("nothing more: it is kept for ever", None) == (delivered.next, delivered.at)
    assert (f"nothing more: it is kept for ever; to send it after all: outbox replay {kept}", None) == (
        cancelled.next,
        cancelled.at,
    )


def die(place: Place, reason: Reason) -> tuple[Outbox, int]:
    """A message that is dead for this reason."""
    policy = Policy(max_failures=1, batch_messages=1, on_unknown="dead" if reason is Reason.OUTCOME_UNKNOWN else "resend")
    outbox = place.outbox(policy, clock=place.clock)
    hand = place.hand(outbox)
    options = {"expires_at": at(place, seconds=1)} if reason is Reason.EXPIRED else {}
    number = place.enqueue(outbox, "a", {"photo": b"bytes"}, **options)
    match reason:
        case Reason.REJECTED:
            place.receiver.refuse(fails_for("a"))
        case Reason.EXHAUSTED:
            place.receiver.break_on(fails_for("a"), Status(500, "no room"))
            hand.turn()
            place.enqueue(outbox, "other", lane=Lane.EXPRESS)
            hand.turn("express")
        case Reason.EXPIRED:
            place.clock.move(1)
            hand.dispatcher.expire()
        case Reason.FILE_MISSING:
            spooled_file(place).unlink()
        case Reason.FILE_CHANGED:
            spooled_file(place).write_bytes(b"shorter"[:3])
        case Reason.TOO_LARGE:
            place.receiver.misbehave(Status(413, "too much"))
        case Reason.OUTCOME_UNKNOWN:
            place.receiver.misbehave(HangUp("after_body"))
    hand.turn("normal")
    assert reason == reasons(place.database).get("a")
    return outbox, number


@pytest.mark.parametrize(
    ("reason", "words", "remedy"),
    [
        (
            Reason.REJECTED,
            "Model validate failed",
            "mend what the answer names, at the destination or in its settings, then: {}",
        ),
        (Reason.EXHAUSTED, "no room", "find out why it fails where others do not (outbox show 1), then: {}"),
        (Reason.EXPIRED, "its expires_at passed before it could be delivered", "if it is of use after its time: {}"),
        (Reason.FILE_MISSING, "is missing", "put its file back into the spool, then: {}"),
        (Reason.FILE_CHANGED, "it has 3 bytes instead of 5", "put the bytes that were enqueued back into the spool, then: {}"),
        (Reason.TOO_LARGE, "too much", "have the destination take larger requests, then: {}"),
        (Reason.OUTCOME_UNKNOWN, "", "look whether the destination has it; if it has: outbox cancel 1; if not: {}"),
    ],
)
def test_a_dead_message_says_why_and_what_a_person_can_do(place: Place, reason: Reason, words: str, remedy: str) -> None:
    outbox, number = die(place, reason)

    (cause,) = outbox.explain(number)

    assert Code.DEAD == cause.code
    assert cause.sentence.startswith(f"message {number} is dead since {told(place.clock.wall)} ({reason}): ")
    assert words in cause.sentence
    assert f"nothing by itself; {remedy.format(f'outbox replay {number}')}" in cause.next
    assert cause.at is None


def test_a_dead_message_whose_file_was_freed_cannot_be_replayed_and_says_so(place: Place) -> None:
    outbox, number = die(place, Reason.REJECTED)
    spooled_file(place).unlink()
    change(place, file, freed_at=place.clock.wall)

    (cause,) = outbox.explain(number)

    why = "it cannot be replayed, since its file 'photo' was freed; enqueue it again under another key"
    assert cause.next == f"nothing by itself, and {why}"
    assert 0 == outbox.replay(Selection(ids=(number,)), by="ann")


# Its time


def test_a_message_is_not_due_before_its_producer_said(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    later = at(place, days=7)
    number = place.enqueue(outbox, "a", due_at=later)

    sentence = f"message {number} is not due before {told(later)}, in 7 d: its producer chose that"
    assert [Cause(Code.NOT_DUE, sentence, "it is due then, and goes with the next turn", later)] == outbox.explain("a")
    assert not hand.turn()
    place.clock.move(days=7)
    hand.presence.beat()
    assert hand.turn()


def back_off(place: Place, behaviour: Any, times: int, **policy: Any) -> tuple[Outbox, Hand, int]:
    """A message that has failed alone, so many times, while the destination delivered others."""
    outbox = place.outbox(Policy(batch_messages=1, breaker_after=100, **policy), clock=place.clock)
    hand = place.hand(outbox)
    place.receiver.break_on(fails_for("a"), behaviour)
    number = place.enqueue(outbox, "a")
    hand.turn("normal")
    for each in range(times):
        place.clock.move(60 if each else 0)
        place.enqueue(outbox, f"other{each}", lane=Lane.EXPRESS)
        hand.turn("express")
        hand.turn("normal")
    return outbox, hand, number


@pytest.mark.parametrize(("times", "nth", "wait"), [(1, "1st", 1), (3, "3rd", 4)])
def test_a_back_off_says_after_how_many_failures_the_last_answer_and_when_it_ends(
    place: Place, times: int, nth: str, wait: int
) -> None:
    outbox, hand, number = back_off(place, Status(503, "busy"), times)
    until = at(place, seconds=wait)

    cause = the(Code.BACKOFF, outbox.explain("a"))

    last = "HTTP 503: no answer in the EnOS envelope: busy"
    sentence = (
        f"message {number} is not tried again before {told(until)}, in {wait} s: it has failed for the {nth} time ({last})"
    )
    assert Cause(Code.BACKOFF, sentence, "it is tried again then", until) == cause
    assert not hand.turn("normal")
    place.receiver.never()
    place.clock.wall = until
    assert hand.turn("normal")
    place.check()


def test_a_back_off_after_tries_without_an_answer_says_that(place: Place) -> None:
    outbox, _, number = back_off(place, HangUp("after_body"), 2, backoff_schedule=(30, 90))
    until = at(place, seconds=90)

    cause = the(Code.BACKOFF, outbox.explain(number))

    beginning = f"message {number} is not tried again before {told(until)}, in 1 min 30 s: 2 tries had no answer ("
    assert (True, until) == (cause.sentence.startswith(beginning), cause.at), cause


def test_an_expiring_message_says_when_and_then_that_its_time_is_over(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    until = at(place, seconds=30)
    number = place.enqueue(outbox, "a", expires_at=until)

    before = outbox.explain(number)
    place.clock.move(31)
    after = outbox.explain(number)

    sentence = f"message {number} expires at {told(until)}, in 30 s"
    expires = Cause(Code.EXPIRES, sentence, "if it has not been delivered then, it is dead (expired)", until)
    assert [expires] == [each for each in before if each.code is not Code.READY]
    over = f"the time of message {number} is over: its expires_at was {told(until)}"
    assert [Cause(Code.EXPIRED, over, "a worker gives it up in a moment: dead (expired)")] == after
    hand.dispatcher.expire()
    assert {"a": Reason.EXPIRED} == reasons(place.database)


def test_a_clock_that_cannot_be_right_comes_first(place: Place) -> None:
    place.clock.wall = datetime(1970, 1, 1, 0, 5, tzinfo=UTC)
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a", expires_at=datetime(1970, 1, 1, 1, tzinfo=UTC))

    causes = outbox.explain(number)

    assert [Code.CLOCK, Code.EXPIRES, Code.READY] == codes(causes)
    assert causes[0].sentence == "the clock of this machine says 1970-01-01 00:05:00Z, which cannot be"
    assert causes[0].next == (
        "until it is set, no message expires and none is due whose producer chose a later time; the others go"
    )
    place.clock.wall = datetime(2026, 3, 1, tzinfo=UTC)
    hand.presence.beat()
    later = the(Code.EXPIRES, outbox.explain(number))
    assert later.sentence == (
        f"message {number} does not expire at 1970-01-01 01:00:00Z as it says: it was enqueued by a clock that had not been set"
    )


# Claimed


def test_a_message_on_its_way_says_by_whom_since_when_with_how_many_and_until_when(place: Place) -> None:
    outbox = place.outbox(Policy(send_base=60, slowest_rate=1024), clock=place.clock)
    hand = place.hand(outbox)
    numbers = many(place, outbox, 3)
    began = place.clock.wall

    with sending(place, hand):
        place.clock.move(5)
        (cause,) = outbox.explain("m1")
        busy = outbox.explain("enos")

    with place.database.read() as connection:
        (number, size) = connection.execute(sa.select(delivery.c.id, delivery.c.bytes)).one()
    assert Code.CLAIMED == cause.code
    assert cause.sentence == (
        f"message {numbers[1]} is being sent by worker {hand.presence.id} {HERE} since {told(began)}, "
        f"in delivery {number}, with 2 others"
    )
    assert cause.next == (
        "its answer settles it; without one the upload is given up then, or later if a token had to be asked for meanwhile; "
        "should its worker die, another must be started, which takes it back after 15 s"
    )
    assert began + timedelta(seconds=60 + size / 1024) == cause.at
    assert busy[0].sentence == "nothing is due for enos; 1 upload is under way"
    assert {State.DELIVERED} == set(states(place.database).values())


def test_an_upload_that_waits_for_its_token_may_outlive_its_time(place: Place) -> None:
    token = Token(place.receiver.token_url, "app-key", "app-secret", allow_plain_http=True)
    outbox = place.outbox(Policy(send_base=60), clock=place.clock, token=token)
    hand = place.hand(outbox)
    place.enqueue(outbox, "a")
    place.receiver.misbehave_for_tokens(Hold())

    with taking_its_turn(place, hand):
        before = the(Code.CLAIMED, outbox.explain("a"))
        assert before.at is not None
        place.clock.move((before.at - place.clock.wall).total_seconds())
        after = the(Code.CLAIMED, outbox.explain("a"))
        begun = place.receiver.begun

    assert "without one the upload is given up then, or later if a token had to be asked for meanwhile; " in before.next
    assert after.next.startswith(
        "its time is over, unless a token had to be asked for meanwhile; its worker records what became of it as soon as it can"
    )
    assert (0, None) == (begun, after.at)
    assert {"a": State.DELIVERED} == states(place.database)


def a_worker(outbox: Outbox, serves: str = "enos", gone_after: float = GONE_AFTER) -> Hand:
    """One that says what it serves, and how patient it is."""
    hand = Hand(outbox)
    hand.presence.leave()
    hand.presence = Presence(outbox.database, outbox.ambient, gone_after, [serves])
    hand.presence.arrive()
    return hand


def without_enos(place: Place) -> Outbox:
    """An outbox of another destination in the same database."""
    place._outboxes.append(
        an_outbox(place.url, place.spool, enos(place.receiver.url, name="other"), ambient=place.clock.ambient)
    )
    return place._outboxes[-1]


def test_a_claim_is_taken_back_by_the_least_patient_of_the_others_that_serve_its_destination(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = a_worker(outbox, gone_after=5)
    a_worker(outbox, gone_after=600)
    a_worker(outbox, gone_after=40)
    a_worker(without_enos(place), "other", gone_after=1)
    place.enqueue(outbox, "a")

    with sending(place, hand):
        cause = the(Code.CLAIMED, outbox.explain("a"))

    assert cause.next.endswith("; should its worker die, another takes it back within 40 s")


def claimed_by_another(place: Place, outbox: Outbox) -> Hand:
    """A worker that has claimed what is due, and never does anything again."""
    other = Hand(outbox)
    with outbox.database.begin() as connection:
        assert other.dispatcher._claims.claim(connection, "enos", [Lane.NORMAL]) is not None
    return other


@pytest.mark.parametrize(
    ("together", "on_unknown", "then"),
    [
        (1, "resend", "pending again, to travel alone"),
        (5, "resend", "pending again, to travel in at most 3"),
        (1, "dead", "dead (outcome_unknown), since nobody knows whether it arrived"),
    ],
)
def test_a_claim_of_a_worker_that_was_declared_gone_says_what_its_rescue_makes_of_it(
    place: Place, together: int, on_unknown: Any, then: str
) -> None:
    outbox = place.outbox(Policy(on_unknown=on_unknown), clock=place.clock)
    numbers = many(place, outbox, together)
    gone = claimed_by_another(place, outbox)
    hand = place.hand(outbox)
    with place.database.begin() as connection:
        living.leave(connection, gone.presence.id)

    cause = the(Code.ABANDONED, outbox.explain(numbers[0]))

    others = {1: ", alone", 5: ", with 4 others"}[together]
    assert cause.sentence.startswith(
        f"message {numbers[0]} is claimed by worker {gone.presence.id} {HERE}, which is gone, since "
    )
    assert cause.sentence.endswith(others)
    assert cause.next == f"a live worker takes it back by then at the latest, and then it is {then}"
    assert at(place, seconds=15) == cause.at
    assert 1 == hand.dispatcher.rescue()
    expected = State.DEAD if "dead" in then else State.PENDING
    assert {expected} == set(states(place.database).values())
    limit = {"to travel alone": None, "to travel in at most 3": 3}.get(then.rpartition(", ")[2])
    assert limit == column(place.database, "m0", "batch_limit")


def test_a_claim_of_a_worker_without_a_row_is_rescued_too(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    place.enqueue(outbox, "a")
    lost = claimed_by_another(place, outbox)
    with place.database.begin() as connection:
        connection.execute(sa.delete(worker))

    (alone,) = [each for each in outbox.explain("a") if each.code is Code.ABANDONED]
    place.hand(outbox)
    rescued = the(Code.ABANDONED, outbox.explain("a"))

    assert f"is claimed by worker {lost.presence.id}, which has no row, since " in alone.sentence
    assert (alone.next, alone.at) == ("there is no worker of enos to take it back; start one: outbox worker", None)
    assert at(place, seconds=15) == rescued.at


def test_a_claim_of_a_silent_worker_is_rescued_when_another_has_watched_it_for_long_enough(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    number = place.enqueue(outbox, "a")
    silent = claimed_by_another(place, outbox)
    place.clock.move(SILENT_AFTER + 5)
    hand = place.hand(outbox)

    cause = the(Code.ABANDONED, outbox.explain(number))

    words = f"is claimed by worker {silent.presence.id} {HERE}, which has not beaten for 1 min 20 s, since "
    assert words in cause.sentence
    assert at(place, seconds=15) == cause.at
    while not hand.presence.look():
        assert place.clock.wall <= cause.at
        place.clock.move(0.5)
        hand.presence.beat()
    assert 1 == hand.dispatcher.rescue()


def test_a_claim_of_a_silent_worker_waits_as_long_as_the_least_patient_of_the_others(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    number = place.enqueue(outbox, "a")
    claimed_by_another(place, outbox)
    place.clock.move(SILENT_AFTER + 5)
    hand = a_worker(outbox, gone_after=30)
    a_worker(outbox, gone_after=600)

    cause = the(Code.ABANDONED, outbox.explain(number))

    assert at(place, seconds=30) == cause.at
    while not hand.presence.look():
        assert place.clock.wall < cause.at
        place.clock.move(1)
        hand.presence.beat()
    assert place.clock.wall == cause.at
    assert 1 == hand.dispatcher.rescue()


def test_a_claim_is_not_taken_back_by_a_worker_that_does_not_know_the_destination(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    place.enqueue(outbox, "a")
    silent = claimed_by_another(place, outbox)
    place.clock.move(SILENT_AFTER + 5)
    stranger = a_worker(without_enos(place), "other")

    causes = outbox.explain("a")
    while not stranger.presence.look():
        place.clock.move(1)
        stranger.presence.beat()
    rescued, gone = stranger.dispatcher.rescue(), outbox.explain("a")

    next_ = "there is no worker of enos to take it back; start one: outbox worker"
    assert [(Code.ABANDONED, next_, None)] == [(each.code, each.next, each.at) for each in causes]
    assert f"worker {silent.presence.id} {HERE}, which has not beaten for " in causes[0].sentence
    assert (0, next_, None) == (rescued, gone[0].next, gone[0].at)
    assert 1 == a_worker(outbox).dispatcher.rescue()


@pytest.mark.slow
def test_a_worker_that_was_killed_leaves_a_suspect_and_no_two_suspects_travel_at_once(place: Place) -> None:
    outbox = place.outbox()
    number = place.enqueue(outbox, "a")
    place.receiver.always(Hold())
    process = place.run("work")
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 30)

    before = outbox.explain("a")
    process.kill()
    change(place, worker, beat_at=datetime.now(UTC) - timedelta(seconds=SILENT_AFTER + 1))
    killed = outbox.explain("a")
    change(place, worker, gone=True)
    place.receiver.never()
    hand = place.hand(outbox)
    hand.dispatcher.rescue()
    after = outbox.explain("a")
    change(place, message, message.c.key == "a", suspect=True)
    place.enqueue(outbox, "b")
    change(place, message, message.c.key == "b", suspect=True, batch_limit=1)
    with sending(place, hand):
        second = outbox.explain("b")

    assert f"(pid {process._popen.pid}) since" in the(Code.CLAIMED, before).sentence
    assert [Code.ABANDONED] == codes(killed)
    assert killed[0].next == "there is no worker of enos to take it back; start one: outbox worker"
    suspect = the(Code.SUSPECT, after)
    assert suspect.sentence == f"message {number} travels alone: a worker died while it was being sent alone"
    assert "past 5 tries without an answer it is dead (outcome_unknown)" in suspect.next
    waits = the(Code.SUSPECT, second)
    assert waits.sentence.endswith("and another message of which that is true is under way")
    assert waits.next == "it goes when that one has ended"


# Its order


def test_the_head_of_its_ordering_key_is_dead_and_says_what_to_do(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    place.receiver.refuse(fails_for("first"))
    first = place.enqueue(outbox, "first", ordering_key="pümp 7")
    second = place.enqueue(outbox, "second", ordering_key="pümp 7")
    third = place.enqueue(outbox, "third", ordering_key="pümp 7")
    hand.turn()

    head, after, destination = outbox.explain("first"), outbox.explain("third"), outbox.explain("enos")

    do = f"outbox replay {first}, or outbox cancel {first}, or outbox resume enos --key 'pümp 7'"
    sentence = (
        f"message {third} waits for its ordering key 'pümp 7', whose head, message {first} ('first'), is dead "
        "(rejected: Model validate failed); 1 message is before it"
    )
    assert Cause(Code.ORDER_DEAD, sentence, f"nothing by itself; let the others go on with: {do}") == after[0]
    assert Code.READY not in codes(after)
    assert [Code.DEAD, Code.HOLDS_UP] == codes(head)
    assert head[1].sentence == (
        f"message {first} holds up its ordering key: 2 messages of ordering key 'pümp 7' wait behind it"
    )
    assert the(Code.ORDER_DEAD, destination).sentence == "1 ordering key of enos waits for a dead message"
    assert outbox.resume("enos", "ann", ordering_key="pümp 7")
    assert [Code.READY] == codes(outbox.explain(second))


def test_where_the_dead_are_skipped_a_stream_goes_on_by_itself(place: Place) -> None:
    blocking = place.outbox(clock=place.clock)
    place.receiver.refuse(fails_for("first"))
    place.enqueue(blocking, "first", ordering_key="pump")
    place.enqueue(blocking, "second", ordering_key="pump")
    place.hand(blocking).turn()
    skipping = place.outbox(Policy(on_dead="skip"), clock=place.clock)
    hand = place.hand(skipping)

    cause, of_all = (the(Code.ORDER_DEAD, skipping.explain(word)) for word in ("second", "enos"))

    goes_on = "a worker of this destination, which skips the dead, lets the others go on at its next look"
    assert [goes_on, goes_on] == [cause.next, of_all.next]
    hand.dispatcher.free_streams()
    assert [Code.READY] == codes(skipping.explain("second"))


def test_a_message_waits_behind_the_first_of_its_ordering_key(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    later = at(place, hours=1)
    first = place.enqueue(outbox, "first", ordering_key="pump", due_at=later)
    place.enqueue(outbox, "second", ordering_key="pump")
    third = place.enqueue(outbox, "third", ordering_key="pump")

    waits = outbox.explain("third")
    place.clock.move(hours=1)
    hand.presence.beat()
    (goes,) = [each for each in outbox.explain("third") if each.code is Code.ORDER_BEHIND]

    sentence = (
        f"message {third} waits behind message {first} ('first'), the first of its ordering key 'pump'; "
        "2 messages are before it"
    )
    next_ = f"message {first} is due then, and goes first; see: outbox explain {first}"
    assert [Cause(Code.ORDER_BEHIND, sentence, next_, later)] == waits
    assert (f"message {first} goes first; see: outbox explain {first}", None) == (goes.next, goes.at)
    hand.turn_while_it_moves()
    assert {State.DELIVERED} == set(states(place.database).values())


def test_a_message_waits_while_another_of_its_ordering_key_is_under_way(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    first = place.enqueue(outbox, "first", ordering_key="pump")
    second = place.enqueue(outbox, "second", ordering_key="pump")

    with sending(place, hand):
        (cause,) = outbox.explain(second)

    sentence = (
        f"message {second} waits for its ordering key 'pump', which is under way: message {first} ('first') is being sent; "
        "1 message is before it"
    )
    next_ = f"it goes on when that has ended; see: outbox explain {first}"
    assert Cause(Code.ORDER_UNDER_WAY, sentence, next_) == cause


# Its company


def test_a_message_that_was_refused_with_others_says_with_how_many_it_may_travel(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    place.receiver.refuse(fails_for("m0"))
    numbers = many(place, outbox, 4)
    hand.turn()

    halves = outbox.explain(numbers[0])
    hand.turn()
    alone = outbox.explain(numbers[0])

    refused = "was refused (HTTP 200, code 1204: Model validate failed)"
    assert the(Code.BATCH_LIMIT, halves) == Cause(
        Code.BATCH_LIMIT,
        f"message {numbers[0]} travels in at most 2 with its like: the request that carried it with 3 others {refused}",
        "they are halved again if they are refused, until the guilty one is found",
    )
    assert the(Code.ALONE, alone) == Cause(
        Code.ALONE,
        f"message {numbers[0]} travels alone: the request that carried it with 1 other {refused}",
        "its own answer decides: it is delivered, or if it is refused, it is dead",
    )
    hand.turn_while_it_moves()
    assert {"m0": Reason.REJECTED} == reasons(place.database)


def test_a_message_that_is_refused_alone_stays_while_the_destination_refuses_everything(place: Place) -> None:
    outbox = place.outbox(Policy(reject_streak=2, batch_messages=1), clock=place.clock)
    hand = place.hand(outbox)
    place.receiver.refuse(lambda _: True, 99404, "no such device")
    numbers = many(place, outbox, 3)
    hand.turn_while_it_moves()
    dead = {"m0": Reason.REJECTED, "m1": Reason.REJECTED}

    def probe() -> None:
        place.clock.move(minutes=15)
        hand.presence.beat()
        assert hand.turn()
        assert dead == reasons(place.database)

    probe()
    alone = the(Code.ALONE, outbox.explain(numbers[2]))
    probe()

    assert alone == Cause(
        Code.ALONE,
        f"message {numbers[2]} travels alone: the request that carried it was refused (HTTP 200, code 99404: no such device)",
        "its own answer decides: it is delivered, or if it is refused, it stays: none dies of that while enos refuses one "
        "message after the other",
    )


def test_a_size_that_the_destination_taught_us_is_told_with_when_it_is_forgotten(database_url: str, tmp_path: Path) -> None:
    with Receiver(check_token=False, max_request_bytes=50_000) as receiver:
        place = Place(database_url, tmp_path, receiver)
        outbox = place.outbox(Policy(batch_bytes=200_000), clock=place.clock)
        hand = place.hand(outbox)
        place.enqueue(outbox, "small", {"photo": b"x" * 70_000})
        place.enqueue(outbox, "large", {"photo": b"x" * 90_000})
        hand.turn()
        try:
            causes, of_all = outbox.explain("large"), outbox.explain("enos")
            learned = sum(column(place.database, key, "size") for key in ("small", "large")) + 160_000
            limit = learned // 2

            assert the(Code.LEARNED, of_all).sentence == (
                f"enos refused larger requests: at most {limit / 1024:.1f} KiB go into one for now"
            )
            assert the(Code.LEARNED, of_all).next == "twice as much each day, until it is the usual 195.3 KiB then"
            forgotten = the(Code.LEARNED, of_all).at
            assert forgotten is not None
            weight = column(place.database, "large", "size") + 90_000
            too_large = the(Code.TOO_LARGE, causes)
            assert f"has {weight / 1024:.1f} KiB, more than the {limit / 1024:.1f} KiB that enos takes" in too_large.sentence
            assert too_large.next == "it goes alone; if that is refused too, it is dead (too_large)"
            place.clock.move((forgotten - place.clock.wall).total_seconds() + 1)
            assert Code.LEARNED not in codes(outbox.explain("enos"))
            hand.turn_while_it_moves()
            assert {"small": Reason.TOO_LARGE, "large": Reason.TOO_LARGE} == reasons(place.database)
        finally:
            place.close()


# Its files


def lose(place: Place) -> None:
    spooled_file(place).unlink()


def free(place: Place) -> None:
    lose(place)
    change(place, file, freed_at=place.clock.wall)


def shorten(place: Place) -> None:
    spooled_file(place).write_bytes(b"by")


def forget(place: Place) -> None:
    with place.database.begin() as connection:
        connection.execute(sa.delete(attachment))


@pytest.mark.parametrize(
    ("harm", "code", "words", "reason"),
    [
        (lose, Code.FILE_MISSING, "file 'photo' of message 1 is missing from the spool", Reason.FILE_MISSING),
        (free, Code.FILE_FREED, "file 'photo' of message 1 was freed at 2026-03-01 12:00:00Z", Reason.FILE_MISSING),
        (shorten, Code.FILE_CHANGED, "it has 2 bytes instead of 5", Reason.FILE_CHANGED),
        (forget, Code.ATTACHMENTS, "message 1 has 0 of its 1 files: it was committed half enqueued", Reason.FILE_MISSING),
    ],
)
def test_a_message_without_its_file_says_so_before_it_dies_of_it(
    place: Place, harm: Callable[[Place], None], code: Code, words: str, reason: Reason
) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a", {"photo": b"bytes"})
    harm(place)

    (cause,) = outbox.explain(number)

    assert (code, None) == (cause.code, cause.at)
    assert words in cause.sentence
    assert f"the next try finds that out, and then it is dead ({reason}); " in cause.next
    hand.turn()
    assert {"a": reason} == reasons(place.database)


def test_a_spool_that_is_not_mounted_is_a_cause_and_no_file_is_missing(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    place.enqueue(outbox, "a", {"photo": b"bytes"})
    place.spool.rename(place.folder / "elsewhere")

    (cause,) = outbox.explain("a")

    assert Code.SPOOL == cause.code
    assert "is the disk mounted?" in cause.sentence
    assert cause.next == "until it can be, tries fail and the destination is left alone between them; mount the spool"
    hand.turn()
    assert {"a": State.PENDING} == states(place.database)


# Its destination


def test_a_pause_says_by_whom_since_when_and_why(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a")
    outbox.pause("enos", "maintenance until noon", "Zoë")
    since = told(place.clock.wall)
    place.clock.move(10)

    expected = Cause(
        Code.PAUSED,
        f"enos is paused by Zoë since {since}: maintenance until noon",
        "no upload begins until a person lets it go on: outbox resume enos",
    )

    assert [expected] == outbox.explain(number)
    assert expected == outbox.explain("enos")[0]
    assert not hand.turn()


def break_it(place: Place, outbox: Outbox, hand: Hand) -> datetime:
    """Open the breaker with failures of the destination; until when it is."""
    place.receiver.always(Status(503, "overloaded"))
    for _ in range(outbox.destinations["enos"].policy.breaker_after):
        hand.turn()
    until = hand.breaker().open_until
    assert isinstance(until, datetime)
    return until


def test_an_open_breaker_says_until_when_after_how_many_failures_and_the_last_answer(place: Place) -> None:
    outbox = place.outbox(Policy(breaker_after=3), clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a")
    until = break_it(place, outbox, hand)

    expected = Cause(
        Code.BREAKER,
        f"enos is left alone until {told(until)}, in 5 s, after 3 failures in a row "
        "(the last: HTTP 503: no answer in the EnOS envelope: overloaded)",
        "one message is tried then; if it is delivered, the others go",
        until,
    )

    assert [expected] == outbox.explain(number)
    assert [expected] == outbox.explain("enos")
    assert not hand.turn()
    place.clock.wall = until
    now = the(Code.BREAKER, outbox.explain(number))
    assert now.sentence.startswith("enos is left alone but for a probe after 3 failures in a row")
    assert ("one message is tried with the next turn; if it is delivered, the others go", None) == (now.next, now.at)
    place.receiver.never()
    assert hand.turn()
    assert [Code.DELIVERED] == codes(outbox.explain(number))


def test_a_wait_that_the_destination_asked_for_is_told(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a")
    place.receiver.misbehave(Status(429, headers={"Retry-After": "120"}))
    hand.turn()

    cause = the(Code.BREAKER, outbox.explain(number))

    assert cause.sentence.startswith(
        f"enos is left alone until {told(at(place, minutes=2))}, in 2 min, after 1 failure in a row"
    )
    assert at(place, minutes=2) == cause.at


def test_a_probe_under_way_is_what_the_others_wait_for(place: Place) -> None:
    outbox = place.outbox(Policy(breaker_after=1, send_base=60), clock=place.clock)
    hand = place.hand(outbox)
    first, second = place.enqueue(outbox, "a"), place.enqueue(outbox, "b")
    until = break_it(place, outbox, hand)
    place.receiver.never()
    place.clock.wall = until

    with sending(place, hand):
        place.clock.move(1)
        own, others = outbox.explain(first), outbox.explain(second)

    with place.database.read() as connection:
        size = connection.execute(sa.select(delivery.c.bytes).where(delivery.c.probe)).scalar_one()
    ends = until + timedelta(seconds=60 + size / Policy().slowest_rate)
    assert Cause(
        Code.PROBE,
        f"a probe of enos is under way since {told(until)}, sent by worker {hand.presence.id} {HERE}",
        "nothing else goes before it ends; without an answer it is given up then, or later if a token had to be asked for "
        "meanwhile; if it is delivered, the others go",
        ends,
    ) == the(Code.PROBE, others)
    assert the(Code.BREAKER, others).next == "the answer to the probe that is under way decides"
    assert Code.PROBE not in codes(own)
    assert ends == the(Code.CLAIMED, own).at


def test_refused_credentials_say_in_which_words_and_when_the_next_probe_is(database_url: str, tmp_path: Path) -> None:
    with Receiver(check_token=False) as receiver:
        place = Place(database_url, tmp_path, receiver)
        outbox = place.outbox(clock=place.clock)
        hand = place.hand(outbox)
        number = place.enqueue(outbox, "a")
        receiver.always(Answer(99403, "no right to write for o1"))
        hand.turn()
        since = place.clock.wall
        place.clock.move(30)
        hand.presence.beat()

        expected = Cause(
            Code.CREDENTIALS,
            f"enos refuses our credentials since {told(since)}: no right to write for o1",
            "one message is tried then (sooner if a worker is started); if it is delivered, the others go",
            since + timedelta(minutes=15),
        )

        assert [expected] == outbox.explain(number)
        assert [expected] == outbox.explain("enos")
        place.close()


def test_a_reject_streak_says_how_many_and_the_last_words_and_when_the_next_probe_is(place: Place) -> None:
    outbox = place.outbox(Policy(reject_streak=2, batch_messages=1), clock=place.clock)
    hand = place.hand(outbox)
    place.receiver.refuse(lambda _: True, 99404, "no such device")
    numbers = many(place, outbox, 3)
    hand.turn_while_it_moves()

    cause = the(Code.REJECT_STREAK, outbox.explain(numbers[2]))

    assert cause == Cause(
        Code.REJECT_STREAK,
        f"enos is left alone since {told(place.clock.wall)}, because it refused 2 messages, one after the other; "
        "the last one: no such device",
        "one message is tried then (sooner if a worker is started); if it is delivered, the others go",
        at(place, minutes=15),
    )
    assert not hand.turn()


def test_a_recovering_destination_says_how_many_go_at_a_time(place: Place) -> None:
    outbox = place.outbox(Policy(breaker_after=1, batch_messages=1), clock=place.clock)
    hand, other = place.hand(outbox), place.hand(outbox)
    many(place, outbox, 3)
    place.clock.wall = break_it(place, outbox, hand)
    place.receiver.never()
    hand.turn()

    free_now = outbox.explain("enos")
    with sending(place, hand):
        full = outbox.explain("m2")
        assert not other.turn()

    assert the(Code.RECOVERING, free_now) == Cause(
        Code.RECOVERING, "enos is recovering: 1 upload at a time for now", "with each delivery one more, until there are 16"
    )
    assert Code.READY in codes(free_now)
    assert full[0].code is Code.RECOVERING
    assert full[0].next == (
        "with each delivery one more, until there are 16, and as many are under way; the next begins when one of them ends"
    )


def test_a_rate_that_is_used_up_says_when_the_next_request_may_go(place: Place) -> None:
    outbox = place.outbox(Policy(rate=0.5, batch_messages=1), clock=place.clock)
    hand = place.hand(outbox)
    many(place, outbox, 2)
    hand.turn()
    place.clock.move(0.5)

    expected = Cause(
        Code.RATE,
        "the rate of enos, 0.5 requests a second, is used up for 1.5 s",
        "the next request may go then, by whichever sender is first",
        at(place, seconds=1.5),
    )

    assert [expected] == outbox.explain("m1")
    assert [expected] == outbox.explain("enos")
    assert not hand.turn()
    place.clock.move(1.5)
    assert hand.turn()


def test_a_limit_of_uploads_in_flight_says_when_it_is_reached(place: Place) -> None:
    outbox = place.outbox(Policy(in_flight=1, batch_messages=1), clock=place.clock)
    hand, other = place.hand(outbox), place.hand(outbox)
    many(place, outbox, 2)

    with sending(place, hand):
        message_waits, all_wait = outbox.explain("m1"), outbox.explain("enos")
        assert not other.turn()

    expected = Cause(
        Code.IN_FLIGHT, "1 upload to enos is under way, and 1 may be", "the next upload begins when one of them ends"
    )
    assert [expected] == message_waits
    assert expected == all_wait[0]
    assert other.turn()


def test_the_large_lane_leaves_one_upload_in_flight_to_the_others(place: Place) -> None:
    outbox = place.outbox(Policy(in_flight=2, large_senders=2, large_over=10_000, batch_messages=1), clock=place.clock)
    hand, other = place.hand(outbox), place.hand(outbox)
    place.enqueue(outbox, "large", {"photo": b"x" * 20_000})
    place.enqueue(outbox, "larger", {"photo": b"x" * 30_000})

    with sending(place, hand, "large"):
        cause = the(Code.IN_FLIGHT, outbox.explain("larger"))
        assert not other.turn("large")

    assert cause.sentence == "1 upload to enos is under way, and 2 may be, of which the large lane leaves one to the others"


def test_busy_senders_and_a_busy_large_lane_are_told(place: Place) -> None:
    outbox = place.outbox(Policy(senders=1, large_senders=1, batch_messages=1, large_over=10_000), clock=place.clock)
    hand = place.hand(outbox)
    many(place, outbox, 2)
    place.enqueue(outbox, "large", {"photo": b"x" * 20_000})
    waiting = place.enqueue(outbox, "larger", {"photo": b"x" * 30_000})

    with sending(place, hand, "large"), sending(place, hand, "normal"):
        large, small, of_all = outbox.explain(waiting), outbox.explain("m1"), outbox.explain("enos")

    assert large[0] == Cause(
        Code.LARGE_BUSY,
        "the large lane of enos is busy: 1 upload under way",
        "the next large upload begins when one of them ends",
    )
    assert the(Code.SENDERS, small) == Cause(
        Code.SENDERS,
        "every sender for enos is busy: 1 upload under way",
        "the next upload begins when one of them ends",
    )
    assert [Code.SENDERS, Code.LARGE_BUSY] == codes(of_all)


def test_messages_before_it_in_its_lane_are_counted_up_to_a_bound(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    place.hand(outbox)
    many(place, outbox, 3)
    number = place.enqueue(outbox, "last")
    urgent = place.enqueue(outbox, "urgent", lane=Lane.EXPRESS)

    few = outbox.explain(number)
    with place.database.begin() as connection:
        rows = [message_values(created_at=place.clock.wall, due_at=at(place, seconds=-1)) for _ in range(COUNTED)]
        connection.execute(sa.insert(message), rows)
    crowd = outbox.explain(number)

    next_ = "they go first, and up to 100 messages in one request"
    sentence = f"3 messages are before message {number} in the normal lane of enos"
    assert [Cause(Code.BEFORE, sentence, next_)] == few
    assert crowd[0].sentence == f"more than 10,000 messages are before message {number} in the normal lane of enos"
    assert [Code.READY] == codes(outbox.explain(urgent))


@pytest.mark.parametrize(("ordered", "what"), [(True, "1 ordering key is"), (False, "1 message is")])
def test_what_goes_before_a_message_with_an_ordering_key(place: Place, ordered: bool, what: str) -> None:
    outbox = place.outbox(clock=place.clock)
    place.hand(outbox)
    place.enqueue(outbox, "a", ordering_key="one", ordered=ordered)
    place.enqueue(outbox, "b", ordering_key="two" if ordered else "one", ordered=ordered)

    (cause,) = outbox.explain("b")

    assert (Code.BEFORE, f"{what} before message 2 in the normal lane of enos") == (cause.code, cause.sentence)


# Workers


def test_no_worker_at_all_and_one_that_has_died_are_told(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    number = place.enqueue(outbox, "a")
    start = "nothing is sent until one runs; start it with: outbox worker"

    assert [Cause(Code.NO_WORKER, "no worker is alive", start)] == outbox.explain(number)
    hand = place.hand(outbox)
    beat = told(place.clock.wall)
    place.clock.move(minutes=3)
    sentence = f"no worker is alive; the last beat, of worker {hand.presence.id} {HERE}, was at {beat}, 3 min ago"
    assert [Cause(Code.NO_WORKER, sentence, start)] == outbox.explain(number)
    hand.presence.beat()
    assert [Code.READY] == codes(outbox.explain(number))
    hand.presence.leave()
    assert [Cause(Code.NO_WORKER, "no worker is alive", start)] == outbox.explain("enos")


def test_workers_that_serve_only_others_or_were_asked_to_stop_are_told(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    number = place.enqueue(outbox, "a")
    with place.database.begin() as connection:
        living.register(connection, "w1", "gateway", 7, place.clock.wall, ["enos-b", "other"])

    elsewhere = outbox.explain(number)
    change(place, worker, serves="other enos", stop_asked=True)
    stopping = outbox.explain(number)
    change(place, worker, stop_asked=False)

    start = "nothing is sent to it until one does; start it with: outbox worker --destination enos"
    only = "no live worker serves enos: worker w1 on gateway (pid 7) serves only enos-b, other"
    assert [Cause(Code.NOT_SERVED, only, start)] == elsewhere
    asked = "no live worker serves enos: worker w1 on gateway (pid 7) was asked to stop"
    assert [Cause(Code.NOT_SERVED, asked, start)] == stopping
    assert [Code.READY] == codes(outbox.explain(number))


def test_a_destination_that_these_settings_do_not_know_is_told(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    number = place.enqueue(outbox, "a")
    stranger = an_outbox(place.url, place.spool, enos(name="other"), ambient=place.clock.ambient)
    place._outboxes.append(stranger)

    unknown = stranger.explain(number)
    with place.database.begin() as connection:
        living.register(connection, "w1", "gateway", 7, place.clock.wall, ["enos"])
    served = stranger.explain("enos")

    assert unknown[0] == Cause(
        Code.NOT_DECLARED,
        "destination enos is not declared in these settings",
        "nothing is sent to it; declare it, and start a worker with that: outbox worker",
    )
    assert the(Code.NOT_DECLARED, served).next == (
        "worker w1 on gateway (pid 7) serves it: ask with that one's settings, these know nothing of its limits"
    )


# Two at once


def test_what_needs_a_person_comes_before_what_only_takes_time(place: Place) -> None:
    outbox = place.outbox(Policy(breaker_after=2), clock=place.clock)
    hand = place.hand(outbox)
    soon, late = place.enqueue(outbox, "soon"), place.enqueue(outbox, "late", due_at=at(place, days=1))
    until = break_it(place, outbox, hand)
    outbox.pause("enos", "moving house", "bob")

    paused = outbox.explain(late)
    outbox.resume("enos", "bob")
    change(place, sa.table("outbox_destination", sa.column("open_until")), open_until=until)
    resumed = outbox.explain(late)

    assert [Code.PAUSED, Code.NOT_DUE] == codes(paused)
    assert paused[0].next == (
        "no upload begins until a person lets it go on, with one message first, since it was in trouble: outbox resume enos"
    )
    assert [Code.NOT_DUE, Code.BREAKER] == codes(resumed)
    assert [Code.BREAKER] == codes(outbox.explain(soon))


# Words that mean several things, or none


def two_destinations(place: Place) -> Outbox:
    outbox = an_outbox(
        place.url,
        place.spool,
        enos(place.receiver.url),
        enos(place.receiver.url, name="zweite"),
        ambient=place.clock.ambient,
    )
    place._outboxes.append(outbox)
    return outbox


def test_a_key_of_two_destinations_is_explained_for_both_unless_one_is_named(place: Place) -> None:
    outbox = two_destinations(place)
    place.hand(outbox)
    with place.engine.begin() as connection:
        one = outbox.enqueue(connection, "enos", event("x"), key="prüfung-七").id
        two = outbox.enqueue(connection, "zweite", event("x"), key="prüfung-七", due_at=at(place, days=1)).id

    both, narrowed = outbox.explain("prüfung-七"), outbox.explain("prüfung-七", "zweite")

    assert [Code.AMBIGUOUS, Code.NOT_DUE, Code.READY] == codes(both)
    assert both[0].sentence == (
        f"'prüfung-七' means 2 things: message {one} of enos, with the key 'prüfung-七'; "
        f"message {two} of zweite, with the key 'prüfung-七'"
    )
    assert both[0].next == (
        "whatever holds up any of them follows, once if it holds up several; another id, or --destination, means fewer"
    )
    assert [f"message {two} is not due before {told(at(place, days=1))}, in 1 d: its producer chose that"] == [
        each.sentence for each in narrowed
    ]


def test_a_word_that_is_a_key_an_id_and_a_destination_says_so(place: Place) -> None:
    outbox = two_destinations(place)
    place.hand(outbox)
    first = place.enqueue(outbox, "enos")
    second = place.enqueue(outbox, str(first))

    name, number = outbox.explain("enos"), outbox.explain(str(first))

    assert name[0].sentence == f"'enos' means 2 things: message {first} of enos, with the key 'enos'; the destination enos"
    assert [Code.AMBIGUOUS, Code.READY, Code.READY] == codes(name)
    assert Code.AMBIGUOUS is number[0].code
    assert f"message {second} of enos, with the key '{first}'" in number[0].sentence
    assert [Code.READY] == codes(outbox.explain("enos", "enos"))


@pytest.mark.parametrize("word", ["nobody", "999", "\udcff", "a\0b", "", "9" * 30])
def test_a_word_that_means_nothing_is_refused_with_what_there_is(place: Place, word: str) -> None:
    outbox = place.outbox(clock=place.clock)

    with pytest.raises(NoSuchMessage, match=r"and no destination that name; there are: enos"):
        outbox.explain(word)


def test_a_message_that_is_purged_while_it_is_looked_at_is_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = place.outbox()
    number = place.enqueue(outbox, "a")
    place.purged.add("a")
    when = outbox._when

    def purge_first(*given: Any) -> Any:
        with place.database.begin() as connection:
            connection.execute(sa.delete(message).where(message.c.id == number))
        return when(*given)

    monkeypatch.setattr(outbox, "_when", purge_first)

    with pytest.raises(NoSuchMessage, match=f"message {number} has been purged just now"):
        outbox.explain("a")


def test_explaining_writes_nothing(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    place.hand(outbox)
    many(place, outbox, 2, files={"photo": b"bytes"})

    def everything() -> list[Any]:
        with place.database.read() as connection:
            return [list(connection.execute(sa.select(table))) for table in metadata.sorted_tables]

    before = everything()
    outbox.explain("m1")
    outbox.explain("enos")

    assert before == everything()


# The system


@pytest.mark.parametrize(
    ("version", "words", "next_"),
    [
        (
            "outbox_0001",
            "run: outbox db upgrade",
            "no worker of this version starts until then; if an older one works in it already, that one goes on",
        ),
        (
            "outbox_9999",
            "newer than this code",
            "no worker of this version starts until durable-outbox is upgraded here; newer ones go on",
        ),
    ],
)
def test_another_schema_is_a_cause_and_no_crash(place: Place, version: str, words: str, next_: str) -> None:
    outbox = place.outbox()
    with another_schema(place, version):
        (cause,) = outbox.explain("enos")

    assert (Code.SCHEMA, next_, None) == (cause.code, cause.next, cause.at)
    assert words in cause.sentence
    assert version in cause.sentence


@contextmanager
def another_schema(place: Place, version: str) -> Iterator[None]:
    """Meanwhile the database says that it has been migrated to something else; Postgres serves the next test too."""
    versions = sa.table(migrate.VERSION_TABLE, sa.column("version_num"))
    change(place, versions, version_num=version)
    try:
        yield
    finally:
        change(place, versions, version_num=migrate.newest())


UNTIL_THERE_IS_ONE = (
    "nothing is enqueued or sent until there is one: no worker starts before that, and one that worked in it cannot go on; "
    "start it again then"
)


def test_no_database_and_one_that_was_never_migrated_are_causes(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = an_outbox(f"sqlite:///{path}", tmp_path / "spool")

    (missing,) = outbox.explain("enos")
    path.touch()
    (empty,) = outbox.explain("enos")
    outbox.close()

    assert missing.sentence.startswith(f"there is no database {path}; if there was one, look first whether its disk is mounted")
    assert empty.sentence == "the database has no outbox schema yet; run: outbox db upgrade"
    assert [(Code.SCHEMA, UNTIL_THERE_IS_ONE)] * 2 == [(each.code, each.next) for each in (missing, empty)]


def test_a_database_that_was_deleted_ends_its_worker_and_lets_none_start(sqlite_place: Place) -> None:
    place = sqlite_place
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a")
    assert place.database.path is not None
    place.database.path.unlink()

    (missing,), (deleted,) = place.outbox().explain(number), outbox.explain(number)

    assert (Code.SCHEMA, UNTIL_THERE_IS_ONE, None) == (missing.code, missing.next, missing.at)
    assert missing.sentence.startswith(f"there is no database {place.database.path}; if there was one, look first whether ")
    assert "was deleted or replaced while it was in use" in deleted.sentence
    assert (Code.DATABASE, None) == (deleted.code, deleted.at)
    assert deleted.next == (
        "nothing moves until a whole one is there again: a worker that runs ends, and none can be started; see: outbox doctor"
    )
    with pytest.raises(DatabaseDamaged):
        hand.turn()
    with pytest.raises(SchemaError):
        place.hand(place.outbox())


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Meanwhile somebody has SQLite's write lock."""
    with closing(sqlite3.connect(str(place.database.path), isolation_level=None)) as somebody:
        somebody.execute("BEGIN IMMEDIATE")
        yield
        somebody.execute("ROLLBACK")


def test_somebody_who_keeps_the_write_lock_is_told_and_no_worker_is_said_to_have_died_of_it(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.why._PATIENCE", 0.05)
    place = sqlite_place
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    place.enqueue(outbox, "delivered")
    hand.turn()
    place.enqueue(outbox, "claimed")
    claimed_by_another(place, outbox)
    place.enqueue(outbox, "due")
    connections: Any = outbox.database.engine.pool

    with locked(place):
        place.clock.move(minutes=5)
        beating = threading.Thread(target=hand.presence.beat)
        beating.start()
        eventually(connections.checkedout)  # it waits, with the only connection of ours that writes
        due, claimed, of_all, delivered = (outbox.explain(word) for word in ("due", "claimed", "enos", "delivered"))
    beating.join(20)

    expected = Cause(
        Code.LOCKED,
        "somebody holds the write lock of the database: nobody else can claim, record or enqueue anything",
        "whoever waits goes on by itself as soon as that transaction ends, and what else is said holds from then on; if it "
        "does not end, find the program that has the file open, and end that",
    )
    assert [expected] == due == of_all
    assert (expected, Code.CLAIMED) == (claimed[0], claimed[1].code)
    assert [Code.DELIVERED] == codes(delivered)
    assert [Code.READY] == codes(outbox.explain("due"))
    assert [Code.ABANDONED] == codes(outbox.explain("claimed"))


def test_whoever_may_only_read_a_database_is_told_all_the_same(sqlite_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = sqlite_place.outbox(clock=sqlite_place.clock)
    sqlite_place.hand(outbox)
    sqlite_place.enqueue(outbox, "a")

    def refused_by_sqlite(*_: object) -> bool:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("outbox.database.comes_free", refused_by_sqlite)

    assert [Code.READY] == codes(outbox.explain("a"))


def test_a_claim_that_was_left_behind_is_taken_back_when_somebody_lets_go_of_the_write_lock(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.why._PATIENCE", 0.05)
    place = sqlite_place
    outbox = place.outbox(clock=place.clock)
    place.enqueue(outbox, "a")
    gone = claimed_by_another(place, outbox)
    gone.presence.leave()
    hand = place.hand(outbox)

    with locked(place):
        causes = outbox.explain("a")

    assert [Code.LOCKED, Code.ABANDONED] == codes(causes)
    assert causes[1].next == (
        "a worker of enos that is alive takes it back when it can write, and then it is pending again, to travel alone"
    )
    assert causes[1].at is None
    assert 1 == hand.dispatcher.rescue()


def test_a_database_that_cannot_be_read_is_a_cause(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(b"this is no database " * 500)
    away = an_outbox("postgresql+psycopg://nobody@127.0.0.1:1/none", tmp_path / "spool")
    damaged = an_outbox(f"sqlite:///{path}", tmp_path / "spool")

    (unreachable,), (no_database,) = away.explain("enos"), damaged.explain(1)
    away.close()
    damaged.close()

    assert [Code.DATABASE, Code.DATABASE] == [unreachable.code, no_database.code]
    assert unreachable.sentence.startswith("the database cannot be read: ")
    assert f"the database {path} is damaged (file is not a database)" in no_database.sentence


def refused(which: str) -> str:
    return f"{which} are refused until there is room, and then taken by themselves; what is here goes on being delivered"


def test_a_spool_that_is_full_says_who_is_refused_and_until_when(place: Place) -> None:
    outbox = place.outbox(quota=100, reserve=0, clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a", {"photo": b"x" * 100})

    causes = outbox.explain(number)

    assert [Code.DISK_FULL, Code.READY] == codes(causes)
    assert causes[0].sentence.startswith("the spool is full: its quota is 100 B, 0 B of it are left and 1 B were to come; ")
    assert causes[0].next == refused("new messages with files")
    with pytest.raises(OutOfRoom):
        place.enqueue(outbox, "b", {"photo": b"x"})
    place.enqueue(outbox, "c")
    assert hand.turn()
    assert {"a": State.DELIVERED, "c": State.DELIVERED} == states(place.database)


def test_a_database_that_may_have_no_more_pages_is_told(sqlite_place: Place) -> None:
    place = sqlite_place
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    number = place.enqueue(outbox, "a")
    pages = outbox.database.pages()
    assert pages is not None
    most = pages.used + 20
    for engine in (place.engine, outbox.database.engine):
        limit_pages(engine, most)

    causes = outbox.explain(number)

    assert [Code.DISK_FULL, Code.READY] == codes(causes)
    assert causes[0].sentence.startswith(f"the database is full: it may have {most} pages (PRAGMA max_page_count), and ")
    assert (refused("new messages"), None) == (causes[0].next, causes[0].at)
    with pytest.raises(OutOfRoom, match="the database is full"):
        place.enqueue(outbox, "b")
    assert hand.turn()


def limit_pages(engine: sa.Engine, most: int) -> None:
    """The connections that it makes from now on may have so many pages in their database."""

    @sa.event.listens_for(engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {most}")

    engine.dispose()


def test_a_disk_that_is_full_is_told(place: Place) -> None:
    outbox = place.outbox(reserve=2**60, clock=place.clock)
    outbox.spool_store.prepare()
    place.hand(outbox)

    causes = outbox.explain("enos")

    assert [Code.DISK_FULL, Code.IDLE] == codes(causes)
    # Postgres has its own disk, of which nobody here knows how full it is.
    disk, which = ("database", "new messages") if place.database.path else ("spool", "new messages with files")
    assert causes[0].sentence.startswith(f"the disk of the {disk} is full: ")
    assert refused(which) == causes[0].next


# Through the terminal


def run(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "OUTBOX_DATABASE": place.url,
        "OUTBOX_SPOOL": str(place.spool),
        "OUTBOX_DESTINATIONS": json.dumps(
            {"enos": {"type": "enos-events", "url": place.receiver.url, "org_id": "o1", "allow_plain_http": True}}
        ),
        "PYTHONPATH": str(ROOT),
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
    command = [sys.executable, "-m", "outbox", *arguments]
    return warm.run(command, cwd=place.folder, env=kept | settings, capture_output=True, text=True, timeout=60)


def test_the_terminal_tells_each_cause_in_text_and_in_lines_of_json(place: Place) -> None:
    outbox = place.outbox()
    place.hand(outbox)
    due = (datetime.now(UTC) + timedelta(days=2, minutes=-1)).replace(microsecond=0)
    number = place.enqueue(outbox, "inspection-七", due_at=due)
    outbox.pause("enos", "moving house", "Zoë")

    text = run(place, "explain", "inspection-七")
    lines = [json.loads(line) for line in run(place, "explain", str(number), "--json").stdout.splitlines()]
    nobody = run(place, "explain", "inspection-8")

    assert (0, "") == (text.returncode, text.stderr)
    first, second = text.stdout.split("\n\n")
    assert first.startswith("enos is paused by Zoë since ")
    assert first.endswith("\n  next: no upload begins until a person lets it go on: outbox resume enos")
    assert f"message {number} is not due before {told(due)}" in second
    assert "\n  next: it is due then, and goes with the next turn\n" in second
    assert f"\n  when: {told(due)}, in 1 d 23 h" in second
    assert [["code", "sentence", "next", "at"]] * 2 == [list(each) for each in lines]
    assert [("paused", None), ("not_due", due.isoformat())] == [(each["code"], each["at"]) for each in lines]
    assert 3 == nobody.returncode
    assert "no message has the id or key 'inspection-8', and no destination that name; there are: enos" in nobody.stderr


def test_the_terminal_answers_with_another_schema_too(sqlite_place: Place) -> None:
    with another_schema(sqlite_place, "outbox_0001"):
        told_ = run(sqlite_place, "explain", "enos", "--json")

    assert (0, "schema") == (told_.returncode, json.loads(told_.stdout)["code"]), told_.stderr
