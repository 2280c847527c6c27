"""huey on SQLite, each commit on the disk: python huey_tasks.py FOLDER.

No-op tasks a second, by the fastest of what it has: its consumer with one thread or with four, or the loop that the consumer's
worker runs, without the consumer. Which one is found out before it is ready.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from huey import SqliteHuey
from turns import PAYLOAD, Drain, take


def main(folder: str) -> None:
    path = str(Path(folder) / "huey.db")
    huey = SqliteHuey("bench", filename=path, fsync=True, results=False)
    jobs = Drain(1000, step=10)
    one_at_a_time = threading.Lock()
    over = threading.Event()
    expected = 0

    @huey.task()
    def noop(payload: object) -> None:  # noqa: ARG001 - it does nothing
        with one_at_a_time:
            jobs.count()
            if jobs.seen == expected:
                over.set()

    def fill(number: int) -> None:
        """As huey would, but in one transaction: the clock does not run."""
        nonlocal expected
        jobs.seen, expected = 0, number
        over.clear()
        rows = [("bench", huey.serialize_task(noop.s(PAYLOAD)), 0.0) for _ in range(number)]
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("DELETE FROM task")
            connection.executemany("INSERT INTO task (queue, data, priority) VALUES (?, ?, ?)", rows)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what was put in is not for the first task to write down
        connection.close()

    def loop() -> None:
        while (task := huey.dequeue()) is not None:
            huey.execute(task)

    def consumer(workers: int) -> None:
        consumer = huey.create_consumer(workers=workers, worker_type="thread", periodic=False, initial_delay=0.01)
        consumer.start()
        over.wait()
        consumer.stop(graceful=True)

    ways: dict[str, Callable[[], None]] = {
        "dequeue and execute in a loop": loop,
        "consumer, 1 thread": lambda: consumer(1),
        "consumer, 4 threads": lambda: consumer(4),
    }

    def work(way: str, seconds: float) -> float:
        number = jobs.number(seconds)
        fill(number)
        ways[way]()
        return jobs.rate(number)

    rounds = [{way: work(way, 0.3) for way in ways} for _ in range(5)]
    best = max(ways, key=lambda way: statistics.median(each[way] for each in rounds))
    take(lambda seconds: work(best, seconds), how=best)


if __name__ == "__main__":
    main(*sys.argv[1:])
