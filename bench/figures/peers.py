"""What others do: queues of the same kind, on the same database server or the same disk, and none of them sends anything."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from bench.figures.delivering import draining, emptied
from bench.ground import NAME, Ground, database_url, folder
from bench.harness import Figure, Target, benchmark, compare, rate
from bench.peers import Peer


def _own_database() -> str:
    """A new one on the server that ours is on; the address is in nobody's dialect."""
    url = sa.make_url(database_url("postgresql")).set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


def _enqueue(name: str, program: str, against: str, target: Target) -> Iterator[Figure]:
    with Ground("postgresql") as ground, Peer(program, "enqueue", _own_database()) as peer:
        events = ground.events(100)  # the others have the same ones each time, too

        def step() -> int:
            with ground.engine.begin() as connection:
                ground.outbox.enqueue_many(connection, NAME, events)
            return 100

        def ours(seconds: float) -> float:
            emptied(ground)
            return rate(step, seconds)

        yield compare(
            name,
            ours,
            peer.slice,
            target,
            what="enqueue_many through an engine, 100 a transaction",
            against=against,
            unit="messages/s",
            database="postgresql",
        )


@benchmark("enqueue_vs_procrastinate", "enqueue_many, 100 a transaction, as a multiple of procrastinate's batch_defer of 100")
def enqueue_vs_procrastinate() -> Iterator[Figure]:
    against = "procrastinate, batch_defer of 100"
    yield from _enqueue("enqueue_vs_procrastinate", "procrastinate_jobs", against, Target(4, 6))


@benchmark("enqueue_vs_pgqueuer", "enqueue_many, 100 a transaction, as a multiple of pgqueuer's enqueue of 100")
def enqueue_vs_pgqueuer() -> Iterator[Figure]:
    against = "pgqueuer on asyncpg, enqueue of a list of 100 that are made into JSON first"
    yield from _enqueue("enqueue_vs_pgqueuer", "pgqueuer_jobs", against, Target(0.8, 1.2))


def _delivered(name: str, ground: Ground, guess: int, peer: Peer, library: str, target: Target) -> Figure:
    return compare(
        name,
        draining(ground, guess),
        peer.slice,
        target,
        what="events that a worker delivers over HTTP, 100 a request",
        against=f"{library}, jobs that do nothing ({peer.how})",
        unit="events/s",
        database=ground.kind,
    )


@benchmark("delivered_vs_procrastinate", "events delivered over HTTP as a multiple of procrastinate's no-op jobs, 10 at a time")
def delivered_vs_procrastinate() -> Iterator[Figure]:
    with Ground("postgresql") as ground, Peer("procrastinate_jobs", "drain", _own_database()) as peer:
        yield _delivered("delivered_vs_procrastinate", ground, 8000, peer, "procrastinate", Target(20, 40))


@benchmark("delivered_vs_pgqueuer", "events delivered over HTTP as a multiple of pgqueuer's no-op jobs in batches of 100")
def delivered_vs_pgqueuer() -> Iterator[Figure]:
    with Ground("postgresql") as ground, Peer("pgqueuer_jobs", "drain", _own_database()) as peer:
        yield _delivered("delivered_vs_pgqueuer", ground, 8000, peer, "pgqueuer", Target(0.8, 1.3))


@benchmark("delivered_vs_huey", "events delivered over HTTP as a multiple of huey's no-op tasks, both on SQLite")
def delivered_vs_huey() -> Iterator[Figure]:
    with Ground("sqlite") as ground, Peer("huey_tasks", str(folder())) as peer:
        yield _delivered("delivered_vs_huey", ground, 8000, peer, "huey", Target(10, 20))
