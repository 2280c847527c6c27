"""procrastinate on Postgres: python procrastinate_jobs.py enqueue|drain DATABASE.

`enqueue`: jobs a second, 100 with each batch_defer. `drain`: no-op jobs a second that a worker runs, ten at a time.
"""

from __future__ import annotations

import asyncio
import sys

import procrastinate
from turns import PAYLOAD, Drain, rate, take

EMPTY = "TRUNCATE procrastinate_jobs CASCADE"
BATCH = [{"payload": PAYLOAD}] * 100
CONCURRENCY = 10


def enqueue(database: str) -> None:
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=database, min_size=1, max_size=1))

    @app.task(name="noop", queue="q")
    def noop(payload: object) -> None:
        """It is never run."""

    def step() -> int:
        noop.batch_defer(*BATCH)
        return 100

    def work(seconds: float) -> float:
        app.connector.get_sync_connector().execute_query(EMPTY)
        return rate(step, seconds)

    with app.open():
        app.schema_manager.apply_schema()
        take(work)


def drain(database: str) -> None:
    size = 2 + CONCURRENCY
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database, min_size=size, max_size=size))
    jobs = Drain(300)

    @app.task(name="noop", queue="q")
    async def noop(payload: object) -> None:  # noqa: ARG001 - it does nothing
        jobs.count()

    async def work(seconds: float) -> float:
        await app.connector.execute_query_async(EMPTY)
        number = jobs.number(seconds)
        for _ in range(number // 100):
            await noop.batch_defer_async(*BATCH)
        await app.connector.execute_query_async("ANALYZE procrastinate_jobs")
        await app.run_worker_async(queues=["q"], concurrency=CONCURRENCY, wait=False, install_signal_handlers=False)
        return jobs.rate(number)

    async def prepare() -> None:
        await app.open_async()
        await app.schema_manager.apply_schema_async()

    with asyncio.Runner() as runner:
        runner.run(prepare())
        take(lambda seconds: runner.run(work(seconds)), how=f"concurrency {CONCURRENCY}")
        runner.run(app.close_async())


if __name__ == "__main__":
    {"enqueue": enqueue, "drain": drain}[sys.argv[1]](sys.argv[2])
