"""pgqueuer on Postgres, with asyncpg and uvloop as its own command has it: python pgqueuer_jobs.py enqueue|drain DATABASE.

`enqueue`: jobs a second, lists of 100. `drain`: no-op jobs a second that a queue manager runs, in batches of 100.
"""

from __future__ import annotations

import asyncio
import json
import sys

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode
from turns import PAYLOAD, Drain, rate, take

EMPTY = "TRUNCATE pgqueuer, pgqueuer_log, pgqueuer_statistics"
NAMES, PRIORITIES = ["noop"] * 100, [0] * 100


def batch() -> tuple[list[str], list[bytes], list[int]]:
    """As an application would that has dictionaries, like those that the others are given: it takes bytes."""
    return NAMES, [json.dumps(PAYLOAD).encode() for _ in range(100)], PRIORITIES


def main(what: str, database: str) -> None:
    jobs = Drain(5000)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(asyncpg.connect(database))
        queries = Queries(AsyncpgDriver(connection))
        runner.run(queries.install())

        def step() -> int:
            runner.run(queries.enqueue(*batch()))
            return 100

        def enqueue(seconds: float) -> float:
            runner.run(connection.execute(EMPTY))
            return rate(step, seconds)

        async def drain(seconds: float) -> float:
            await connection.execute(EMPTY)
            number = jobs.number(seconds)
            for _ in range(number // 100):
                await queries.enqueue(*batch())
            await connection.execute("ANALYZE pgqueuer")
            queue = PgQueuer(AsyncpgDriver(connection))

            @queue.entrypoint("noop")
            async def noop(job: Job) -> None:  # noqa: ARG001 - it does nothing
                jobs.count()

            await queue.qm.run(batch_size=100, mode=QueueExecutionMode.drain)
            return jobs.rate(number)

        if what == "enqueue":
            take(enqueue)
        else:
            take(lambda seconds: runner.run(drain(seconds)), how="batch_size 100")
        runner.run(connection.close())


if __name__ == "__main__":
    main(*sys.argv[1:])
