"""A wrong `orgId` kills a handful of messages, not a backlog: the destination stops, is mended, and all of it arrives."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import EnosEvents, Outbox, Policy, State, Worker
from outbox.limits import lane_order
from outbox.model import Reason, Selection
from outbox.patience import Stop
from outbox.payload import text
from outbox.tables import audit, message
from outbox.testing import Hold, Receiver, Status
from tests import ledger, warm
from tests.factories import an_outbox, column, deliveries, event, message_values, reasons, states
from tests.story.conftest import ROOT, Hand, Place, eventually

DELIVERED, DEAD, PENDING = State.DELIVERED, State.DEAD, State.PENDING
STREAK = Policy().reject_streak
pytestmark = pytest.mark.long
#: What a service says that does not know the organisation.
WORDS = "orgId"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(check_token=False, org_id="o1") as receiver:
        yield receiver


class Typo:
    """A place whose operator got the organisation's id wrong."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._wrong: list[Outbox] = []

    def wrong(self, **policy: Any) -> Outbox:
        there = {"name": "enos", "url": self.place.receiver.url, "allow_plain_http": True}
        destination = EnosEvents(org_id="o1-typo", policy=Policy(**policy), **there)
        self._wrong.append(an_outbox(self.place.url, self.place.spool, destination, ambient=self.place.clock.ambient))
        return self._wrong[-1]

    def right(self, **policy: Any) -> Outbox:
        return self.place.outbox(Policy(**policy), clock=self.place.clock)

    def backlog(self, number: int) -> list[str]:
        """Many messages at once; how they got there is another story."""
        keys = [f"m{each:03}" for each in range(number)]
        with self.place.engine.begin() as connection:
            rows = [message_values(key=key, payload=text(event(key)), size=100) for key in keys]
            connection.execute(sa.insert(message), rows)
        for key in keys:
            self.place.acknowledge(key)
        return keys

    def counted(self) -> Counter[str]:
        """How many messages are in which state."""
        return Counter(states(self.place.database).values())

    def check(self) -> None:
        """Everything adds up, apart from the organisation in the requests that were refused for it."""
        requests = [each for each in self.place.receiver.requests if each.query["orgId"] == "o1"]
        ledger.check(self.place.database, requests, self.place.acknowledged)

    def close(self) -> None:
        for outbox in self._wrong:
            outbox.close()


@pytest.fixture
def typo(place: Place) -> Iterator[Typo]:
    typo = Typo(place)
    yield typo
    typo.close()


def turn_while_any_moves(hands: Sequence[Hand], threads: int = 2) -> None:
    """Workers with several senders at the same time, each until there is nothing for it to do."""

    def work(hand: Hand) -> None:
        while hand.turn(*lane_order(0)):
            pass

    with ThreadPoolExecutor(threads * len(hands)) as pool:
        for job in [pool.submit(work, hand) for _ in range(threads) for hand in hands]:
            job.result(60)


def acts(place: Place) -> list[tuple[str, str, int]]:
    with place.database.read() as connection:
        rows = connection.execute(sa.select(audit.c.actor, audit.c.action, audit.c.messages).order_by(audit.c.id))
        return [tuple(row) for row in rows]


def replay_the_dead(outbox: Outbox) -> int:
    return outbox.replay(Selection(states=(DEAD,), destination="enos"), by="test")


@pytest.mark.parametrize("together", [1, 7, 100])
def test_a_destination_that_refuses_everything_stops_after_so_many_and_kills_no_more(typo: Typo, together: int) -> None:
    hand = typo.place.hand(typo.wrong(batch_messages=together))
    typo.backlog(300)

    hand.turn_while_it_moves(at_most=200)

    assert Stop.REJECT_STREAK == hand.breaker().stop
    assert {DEAD: STREAK, PENDING: 300 - STREAK} == typo.counted()
    assert {Reason.REJECTED} == set(reasons(typo.place.database).values())


@pytest.mark.parametrize("together", [1, pytest.param(100, marks=pytest.mark.full)])
def test_several_workers_together_kill_no_more_than_one(typo: Typo, together: int) -> None:
    hands = [typo.place.hand(typo.wrong(batch_messages=together)) for _ in range(4)]
    typo.backlog(300)

    for _ in range(3):
        turn_while_any_moves(hands)

    assert {Stop.REJECT_STREAK} == {hand.breaker().stop for hand in hands}
    assert {DEAD: STREAK, PENDING: 300 - STREAK} == typo.counted()


