"""A database says no at any step of anything we do: the next turn goes on, nothing is lost, stranded or done twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from outbox import Lane, Outbox, Policy, Selection, State
from outbox.errors import OutboxError
from outbox.model import FINAL
from outbox.policy import GONE_AFTER
from outbox.presence import _Seen
from outbox.store import living
from outbox.tables import message
from outbox.testing import Status
from tests.factories import in_full, outcomes, states
from tests.interference import Interference, Struck
from tests.story.conftest import Hand, Place

EVERY_LANE = tuple(Lane)


@dataclass
class Bench:
    """A worker whose turns are taken by hand, on a database that can be made to refuse."""

    place: Place
    outbox: Outbox
    hand: Hand
    interference: Interference
    strikes: int = 0
    kept: list[str] = field(default_factory=list)  #: delivered once, and replayed again and again

    def next_kind(self) -> str:
        """Each time another one."""
        self.strikes += 1
        return list(self.interference.kinds)[self.strikes % len(self.interference.kinds)]

    def enqueue(self, files: dict[str, bytes] | None = None, **options: object) -> str:
        """A message that must not be lost."""
        key = f"m{len(self.place.acknowledged)}"
        self.place.enqueue(self.outbox, key, files, **options)
        return key

    def three(self) -> list[str]:
        """One that waits by itself and has a file, one that is in a stream and one that is in a share."""
        return [
            self.enqueue({"photo": b"bytes"}),
            self.enqueue(ordering_key="pump"),
            self.enqueue(ordering_key="pump", ordered=False),
        ]

    def delivered(self) -> list[str]:
        keys = self.three()
        self.drain()
        return keys

    def claimed(self, worker: str) -> list[str]:
        """Three that are claimed, and their worker knows nothing of it."""
        keys = self.three()
        with self.outbox.database.begin() as connection:
            claims, mine = self.hand.dispatcher._claims, self.hand.presence.id
            self.hand.presence.id = worker
            living.register(connection, worker, "host", 1, self.place.clock.wall) if worker != mine else None
            assert claims.claim(connection, "enos", EVERY_LANE)
            self.hand.presence.id = mine
        return keys

    def drain(self) -> None:
        """What a worker does anyway, again and again, until nothing is left."""
        for _ in range(10):
            self.hand.presence.beat()
            self.hand.dispatcher.release_unheld()
            self.hand.dispatcher.rescue()
            self.hand.dispatcher.find_strays()
            self.hand.dispatcher.free_streams()
            while self.hand.turn(*EVERY_LANE):
                pass
            if set(states(self.place.database).values()) <= FINAL:
                return
            self.place.clock.move(hours=1, minutes=2)
        raise AssertionError(states(self.place.database))


@pytest.fixture
def bench(place: Place) -> Bench:
    # A turnstile, so that claims lock their destination too.
    policy = Policy(in_flight=4, rate=1e6)
    outbox = place.outbox(policy, clock=place.clock)
    hand = place.hand(outbox)
    database = outbox.database
    engines = {id(each): each for each in (database.engine, database._reader) if each is not None}
    return Bench(place, outbox, hand, Interference(*engines.values()))


def by_key(keys: list[str]) -> Selection:
    return Selection(keys=tuple(keys))


def a_turn(bench: Bench) -> Callable[[], object]:
    bench.three()
    return lambda: bench.hand.turn(*EVERY_LANE)


def a_turn_that_is_refused(bench: Bench) -> Callable[[], object]:
    bench.three()
    bench.place.receiver.misbehave(Status(503))
    return lambda: bench.hand.turn(*EVERY_LANE)


def a_rescue(bench: Bench) -> Callable[[], object]:
    ghost = bench.outbox.ambient.new_id()
    bench.claimed(ghost)
    with bench.outbox.database.begin() as connection:
        living.leave(connection, ghost)
    return bench.hand.dispatcher.rescue


def a_release(bench: Bench) -> Callable[[], object]:
    bench.claimed(bench.hand.presence.id)
    return bench.hand.dispatcher.release_unheld


def a_beat(bench: Bench) -> Callable[[], object]:
    bench.place.clock.move(GONE_AFTER)
    return bench.hand.presence.beat


def a_look(bench: Bench) -> Callable[[], object]:
    ghost = bench.outbox.ambient.new_id()
    with bench.outbox.database.begin() as connection:
        living.register(connection, ghost, "host", 1, bench.place.clock.wall)
    bench.hand.presence._others = {ghost: _Seen(0, still_for=GONE_AFTER)}
    return bench.hand.presence.look


def a_replay(bench: Bench) -> Callable[[], object]:
    bench.kept = bench.kept or bench.delivered()
    return lambda: bench.outbox.replay(by_key(bench.kept), "anna")


def a_cancel(bench: Bench) -> Callable[[], object]:
    keys = bench.three()
    return lambda: bench.outbox.cancel(by_key(keys), "anna")


def a_purge(bench: Bench) -> Callable[[], object]:
    keys = bench.delivered()
    bench.place.purged |= set(keys)
    return lambda: bench.outbox.purge(by_key(keys), "anna")


def freeing(bench: Bench) -> Callable[[], object]:
    bench.delivered()
    bench.place.clock.move(hours=2)
    return bench.outbox.free_files


def expiring(bench: Bench) -> Callable[[], object]:
    bench.enqueue(expires_at=bench.place.clock.wall + timedelta(minutes=1), ordering_key="pump")
    bench.place.clock.move(minutes=2)
    return bench.hand.dispatcher.expire


def care_of_streams(bench: Bench) -> Callable[[], object]:
    bench.claimed(bench.hand.presence.id)
    with bench.outbox.database.begin() as connection:  # as after a record that could not wait for a producer
        ours = (message.c.state == State.CLAIMED, message.c.stream_id.is_not(None))
        released = {"state": State.CANCELLED, "claimed_by": None, "delivery_id": None, "finished_at": bench.place.clock.wall}
        connection.execute(sa.update(message).where(*ours).values(released))
    return bench.hand.dispatcher.free_streams


def a_pause_and_a_resume(bench: Bench) -> Callable[[], object]:
    bench.enqueue(ordering_key="pump")

    def both() -> None:
        bench.outbox.pause("enos", "look first", "anna", ordering_key="pump")
        bench.outbox.pause("enos", "look first", "anna")
        bench.outbox.resume("enos", "anna")
        bench.outbox.resume("enos", "anna", ordering_key="pump")

    return both


def a_new_name(bench: Bench) -> Callable[[], object]:
    bench.enqueue()
    return bench.hand.presence.arrive


OPERATIONS = {
    each.__name__: each
    for each in (
        a_turn,
        a_turn_that_is_refused,
        a_rescue,
        a_release,
        a_beat,
        a_look,
        a_replay,
        a_cancel,
        a_purge,
        freeing,
        expiring,
        a_pause_and_a_resume,
        a_new_name,
    )
}


def struck_everywhere(bench: Bench, arrange: Callable[[Bench], Callable[[], object]], stride: int) -> list[Struck]:
    """Do it again and again, and strike it a little later each time, until it is through before it is struck.

    What a strike left undone is what the next one meets: so a turn follows a turn that failed, as in a worker.
    """
    struck: list[Struck] = []
    at, action = 1, None
    while True:
        fresh = action is None
        if action is None:
            bench.drain()
            action = arrange(bench)
        bench.interference.strike(at, bench.next_kind())
        failed: Exception | None = None
        try:
            action()
        except (SQLAlchemyError, OutboxError) as error:
            failed = error
        hit = bench.interference.over()
        if hit is not None:
            struck.append(hit)
            at += stride
        elif failed is not None:
            raise failed
        elif fresh:
            bench.drain()
            return struck
        else:
            action = None  # that is done: another of the same


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_is_struck_at_any_step_goes_on_and_nothing_is_lost_or_doubled(bench: Bench, operation: str) -> None:
    stride = in_full(1, 17 if bench.place.database.kind == "sqlite" else 3)
    for first in range(in_full(len(bench.interference.kinds), 1)):  # in full, each step is struck in every way
        bench.strikes = first
        struck = struck_everywhere(bench, OPERATIONS[operation], stride)

    print(f"{operation}: {len(struck)} steps struck")
    assert struck
    bench.place.check()


@pytest.mark.merge
def test_a_record_whose_commit_nobody_heard_of_is_not_charged_again(
    postgres_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place, outbox = postgres_place, postgres_place.outbox(clock=postgres_place.clock)
    hand, engine = place.hand(outbox), outbox.database.engine
    interference = Interference(engine)
    place.enqueue(outbox, "a", ordering_key="pump")
    place.receiver.misbehave(Status(503))

    @sa.event.listens_for(engine, "after_cursor_execute")
    def strike_its_commit(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO outbox_attempt"):
            interference.strike(1, "untold")

    with pytest.raises(DBAPIError):
        hand.turn()
    sa.event.remove(engine, "after_cursor_execute", strike_its_commit)
    once = hand.breaker()
    hand.dispatcher.record_leftovers()

    assert Struck("COMMIT", "untold") == interference.over()
    assert (1, 1) == (once.failures, hand.breaker().failures)
    assert (0, [("retry", None)]) == (hand.dispatcher.holds, outcomes(place.database, "a"))
    assert "was lost" not in caplog.text
    hand.turn_while_it_moves()
    place.check()
