"""Random lives of an outbox: the real one does what chance says, and after every step a model says what must be so.

    from tests.explore.machine import machine
    counts = machine(examples=5000, seed=7)     # SQLite; or url="postgresql+psycopg://...", a database that is its own

A life is a few messages of two ordering keys, two processes that enqueue, two workers and a person. Which rules take part is
chance too (Hypothesis leaves some out of each life), and the clock is moved in large steps: so what is rare becomes usual. In
the end nothing is in the way any more, everything is delivered, and the ledger is looked at.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy.orm import Session

from outbox import KeyConflict, Refused, Selection, migrate, presence
from outbox.database import Database
from outbox.dispatcher import WorkerGone
from outbox.multipart import FieldPart
from outbox.testing.ledger import Received
from tests.explore.model import BACKOFF_CAP, Model, Told, Wrong
from tests.explore.world import ANSWERS, HOSTILE, Place, Request, Trouble, Worker
from tests.factories import Clock, event
from tests.ledger import examine
from tests.ledger.history import Promise, Promises, digest

ORDERS = ("pump", "valve")
UNFINISHED, KEPT = 3, 8  #: messages, at a time
#: What of a life is deterministic: no file of examples, no time that runs out.
QUIET = settings(deadline=None, database=None, print_blob=False, suppress_health_check=list(HealthCheck))
#: Hours that the clock is set back in one life, at most; in the end they are waited for.
SET_BACK = 3
_TOLD = sa.text("SELECT key, state, reason, attempt, replays, claimed_by, delivery_id, id FROM outbox_message ORDER BY id")
_TRIED = sa.text("SELECT message_id, outcome FROM outbox_attempt ORDER BY message_id, number")

#: Rules that some lives do without.
SPICE = ("clock_is_set", "act", "pause", "crash_or_leave", "enqueue_again", "enqueue_what_is_refused", "tidy_spool", "ask_why")

Step = Callable[..., None]


def step(when: Callable[[Any], bool] | None = None, **given: st.SearchStrategy[Any]) -> Callable[[Step], Any]:
    """A rule that is counted, and that says whether it came to its end."""

    def decorate(function: Step) -> Any:
        @wraps(function)
        def take(self: OutboxMachine, **drawn: Any) -> None:
            self.well = False
            function(self, **drawn)
            self.counts[function.__name__] += 1
            self.well = True

        made = rule(**given)(take)
        return made if when is None else precondition(when)(made)

    return decorate


ANY = st.integers(0, 11)
BOTH = st.sampled_from([0, 1])
#: The simplest first: a life in which nothing else happens should be one that goes well.
TURNS = st.tuples(st.sampled_from(list(ANSWERS)), BOTH)
TROUBLE = st.sampled_from(["", "", "", "before", "after"])


class _Others:
    """Every rule but these."""

    def __init__(self, left_out: frozenset[str]) -> None:
        self.left_out = left_out

    def is_enabled(self, name: str) -> bool:
        return name not in self.left_out


class OutboxMachine(RuleBasedStateMachine):
    """One life."""

    def __init__(self, place: Place, counts: Counter[str]) -> None:
        super().__init__()
        place.wipe()
        self.place, self.counts = place, counts
        self.well = True
        self.clock = Clock()
        self.model = Model(self.clock.wall)
        self.numbers = itertools.count(1)
        self.moments = itertools.count(1)
        self.set_back = 0
        self.stamped: set[Path] = set()
        self.promises = Promises()
        self.requests: list[Received] = []
        self.outboxes = [place.outbox(number, self.clock, self.new_id) for number in (0, 1)]
        self.workers = [self.new_worker(0), self.new_worker(1)]
        # Hypothesis would leave out any rule, and mostly those without which nothing happens.
        left_out = st.shared(st.frozensets(st.sampled_from(SPICE)).map(_Others), key=("left out", self))
        self._rules_strategy.enabled_rules_strategy = left_out

    def new_id(self) -> str:
        """Like any other, and in one folder of the spool: each takes time to make."""
        return f"{next(self.numbers):030x}00"

    def new_worker(self, number: int) -> Worker:
        worker = Worker(self.outboxes[number], self.place.shaky)
        self.arrive(worker)
        return worker

    def arrive(self, worker: Worker) -> None:
        worker.presence.arrive()
        self.model.alive.add(worker.presence.id)

    # Producers.

    @initialize(orders=st.lists(st.sampled_from([None, *ORDERS]), max_size=UNFINISHED - 1))
    def begin(self, orders: list[str | None]) -> None:
        """Nothing happens to an outbox without messages."""
        for order in orders:
            self.enqueue(by=0, ending="commit", order=order, ordered=True, files=0, later=0)

    @step(
        when=lambda self: self.has_room,
        by=BOTH,
        ending=st.sampled_from(["commit", "commit", "commit", "roll back", "savepoint", "reply lost", "reply lost, again"]),
        order=st.sampled_from([None, *ORDERS]),
        ordered=st.booleans(),
        files=st.integers(0, 2),
        later=st.sampled_from([0, 0, 0, 3600]),
    )
    def enqueue(self, by: int, ending: str, order: str | None, ordered: bool, files: int, later: int) -> None:
        key = f"m{next(self.numbers)}"
        told = Told(key, 0, order, ordered, tuple(f"{key}, file {each}".encode() for each in range(files)), later)
        sha256 = {f"f{number}": hashlib.sha256(each).hexdigest() for number, each in enumerate(told.files)}
        promise = Promise(sha256, digest(_payload(told)), order)
        tells = self.promises.acknowledged
        with self.producer(savepoint=ending == "savepoint", commit=ending != "roll back") as connection:
            found = self.offer(by, connection, told)
            _require("enqueue", (found.new, found.state), (True, "pending"))
        if ending in ("roll back", "savepoint"):
            self.model.roll_back(told)
            tells = self.promises.rolled_back
        else:
            self.model.commit(told)
        if ending == "reply lost":
            tells = self.promises.unknown
        elif ending == "reply lost, again":
            self.offer_again(by, told)
        tells[key] = promise

    @step(when=lambda self: self.has_room, order=st.sampled_from(ORDERS))
    def enqueue_in_order(self, order: str) -> None:
        self.enqueue(by=0, ending="commit", order=order, ordered=True, files=0, later=0)

    @property
    def has_room(self) -> bool:
        return len(self.model.unfinished) < UNFINISHED and len(self.model.messages) < KEPT

    @step(when=lambda self: bool(self.model.messages), by=BOTH, which=ANY, same=st.booleans())
    def enqueue_again(self, by: int, which: int, same: bool) -> None:
        told = _pick(list(self.model.messages.values()), which)
        if same:
            self.offer_again(by, told)
            return
        with self.producer() as connection, pytest.raises(KeyConflict):
            self.offer(by, connection, told, content=1)

    @step(by=BOTH, which=ANY)
    def enqueue_what_is_refused(self, by: int, which: int) -> None:
        with self.producer() as connection, pytest.raises(Refused):
            self.outboxes[by].enqueue(connection, "enos", **_pick(HOSTILE, which))

    def offer(self, by: int, connection: Session | sa.Connection, told: Told, content: int = 0) -> Any:
        due_at = self.clock.wall + timedelta(seconds=told.later) if told.later else None
        more = {"key": told.key, "ordering_key": told.order, "ordered": told.ordered, "due_at": due_at}
        files = {f"f{number}": each for number, each in enumerate(told.files)}
        return self.outboxes[by].enqueue(connection, "enos", _payload(told, content), files=files, **more)

    def offer_again(self, by: int, told: Told) -> None:
        with self.producer() as connection:
            found = self.offer(by, connection, told)
        _require("enqueue again", (found.new, found.state), (False, told.state))

    @contextmanager
    def producer(self, *, savepoint: bool = False, commit: bool = True) -> Iterator[Session | sa.Connection]:
        """A caller's transaction, and how it ends."""
        if savepoint:
            with Session(self.place.caller) as session, session.begin():
                inner = session.begin_nested()
                yield session
                inner.rollback()
            return
        with self.place.caller.connect() as connection, connection.begin() as transaction:
            yield connection
            if not commit:
                transaction.rollback()

    # Workers.

    @step(when=lambda self: self.is_free and self.model.has_due, who=ANY, peek=st.booleans(), trouble=TROUBLE)
    def claim(self, who: int, peek: bool, trouble: str) -> None:
        worker = _pick([each for each in self.workers if each.request is None], who)
        self.take_turn(worker, peek=peek, trouble="" if worker.unrecorded else trouble)

    @step(
        when=lambda self: any(each.request for each in self.workers),
        who=ANY,
        how=st.sampled_from(list(ANSWERS)),
        trouble=TROUBLE,
    )
    def answer(self, who: int, how: str, trouble: str) -> None:
        self.hear(_pick([each for each in self.workers if each.request], who), how, trouble)

    @property
    def is_free(self) -> bool:
        return any(each.request is None for each in self.workers)

    @step(when=lambda self: self.is_free, turn=TURNS)
    def claim_and_answer(self, turn: tuple[str, int]) -> None:
        how, who = turn
        self.claim_and_hear(_pick([each for each in self.workers if each.request is None], who), how)

    def claim_and_hear(self, worker: Worker, how: str) -> None:
        self.take_turn(worker)
        if worker.request is not None:
            self.hear(worker, how)

    @step(who=BOTH, in_order=st.booleans())
    def crash_or_leave(self, who: int, in_order: bool) -> None:
        worker = self.workers[who]
        if in_order and worker.request is None and not worker.unrecorded:
            worker.presence.leave()
            self.model.declare_gone({worker.presence.id})
        worker.die()
        self.workers[who] = self.new_worker(who)

    @step(who=BOTH, what=st.sampled_from(["beat", "rescue", "look and rescue", "look and rescue"]))
    def live_on(self, who: int, what: str) -> None:
        worker = self.workers[who]
        if what == "beat":
            self.keep_alive(worker)
            return
        if what != "rescue":
            self.look(worker)
        _require("rescue", worker.dispatcher.rescue(), self.model.rescue())

    def look(self, worker: Worker) -> None:
        """None but who looks has beaten for too long."""
        others = self.model.alive - {worker.presence.id}
        _require("look", set(worker.presence.look()), others)
        self.model.declare_gone(others)

    def keep_alive(self, worker: Worker) -> None:
        """What its pulse does."""
        here = worker.presence.id in self.model.alive
        _require("beat", worker.presence.beat(), here)
        if not here:
            self.arrive(worker)
        mine = [each for each in worker.unheld if each in self.model.under_way and each.worker == worker.presence.id]
        _require("release", worker.dispatcher.release_unheld(), len(mine))
        for each in mine:
            self.model.record(each, "never begun")
        worker.unheld = []
        worker.dispatcher.free_streams()
        worker.dispatcher.find_strays()

    def take_turn(self, worker: Worker, *, peek: bool = False, trouble: str = "") -> None:
        """Until its request is out, or there is none."""
        left, worker.unrecorded = worker.unrecorded, []
        for claim, how in left:
            self.model.record(claim, how)
        # A look may find nothing, and then nobody begins a transaction that could fail.
        self.place.shaky.trouble = trouble
        turn = worker.begin_turn(peek=peek and not trouble)
        self.place.shaky.trouble = ""
        match turn.error:
            case None if turn.upload is not None:
                self.sent(worker, turn.upload)
            case None:
                _require("one that was told nothing is here", peek or worker.presence.id in self.model.alive, meant=True)
                self.model.claim_nothing()
            case WorkerGone():
                _require("one that was told that it is gone is here", worker.presence.id in self.model.alive, meant=False)
                self.arrive(worker)
            case Trouble():
                keys = [row.key for row in self.rows() if row.claimed_by and self.model.messages[row.key].state != "claimed"]
                if keys:
                    worker.unheld.append(self.model.claim(worker.presence.id, keys))
            case error:
                raise error

    def sent(self, worker: Worker, upload: Any) -> None:
        document = json.loads(next(part.body for part in upload.parts if isinstance(part, FieldPart)))
        claim = self.model.claim(worker.presence.id, [each["assetId"] for each in document["params"]])
        worker.request = Request(claim, document, next(self.moments))

    def hear(self, worker: Worker, how: str, trouble: str = "") -> None:
        """The answer to its request, and what is written of it."""
        request, turn = worker.request, worker.turn
        assert request is not None
        assert turn is not None
        worker.request = None
        self.requests.append(request.received(len(self.requests) + 1, turn.files, how, next(self.moments)))
        self.place.shaky.trouble = trouble
        turn.go_on(ANSWERS[how])
        if trouble:
            assert isinstance(turn.error, Trouble)
            worker.unrecorded.append((request.claim, how))
        elif turn.error is not None:
            raise turn.error
        if trouble != "before":
            self.model.record(request.claim, how)

    # The clock and the dice.

    @step(seconds=st.sampled_from([0.0, 1.0, BACKOFF_CAP, 86400.0]), dice=st.sampled_from([0.0, 1.0]))
    def time_passes(self, seconds: float, dice: float) -> None:
        self.clock.move(seconds)
        self.clock.dice = self.model.dice = dice
        self.model.passed += seconds
        self.model.wall = self.clock.wall

    @step(when=lambda self: self.set_back < SET_BACK, ahead=st.booleans())
    def clock_is_set(self, ahead: bool) -> None:
        self.set_back += 1
        self.clock.wall += timedelta(days=365) if ahead else timedelta(hours=-1)
        self.model.wall, self.model.steady = self.clock.wall, False

    # People.

    @step(
        when=lambda self: bool(self.model.messages),
        by=BOTH,
        which=ANY,
        act=st.sampled_from(["cancel", "replay", "purge", "replay", "replay"]),
        every=st.sampled_from([False, False, False, True]),
    )
    def act(self, by: int, which: int, act: str, every: bool) -> None:
        keys = list(self.model.messages)
        chosen = keys if every else [_pick(keys, which)]
        selection = Selection(destination="enos") if every else Selection(keys=tuple(chosen))
        done = getattr(self.outboxes[by], act)(selection, "somebody")
        _require(act, done, getattr(self.model, act)(chosen))

    @step(by=BOTH, order=st.sampled_from([None, *ORDERS]))
    def pause(self, by: int, order: str | None) -> None:
        self.outboxes[by].pause("enos", "to see what happens", "somebody", order)
        self.model.pause(order)

    @step(
        when=lambda self: any(self.model.is_stopped(each) for each in (None, *ORDERS)),
        by=BOTH,
        which=ANY,
    )
    def resume(self, by: int, which: int) -> None:
        order = _pick([each for each in (None, *ORDERS) if self.model.is_stopped(each)], which)
        _require("resume", self.outboxes[by].resume("enos", "somebody", ordering_key=order), self.model.resume(order))

    @step(by=BOTH)
    def tidy_spool(self, by: int) -> None:
        _require("sweep", self.outboxes[by].sweep(), self.model.sweep())
        _require("free files", self.outboxes[by].free_files(), self.model.free_files())

    @step(when=lambda self: bool(self.model.unfinished), by=BOTH, which=ANY)
    def ask_why(self, by: int, which: int) -> None:
        self.explain(by, _pick(self.model.unfinished, which))

    def explain(self, by: int, told: Told) -> None:
        sentences = [each.sentence for each in self.outboxes[by].explain(told.key)]
        _require(f"why {told.key} waits is said", bool(sentences and all(sentences)), meant=True)

    # What must be so.

    @invariant()
    def agrees(self) -> None:
        self.well, well = False, self.well
        seen = {}
        rows = self.rows()
        with self.place.caller.connect() as connection:
            tried: dict[int, list[str]] = {}
            for message_id, outcome in connection.execute(_TRIED):
                tried.setdefault(message_id, []).append(outcome)
        for row in rows:
            told = (row.state, row.reason, row.attempt, row.replays, row.claimed_by, tuple(tried.get(row.id, ())))
            seen[row.key] = told
        meant = self.model.seen()
        odd = {key: (seen.get(key), meant.get(key)) for key in seen.keys() | meant.keys() if seen.get(key) != meant.get(key)}
        _require("messages, as they are and as they should be", odd, {})
        _require("deliveries", len({row.delivery_id for row in rows} - {None}), len(self.model.under_way))
        _require("spool", self.in_spool(), self.model.in_spool())
        self.well = well

    def rows(self) -> list[Any]:
        with self.place.caller.connect() as connection:
            return list(connection.execute(_TOLD))

    def in_spool(self) -> Counter[bytes]:
        """What lies there. What is new there gets the time of our clock, as on a machine that has only one."""
        found: Counter[bytes] = Counter()
        paths = set(self.place.spool.glob("??/*"))
        for path in paths:
            if path not in self.stamped:
                os.utime(path, (self.clock.wall.timestamp(),) * 2)
            found[path.read_bytes()] += 1
        self.stamped = paths
        return found

    # The end.

    def teardown(self) -> None:
        if not self.well:  # whatever went wrong is the news
            for worker in self.workers:
                worker.die()
            return
        for told in self.model.unfinished:
            self.explain(0, told)
        for worker in self.workers:
            if worker.request is not None:
                self.hear(worker, "ok")
        self.drain()
        self.agrees()
        self.look_at_ledger()

    def drain(self) -> None:
        """Nothing is in the way any more, and as much time passes as may be needed."""
        for _ in range(SET_BACK + 3):
            self.live_on(who=0, what="look and rescue")
            self.resume_everything()  # again: what is rescued may be what dies, and holds up its stream
            for worker in self.workers:
                self.keep_alive(worker)
                for _ in range(UNFINISHED + 3):
                    if self.model.unfinished or worker.unrecorded:
                        self.claim_and_hear(worker, "ok")
            if not self.model.unfinished:
                return
            self.time_passes(seconds=BACKOFF_CAP, dice=1.0)

    def resume_everything(self) -> None:
        for order in (None, *ORDERS):
            found = self.outboxes[0].resume("enos", "somebody", ordering_key=order)
            _require("resume", found, self.model.resume(order))

    def look_at_ledger(self) -> None:
        # Swept without grace: whatever the clock was set to, what lies there is older than that.
        self.clock.wall = max(self.clock.wall, datetime.now(UTC)) + timedelta(days=1)
        self.outboxes[0].sweep(timedelta(0))
        balance = examine(
            self.outboxes[0].database,
            self.requests,
            self.promises,
            purged=None,
            spool=self.place.spool,
            swept=True,
            thorough=False,
        )
        _require("ledger", balance.faults, [])
        self.counts.update(
            lives=1, messages=len(self.model.messages), copies=balance.counts.copies, requests=len(self.requests)
        )


