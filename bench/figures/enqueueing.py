"""Enqueue: what it adds to the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from bench.ground import NAME, Ground, event
from bench.harness import Figure, Target, benchmark, compare, cost, rate
from outbox.ambient import uuid7
from outbox.payload import text
from outbox.tables import message


def row(number: int) -> dict[str, Any]:
    """The row that an enqueue makes, for those who write it by themselves: ready, but for what must be new each time."""
    words = text(event(number))
    return {
        "destination": NAME,
        "lane": "normal",
        "key": uuid7(),
        "payload": words,
        "digest": "d" * 64,
        "size": len(words) + 1,
        "file_bytes": 0,
        "files": 0,
        "state": "pending",
        "created_at": "2026-03-01 12:00:00.000000",
        "due_at": "2026-03-01 12:00:00.000000",
        "scheduled": False,
        "clock_plausible": True,
    }


_COLUMNS = tuple(row(0))
RAW = f"INSERT INTO outbox_message ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


@benchmark("enqueue_cpu", "CPU of `enqueue` in an open transaction, as a multiple of a bare Core insert of the same row")
def enqueue_cpu() -> Iterator[Figure]:
    with Ground("sqlite") as ground, ground.engine.connect() as connection:
        core = sa.insert(message)
        at = datetime(2026, 3, 1, 12, tzinfo=UTC)
        ready = [{**row(number), "created_at": at, "due_at": at} for number in range(500)]
        payloads = [event(number) for number in range(500)]

        def bare() -> int:
            for each in ready:
                connection.execute(core, each)
            connection.rollback()
            return len(ready)

        def ours() -> int:
            for each in payloads:
                ground.outbox.enqueue(connection, NAME, each)
            connection.rollback()
            return len(payloads)

        yield compare(
            "enqueue_cpu",
            lambda seconds: cost(ours, seconds) * 1e6,
            lambda seconds: cost(bare, seconds) * 1e6,
            Target(2.5, 1.8, "lower"),
            what="enqueue, on a Connection whose transaction is open",
            against="connection.execute(insert(table), row) of the finished row",
            unit="us",
            database="sqlite",
        )


def _raw_sqlite(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _sqlite(name: str, number: int, target: Target) -> Iterator[Figure]:
    with Ground("sqlite") as ground:
        raw = _raw_sqlite(ground.engine.url.database or "")

        def bare() -> int:
            rows = [tuple(row(each).values()) for each in range(number)]
            raw.execute("BEGIN IMMEDIATE")
            raw.executemany(RAW, rows)
            raw.execute("COMMIT")
            return number

        def ours() -> int:
            events = ground.events(number)
            with ground.engine.begin() as connection:
                if number == 1:
                    ground.outbox.enqueue(connection, NAME, events[0])
                else:
                    ground.outbox.enqueue_many(connection, NAME, events)
            return number

        yield compare(
            name,
            lambda seconds: rate(ours, seconds),
            lambda seconds: rate(bare, seconds),
            target,
            what=f"{'enqueue' if number == 1 else 'enqueue_many'} through an engine, {number} a transaction, FULL",
            against="raw sqlite3, the same rows into the same table",
            unit="messages/s",
            database="sqlite",
        )
        raw.close()


@benchmark("enqueue_sqlite_1", "enqueue, one message a transaction, as a part of what raw sqlite3 does")
def enqueue_sqlite_1() -> Iterator[Figure]:
    yield from _sqlite("enqueue_sqlite_1", 1, Target(0.4, 0.7))


@benchmark("enqueue_sqlite_100", "enqueue_many, 100 messages a transaction, as a part of what raw sqlite3 does")
def enqueue_sqlite_100() -> Iterator[Figure]:
    yield from _sqlite("enqueue_sqlite_100", 100, Target(0.4, 0.7))


@benchmark("enqueue_pg_100", "enqueue_many, 100 messages a transaction, as a part of psycopg's executemany")
def enqueue_pg_100() -> Iterator[Figure]:
    import psycopg

    with Ground("postgresql") as ground:
        url = ground.engine.url
        raw = psycopg.connect(
            host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database, autocommit=True
        )
        statement = RAW.replace("?", "%s")

        def bare() -> int:
            rows = [tuple(row(each).values()) for each in range(100)]
            with raw.transaction(), raw.cursor() as cursor:
                cursor.executemany(statement, rows)
            return 100

        def ours() -> int:
            events = ground.events(100)
            with ground.engine.begin() as connection:
                ground.outbox.enqueue_many(connection, NAME, events)
            return 100

        yield compare(
            "enqueue_pg_100",
            lambda seconds: rate(ours, seconds),
            lambda seconds: rate(bare, seconds),
            Target(0.8, 1.3),
            what="enqueue_many through an engine, 100 a transaction",
            against="psycopg executemany, the same rows into the same table",
            unit="messages/s",
            database="postgresql",
        )
        raw.close()
