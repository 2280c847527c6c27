"""The database server is stopped at once or killed, at any moment of anything, and started again: the same workers go on.

report = database_kills(folder, seed, count=200)
report.counts["database kills"], report.faults
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from outbox import Lane, Outbox, Policy, Selection, State, Worker, migrate
from outbox.claims import Claims
from outbox.errors import OutboxError
from outbox.policy import Retention
from outbox.store import living
from outbox.tables import delivery, head, message, unfinished
from outbox.testing import Receiver, Status
from tests import ledger
from tests.factories import an_outbox, caller_engine, careless_engine, enos, event
from tests.ledger import history, trail
from tests.ledger.history import Diary, History
from tests.postgres import Postgres, create_database
from tests.power.report import Report

#: In the middle of what the server is struck, at which of its steps at most; `act` is a person's.
MOMENTS = {"claim": 20, "record": 12, "rescue": 12, "beat": 3, "enqueue": 10, "act": 10}
#: Seconds to wait for that, before it is struck at any moment.
PATIENCE = 1.0
#: Seconds after its start in which something must have been delivered again, and all in the end.
RESUMES_WITHIN, DRAINED_WITHIN = 10.0, 120.0
PRODUCERS, WORKERS, PACE = 2, 2, 0.15
POLICY = Policy(
    batch_messages=5, senders=1, max_unknown=1000, backoff_first=0.02, backoff_cap=0.1, probe_first=0.05, probe_cap=0.1
)


class Trap:
    """Strikes the server at the n-th step of the next of something, on the thread that does it; then the step fails."""

    def __init__(self, server: Postgres) -> None:
        self.sprung = threading.Event()
        self._server = server
        self._lock = threading.Lock()
        self._set: tuple[str, int, Callable[[], None], bool] | None = None
        self._mine = threading.local()

    def watch(self, engine: sa.Engine) -> None:
        sa.event.listen(engine, "before_cursor_execute", lambda *_: self._step(None))
        sa.event.listen(engine, "commit", self._step)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """All that this thread does meanwhile is a step of that."""
        before = getattr(self._mine, "what", None)
        self._mine.what = what
        try:
            yield
        finally:
            self._mine.what = before

    def within(self, owner: Any, name: str, what: Callable[..., str]) -> None:
        """All that a method does is a step of that."""
        method = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            with self.doing(what(*arguments)):
                return method(*arguments, **options)

        setattr(owner, name, watched)

    def set(self, what: str, step: int, strike: Callable[[], None], *, untold: bool) -> None:
        """`untold`: if the step is a COMMIT, it is done before the strike, and nobody hears of it."""
        self.sprung.clear()
        with self._lock:
            self._set = (what, step, strike, untold)

    def take_away(self) -> bool:
        """Whether it was still there."""
        with self._lock:
            there, self._set = self._set is not None, None
        return there or not self.sprung.wait(30)

    def _step(self, commit: sa.Connection | None) -> None:
        what = getattr(self._mine, "what", None)
        with self._lock:
            if self._set is None or self._set[0] != what:
                return
            _, left, strike, untold = self._set
            self._set = None if left == 1 else (*self._set[:1], left - 1, *self._set[2:])
            if left > 1:
                return
        if commit is not None and untold:
            driver: Any = commit.connection.dbapi_connection
            driver.commit()
        strike()
        self.sprung.set()
        if commit is not None:
            commit.exec_driver_sql("SELECT 1")  # which fails, as the COMMIT would have


class Site:
    """A database with those who are at work there."""

    def __init__(self, stack: ExitStack, folder: Path, seed: int, server: Postgres, *, careless: bool) -> None:
        self.folder, self.seed, self.server = folder, seed, server
        self.dice = random.Random(seed)
        self.over = threading.Event()
        self.trap = Trap(server)
        self.url = create_database(server.url)
        self.receiver = stack.enter_context(Receiver(check_token=False, ledger=folder / "receiver.jsonl"))
        self.receiver.sometimes(Status(503), 0.02, seed)
        self.outbox = self._outbox(stack)
        migrate.upgrade(self.outbox.database)
        trail.install(self.url)
        self.engine = (careless_engine if careless else caller_engine)(self.url)
        stack.callback(self.engine.dispose)
        self.trap.watch(self.engine)
        self.workers = [self._worker(stack, number) for number in range(WORKERS)]
        threads = [*(partial(self._produce, number) for number in range(PRODUCERS)), self._operate]
        self._threads = [threading.Thread(target=each) for each in threads]

    def _outbox(self, stack: ExitStack) -> Outbox:
        retention = Retention(free_after=timedelta(seconds=1))
        outbox = an_outbox(self.url, self.folder / "spool", enos(self.receiver.url, policy=POLICY), retention=retention)
        stack.callback(outbox.close)
        self.trap.watch(outbox.database.engine)
        return outbox

    def _worker(self, stack: ExitStack, number: int) -> Worker:
        said = stack.enter_context(History(self.folder / f"work-{number}.jsonl"))
        worker = Worker(self._outbox(stack), watcher=Diary(said), gone_after=6.0, poll=0.3)
        self.trap.within(worker._dispatcher._claims, "claim", lambda *_: "claim")
        self.trap.within(worker._dispatcher, "_write", lambda result: "record" if result.witnessed else "rescue")
        self.trap.within(worker._presence, "beat", lambda: "beat")
        return worker

    def start(self) -> None:
        for each in (*self.workers, *self._threads):
            each.start()

    def _produce(self, number: int) -> None:
        """One message after the other. Of half of those whose COMMIT nobody knows of it is found out, with the same key."""
        dice, outbox = random.Random(f"{self.seed}-{number}"), self.outbox
        with History(self.folder / f"produce-{number}.jsonl") as said:
            key, again = "", False
            for each in range(10**9):
                if self.over.wait(dice.expovariate(1 / PACE)):
                    return
                key = key if again else f"p{number}-{each}"
                chosen = sum(key.encode())  # by its key: it is the same when it is asked for again
                files = {"photo": key.encode() * 100} if chosen % 3 == 0 else {}
                where: dict[str, Any] = {}
                if chosen % 5 < 2:
                    where = {"ordering_key": f"s{chosen % 7}", "ordered": chosen % 2 == 0}
                in_order = where.get("ordering_key") if where.get("ordered") else None
                try:
                    with (
                        self.trap.doing("enqueue"),
                        said.enqueue(key, files=files, ordering_key=in_order),
                        self.engine.begin() as connection,
                    ):
                        outbox.enqueue(connection, "enos", event(key, *files), files=files, key=key, **where)
                    again = False
                except (SQLAlchemyError, OutboxError) as error:
                    again = history.may_be_committed(error) and (again or dice.random() < 0.5)

    def _operate(self) -> None:
        """A person who replays, withdraws and purges, and does not mind when it fails."""
        dice = random.Random(f"{self.seed}-operator")
        while not self.over.wait(0.2):
            action, state, limit = dice.choice(
                [("replay", State.DELIVERED, 2), ("cancel", State.PENDING, 1), ("purge", State.CANCELLED, 9)]
            )
            with self.trap.doing("act"), contextlib.suppress(SQLAlchemyError, OutboxError):
                self.outbox.begin(action, Selection(states=(state,), limit=limit), "torture").run()  # type: ignore[arg-type]

    def leave_something_behind(self) -> None:
        """A worker claims something and is gone, so that there is something to take back."""
        ghost = self.outbox.ambient.new_id()
        claims = Claims(self.outbox.database, self.outbox.destinations, self.outbox.ambient, lambda: ghost)
        with contextlib.suppress(SQLAlchemyError), self.outbox.database.begin() as connection:
            living.register(connection, ghost, "host", 1, self.outbox.ambient.now())
            claims.claim(connection, "enos", list(Lane))
            living.leave(connection, ghost)

    def cycle(self, report: Report) -> None:
        """The server is struck, and started again after a while."""
        moment = self.dice.choice(list(MOMENTS))
        immediate = self.dice.random() < 0.5
        strike = partial(self.server.stop, "immediate") if immediate else self.server.kill
        if moment == "rescue":
            self.leave_something_behind()
        self.trap.set(moment, self.dice.randint(1, MOMENTS[moment]), strike, untold=self.dice.random() < 0.5)
        if not self.trap.sprung.wait(PATIENCE) and self.trap.take_away():
            moment = "moment or other"
            strike()
        time.sleep(self.dice.random() * 0.1)
        known = len(self.receiver.requests)
        self.server.start_again()
        began = time.monotonic()
        resumed = _so(lambda: len(self.receiver.requests) > known, RESUMES_WITHIN)
        report.counts["resumed after more than half of the time allowed"] += time.monotonic() - began > RESUMES_WITHIN / 2
        report.counts.update({"database kills": 1, f"in a {moment}": 1, "immediate stops" if immediate else "SIGKILLs": 1})
        if not resumed:
            report.faults.append(f"I15 nothing was delivered within {RESUMES_WITHIN:.0f} s of the start of the database")

    def drain(self) -> list[str]:
        """All is well from now on: what is wrong if it does not come to an end."""
        self.over.set()
        for each in self._threads:
            each.join(60)
        self.receiver.never()
        drained = _so(self._nothing_left, DRAINED_WITHIN)
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.join()
        return [] if drained else [f"I15 it was not drained within {DRAINED_WITHIN:.0f} s"]

    def _nothing_left(self) -> bool:
        counted = [
            sa.select(sa.func.count()).select_from(table).where(condition)
            for table, condition in (
                (message, unfinished),
                (delivery, delivery.c.finished_at.is_(None)),
                (head, head.c.claimed_by.is_not(None)),
            )
        ]
        with self.outbox.database.read() as connection:
            return not any(connection.execute(each).scalar_one() for each in counted)

    def balance(self) -> ledger.Balance:
        self.receiver.close()
        self.outbox.sweep(timedelta(0))
        return ledger.examine(
            self.outbox.database,
            self.receiver.requests,
            history.promises(self.folder.glob("produce-*.jsonl")),
            spool=self.folder / "spool",
            swept=True,
            purged=None,
            work=history.lines(self.folder.glob("work-*.jsonl")),
        )


def database_kills(
    folder: Path,
    seed: int,
    *,
    count: int = 40,
    seconds: float = math.inf,
    careless: bool = False,
    server: Postgres | None = None,
) -> Report:
    """Strike a server so many times, or for so many seconds, then let all come to its end, and look at everything.

    `server`: one that is as durable as it comes; else there is one for this alone. `careless`: producers say
    `synchronous_commit = off`, and such a server takes its time: what that costs is found.
    """
    report, ends = Report(seed), time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    slow = {"wal_writer_delay": "10s"} if careless else {}
    with ExitStack() as stack:
        server = server or stack.enter_context(Postgres(durable=True, settings=slow))
        site = Site(stack, folder, seed, server, careless=careless)
        site.start()
        try:
            while report.counts["database kills"] < count and time.monotonic() < ends:
                site.cycle(report)
        finally:
            report.faults += site.drain()
        balance = site.balance()
        report.faults += balance.faults
        report.counts.update({name.replace("_", " "): number for name, number in vars(balance.counts).items() if number})
    return report


def _so(predicate: Callable[[], object], within: float) -> bool:
    ends = time.monotonic() + within
    while not predicate():
        if time.monotonic() > ends:
            return False
        time.sleep(0.02)
    return True