def _payload(told: Told, content: int = 0) -> dict[str, Any]:
    return event(told.key, *(f"f{number}" for number in range(len(told.files))), content=content)


def _require(what: str, found: object, meant: object) -> None:
    if found != meant:
        raise Wrong(f"{what}: expected {meant}, found {found}")


def _pick(among: Any, which: int) -> Any:
    return among[which % len(among)]


def live(place: Place, **options: Any) -> Counter[str]:
    """So many lives as the options of Hypothesis say; how often there was what."""
    counts: Counter[str] = Counter()

    def life() -> OutboxMachine:
        return OutboxMachine(place, counts)

    if (number := options.pop("seed", None)) is not None:
        life = seeded(number)(life)
    logging.disable(logging.CRITICAL)
    try:
        with patch.object(presence, "_version", lambda: None):  # it would be read from the disk each time
            run_state_machine_as_test(life, settings=settings(QUIET, **options))
    finally:
        logging.disable(logging.NOTSET)
    return counts


def machine(examples: int, seed: int | None = None, url: str | None = None, steps: int = 60) -> Counter[str]:
    """For torture: so many random lives, here or on a Postgres database that is its own; raises at the first that goes wrong.

    The seed is printed; without one it is OUTBOX_TEST_SEED, or any.
    """
    number = int(os.environ.get("OUTBOX_TEST_SEED") or random.randrange(10**6)) if seed is None else seed
    print(f"OUTBOX_TEST_SEED={number}")
    with tempfile.TemporaryDirectory() as folder:
        url = url or f"sqlite:///{Path(folder, 'outbox.db')}"
        with closing(Database(url)) as database:
            database.create()
            migrate.upgrade(database)
        with closing(Place(url, Path(folder, "spool"))) as place:
            return live(place, max_examples=examples, stateful_step_count=steps, seed=number)
