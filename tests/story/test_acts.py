"""What a person does: pause and resume, replay and cancel; durable, for every worker, and noted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Credentials, EnosEvents, Lane, Outbox, Policy, State
from outbox.errors import ConfigurationError, UnknownDestination
from outbox.model import Reason, Selection
from outbox.patience import Stop
from outbox.tables import audit, destination, message
from outbox.testing import Hold, Receiver, Status
from outbox.transport import Transport
from tests.factories import an_outbox, column, count, message_values, outcomes, reasons, row_of, states
from tests.story.conftest import Hand, Place

pytestmark = pytest.mark.long
DELIVERED, DEAD, PENDING, CANCELLED = State.DELIVERED, State.DEAD, State.PENDING, State.CANCELLED
ENOS = Selection(destination="enos")


@pytest.fixture
def outbox_here(place: Place) -> Outbox:
    return place.outbox(clock=place.clock)


@pytest.fixture
def hand(place: Place, outbox_here: Outbox) -> Hand:
    return place.hand(outbox_here)


def enqueue_many(place: Place, outbox_: Outbox, *keys: str, **options: Any) -> list[int]:
    return [place.enqueue(outbox_, key, **options) for key in keys]


def carried(receiver: Receiver) -> list[list[str]]:
    """The keys in each request."""
    return [[struct["assetId"] for struct in request.structs] for request in receiver.requests]


def names(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda struct: struct["assetId"] in keys


def acts(place: Place) -> list[tuple[str, str, str, int]]:
    """The audit: who did what, to which, to how many."""
    with place.database.read() as connection:
        columns = (audit.c.actor, audit.c.action, audit.c.selection, audit.c.messages)
        return [tuple(row) for row in connection.execute(sa.select(*columns).order_by(audit.c.id))]  # type: ignore[misc]


def its_row(place: Place) -> Any:
    with place.database.read() as connection:
        return connection.execute(sa.select(destination)).one()


def bulk(hand: Hand) -> None:
    """Deliver what was replayed."""
    while hand.turn("bulk"):
        pass


# Pause and resume.


def test_a_pause_holds_for_every_worker_and_outlasts_all_of_them(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    other = place.hand(place.outbox(clock=place.clock))
    place.enqueue(outbox_here, "a")

    outbox_here.pause("enos", "they move house", "ann")
    place.enqueue(outbox_here, "b")
    newcomer = place.hand(place.outbox(clock=place.clock))
    place.clock.move(days=40)

    assert [False, False, False] == [each.turn() for each in (hand, other, newcomer)]
    assert [] == carried(place.receiver)
    assert {"a": PENDING, "b": PENDING} == states(place.database)
    assert 0 == column(place.database, "a", "attempt")

    assert other.outbox.resume("enos", "bob")
    assert newcomer.turn()
    assert [["a", "b"]] == carried(place.receiver)
    place.check()


def test_a_pause_says_who_and_why_and_since_when_until_it_ends(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    outbox_here.pause("enos", "they move\nhouse", "ann")
    paused = its_row(place)
    place.clock.move(hours=1)
    outbox_here.resume("enos", "bob")
    going = its_row(place)

    assert (Stop.PAUSE, "they move house", "ann") == (paused.stop, paused.stop_text, paused.stopped_by)
    assert place.clock.wall.replace(hour=12) == paused.stopped_at
    assert (None, None, None, None) == (going.stop, going.stop_text, going.stopped_by, going.stopped_at)
    assert [("ann", "pause"), ("bob", "resume")] == [each[:2] for each in acts(place)]
    assert "they move" in acts(place)[0][2]


def test_words_that_no_database_takes_do_not_stand_in_the_way_of_a_pause(place: Place, outbox_here: Outbox) -> None:
    outbox_here.pause("enos", "why\x00not \ud83d", "an\x00n")

    assert [("an n", "pause", "destination enos: why not ?", 0)] == acts(place)


def test_a_destination_that_no_worker_has_seen_yet_can_be_paused(place: Place) -> None:
    outbox_ = place.outbox(clock=place.clock)
    outbox_.pause("enos", "not yet", "ann")
    place.enqueue(outbox_, "a")

    assert not place.hand(outbox_).turn()


def test_who_resumes_what_goes_on_anyway_is_told_so(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    assert not outbox_here.resume("enos", "bob")
    assert not outbox_here.resume("enos", "bob", ordering_key="pump")
    assert [] == acts(place)


@pytest.mark.parametrize(
    "act",
    [
        lambda outbox_: outbox_.pause("nobody", "why", "ann"),
        lambda outbox_: outbox_.resume("nobody", "ann"),
        lambda outbox_: outbox_.replay(Selection(destination="nobody"), "ann"),
        lambda outbox_: outbox_.cancel(Selection(destination="nobody"), "ann"),
    ],
    ids=["pause", "resume", "replay", "cancel"],
)
def test_a_destination_that_is_not_declared_is_told_with_those_that_are(
    outbox_here: Outbox, act: Callable[[Outbox], object]
) -> None:
    with pytest.raises(UnknownDestination, match="enos"):
        act(outbox_here)


def test_an_upload_in_hand_is_finished_and_no_other_begins(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    place.receiver.misbehave(Hold())
    sending = threading.Thread(target=hand.turn)
    sending.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)

    outbox_here.pause("enos", "they move house", "ann")
    place.enqueue(outbox_here, "b")
    place.receiver.release()
    sending.join(10)

    assert not hand.turn()
    assert {"a": DELIVERED, "b": PENDING} == states(place.database)
    assert Stop.PAUSE is hand.breaker().stop


@dataclass(frozen=True)
class Slow:
    """Credentials that take their time: what happens meanwhile."""

    meanwhile: Callable[[], None]

    def headers(self, transport: Transport, now: datetime, monotonic: float) -> Mapping[str, str]:
        self.meanwhile()
        return {}

    def renew(self) -> None:
        """There is nothing to renew."""


@dataclass(frozen=True, kw_only=True)
class SlowToLetIn(EnosEvents):
    """A destination whose credentials take their time."""

    slow: Slow

    @property
    def credentials(self) -> Credentials:
        return self.slow


def slow_hand(place: Place, meanwhile: Callable[[Outbox], None], *, once: bool = True) -> Hand:
    """A worker that something happens to between its claim and its send."""
    happened: list[bool] = []

    def happen() -> None:
        if not (once and happened):
            happened.append(True)
            meanwhile(outbox_)

    slow = SlowToLetIn(
        name="enos", url=place.receiver.url, org_id="o1", allow_plain_http=True, policy=Policy(), slow=Slow(happen)
    )
    outbox_ = an_outbox(place.url, place.spool, slow, ambient=place.clock.ambient)
    return place.hand(outbox_)


@pytest.fixture
def pausing(place: Place) -> Any:
    """A worker whose token takes three seconds, in which a person pauses its destination."""

    def pause(outbox_: Outbox) -> None:
        outbox_.pause("enos", "they move house", "ann")
        place.clock.move(seconds=3)

    hand = slow_hand(place, pause)
    yield hand
    hand.outbox.close()


def test_a_send_that_begins_long_after_its_claim_sees_the_pause(place: Place, pausing: Hand) -> None:
    enqueue_many(place, pausing.outbox, "a", "b")

    assert not pausing.turn()

    assert [] == carried(place.receiver)
    assert [("not_sent", None)] == outcomes(place.database, "a")
    assert (0, 0, None) == tuple(column(place.database, "a", name) for name in ("failures", "unknowns", "batch_limit"))
    pausing.outbox.resume("enos", "bob")
    assert pausing.turn()
    assert [["a", "b"]] == carried(place.receiver)
    place.check()


def test_a_probe_that_the_pause_held_back_is_made_up_for_after_it(place: Place, pausing: Hand) -> None:
    enqueue_many(place, pausing.outbox, "a", "b")
    with place.database.begin() as connection:
        connection.execute(sa.update(destination).values(failures=5, open_until=place.clock.wall))

    assert not pausing.turn()
    held = pausing.breaker()
    pausing.outbox.resume("enos", "bob")
    pausing.turn_while_it_moves()

    assert (5, Stop.PAUSE) == (held.failures, held.stop)
    assert [["b"], ["a"]] == carried(place.receiver), "one first, and the one tried least"
    place.check()


def test_a_token_that_takes_long_without_a_pause_changes_nothing(place: Place) -> None:
    hand = slow_hand(place, lambda _: place.clock.move(seconds=30), once=False)
    place.enqueue(hand.outbox, "a")

    assert hand.turn()

    assert {"a": DELIVERED} == states(place.database)
    hand.outbox.close()


def test_who_was_in_trouble_before_the_pause_is_tried_with_one_message_after_it(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    keys = ("a", "b", "c")
    enqueue_many(place, outbox_here, *keys)
    place.receiver.always(Status(503))
    for _ in range(5):
        hand.turn()
    assert hand.breaker().is_open
    place.receiver.never()

    outbox_here.pause("enos", "we look into it", "ann")
    assert not hand.turn()
    outbox_here.resume("enos", "ann")
    hand.turn_while_it_moves()

    assert [["a"], ["b", "c"]] == carried(place.receiver)[5:], "at once, but one first"
    place.check()


def test_a_resume_tries_at_once_what_waits_for_its_next_probe(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "a", "b")
    place.receiver.always(Status(503))
    for _ in range(5):
        hand.turn()
    place.receiver.never()
    assert not hand.turn()

    assert outbox_here.resume("enos", "ann")

    assert hand.turn()
    assert ["a"] == carried(place.receiver)[-1]


def test_who_refused_everything_is_tried_with_one_message_after_a_resume(place: Place) -> None:
    outbox_ = place.outbox(Policy(reject_streak=3, batch_messages=1), clock=place.clock)
    hand = place.hand(outbox_)
    enqueue_many(place, outbox_, *"abcdefgh")
    place.receiver.refuse(lambda _: True)
    for _ in range(8):
        hand.turn()
    stopped = hand.breaker().stop
    dead = list(states(place.database).values()).count(DEAD)
    place.receiver.stop_refusing()

    assert outbox_.resume("enos", "ann")
    hand.turn_while_it_moves()

    assert (Stop.REJECT_STREAK, 3) == (stopped, dead)
    assert 5 == list(states(place.database).values()).count(DELIVERED)
    assert (None, 0) == (hand.breaker().stop, hand.breaker().reject_streak)


def test_a_key_that_a_dead_message_holds_up_goes_on_in_order_when_a_person_says_so(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", "p3", ordering_key="pump")
    enqueue_many(place, outbox_here, "f1", "f2", ordering_key="fan")
    place.receiver.refuse(names("p1", "f1"))
    hand.turn_while_it_moves()
    place.receiver.stop_refusing()
    before = len(place.receiver.requests)

    assert outbox_here.resume("enos", "ann", ordering_key="pump")
    assert not outbox_here.resume("enos", "ann", ordering_key="pump")
    hand.turn_while_it_moves()

    assert [["p2"], ["p3"]] == carried(place.receiver)[before:]
    assert {"p1": DEAD, "p2": DELIVERED, "p3": DELIVERED, "f1": DEAD, "f2": PENDING} == states(place.database)
    assert [("ann", "resume", "destination enos; ordering key pump", 0)] == acts(place)


def test_a_key_that_goes_on_is_still_held_up_by_the_pause_of_its_destination(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", ordering_key="pump")
    place.receiver.refuse(names("p1"))
    hand.turn_while_it_moves()
    outbox_here.pause("enos", "they move house", "ann")

    assert outbox_here.resume("enos", "ann", ordering_key="pump")

    assert not hand.turn()
    outbox_here.resume("enos", "ann")
    assert hand.turn()
    assert ["p2"] == carried(place.receiver)[-1]


# Replay.


def test_a_dead_message_that_is_replayed_is_delivered_and_its_history_stays(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    place.enqueue(outbox_here, "a", {"photo": b"bytes"})
    place.receiver.refuse(names("a"))
    hand.turn()
    place.receiver.stop_refusing()

    assert 1 == outbox_here.replay(Selection(keys=("a",)), "ann")
    assert (None, None) == (column(place.database, "a", "reason"), column(place.database, "a", "reason_text"))
    assert not hand.turn(), "replays wait in the bulk lane"
    assert hand.turn("bulk")

    assert {"a": DELIVERED} == states(place.database)
    assert [("reject", None), ("delivered", None)] == outcomes(place.database, "a")
    assert (1, 2) == (column(place.database, "a", "replays"), column(place.database, "a", "attempt"))
    assert [("ann", "replay", "keys a", 1)] == acts(place)
    place.check()


def test_what_was_refused_alone_goes_alone_when_it_is_replayed(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "good", "bad", "fine")
    place.receiver.refuse(names("bad"))
    hand.turn_while_it_moves()
    place.receiver.stop_refusing()
    before = len(place.receiver.requests)

    outbox_here.replay(ENOS, "ann")
    bulk(hand)

    assert ["bad"] in carried(place.receiver)[before:]
    assert {DELIVERED} == set(states(place.database).values())
    place.check()


def test_a_delivered_message_that_is_replayed_is_sent_once_more_with_its_files(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    enqueue_many(place, outbox_here, "a", "b", files={"photo": b"bytes"})
    hand.turn()

    assert 1 == outbox_here.replay(Selection(keys=("b", "nobody")), "ann")
    place.clock.move(hours=2)
    assert 1 == outbox_here.free_files()
    bulk(hand)

    assert [["a", "b"], ["b"]] == carried(place.receiver)
    place.check()
    place.clock.move(hours=2)
    assert 1 == outbox_here.free_files(), "and they go an hour after the second delivery"


def test_a_message_whose_files_have_gone_is_not_replayed(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "with", {"photo": b"bytes"})
    place.enqueue(outbox_here, "without")
    hand.turn()
    place.clock.move(hours=2)
    assert 1 == outbox_here.free_files()

    assert 1 == outbox_here.replay(ENOS, "ann")

    assert {"with": DELIVERED, "without": PENDING} == states(place.database)


def test_a_cancelled_message_comes_back(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    outbox_here.cancel(Selection(keys=("a",)), "ann")
    hand.turn()

    assert 1 == outbox_here.replay(Selection(states=(CANCELLED,)), "bob")
    bulk(hand)

    assert {"a": DELIVERED} == states(place.database)
    assert ["cancel", "replay"] == [action for _, action, _, _ in acts(place)]
    place.check()


def test_what_waits_or_is_under_way_is_not_replayed(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    assert 0 == outbox_here.replay(ENOS, "ann")
    place.receiver.misbehave(Hold())
    sending = threading.Thread(target=hand.turn)
    sending.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)

    assert 0 == outbox_here.replay(ENOS, "ann")

    place.receiver.release()
    sending.join(10)
    assert [] == acts(place), "nothing done is nothing noted"
    place.check()


def test_a_replayed_message_of_a_key_goes_before_its_followers(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", "p3", ordering_key="pump")
    place.receiver.refuse(names("p1"))
    hand.turn_while_it_moves()
    place.receiver.stop_refusing()

    outbox_here.replay(Selection(reasons=(Reason.REJECTED,)), "ann")
    assert not hand.turn()
    bulk(hand)
    hand.turn_while_it_moves()

    assert [["p1"], ["p1"], ["p2"], ["p3"]] == carried(place.receiver)
    place.check()


def test_a_replay_that_is_refused_again_is_dead_again(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    place.receiver.refuse(names("a"))
    hand.turn()

    for _ in range(2):
        outbox_here.replay(ENOS, "ann")
        bulk(hand)

    assert {"a": Reason.REJECTED} == reasons(place.database)
    assert [("reject", None)] * 3 == outcomes(place.database, "a")
    assert 2 == len(acts(place))


def test_many_are_replayed_in_bounded_transactions_and_noted_once(place: Place, outbox_here: Outbox) -> None:
    with place.database.begin() as connection:
        connection.execute(sa.insert(message), [message_values(State.DEAD) for _ in range(1201)])

    assert 1201 == outbox_here.replay(Selection(states=(DEAD,)), "ann")

    assert {PENDING} == set(states(place.database).values())
    assert [("ann", "replay", "state dead", 1201)] == acts(place)


def test_two_of_a_key_are_never_under_way_at_once_even_after_a_replay(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", ordering_key="pump")
    hand.turn()
    other = place.hand(place.outbox(clock=place.clock))
    place.receiver.misbehave(Hold())
    sending = threading.Thread(target=hand.turn)
    sending.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)

    outbox_here.replay(Selection(keys=("p1",)), "ann")
    moved = other.turn("bulk")
    place.receiver.release()
    sending.join(10)

    assert not moved
    bulk(other)
    assert [["p1"], ["p2"], ["p1"]] == carried(place.receiver)
    place.check()


# Cancel.


def test_a_waiting_message_that_is_cancelled_is_never_sent(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "a", "b")

    assert 1 == outbox_here.cancel(Selection(keys=("a",)), "ann")
    hand.turn_while_it_moves()

    assert [["b"]] == carried(place.receiver)
    assert {"a": CANCELLED, "b": DELIVERED} == states(place.database)
    assert [("ann", "cancel", "keys a", 1)] == acts(place)
    place.check()


def test_what_is_under_way_or_delivered_is_passed_over(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "delivered")
    hand.turn()
    place.enqueue(outbox_here, "claimed")
    place.receiver.misbehave(Hold())
    sending = threading.Thread(target=hand.turn)
    sending.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)
    place.enqueue(outbox_here, "pending")

    assert 1 == outbox_here.cancel(ENOS, "ann")

    place.receiver.release()
    sending.join(10)
    assert {"delivered": DELIVERED, "claimed": DELIVERED, "pending": CANCELLED} == states(place.database)
    place.check()


def test_a_key_goes_on_without_the_dead_message_that_a_person_cancels(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", "p3", ordering_key="pump")
    place.receiver.refuse(names("p1"))
    hand.turn_while_it_moves()
    assert not hand.turn()

    assert 1 == outbox_here.cancel(Selection(keys=("p1",)), "ann")
    hand.turn_while_it_moves()

    assert [["p1"], ["p2"], ["p3"]] == carried(place.receiver)
    assert {"p1": CANCELLED, "p2": DELIVERED, "p3": DELIVERED} == states(place.database)
    place.check()


def test_a_key_goes_on_without_its_waiting_head(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", "p3", ordering_key="pump")

    outbox_here.cancel(Selection(keys=("p1", "p2")), "ann")
    hand.turn_while_it_moves()

    assert [["p3"]] == carried(place.receiver)
    place.check()


def test_a_whole_key_is_cancelled_and_lives_on(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", ordering_key="pump")
    place.enqueue(outbox_here, "f1", ordering_key="fan")

    assert 2 == outbox_here.cancel(Selection(ordering_key="pump"), "ann")
    hand.turn_while_it_moves()
    place.enqueue(outbox_here, "p3", ordering_key="pump")
    hand.turn_while_it_moves()

    assert [["f1"], ["p3"]] == carried(place.receiver)
    place.check()


def test_a_cancelled_message_of_a_key_without_order_holds_up_nobody(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", ordering_key="pump", ordered=False)

    outbox_here.cancel(Selection(keys=("p1",)), "ann")
    hand.turn_while_it_moves()

    assert [["p2"]] == carried(place.receiver)
    place.check()


def test_a_key_without_order_is_selected_like_any_other(place: Place, outbox_here: Outbox) -> None:
    enqueue_many(place, outbox_here, "p1", "p2", ordering_key="pump", ordered=False)
    place.enqueue(outbox_here, "f1", ordering_key="fan", ordered=False)

    assert 2 == outbox_here.cancel(Selection(ordering_key="pump"), "ann")


def test_many_that_others_hold_do_not_hide_those_behind_them(postgres_place: Place) -> None:
    outbox_ = postgres_place.outbox(clock=postgres_place.clock)
    with postgres_place.database.begin() as connection:
        connection.execute(sa.insert(message), [message_values(PENDING) for _ in range(510)])
    with postgres_place.engine.begin() as holder:
        holder.execute(sa.select(message.c.id).order_by(message.c.id).limit(500).with_for_update())

        assert 10 == outbox_.cancel(ENOS, "ann")


# Which ones.


@pytest.mark.parametrize("act", ["replay", "cancel"])
def test_who_names_nothing_is_told_what_to_name(place: Place, outbox_here: Outbox, act: str) -> None:
    message_id = place.enqueue(outbox_here, "a")

    for nothing in (Selection(), Selection(ids=[]), Selection(keys=[], states=[])):  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=f"say which messages to {act}: by id, key"):
            getattr(outbox_here, act)(nothing, "ann")

    with place.database.read() as connection:
        assert PENDING == row_of(connection, message_id).state
    assert 0 == count(place.database, audit)


def test_a_selection_narrows_by_everything_it_says(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    a, b, c = enqueue_many(place, outbox_here, "a", "b", "c")
    place.enqueue(outbox_here, "later", due_at=place.clock.wall.replace(year=2027))
    place.receiver.refuse(names("a", "b"))
    hand.turn_while_it_moves()
    before = {"a": DEAD, "b": DEAD, "c": DELIVERED, "later": PENDING}
    assert before == states(place.database)

    did = [
        outbox_here.cancel(Selection(ids=(a, b, c), states=(PENDING,)), "ann"),
        outbox_here.cancel(Selection(states=(DEAD,), reasons=(Reason.EXPIRED,)), "ann"),
        outbox_here.cancel(Selection(ordering_key="pump"), "ann"),
        outbox_here.replay(Selection(keys=("later",)), "ann"),
        outbox_here.cancel(Selection(ids=(a,), destination="enos", reasons=(Reason.REJECTED,)), "ann"),
    ]

    assert [0, 0, 0, 0, 1] == did
    assert before | {"a": CANCELLED} == states(place.database)
    assert [Lane.NORMAL] * 2 == [column(place.database, key, "lane") for key in ("b", "later")]


def test_whoever_acts_is_named_with_every_act(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    message_id = place.enqueue(outbox_here, "a")
    outbox_here.pause("enos", "why not", "ann")
    outbox_here.resume("enos", "bob")
    outbox_here.cancel(Selection(ids=(message_id,)), "cid")
    outbox_here.replay(Selection(destination="enos", states=(CANCELLED,)), "dee")

    assert [
        ("ann", "pause", "destination enos: why not", 0),
        ("bob", "resume", "destination enos", 0),
        ("cid", "cancel", f"ids {message_id}", 1),
        ("dee", "replay", "destination enos; state cancelled", 1),
    ] == acts(place)