def test_what_was_under_way_when_the_destination_stopped_is_spared(typo: Typo) -> None:
    place = typo.place
    hands = [place.hand(typo.wrong(batch_messages=1)) for _ in range(4)]
    typo.backlog(50)
    place.receiver.always(Hold())
    under_way = 32

    with ThreadPoolExecutor(under_way) as pool:
        turns = [pool.submit(hand.turn) for hand in hands for _ in range(under_way // 4)]
        place.receiver.wait_for(lambda receiver: receiver.held == under_way, 30)
        place.receiver.never()
        place.receiver.release()
        for turn in turns:
            turn.result(30)

    assert {DEAD: STREAK, PENDING: 50 - STREAK} == typo.counted()
    assert Stop.REJECT_STREAK == hands[0].breaker().stop
    assert [1] * under_way == [each.messages for each in deliveries(place.database)]
    assert not any(hand.turn() for hand in hands)


def test_the_stop_comes_with_the_refusal_that_reaches_the_limit_and_not_before(typo: Typo) -> None:
    hand = typo.place.hand(typo.wrong(batch_messages=1, reject_streak=3))
    typo.backlog(5)

    hand.turn()
    hand.turn()
    before = hand.breaker()
    hand.turn()

    assert (None, 2) == (before.stop, before.reject_streak)
    assert Stop.REJECT_STREAK == hand.breaker().stop
    assert {DEAD: 3, PENDING: 2} == typo.counted()


def test_the_stop_is_shown_with_what_the_destination_said(typo: Typo) -> None:
    place = typo.place
    typo.backlog(40)
    place.hand(typo.wrong()).turn_while_it_moves()

    environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
    environment |= {"OUTBOX_DATABASE": place.url, "OUTBOX_SPOOL": str(place.spool), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "outbox", "status", "--json"]
    run = warm.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=60)
    shown = json.loads(run.stdout)["destinations"]["enos"]

    assert ("reject_streak", "outbox") == (shown["stop"], shown["stopped_by"])
    assert (STREAK, 40 - STREAK, STREAK) == (shown["dead"], shown["due"], shown["reject_streak"])
    assert f"refused {STREAK} messages" in shown["stop_text"]
    assert WORDS in shown["stop_text"], "an operator reads what to mend"


def test_probes_of_a_stopped_destination_kill_nobody(typo: Typo) -> None:
    place = typo.place
    hands = [place.hand(typo.wrong(batch_messages=1)) for _ in range(3)]
    typo.backlog(60)
    hands[0].turn_while_it_moves()
    known = len(place.receiver.requests)

    for _ in range(24):
        place.clock.move(minutes=14, seconds=59)
        early = [hand.turn() for hand in hands]
        assert not any(early), "every quarter of an hour is enough"
        place.clock.move(seconds=2)
        turn_while_any_moves(hands, threads=1)

    probes = deliveries(place.database)[known:]
    assert [(1, True, "reject")] * 24 == [(each.messages, each.probe, each.outcome) for each in probes]
    assert {DEAD: STREAK, PENDING: 60 - STREAK} == typo.counted()
    assert 0 == max(column(place.database, key, "failures") for key in states(place.database))


def test_probes_that_fail_in_other_ways_kill_nobody_and_the_stop_stands(typo: Typo) -> None:
    place = typo.place
    hand = place.hand(typo.wrong(batch_messages=1))
    typo.backlog(30)
    hand.turn_while_it_moves()

    for number in range(30):
        place.clock.move(minutes=16)
        if number % 2:
            place.receiver.misbehave(Status(503))
        hand.turn()

    assert Stop.REJECT_STREAK == hand.breaker().stop
    assert {DEAD: STREAK, PENDING: 30 - STREAK} == typo.counted()


@pytest.mark.parametrize("together", [pytest.param(1, marks=pytest.mark.full), 100])
def test_after_the_fix_and_a_resume_the_rest_arrives_and_a_replay_brings_the_others_back(typo: Typo, together: int) -> None:
    place = typo.place
    typo.backlog(120)
    turn_while_any_moves([place.hand(typo.wrong(batch_messages=together)) for _ in range(2)])
    mended = typo.right(batch_messages=together)
    hand = place.hand(mended)
    untouched = hand.turn()

    resumed = mended.resume("enos", by="test")
    hand.turn_while_it_moves(at_most=200)
    rest = typo.counted()
    replayed = replay_the_dead(mended)
    turn_while_any_moves([hand])

    assert (False, True) == (untouched, resumed)
    assert {DEAD: STREAK, DELIVERED: 120 - STREAK} == rest
    assert STREAK == replayed
    assert {DELIVERED: 120} == typo.counted()
    assert (None, 0) == (hand.breaker().stop, hand.breaker().reject_streak)
    assert [("test", "resume", 0), ("test", "replay", STREAK)] == acts(place)
    typo.check()


def test_after_the_fix_a_restarted_worker_needs_nobody_to_resume(typo: Typo) -> None:
    """No time passes by the clock: it is the start that makes the probe due."""
    place = typo.place
    typo.backlog(60)
    place.hand(typo.wrong()).turn_while_it_moves()

    mended = typo.right(batch_messages=10)
    with Worker(mended, poll=0.02):
        eventually(lambda: typo.counted() == {DEAD: STREAK, DELIVERED: 60 - STREAK})
        replayed = replay_the_dead(mended)
        eventually(lambda: typo.counted() == {DELIVERED: 60})

    assert STREAK == replayed
    assert [("test", "replay", STREAK)] == acts(place)
    typo.check()


def test_after_the_fix_on_the_other_side_it_goes_on_by_itself(typo: Typo) -> None:
    """The organisation is made, say: a worker that was never restarted finds out within a quarter of an hour."""
    place = typo.place
    hand = place.hand(typo.right(batch_messages=10))
    typo.backlog(60)
    place.receiver.refuse(lambda struct: True, code=99400, msg="orgId is unknown")
    hand.turn_while_it_moves(at_most=200)
    stopped = hand.breaker().stop
    place.receiver.stop_refusing()

    place.clock.move(minutes=15, seconds=1)
    hand.turn_while_it_moves(at_most=200)

    assert Stop.REJECT_STREAK == stopped
    assert {DEAD: STREAK, DELIVERED: 60 - STREAK} == typo.counted()
    assert [] == acts(place)
    place.check()


def test_workers_that_restart_without_the_fix_kill_nobody(typo: Typo) -> None:
    place = typo.place
    typo.backlog(60)
    place.hand(typo.wrong()).turn_while_it_moves()
    wrong = typo.wrong()

    for number in range(5):
        known = len(place.receiver.requests)
        with Worker(wrong, poll=0.02):
            place.receiver.wait_for(lambda receiver, known=known: len(receiver.requests) == known + 1)
        assert known + 1 == len(place.receiver.requests), f"start {number} made more than one probe"

    assert {DEAD: STREAK, PENDING: 60 - STREAK} == typo.counted()


def test_a_resume_without_the_fix_costs_no_more_than_the_limit_again(typo: Typo) -> None:
    place = typo.place
    wrong = typo.wrong(batch_messages=1)
    hands = [place.hand(wrong), *(place.hand(typo.wrong(batch_messages=1)) for _ in range(3))]
    typo.backlog(100)
    turn_while_any_moves(hands)

    wrong.resume("enos", by="test")
    for _ in range(30):
        turn_while_any_moves(hands)

    assert Stop.REJECT_STREAK == hands[0].breaker().stop
    assert {DEAD: 2 * STREAK, PENDING: 100 - 2 * STREAK} == typo.counted()


@pytest.mark.full
def test_streams_go_on_in_order_once_their_dead_are_replayed(typo: Typo) -> None:
    place = typo.place
    wrong = typo.wrong()
    streams = [f"pump{number:02}" for number in range(25)]
    for number in range(3):
        for name in streams:
            place.enqueue(wrong, f"{name}-{number}", ordering_key=name)
    place.hand(wrong).turn_while_it_moves(at_most=200)
    dead = [key for key, state in states(place.database).items() if state == DEAD]

    mended = typo.right()
    hand = place.hand(mended)
    mended.resume("enos", by="test")
    hand.turn_while_it_moves()
    held_up = typo.counted()
    replay_the_dead(mended)
    for _ in range(3):
        turn_while_any_moves([hand], threads=1)

    assert STREAK == len(dead)
    assert {f"{name}-0" for name in streams} >= set(dead), "only what stands first in its stream travels"
    assert {DEAD: STREAK, PENDING: 2 * STREAK, DELIVERED: 3 * (25 - STREAK)} == held_up
    assert {DELIVERED: 75} == typo.counted()
    arrived = [each.struct["assetId"] for each in place.receiver.accepted]
    assert [] == [name for name in streams if [f"{name}-{each}" for each in range(3)] != [k for k in arrived if name in k]]
    typo.check()


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, pytest.param(100, marks=pytest.mark.full)])
def test_bad_messages_among_good_ones_do_not_stop_a_destination(typo: Typo, together: int) -> None:
    place = typo.place
    hands = [place.hand(typo.right(batch_messages=together)) for _ in range(2)]
    keys = typo.backlog(150)
    bad = set(keys[::5])
    place.receiver.refuse(lambda struct: struct["assetId"] in bad)

    while any(hand.turn() for hand in hands):
        assert hands[0].breaker().stop is None

    assert 30 == len(bad) > STREAK
    assert {DEAD: 30, DELIVERED: 120} == typo.counted()
    assert bad == set(reasons(place.database))
    place.check()


def test_one_delivery_sets_the_count_back(typo: Typo) -> None:
    place = typo.place
    hand = place.hand(typo.right(batch_messages=1, reject_streak=3))
    keys = typo.backlog(9)
    good = {keys[2], keys[5], keys[8]}
    place.receiver.refuse(lambda struct: struct["assetId"] not in good)
    counts = []

    for _ in keys:
        hand.turn()
        counts.append(hand.breaker().reject_streak)

    assert [1, 2, 0] * 3 == counts
    assert {DEAD: 6, DELIVERED: 3} == typo.counted()
    place.check()


def test_the_count_is_the_fleets_and_outlives_every_worker(typo: Typo) -> None:
    typo.backlog(60)

    for _ in range(STREAK + 5):
        typo.place.hand(typo.wrong(batch_messages=1)).turn()

    assert {DEAD: STREAK, PENDING: 60 - STREAK} == typo.counted()
