"""Claim and record: what they cost without HTTP, beside millions of others, under a long transaction, and with many workers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO

import sqlalchemy as sa

from bench.figures.delivering import emptied
from bench.ground import KINDS, NAME, ROOT, Ground, Kind
from bench.harness import Figure, Target, benchmark, compare, ratios
from outbox import Lane
from outbox.dialects import paired
from outbox.dispatcher import Dispatcher
from outbox.presence import Presence
from outbox.store import breaker, claiming, deliveries, recording
from outbox.transport import Answer, Upload

BATCH = 100
LANES = (Lane.NORMAL, Lane.EXPRESS, Lane.BULK)
_CONFIRMED = Answer(200, {}, b'{"code":0}')


class Nowhere:
    """A transport that confirms at once what is sent to nobody, and counts it."""

    sent = 0

    def send(self, upload: Upload, open_file: Callable[[str], BinaryIO], deadline: float, connect: float) -> Answer:
        self.sent += 1
        return _CONFIRMED


class Loop:
    """A worker with one sender and without HTTP: it claims batches and records that they were delivered."""

    def __init__(self, ground: Ground) -> None:
        outbox = ground.outbox
        self.presence = Presence(outbox.database, outbox.ambient)
        self._transport = Nowhere()
        carrying: Any = self._transport
        self._dispatcher = Dispatcher(
            outbox.database, outbox.spool_store, outbox.destinations, outbox.ambient, carrying, lambda: self.presence.id
        )
        with outbox.database.begin() as connection:
            breaker.declare(connection, outbox.destinations)
        self.presence.arrive()

    @property
    def moved(self) -> int:
        """How many messages it has moved; fewer than a batch at a time only where there are no more."""
        return self._transport.sent * BATCH

    def stretch(self, lanes: Callable[[], Sequence[Lane]] = lambda: LANES) -> int:
        """Turns in a row for a second, or until there is nothing left, as a sender takes them; how many messages they moved."""
        before = self.moved
        self._dispatcher.work(NAME, lanes, peek=False)
        return self.moved - before


class Raw:
    """The statements of a claim and of a record, word for word, in a loop that does nothing else: by the driver alone."""

    def __init__(self, ground: Ground, worker: str) -> None:
        self._worker = worker
        url = ground.engine.url
        if ground.kind == "sqlite":
            import sqlite3

            self._connection: Any = sqlite3.connect(url.database or "", isolation_level=None, timeout=60)
            self._connection.execute("PRAGMA synchronous = FULL")
            self._begin = "BEGIN IMMEDIATE"
        else:
            import psycopg

            self._connection = psycopg.connect(
                host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database, autocommit=True
            )
            self._begin = "BEGIN"

        with ground.engine.connect() as connection:
            self._paired = functools.partial(paired, connection)
            self._statements = {
                name: ready._plan(connection)  # noqa: SLF001 (the very text that ours executes)
                for name, ready in {
                    "outlook": claiming._OUTLOOK,  # noqa: SLF001
                    "loose": claiming._LOOSE,  # noqa: SLF001
                    "mark": claiming._MARK,  # noqa: SLF001
                    "settle": recording._SETTLE[recording._Kind.DELIVERED, True],  # noqa: SLF001
                    "attempts": recording._ADD_ATTEMPTS,  # noqa: SLF001
                    "deliveries": deliveries._WRITE,  # noqa: SLF001
                }.items()
            }

    def _run(self, name: str, values: dict[str, Any]) -> list[Any]:
        plan = self._statements[name]
        cursor = self._connection.execute(plan.text, plan.parameters(values))
        return cursor.fetchall() if cursor.description else []

    def stretch(self) -> int:
        """Turns in a row until there is nothing left; how many messages they moved."""
        moved, ids, delivery = 0, list[int](), 0
        about = {"destination": NAME, "worker": self._worker}
        low = {f"low_{lane}": claiming.THE_BEGINNING for lane in Lane}
        while True:
            now = datetime.now(UTC)
            self._connection.execute(self._begin)
            self._run("outlook", about | low)
            rows = []
            if ids:
                claims = self._paired({delivery: ids})
                became = {"state": "delivered", "reason_text": None, "suspect": False, "finished_at": now}
                self._run("settle", {**became, "worker": self._worker, "rows": claims})
                self._run("attempts", {"rows": claims, "outcome": "delivered", "finished_at": now})
                told = {"outcome": "delivered", "status": 200, "code": 0, "answer": '{"code":0}'}
                rows.append({"id": delivery, "lane": "normal", "messages": 0, "bytes": 0, "probe": False, **told})
            moved += len(ids)
            come = {"lane": "normal", "limit": BATCH, "mark": claiming.THE_BEGINNING, "chosen": now, "invented": now}
            ids = [row[0] for row in self._run("loose", about | come)]
            if ids:
                rows.append({"lane": "normal", "messages": len(ids), "bytes": 0, "probe": False})
            delivery = max(row[0] for row in self._run("deliveries", about | {"now": now, "rows": json.dumps(rows)}))
            if ids:
                self._run("mark", {"worker": self._worker, "rows": self._paired({delivery: ids})})
            self._connection.execute("COMMIT")
            if not ids:
                return moved

    def close(self) -> None:
        self._connection.close()


def _draining(ground: Ground, stretch: Callable[[], int], guess: float = 8000.0) -> Callable[[float], float]:
    """Slices of stretches on a backlog that is put in before, uncounted, into empty tables."""
    pace = guess

    def slice_of(seconds: float) -> float:
        nonlocal pace
        emptied(ground)
        wanted = max(10, round(pace * seconds / BATCH)) * BATCH
        ground.fill(wanted)
        if ground.kind == "postgresql":
            with ground.engine.begin() as connection:
                connection.execute(sa.text("ANALYZE outbox_message"))
        began = time.perf_counter()
        moved = 0
        while moved < wanted:
            moved += stretch()
        pace = moved / (time.perf_counter() - began)
        return pace

    return slice_of


@benchmark(
    "claim_finish", "claim and record in batches of 100, without HTTP, as a part of the same statements by the driver alone"
)
def claim_finish() -> Iterator[Figure]:
    for kind in KINDS:
        with Ground(kind) as ground:
            loop = Loop(ground)
            raw = Raw(ground, loop.presence.id)
            yield compare(
                "claim_finish",
                _draining(ground, loop.stretch),
                _draining(ground, raw.stretch),
                Target(0.5, 0.75),
                what="a dispatcher whose transport answers at once, one sender",
                against="the same six statements and one commit a batch, driver alone",
                unit="messages/s",
                database=kind,
            )
            raw.close()


#: How much there is where there is much.
PENDING, DELIVERED = int(os.environ.get("BENCH_PENDING", "1000000")), int(os.environ.get("BENCH_DELIVERED", "5000000"))
FEW = 10_000


def _fill_up(ground: Ground) -> None:
    """What years leave, written at once: delivered messages, and then those that wait, due a minute ago."""
    columns = (
        "destination, lane, key, payload, digest, size, file_bytes, files, state, attempt, "
        "created_at, due_at, scheduled, clock_plausible, finished_at"
    )
    payload = """'{"assetId":"turbine-7","time":1579580182824,"events":{"crack":{"text":"' || WORDS || '"}}}'"""
    if ground.kind == "sqlite":
        ago, series = (
            "strftime('%Y-%m-%d %H:%M:%f', 'now', '{} seconds') || '000'",
            ("(WITH RECURSIVE s(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s WHERE n < {last}) SELECT n FROM s)"),
        )
        x, yes, no = "'" + "x" * 200 + "'", "1", "0"
    else:
        ago, series = "now() + interval '{} seconds'", "generate_series({first}, {last}) AS s(n)"
        x, yes, no = "repeat('x', 200)", "true", "false"
    with ground.engine.begin() as connection:
        for state, first, last in (("delivered", 1, DELIVERED), ("pending", DELIVERED + 1, DELIVERED + PENDING)):
            for begin in range(first, last + 1, 500_000):
                rows = series.format(first=begin, last=min(last, begin + 499_999))
                over = ago.format(-86400) if state == "delivered" else "NULL"
                at, tried = ago.format(-60), int(state == "delivered")
                words, key = payload.replace("WORDS", x), "'k' || (1000000000 + n)"
                values = f"'{NAME}', 'normal', {key}, {words}, '{'d' * 64}', 300, 0, 0, '{state}', {tried}, "
                values += f"{at}, {at}, {no}, {yes}, {over}"
                connection.exec_driver_sql(f"INSERT INTO outbox_message ({columns}) SELECT {values} FROM {rows}")
    if ground.kind == "postgresql":
        with ground.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE outbox_message")
            connection.exec_driver_sql("CHECKPOINT")
    else:
        ground.outbox.database.checkpoint(shrink=True)


def _claim_once(loop: Loop) -> float:
    """Milliseconds of one claim of a batch; it is recorded afterwards."""
    dispatcher = loop._dispatcher  # noqa: SLF001 (a claim by itself is part of what it does)
    began = time.perf_counter()
    (batch,) = dispatcher._claim(NAME, [LANES])  # noqa: SLF001
    took = time.perf_counter() - began
    assert batch is not None
    assert len(batch.messages) == BATCH
    from outbox.verdict import Delivered, Facts, Result

    result = Result(batch.delivery, batch.worker, NAME, batch.messages, BATCH, Delivered(Facts(200)), trace_id=None)
    dispatcher._write(result)  # noqa: SLF001
    return took * 1000


def _claim_flat(kind: Kind) -> Iterator[Figure]:
    with Ground(kind) as few, Ground(kind) as many:
        _fill_up(many)
        few.fill(FEW)
        if kind == "postgresql":
            with few.engine.begin() as connection:
                connection.execute(sa.text("ANALYZE outbox_message"))
        few_loop, many_loop = Loop(few), Loop(many)
        pairs = []
        for number in range(8):
            here = statistics.median(_claim_once(few_loop) for _ in range(12))
            there = statistics.median(_claim_once(many_loop) for _ in range(12))
            if number:  # the first one is for getting warm
                pairs.append((there, here))
        yield ratios(
            f"claim_flat_{'pg' if kind == 'postgresql' else kind}",
            pairs,
            Target(1.5, 1.2, "lower"),
            what=f"p50 of a claim of 100, beside {PENDING:,} pending and {DELIVERED:,} delivered",
            against=f"the same with {FEW:,} pending",
            unit="ms",
            database=kind,
        )


@benchmark("claim_flat_sqlite", "a claim beside a million pending and five million delivered messages, and beside ten thousand")
def claim_flat_sqlite() -> Iterator[Figure]:
    yield from _claim_flat("sqlite")


@benchmark("claim_flat_pg", "the same on Postgres")
def claim_flat_pg() -> Iterator[Figure]:
    yield from _claim_flat("postgresql")


#: Seconds that a transaction stays open elsewhere, and how long it is looked at before.
HOLD, BEFORE = float(os.environ.get("BENCH_HOLD", "60")), 10.0


@benchmark("xmin_hold", "draining at the end of a minute in which a transaction stood open elsewhere, as a part of before")
def xmin_hold() -> Iterator[Figure]:
    with Ground("postgresql") as ground:
        loop = Loop(ground)
        stop = threading.Event()
        put_in = 0

        def produce() -> None:
            # Counted here: the database would walk past all that is dead to count them, and that is not what is measured.
            nonlocal put_in
            while not stop.is_set():
                if put_in - loop.moved < 1500:
                    ground.fill(1000)
                    put_in += 1000
                else:
                    time.sleep(0.002)

        producer = threading.Thread(target=produce, name="producer")
        producer.start()

        def rates(seconds: float) -> list[float]:
            """Messages a second, of each 5 seconds."""
            found = []
            ends = time.perf_counter() + seconds
            while (began := time.perf_counter()) < ends:
                before = loop.moved
                while time.perf_counter() - began < 5:
                    loop.stretch()
                found.append((loop.moved - before) / (time.perf_counter() - began))
            return found

        try:
            rates(3.0)
            before = rates(BEFORE)
            with ground.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
                connection.execute(sa.text("SELECT count(*) FROM outbox_worker"))
                held = rates(HOLD)
        finally:
            stop.set()
            producer.join()
        ends = held[-2:]
        yield ratios(
            "xmin_hold",
            [(each, statistics.mean(before)) for each in ends],
            Target(0.6, 0.85),
            what=f"claim and record in the last 10 s of {HOLD:.0f} s, while messages are put in",
            against="the 10 s before the transaction began",
            unit="messages/s",
            database="postgresql",
        )


@benchmark("fleet", "messages that 4 and 16 workers, each a process, claim and record on Postgres, as a multiple of one")
def fleet() -> Iterator[Figure]:
    with Ground("postgresql") as ground, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(ground.url)) for _ in range(16)]
        for each in workers:
            assert _told(each) == "ready"
        for number in (4, 16):
            pairs = []
            for again in range(6):
                alone, together = _drained_by(ground, workers[:1]), _drained_by(ground, workers[:number])
                if again:
                    pairs.append((together, alone))
            yield ratios(
                f"fleet_{number}",
                pairs,
                Target(1.3, 1.6),
                what=f"{number} processes that claim and record batches of 100 without HTTP",
                against="one process",
                unit="messages/s",
                database="postgresql",
            )


@contextlib.contextmanager
def _worker(url: str) -> Iterator[subprocess.Popen[str]]:
    """One worker of a fleet: for each line that it reads it works until nothing is left."""
    command = [sys.executable, "-m", "bench.fleet_worker", url]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate()  # its input ends, and so does it


def _told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _drained_by(ground: Ground, workers: Sequence[subprocess.Popen[str]], messages: int = 20_000) -> float:
    """Messages a second of these workers, from the first claim to the last record."""
    emptied(ground)
    ground.fill(messages)
    with ground.engine.begin() as connection:
        connection.execute(sa.text("ANALYZE outbox_message"))
    for each in workers:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    assert {_told(each) for each in workers} == {"done"}
    began = ground.scalar("SELECT min(started_at) FROM outbox_delivery")
    ended = ground.scalar("SELECT max(finished_at) FROM outbox_delivery")
    assert ground.scalar("SELECT count(*) FROM outbox_message WHERE state = 'delivered'") == messages
    return messages / float((ended - began).total_seconds())
