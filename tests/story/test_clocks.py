"""Clocks that are wrong: whatever the wall clock does, work goes on, nothing is repeated and nothing expires early."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apscheduler.schedulers.base
import pytest

import outbox.metronome
from outbox import Ambient, Outbox, Policy, State, Token, Worker
from outbox.dispatcher import Dispatcher
from outbox.testing import Receiver, Status
from tests.factories import Clock, an_outbox, column, enos, in_full, outcomes, states
from tests.story.conftest import Hand, Place, eventually

DAY = timedelta(days=1)
YEAR = timedelta(days=365)
BOOT = datetime(1970, 1, 1, 0, 0, 40, tzinfo=UTC)
#: Seconds between two turns, at most, whatever the clock does.
LARGEST_GAP = 2.0
DELIVERED, PENDING, DEAD = State.DELIVERED, State.PENDING, State.DEAD


class WallClock:
    """The wall clock of this process: true time and a step."""

    def __init__(self) -> None:
        self.step = timedelta(0)

    def now(self, tz: Any = None) -> datetime:
        return datetime.now(tz) + self.step

    def show(self, instant: datetime) -> None:
        """Let it be that time now."""
        self.step = instant - datetime.now(UTC)

    @property
    def ambient(self) -> Ambient:
        return Ambient(now=lambda: self.now(UTC))


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """A wall clock that may step under our worker and its scheduler alike."""
    clock = WallClock()

    class Stepping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return clock.now(tz)

    monkeypatch.setattr(outbox.metronome, "datetime", Stepping)
    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Stepping)
    return clock


class Pulse:
    """When turns were taken, and for how long this machine itself stood still meanwhile."""

    def __init__(self) -> None:
        self.turns: list[float] = [time.monotonic()]
        self.stall = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._feel, daemon=True)

    def _feel(self) -> None:
        before = time.monotonic()
        while not self._ends.wait(0.05):
            now = time.monotonic()
            self.stall = max(self.stall, now - before - 0.05)
            before = now

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self.turns.append(time.monotonic())

    @property
    def gap(self) -> float:
        """The longest time without a turn, without what the machine is to blame for."""
        return max(later - earlier for earlier, later in zip(self.turns, self.turns[1:], strict=False)) - self.stall


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pulse]:
    """Looks at what there is to do, and stretches of work on it."""
    felt = Pulse()

    def noting(function: Any) -> Any:
        def noted(self: Dispatcher, *args: Any, **options: Any) -> Any:
            felt.turns.append(time.monotonic())
            return function(self, *args, **options)

        return noted

    for name in ("look_ahead", "work"):
        monkeypatch.setattr(Dispatcher, name, noting(getattr(Dispatcher, name)))
    return felt


def outbox_at(place: Place, wall: WallClock, policy: Policy | None = None, **options: Any) -> Outbox:
    """An outbox in true monotonic time and that wall time; no nudge hides what the clock does to who waits."""
    destination = enos(place.receiver.url, policy=policy, **options)
    made = an_outbox(place.url, place.spool, destination, ambient=wall.ambient, nudge=False)
    place._outboxes.append(made)
    return made


@contextmanager
def working(made: Outbox, **options: Any) -> Iterator[Worker]:
    with Worker(made, **({"gone_after": 15.0} | options)) as worker:
        yield worker


def came(place: Place, *keys: str, within: float = 20) -> None:
    place.receiver.wait_for(lambda each: set(keys) <= {taken.struct["assetId"] for taken in each.accepted}, within)
    eventually(lambda: {states(place.database)[key] for key in keys} == {DELIVERED})


def trickle(place: Place, made: Outbox, name: str, number: int = in_full(4, 2)) -> None:
    """Messages one after the other, each of which must come."""
    for each in range(number):
        place.enqueue(made, f"{name}-{each}")
        came(place, f"{name}-{each}")


def copies(place: Place) -> dict[str, int]:
    """The messages that arrived more than once."""
    found: dict[str, int] = {}
    for request in place.receiver.requests:
        for struct in request.structs if request.stored else ():
            found[struct["assetId"]] = found.get(struct["assetId"], 0) + 1
    return {key: times for key, times in found.items() if times > 1}


STEPS = {
    "a day back": [-DAY],
    "a year ahead": [YEAR],
    "a day back and again": [-DAY, timedelta(0)],
    "a year ahead and back": [YEAR, timedelta(0)],
    "to and fro": [-DAY, YEAR, timedelta(hours=-2), timedelta(0)],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", [pytest.param(each, marks=pytest.mark.full if each.startswith("a year") else []) for each in STEPS]
)
@pytest.mark.long
def test_work_goes_on_through_steps_of_the_clock(place: Place, wall: WallClock, pulse: Pulse, steps: str) -> None:
    made = outbox_at(place, wall)
    place.enqueue(made, "next week", due_at=wall.now(UTC) + 7 * DAY)
    place.enqueue(made, "next week in a stream", due_at=wall.now(UTC) + 7 * DAY, ordering_key="pump")
    with working(made) as worker, pulse:
        trickle(place, made, "before", 1)
        for number, step in enumerate(STEPS[steps]):
            # While every loop sleeps: one that runs at the moment of the step would arm itself by the new clock.
            eventually(lambda: not any(loop.running for loop in worker._loops))
            wall.step = step
            trickle(place, made, f"after-{number}")

    print(f"largest gap between turns {pulse.gap:.2f} s, without {pulse.stall:.2f} s in which the machine stood still")
    assert pulse.gap <= LARGEST_GAP
    assert {} == copies(place)
    left = {key: state for key, state in states(place.database).items() if state != DELIVERED}
    assert {"next week": PENDING, "next week in a stream": PENDING} == left
    place.check(drained=False)


@pytest.mark.slow
@pytest.mark.parametrize("step", [-DAY, YEAR], ids=["a day back", "a year ahead"])
@pytest.mark.long
def test_what_waits_through_a_step_is_delivered_once_and_does_not_expire(
    place: Place, wall: WallClock, step: timedelta
) -> None:
    """A breaker is open and messages wait for it while the clock steps."""
    policy = Policy(max_age=3600, breaker_after=2, probe_first=1, probe_cap=2, batch_messages=5)
    made = outbox_at(place, wall, policy)
    place.receiver.always(Status(503))
    with working(made, poll=0.1):
        for number in range(8):
            place.enqueue(made, f"old-{number}")
        place.enqueue(made, "in an hour", expires_at=wall.now(UTC) + timedelta(hours=1))
        place.enqueue(made, "in a stream", ordering_key="pump")
        place.enqueue(made, "in a share", ordering_key="fan", ordered=False)
        place.receiver.wait_for(lambda each: len(each.requests) >= 3, 20)

        wall.step = step
        place.enqueue(made, "new")
        place.receiver.wait_for(lambda each: len(each.requests) >= 5, 20)
        place.receiver.never()
        came(place, *(f"old-{number}" for number in range(8)), "in an hour", "in a stream", "in a share", "new")

    assert {} == copies(place)
    place.check()


@pytest.mark.long
@pytest.mark.slow
def test_a_boot_in_1970_that_is_corrected_later(place: Place, wall: WallClock, pulse: Pulse) -> None:
    true = wall.now(UTC)
    wall.show(BOOT)
    made = outbox_at(place, wall, Policy(max_age=60))
    place.receiver.always(Status(503))
    with working(made), pulse:
        for number in range(4):
            place.enqueue(made, f"early-{number}")
        place.enqueue(made, "next week", due_at=true + 7 * DAY)
        place.enqueue(made, "expires in an hour", expires_at=true + timedelta(hours=1))
        place.receiver.wait_for(lambda each: len(each.requests) >= 1, 20)
        place.receiver.never()
        trickle(place, made, "in 1970", 2)

        wall.step = timedelta(0)
        trickle(place, made, "later", 2)
        came(place, *(f"early-{number}" for number in range(4)), "expires in an hour")

    print(f"largest gap between turns {pulse.gap:.2f} s, without {pulse.stall:.2f} s in which the machine stood still")
    assert pulse.gap <= LARGEST_GAP
    assert {} == copies(place)
    assert PENDING == states(place.database)["next week"]
    place.check(drained=False)


@pytest.mark.long
def test_a_boot_in_1970_finds_a_backlog_of_before(place: Place, wall: WallClock) -> None:
    """The machine was switched off with messages in the outbox, and has no battery."""
    made = outbox_at(place, wall, Policy(max_age=3600))
    true = wall.now(UTC)
    for number in range(3):
        place.enqueue(made, f"old-{number}")
    place.enqueue(made, "old stream", ordering_key="pump")
    place.enqueue(made, "next week", due_at=true + 7 * DAY)
    wall.show(BOOT)

    with working(outbox_at(place, wall, Policy(max_age=3600)), poll=0.1):
        came(place, "old-0", "old-1", "old-2", "old stream")
        wall.step = timedelta(0)
        trickle(place, made, "later", 1)

    assert {} == copies(place)
    assert PENDING == states(place.database)["next week"]
    place.check(drained=False)


@pytest.mark.long
@pytest.mark.parametrize("step", [-DAY, timedelta(hours=-2)], ids=["a day", "two hours"])
def test_a_worker_that_starts_after_a_step_back_takes_what_was_there(place: Place, wall: WallClock, step: timedelta) -> None:
    made = outbox_at(place, wall)
    place.enqueue(made, "loose")
    place.enqueue(made, "in a stream", ordering_key="pump")
    place.enqueue(made, "in a share", ordering_key="fan", ordered=False)
    wall.step = step
    place.enqueue(made, "new")
    place.enqueue(made, "tomorrow", due_at=wall.now(UTC) + 7 * DAY)

    with working(outbox_at(place, wall), poll=0.1):
        came(place, "loose", "in a stream", "in a share", "new")

    assert {} == copies(place)
    assert PENDING == states(place.database)["tomorrow"]
    place.check(drained=False)


# By hand, second by second


def failing_for(place: Place, hand: Hand, seconds: int) -> int:
    """How often a message is tried that its destination cannot take, while it takes others."""
    for second in range(seconds):
        place.enqueue(hand.outbox, f"good-{second}", lane="express")
        for _ in range(4):
            hand.turn()
        place.clock.move(seconds=1)
    return int(column(place.database, "bad", "failures"))


@pytest.mark.long
@pytest.mark.parametrize("restart", [False, True], ids=["the same worker", "a new worker"])
@pytest.mark.parametrize("step", [timedelta(0), -DAY, YEAR], ids=["no step", "a day back", "a year ahead"])
def test_a_message_that_fails_is_put_off_whatever_the_clock_did(place: Place, step: timedelta, restart: bool) -> None:
    policy = Policy(batch_messages=1)
    made = place.outbox(policy, clock=place.clock)
    hand = place.hand(made)
    place.receiver.break_on(lambda struct: struct["assetId"] == "bad", Status(503))
    place.enqueue(made, "of before", lane="bulk")
    place.clock.wall += step
    if restart:
        hand = place.hand(place.outbox(policy, clock=place.clock))
    place.enqueue(made, "bad")

    failures = failing_for(place, hand, in_full(25, 12))

    assert in_full(5, 4) == failures, "after 1, 2, 4, 8 and 16 seconds, and the first one is the destination's"
    assert PENDING == states(place.database)["bad"]


@pytest.mark.long
@pytest.mark.parametrize("restart", [False, True], ids=["the same worker", "a new worker"])
@pytest.mark.parametrize("step", [-DAY, timedelta(hours=-2), YEAR], ids=["a day back", "two hours back", "a year ahead"])
def test_an_open_breaker_is_probed_as_before_whatever_the_clock_did(place: Place, step: timedelta, restart: bool) -> None:
    made = place.outbox(clock=place.clock)
    hand = place.hand(made)
    place.enqueue(made, "a")
    place.receiver.always(Status(503))
    for _ in range(5):
        hand.turn()
    place.clock.wall += step
    if restart:
        hand = place.hand(place.outbox(clock=place.clock))
    probes = []
    step_by = in_full(5, 20)
    for second in range(0, 1000, step_by):
        known = len(place.receiver.requests)
        hand.turn()
        probes += [second] * (len(place.receiver.requests) - known)
        place.clock.move(seconds=step_by)
    place.receiver.never()
    place.clock.move(seconds=901)

    print(f"probes after {probes} s")
    assert 5 <= len(probes) <= 9, "5, 10, 20 … seconds apart"
    assert hand.turn()
    place.check()


@pytest.mark.long
@pytest.mark.parametrize("back", [True, False], ids=["and back", "and not back"])
@pytest.mark.parametrize("step", [-DAY, YEAR], ids=["a day back", "a year ahead"])
def test_a_message_does_not_expire_because_the_clock_went_there_and_back(place: Place, step: timedelta, back: bool) -> None:
    policy = Policy(max_age=3600)
    made = place.outbox(policy, clock=place.clock)
    hand = place.hand(made)
    place.receiver.always(Status(503))
    place.enqueue(made, "before")
    hand.turn()
    place.clock.wall += step
    place.clock.move(seconds=10)
    place.enqueue(made, "between")
    hand.turn()
    if back:
        place.clock.wall -= step
    place.clock.move(seconds=10)

    expired = hand.dispatcher.expire()
    place.receiver.never()
    hand.turn_while_it_moves()

    assert 0 == expired
    assert {"before": DELIVERED, "between": DELIVERED} == states(place.database)
    place.check()


def test_what_is_too_old_expires_all_the_same_once_the_clock_is_believed(place: Place) -> None:
    made = place.outbox(Policy(max_age=3600), clock=place.clock)
    hand = place.hand(made)
    place.receiver.always(Status(503))
    place.enqueue(made, "a")
    hand.turn()
    place.clock.wall += YEAR
    early = hand.dispatcher.expire()

    place.clock.move(hours=1, seconds=1)

    assert (0, 1) == (early, hand.dispatcher.expire())
    assert {"a": DEAD} == states(place.database)


class Gateway(Place):
    """A place whose token service refuses a request signed more than five minutes off; its tokens live an hour."""

    def __init__(self, url: str, folder: Path, clock: Clock) -> None:
        start = clock.wall.timestamp() - clock.ticks
        receiver = Receiver(
            max_skew=300, token_lifetime=3600, monotonic=lambda: clock.ticks, wall=lambda: start + clock.ticks
        ).start()
        super().__init__(url, folder, receiver)
        self.clock = clock

    def close(self) -> None:
        self.receiver.close()
        super().close()


@pytest.fixture
def gateway(database_url: str, tmp_path: Path) -> Iterator[Place]:
    place = Gateway(database_url, tmp_path, Clock())
    yield place
    place.close()


def with_token(place: Place) -> Outbox:
    token = Token(place.receiver.token_url, "app-key", "app-secret", allow_plain_http=True)
    return place.outbox(clock=place.clock, token=token)


@pytest.mark.parametrize("step", [-DAY, YEAR], ids=["a day back", "a year ahead"])
def test_a_token_lives_on_through_a_step(gateway: Place, step: timedelta) -> None:
    hand = gateway.hand(with_token(gateway))
    gateway.enqueue(hand.outbox, "before")
    hand.turn()

    gateway.clock.wall += step
    gateway.clock.move(minutes=10)
    gateway.enqueue(hand.outbox, "after")
    hand.turn()

    assert {"before": DELIVERED, "after": DELIVERED} == states(gateway.database)
    assert {"get": 1} == dict(+gateway.receiver.token_requests)
    gateway.check()


@pytest.mark.parametrize("step", [-DAY, YEAR], ids=["a day back", "a year ahead"])
def test_a_token_is_had_again_once_the_clock_is_right_again(gateway: Place, step: timedelta) -> None:
    hand = gateway.hand(with_token(gateway))
    gateway.enqueue(hand.outbox, "a")
    gateway.clock.wall += step
    hand.turn()
    refused = outcomes(gateway.database, "a")

    gateway.clock.wall -= step
    for _ in range(3):
        gateway.clock.move(minutes=16)
        hand.turn()

    assert [("retry", None)] == refused
    assert {"a": DELIVERED} == states(gateway.database)
    gateway.check()
