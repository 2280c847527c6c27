"""What a worker delivers over HTTP, from its own rows: from the first claim to the last answer written down."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import requests
import sqlalchemy as sa

from bench.ground import KINDS, Ground, Kind, Sink, event
from bench.harness import Figure, Slice, Target, benchmark, compare, rate
from outbox import Policy, Worker, payload
from outbox.tables import delivery

#: A backlog is made of so many at least: so that what begins and ends a drain is a small part of it.
SMALLEST = 1000


def drained(ground: Ground, messages: int) -> float:
    """Messages a second of a real worker that finds so many waiting; putting them in is not counted."""
    ground.fill(messages)
    with ground.engine.begin() as connection:
        last = connection.execute(sa.select(sa.func.coalesce(sa.func.max(delivery.c.id), 0))).scalar_one()
        if ground.kind == "postgresql":
            connection.execute(sa.text("ANALYZE outbox_message"))  # a backlog that grew by itself has been looked at, too
    Worker(ground.outbox).run(until_idle=True)
    began, ended = sa.func.min(delivery.c.started_at), sa.func.max(delivery.c.finished_at)
    done = sa.func.sum(delivery.c.messages).filter(delivery.c.outcome == "delivered")
    with ground.engine.connect() as connection:
        row = connection.execute(sa.select(began, ended, done).where(delivery.c.id > last)).one()
    if row[2] != messages:
        raise RuntimeError(f"of {messages} messages {row[2] or 0} were delivered")
    return messages / (row[1] - row[0]).total_seconds()


def emptied(ground: Ground) -> None:
    """Nothing is in it any more, not even what Postgres keeps of deleted rows until somebody vacuums."""
    if ground.kind == "sqlite":
        ground.empty()
    else:
        with ground.engine.begin() as connection:
            connection.execute(sa.text("TRUNCATE outbox_attempt, outbox_delivery, outbox_message CASCADE"))


def draining(ground: Ground, guess: int, *, batch: int = 100) -> Slice:
    """Slices of `drained` on tables that are empty before each: as many whole batches as the last one managed in the time."""
    rate = float(guess)

    def slice_of(seconds: float) -> float:
        nonlocal rate
        emptied(ground)
        rate = drained(ground, max(round(rate * seconds / batch), -(-SMALLEST // batch)) * batch)
        return rate

    return slice_of


def _posts(ground: Ground) -> Slice:
    """Single posts of one event with requests, as anybody would make them."""
    body = {"enos-message": (None, payload.text(event(1)))}
    session = requests.Session()
    session.trust_env = False

    def post() -> int:
        session.post(ground.receiver.url, files=body).raise_for_status()
        return 1

    return lambda seconds: rate(post, seconds)


def _delivered(name: str, batch: int, targets: dict[Kind, Target]) -> Iterator[Figure]:
    for kind, target in targets.items():
        with Ground(kind, Policy(batch_messages=batch)) as ground:
            yield compare(
                name,
                draining(ground, 8000, batch=batch),
                _posts(ground),
                target,
                what=f"a worker as it comes, {batch} events a request, HTTP and attempts included",
                against="requests.Session().post of one event, one thread",
                unit="events/s",
                database=kind,
            )


@benchmark("delivered_100", "events delivered over HTTP, 100 a request, as a multiple of single posts with requests")
def delivered_100() -> Iterator[Figure]:
    yield from _delivered("delivered_100", 100, {"sqlite": Target(10, 15), "postgresql": Target(5, 8)})


@benchmark("delivered_500", "the same with 500 a request")
def delivered_500() -> Iterator[Figure]:
    yield from _delivered("delivered_500", 500, {"sqlite": Target(25, 40), "postgresql": Target(10, 15)})


@benchmark("delivered_1", "one event a request, 8 senders, as a multiple of a bare loop of two commits and a post")
def delivered_1() -> Iterator[Figure]:
    for kind in KINDS:
        with Ground(kind, Policy(batch_messages=1, senders=8)) as ground:
            yield compare(
                "delivered_1",
                draining(ground, 500, batch=1),
                _bare_loop(ground),
                Target(1.5, 3.0),
                what="a worker with 8 senders, one event a request",
                against="one thread: commit a row, post it with requests, commit a row",
                unit="events/s",
                database=kind,
                seconds=1.0,
            )


def _bare_loop(ground: Ground) -> Slice:
    """What somebody without a library does for each event: write down that it begins, post it, write down that it is done."""
    raw: Any
    if ground.kind == "sqlite":
        raw = sqlite3.connect(ground.engine.url.database or "", isolation_level=None, timeout=60)
        raw.execute("PRAGMA synchronous = FULL")
        mark = "?"
    else:
        url = ground.engine.url
        raw = psycopg.connect(
            host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database, autocommit=True
        )
        mark = "%s"
    raw.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, begun FLOAT, done FLOAT)")
    begin = f"INSERT INTO bare (id, begun) VALUES ({mark}, {mark})"
    end = f"UPDATE bare SET done = {mark} WHERE id = {mark}"
    session = requests.Session()
    session.trust_env = False
    numbers = itertools.count()

    def step() -> int:
        number = next(numbers)
        raw.execute(begin, (number, time.time()))
        session.post(ground.receiver.url, files={"enos-message": (None, payload.text(event(number)))}).raise_for_status()
        raw.execute(end, (time.time(), number))
        return 1

    return lambda seconds: rate(step, seconds)


@benchmark("in_flight", "4 uploads in flight and a server that takes 20 ms, as a multiple of one in flight")
def in_flight() -> Iterator[Figure]:
    with Sink(delay=0.02) as slow:
        for kind in KINDS:
            one = Ground(kind, Policy(senders=1), receiver=slow)
            four = Ground(kind, Policy(senders=4), receiver=slow)
            with one, four:
                yield compare(
                    "in_flight",
                    draining(four, 8000),
                    draining(one, 2500),
                    Target(3.2, 3.7),
                    what="4 senders, 100 events a request, the server answers after 20 ms",
                    against="one sender",
                    unit="events/s",
                    database=kind,
                )
