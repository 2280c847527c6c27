"""Callers, people and workers at the same rows of one Postgres: whose error it is, and who waits for whom."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from outbox import Lane, Outbox, Policy, Selection, State
from outbox.errors import SpoolError
from outbox.policy import Retention
from outbox.testing import Status
from tests.factories import caller_engine, event, in_full, states
from tests.interference import Interference
from tests.story.conftest import Hand, Place

pytestmark = pytest.mark.merge

EVERY_LANE = tuple(Lane)


def test_what_strikes_a_callers_transaction_reaches_the_caller_as_it_is_and_leaves_nothing(postgres_place: Place) -> None:
    place, outbox, engine = postgres_place, postgres_place.outbox(), caller_engine(postgres_place.url)
    interference = Interference(engine)
    kinds, at, told = list(interference.kinds), 1, False
    raised: list[tuple[str, str | None]] = []

    def enqueue(key: str) -> bool:
        with engine.begin() as connection:
            files = {"photo": b"bytes"}
            first = outbox.enqueue(connection, "enos", event(key, "photo"), files=files, key=key, ordering_key="pump")
            outbox.enqueue(connection, "enos", event(f"{key}+"), key=f"{key}+", ordering_key="pump", ordered=False)
            return first.new

    while not told:
        key, how = f"m{at}", kinds[at % len(kinds)]
        interference.strike(at, how)
        try:
            told = enqueue(key)
            interference.over()
        except DBAPIError as error:
            interference.over()
            raised.append((how, getattr(error.orig, "sqlstate", None)))
            # Whoever is not told what became of a COMMIT asks again, with the same key.
            assert (how != "untold") is enqueue(key)
        for each in (key, f"{key}+"):
            place.acknowledge(each, {"photo": b"bytes"} if each == key else None)
        at += 1

    engine.dispose()
    assert len(raised) >= 10
    assert [] == [(how, state) for how, state in raised if state != {"ended": "57P01", "untold": "57P01"}.get(how, how)]
    hand = place.hand(outbox)
    while hand.turn(*EVERY_LANE):
        pass
    outbox.sweep(timedelta(0))  # of a transaction that failed after the enqueue nobody else knows the files
    assert len(place.spooled()) == at - 1
    place.check()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_caller_that_was_overtaken_is_told_and_tries_again(postgres_place: Place, level: str) -> None:
    place, outbox = postgres_place, postgres_place.outbox()
    engine = caller_engine(place.url).execution_options(isolation_level=level)
    place.enqueue(outbox, "first", ordering_key="pump")

    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1")).all()  # from here on it sees nothing new
        place.enqueue(outbox, "second", ordering_key="pump")
        with pytest.raises(DBAPIError) as refused:
            outbox.enqueue(connection, "enos", event("third"), key="third", ordering_key="pump")
        connection.rollback()
        outbox.enqueue(connection, "enos", event("third"), key="third", ordering_key="pump")
        connection.commit()
    place.acknowledge("third")
    engine.dispose()

    assert "40001" == getattr(refused.value.orig, "sqlstate", None)
    place.hand(outbox).turn_while_it_moves()
    arrived = [struct["assetId"] for request in place.receiver.requests for struct in request.structs]
    assert ["first", "second", "third"] == arrived
    place.check()


def test_what_a_lent_engine_says_about_isolation_is_for_its_owner(postgres_place: Place) -> None:
    engine = sa.create_engine(postgres_place.url, isolation_level="SERIALIZABLE")
    outbox = Outbox(engine, spool=postgres_place.spool, destinations=postgres_place.outbox().destinations.values())

    with outbox.database.begin() as ours, engine.connect() as theirs:
        levels = [each.execute(sa.text("SHOW transaction_isolation")).scalar_one() for each in (ours, theirs)]

    engine.dispose()
    assert ["read committed", "serializable"] == levels


# Everything at once


class Crowd:
    """Producers, people and workers who are at the same messages, files, streams and shares, all at once."""

    KEYS = ("pump", "valve", "motor")

    def __init__(self, place: Place, seed: int, operations: int) -> None:
        self.place, self.seed, self.left = place, seed, operations
        self.outbox = place.outbox(retention=Retention(free_after=timedelta(0)))
        self.shared = [self.outbox.spool(name.encode()) for name in ("one", "two")]
        self.lock = threading.Lock()
        self.refusals: list[str] = []

    def go_on(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def produce(self, name: str) -> None:
        dice, engine = random.Random(f"{self.seed}{name}"), caller_engine(self.place.url)
        while self.go_on():
            # In one order: two callers that lock two streams, or make two shares, the other way round would wait in a circle.
            chosen = ((dice.choice((None, *self.KEYS)), dice.random() < 0.5) for _ in range(dice.randint(1, 4)))
            wanted = sorted(chosen, key=str)
            with self.noting(), engine.begin() as connection:
                for number, (ordering_key, ordered) in enumerate(wanted):
                    files = {"photo": dice.choice(self.shared)} if dice.random() < 0.4 else {}
                    key = f"{name}-{self.left}-{number}"
                    where = {"ordering_key": ordering_key, "ordered": ordered} if ordering_key else {}
                    with contextlib.suppress(SpoolError):  # it was freed: nobody had it for a while
                        self.outbox.enqueue(connection, "enos", event(key, *files), key=key, files=files, **where)
        engine.dispose()

    def meddle(self, name: str) -> None:
        dice = random.Random(f"{self.seed}{name}")
        acts = [self.outbox.replay, self.outbox.cancel, self.outbox.purge]
        while self.go_on():
            with self.noting():
                which = dice.randrange(5)
                if which < 3:
                    states = dice.sample(["delivered", "dead", "cancelled", "pending"], 2)
                    acts[which](Selection(states=tuple(map(State, states)), limit=dice.randint(1, 30)), name)
                elif which == 3:
                    key = dice.choice(self.KEYS)
                    self.outbox.pause("enos", "look", name, ordering_key=key)
                    self.outbox.resume("enos", name, ordering_key=key)
                else:
                    self.outbox.free_files()

    def work(self, hand: Hand) -> None:
        while self.go_on():
            with self.noting():
                hand.turn(*EVERY_LANE)
                hand.dispatcher.find_strays()
                hand.dispatcher.free_streams()
                hand.presence.beat()

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            with self.lock:
                self.refusals.append(f"{getattr(error.orig, 'sqlstate', None)}: {error}"[:2000])


def deadlocks_so_far(place: Place) -> int:
    count = sa.text("SELECT pg_stat_force_next_flush(), deadlocks FROM pg_stat_database WHERE datname = current_database()")
    with place.engine.connect() as connection:
        return int(connection.execute(count).one().deadlocks)


def test_whoever_is_at_the_same_messages_waits_for_nobody_in_a_circle(postgres_place: Place) -> None:
    """By the server's own count, too: a worker would try again, and nobody would know."""
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")
    place, policy = postgres_place, Policy(batch_messages=10, max_failures=2, on_dead="block", in_flight=3)
    place.receiver.refuse(lambda struct: struct["assetId"].endswith("-2"))
    place.receiver.sometimes(Status(503), 0.05, seed)
    crowd = Crowd(place, seed, in_full(10_000, 500))
    hands = [place.hand(place.outbox(policy)) for _ in range(3)]
    before = deadlocks_so_far(place)  # other tests had this database before us, and one makes a deadlock on purpose

    jobs = [
        *(partial(crowd.produce, name) for name in ("p1", "p2", "p3")),
        *(partial(crowd.meddle, name) for name in ("anna", "ben")),
        *(partial(crowd.work, hand) for hand in hands),
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        for each in [pool.submit(job) for job in jobs]:
            each.result()

    deadlocks = deadlocks_so_far(place) - before
    print(f"{len(states(place.database))} messages are left, {len(place.receiver.requests)} requests")
    assert ([], 0) == (crowd.refusals, deadlocks)
