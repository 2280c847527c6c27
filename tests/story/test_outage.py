"""A destination that is away for three days costs nothing: no message, no person, and hardly a knock."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Lane, Outbox, Policy, State, Token, Worker
from outbox.limits import lane_order
from outbox.patience import Stop
from outbox.payload import text
from outbox.policy import send_deadline
from outbox.store import breaker
from outbox.tables import attempt, audit, delivery, message
from outbox.testing import Answer, BlackHole, Expired, Hold, Received, Receiver, Silence, Slow, Status, refused_url
from tests.factories import Clock, column, deliveries, event, in_full, message_values, states
from tests.story.conftest import Hand, Place, eventually

DELIVERED, PENDING = State.DELIVERED, State.PENDING
OUTAGE = timedelta(hours=72)
BACKLOG = in_full(9_950, 950)
#: Enqueued while the outage lasts, a few at a time: with the backlog 10,000 in full.
ARRIVALS = 50
TOGETHER = 5
HANDS = 3
#: To a request: the backlog is always some forty of them, so that a crowd of them could be seen.
BATCH = in_full(250, 25)
#: Requests that find out that something is wrong: five, and what was under way meanwhile.
FIRST_KNOCKS = 5 + HANDS - 1
#: What comes back is slow, so that workers would be seen to crowd it.
SLOWLY = Slow(0.1)


@dataclass
class Outage:
    """One kind of being away: a receiver, how it goes and how it comes back."""

    receiver: Receiver
    begin: Callable[[], object]
    end: Callable[[], object]
    token: Token | None = None
    #: Uploads arrive at the receiver while it lasts.
    heard: bool = False
    policy: Policy = field(default_factory=lambda: Policy(batch_messages=BATCH, probe_cap=in_full(1, 4) * Policy().probe_cap))


#: One kind has the defaults, in full. For the others, which differ in the answer alone, a quarter of its probes shows as much.
PATIENT = Policy(batch_messages=BATCH, probe_cap=in_full(1, 4) * 3600.0)


def connection_refused(stack: contextlib.ExitStack) -> Outage:
    receiver = stack.enter_context(Receiver(check_token=False))
    return Outage(receiver, receiver.close, receiver.start, policy=PATIENT)


def black_hole(stack: contextlib.ExitStack) -> Outage:
    hole = stack.enter_context(BlackHole())
    receiver = Receiver(check_token=False, port=hole.port)
    stack.callback(receiver.close)

    def end() -> None:
        hole.close()
        receiver.start()

    return Outage(receiver, lambda: None, end, policy=PATIENT)


def never_answers(stack: contextlib.ExitStack) -> Outage:
    return _behaving(stack, Silence(), policy=PATIENT)


def http_500(stack: contextlib.ExitStack) -> Outage:
    return _behaving(stack, Status(500))


def http_404_with_html(stack: contextlib.ExitStack) -> Outage:
    return _behaving(stack, Status(404, "<html><body>404 Not Found<hr>gateway</body></html>"), policy=PATIENT)


def redirect(stack: contextlib.ExitStack) -> Outage:
    return _behaving(stack, Status(302, headers={"Location": f"{refused_url()}/login"}), policy=PATIENT)


def token_service_down(stack: contextlib.ExitStack) -> Outage:
    receiver = stack.enter_context(Receiver(check_token=False))
    desk = stack.enter_context(Receiver())
    token = Token(desk.token_url, "app-key", "app-secret", allow_plain_http=True)
    return Outage(receiver, desk.close, desk.start, token, policy=PATIENT)


def _behaving(stack: contextlib.ExitStack, behaviour: Any, **more: Any) -> Outage:
    receiver = stack.enter_context(Receiver(check_token=False))
    return Outage(receiver, lambda: receiver.always(behaviour), receiver.never, heard=True, **more)


KINDS = [connection_refused, black_hole, never_answers, http_500, http_404_with_html, redirect, token_service_down]


RARE = (black_hole, never_answers, http_500, http_404_with_html, redirect)


@pytest.fixture(
    params=[pytest.param(each, marks=pytest.mark.full if each in RARE else []) for each in KINDS],
    ids=lambda kind: kind.__name__,
)
def outage(request: pytest.FixtureRequest) -> Iterator[Outage]:
    with contextlib.ExitStack() as stack:
        yield request.param(stack)


@pytest.fixture
def scene(database_url: str, tmp_path: Path, outage: Outage) -> Iterator[Place]:
    place = Place(database_url, tmp_path, outage.receiver)
    yield place
    place.close()


class Knocks:
    """What several workers have in hand on our side of the wire, uploads and calls for tokens together.

    While the clock is moved by hand, a request that gets no answer would still take its whole deadline in real time:
    `hurry` has it given up after that many seconds, with every other consequence.
    """

    def __init__(self, *hands: Hand) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.peak = 0
        self.hurry: float | None = None
        for hand in hands:
            for name in ("send", "post_json"):
                setattr(hand.transport, name, self._counted(getattr(hand.transport, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(what: Any, more: Any, deadline: float, connect: float) -> Any:
            with self._lock:
                self._now += 1
                self.peak = max(self.peak, self._now)
            try:
                return call(what, more, self.hurry or deadline, self.hurry or connect)
            finally:
                with self._lock:
                    self._now -= 1

        return counted


def backlog(place: Place, number: int, first: int = 0) -> None:
    """Many messages at once; how they got there is another story."""
    keys = [f"m{each:05}" for each in range(first, first + number)]
    with place.engine.begin() as connection:
        rows = [message_values(key=key, payload=text(event(key)), size=100, created_at=place.clock.wall) for key in keys]
        connection.execute(sa.insert(message), [row | {"due_at": place.clock.wall} for row in rows])
    for key in keys:
        place.acknowledge(key)


def arrive(place: Place, outbox: Outbox, first: int) -> float:
    """A few messages of every sort by the door; seconds that the slowest of them took."""
    slowest = 0.0
    for number in range(first, first + TOGETHER):
        options: list[dict[str, Any]] = [
            {},
            {"lane": Lane.EXPRESS},
            {"lane": Lane.BULK},
            {"ordering_key": "pump"},
            {"files": {"photo": b"bytes" * number}},
        ]
        began = time.monotonic()
        place.enqueue(outbox, f"arrival-{number:05}", **options[number % len(options)])
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def until_probe(clock: Clock, hand: Hand) -> bool:
    """Let time pass until the destination may be probed; False if it may be now."""
    until = hand.breaker().open_until
    if until is None or until <= clock.wall:
        return False
    clock.move((until - clock.wall).total_seconds() + 0.001)
    return True


def sit_out(place: Place, outbox: Outbox, hands: Sequence[Hand], until: datetime, knocks: Knocks) -> list[float]:
    """Workers that take turns, now and then at the same time, and a producer; how long each round of enqueues took."""
    arrived = 0
    waits: list[float] = []
    begun = place.clock.wall
    with ThreadPoolExecutor(HANDS + 1) as pool:
        rounds = 0
        opened = False
        while place.clock.wall < until:
            rounds += 1
            # All of them at first and every fourth time, else the next one: each has its own memory of what it saw.
            together = not opened or rounds % 4 == 0
            now = hands if together else [hands[rounds % HANDS]]
            jobs: list[Future[Any]] = [pool.submit(hand.turn, *lane_order(rounds)) for hand in now]
            due = ARRIVALS * (place.clock.wall - begun) / (until - begun)
            if arrived < ARRIVALS and arrived <= due:
                # At the same time as a probe.
                arriving = pool.submit(arrive, place, outbox, arrived)
                arrived += TOGETHER
                waits.append(arriving.result(30))
            for job in jobs:
                job.result(30)
            # A receiver notices only a moment later that its client has gone.
            place.receiver.wait_for(lambda receiver: receiver.in_flight == 0)
            if not until_probe(place.clock, hands[0]):
                place.clock.move(1)
            elif not opened:
                opened, knocks.peak = True, 0
    assert ARRIVALS == arrived
    return waits


def unfinished(place: Place) -> bool:
    with place.database.read() as connection:
        left = sa.select(message.c.id).where(message.c.state.in_([PENDING.value, State.CLAIMED.value])).limit(1)
        return connection.execute(left).one_or_none() is not None


def drain(place: Place, hands: Sequence[Hand], threads: int = 3) -> None:
    """Workers with several senders each, until everything is delivered; time passes only where a probe is waited for."""

    def send(hand: Hand, turn: int) -> None:
        moved = True
        while moved or unfinished(place):
            known = len(place.receiver.requests)
            turn += 1
            moved = hand.turn(*lane_order(turn))
            if not moved:
                with contextlib.suppress(TimeoutError):
                    place.receiver.wait_for(lambda receiver, known=known: len(receiver.requests) > known, 0.05)

    ends = time.monotonic() + 60
    with ThreadPoolExecutor(threads * len(hands)) as pool:
        jobs = [pool.submit(send, hand, number) for hand in hands for number in range(threads)]
        while wait(jobs, 0.05).not_done:
            assert time.monotonic() < ends, "still not delivered"
            if not place.receiver.in_flight:
                until_probe(place.clock, hands[0])
        for job in jobs:
            job.result()


def crowding(requests: Sequence[Received], policy: Policy) -> list[str]:
    """Requests that began while more were under way than the ramp allows; the first of them found the destination well.

    The ramp begins with `ramp_first` uploads when the first delivery is over, and grows by one with each delivery. The
    receiver sees a request end before any worker does, so it never sees less room than there was.
    """
    found = []
    delivered = sorted(each.finished for each in requests if each.accepted)
    begun, ended = sorted(each.started for each in requests), sorted(each.finished for each in requests)
    for request in requests:
        over = bisect_right(delivered, request.started)
        under_way = bisect_right(begun, request.started) - bisect_right(ended, request.started)
        room = policy.ramp_first + over - 1 if over else 1
        if over < policy.ramp_until - policy.ramp_first and under_way > room:
            found.append(f"{under_way} under way after {over} deliveries, at most {room} expected")
    return found


def overlapping(rows: Sequence[Any]) -> list[tuple[int, int]]:
    """Probes that were under way at the same time, by their rows."""
    return [
        (earlier.id, later.id)
        for earlier, later in pairwise(rows)
        if earlier.finished_at is None or later.started_at < earlier.finished_at
    ]


def worst(place: Place, name: str) -> int:
    """The largest value of a column among all messages."""
    with place.database.read() as connection:
        return int(connection.execute(sa.select(sa.func.max(message.c[name]))).scalar_one())


def began_after(place: Place, number: int) -> list[Received]:
    """The requests after so many, in the order they began."""
    return sorted(place.receiver.requests, key=lambda request: request.started)[number:]


def acts(place: Place) -> int:
    with place.database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(audit)).scalar_one())


def failures_of_their_own(place: Place) -> dict[str, int]:
    """How often each message failed alone in an upload that was no probe."""
    alone = (delivery.c.messages == 1, ~delivery.c.probe, attempt.c.outcome != "delivered")
    statement = (
        sa.select(message.c.key, sa.func.count())
        .join(attempt, attempt.c.message_id == message.c.id)
        .join(delivery, attempt.c.delivery_id == delivery.c.id)
        .where(*alone)
        .group_by(message.c.key)
    )
    with place.database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(statement)}


def most_probes(policy: Policy) -> int:
    """How many probes fit into the outage: after 5 s, 10 s, 20 s … and then every so often."""
    doubled = math.ceil(math.log2(policy.probe_cap / policy.probe_first))
    spent = policy.probe_first * (2**doubled - 1)
    return doubled + math.ceil((OUTAGE.total_seconds() - spent) / policy.probe_cap)


@pytest.mark.slow
@pytest.mark.long
def test_three_days_of_an_outage_cost_no_message_and_need_nobody(scene: Place, outage: Outage) -> None:
    place, policy = scene, outage.policy
    outboxes = [place.outbox(policy, clock=place.clock, token=outage.token) for _ in range(HANDS)]
    hands = [place.hand(each) for each in outboxes]
    knocks = Knocks(*hands)
    backlog(place, BACKLOG)

    outage.begin()
    knocks.hurry = 0.03
    waits = sit_out(place, outboxes[0], hands, place.clock.wall + OUTAGE, knocks)

    tried = deliveries(place.database)
    probes = [each for each in tried if each.probe]
    heard = len(place.receiver.requests)
    most = most_probes(policy)
    assert {PENDING} == set(states(place.database).values()), "nothing is dead, nothing is lost, nothing is stuck"
    assert (0, 0) == (worst(place, "failures"), worst(place, "unknowns"))
    assert 1 == knocks.peak, "never more than one at a time once the breaker was open"
    assert [] == overlapping(probes)
    assert {1} == {each.messages for each in probes}
    assert len(tried) - len(probes) <= FIRST_KNOCKS
    assert most - 3 <= len(probes) <= most, "neither a hammer nor asleep"
    assert 0 < heard <= len(tried) if outage.heard else heard == 0
    assert worst(place, "attempt") <= FIRST_KNOCKS + most // 4, "many knock, and not always the same one"
    assert max(waits) < 5, "a producer does not wait for a destination"

    outage.end()
    place.receiver.always(SLOWLY)
    knocks.hurry = None
    drain(place, hands)

    found = states(place.database)
    assert ({DELIVERED}, BACKLOG + ARRIVALS) == (set(found.values()), len(found))
    assert (0, 0) == (worst(place, "failures"), worst(place, "unknowns"))
    assert [] == crowding(began_after(place, heard), policy)
    assert [] == overlapping([each for each in deliveries(place.database) if each.probe])
    assert 0 == acts(place)
    place.check()


def test_while_a_probe_is_under_way_nobody_else_knocks(place: Place) -> None:
    hands = [place.hand(place.outbox(clock=place.clock)) for _ in range(HANDS)]
    backlog(place, 20)
    place.receiver.always(Status(503))
    for _ in range(5):
        hands[0].turn()
    until_probe(place.clock, hands[0])
    place.receiver.always(Hold())

    with ThreadPoolExecutor(3 * HANDS) as pool:
        turns = [pool.submit(hand.turn, *lane_order(number)) for number in range(3) for hand in hands]
        place.receiver.wait_for(lambda receiver: receiver.held == 1)
        # A turn that has only looked so far would find the destination well again once the probe is answered.
        eventually(lambda: sum(turn.done() for turn in turns) == len(turns) - 1)
        # As long as it may take at most, one tick less.
        until = hands[0].breaker().open_until
        place.clock.move((until - place.clock.wall).total_seconds() - 0.001)
        later = [hand.turn(*lane_order(number)) for number in range(3) for hand in hands]
        under_way = place.receiver.in_flight
        place.receiver.never()
        place.receiver.release()
        moved = [turn.result(10) for turn in turns]

    assert [False] * 9 == later
    assert 1 == under_way
    assert 1 == sum(moved)
    assert [True] == [each.probe for each in deliveries(place.database)[5:]]


def more_time_passes_than_one_upload_may_take(place: Place, _outbox: Outbox) -> None:
    """A token, an upload that is told to renew it, the renewal and the upload again: each has a deadline of its own."""
    place.clock.move(send_deadline(1000, Policy()) + 30)


def a_worker_starts(place: Place, outbox: Outbox) -> None:
    with outbox.database.begin() as connection:
        breaker.try_again(connection, ["enos"], place.clock.wall)


def a_person_resumes(_place: Place, outbox: Outbox) -> None:
    outbox.resume("enos", by="test")


MEANWHILE = [more_time_passes_than_one_upload_may_take, a_worker_starts, a_person_resumes]


@pytest.mark.long
@pytest.mark.parametrize("meanwhile", MEANWHILE, ids=lambda each: each.__name__)
def test_whatever_happens_meanwhile_there_is_one_probe_at_a_time(
    database_url: str, tmp_path: Path, meanwhile: Callable[[Place, Outbox], None]
) -> None:
    with Receiver() as receiver, ThreadPoolExecutor(1) as pool:
        place = Place(database_url, tmp_path, receiver)
        outboxes = [
            place.outbox(clock=place.clock, token=Token(receiver.url, "app-key", "app-secret", allow_plain_http=True))
            for _ in range(2)
        ]
        hand, other = (place.hand(each) for each in outboxes)
        backlog(place, 5)
        receiver.always(Expired())
        hand.turn()
        stopped = hand.breaker().stop
        until_probe(place.clock, hand)
        receiver.never()
        # The token has ended again, is renewed, and the second upload takes its time.
        receiver.misbehave(Expired(), Hold())
        prober = pool.submit(hand.turn)
        receiver.wait_for(lambda receiver: receiver.held == 1)

        place.clock.move(1)
        meanwhile(place, outboxes[1])
        knocked = other.turn()
        under_way = receiver.in_flight
        receiver.release()
        prober.result(10)

        assert Stop.CREDENTIALS == stopped
        assert (False, 1) == (knocked, under_way)
        assert 2 == len(deliveries(place.database))
        drain(place, [hand, other])
        place.check()
        place.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "outage",
    [connection_refused, pytest.param(http_500, marks=pytest.mark.full)],
    ids=lambda kind: kind.__name__,
    indirect=True,
)
@pytest.mark.long
def test_an_outage_in_the_middle_of_a_backlog_is_survived_by_real_senders(scene: Place, outage: Outage) -> None:
    place = scene
    policy = Policy(batch_messages=5, probe_first=0.05, probe_cap=0.2)
    workers = [Worker(place.outbox(policy), poll=0.02) for _ in range(2)]
    backlog(place, in_full(600, 300))

    for each in workers:
        each.start()
    place.receiver.wait_for(lambda receiver: len(receiver.accepted) >= 100, 30)
    outage.begin()
    eventually(lambda: sum(each.probe and each.finished_at is not None for each in deliveries(place.database)) >= 6)
    heard = len(place.receiver.requests)
    outage.end()
    place.receiver.always(SLOWLY)
    eventually(lambda: not unfinished(place), 40)
    for each in workers:
        each.stop()
        each.join()

    assert {DELIVERED} == set(states(place.database).values())
    assert [] == overlapping([each for each in deliveries(place.database) if each.probe])
    assert [] == crowding(began_after(place, heard), policy)
    place.check()


@pytest.mark.long
@pytest.mark.slow
def test_a_destination_that_is_up_for_one_delivery_now_and_then_kills_nothing(place: Place) -> None:
    """Every message knocks in every outage: were probes charged, the last of them would be given up."""
    outbox = place.outbox(Policy(max_failures=4), clock=place.clock)
    hand = place.hand(outbox)
    backlog(place, 8)
    place.receiver.always(Status(503))

    while unfinished(place):
        for _ in range(8):
            hand.turn()
            until_probe(place.clock, hand)
        known = len(place.receiver.accepted)
        place.receiver.misbehave(Answer(0))
        eventually(lambda known=known: hand.turn() or len(place.receiver.accepted) > known)

    own = failures_of_their_own(place)
    assert {DELIVERED} == set(states(place.database).values())
    assert [] == [key for key in states(place.database) if column(place.database, key, "failures") > own.get(key, 0)]
    place.check()
