"""Everything that an outbox does, each in a process of its own that is killed in the middle of it.

An operation prepares what it needs up to its `yield`; what follows is where it can be killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox import Outbox, Policy, Selection, prepare
from outbox.model import Batch
from outbox.tables import message
from outbox.testing import Behaviour, HangUp, Status
from outbox.watching import Watcher
from tests.factories import Clock, enos, event
from tests.ledger.history import headers_of
from tests.power.hand import DyingTransport, Hand, Killed, bury
from tests.power.notes import Notes

#: Of files that are copied in more than one block.
LONG = 300_000


class Telling(Watcher):
    """Tells the receiver which attempts a request is."""

    def upload_begins(self, batch: Batch) -> Mapping[str, str]:
        return headers_of(batch)


class Bench:
    """An outbox, a caller and a worker in one process; every key begins with a name that nobody else uses."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.name = asked["name"]
        self.notes = Notes(Path(asked["notes"]))
        self.clock = Clock(wall=datetime.fromisoformat(asked["now"]))
        self.dice = random.Random(self.name)
        self.url = asked["database"]
        self.outbox = Outbox(
            self.url,
            spool=asked["spool"],
            destinations=[enos(asked["url"], policy=Policy(batch_messages=3))],
            durability="ignore",
            reserve=asked["reserve"],
            ambient=self.clock.ambient,
        )
        self.engine = prepare(sa.create_engine(self.url))
        self._files: dict[str, dict[str, bytes]] = {}

    def key(self, name: str) -> str:
        return f"{self.name}-{name}"

    def files(self, key: str, many: int) -> dict[str, bytes]:
        """The same files for the same key."""
        return self._files.setdefault(
            key, {f"file{number}": self.dice.randbytes(LONG if number == 2 else 2000) for number in range(many)}
        )

    def enqueue(self, name: str, files: int = 0, *, commits: bool = True, **options: Any) -> str:
        """One message in a transaction of its own, with what is promised noted before and after."""
        key = self.key(name)
        given = self.files(key, files)
        self.begins(key, given, commits=commits)
        with self.engine.connect() as connection, connection.begin() as transaction:
            self.outbox.enqueue(connection, "enos", event(key, *given), files=given, key=key, **options)
            if not commits:
                transaction.rollback()
        if commits:
            self.notes.say("committed", key=key)
        return key

    def begins(self, key: str, files: Mapping[str, bytes], *, commits: bool = True) -> None:
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self.notes.say("begins", key=key, files=digests, commits=commits)

    def hand(self, **options: Any) -> Hand:
        return Hand(self.outbox, watcher=Telling(), **options)

    def delivered(self, files: int = 1) -> str:
        """A message that has arrived."""
        key = self.enqueue("delivered", files)
        self.hand().turn()
        return key

    def left_behind(self) -> None:
        """Messages under way with a worker that is gone; what it sent has arrived."""
        self.enqueue("one", 1)
        self.enqueue("two", ordering_key="pump")
        with contextlib.suppress(Killed):
            self.hand(transport=DyingTransport()).turn()


def enqueue_nothing_else(bench: Bench) -> Iterator[None]:
    yield
    bench.enqueue("a")


def enqueue_a_file(bench: Bench) -> Iterator[None]:
    yield
    bench.enqueue("a", 1, ordering_key=bench.key("stream"))


def enqueue_three_files(bench: Bench) -> Iterator[None]:
    yield
    bench.enqueue("a", 3, ordering_key=bench.key("share"), ordered=False)


def enqueue_and_roll_back(bench: Bench) -> Iterator[None]:
    yield
    bench.enqueue("a", 1, commits=False)


def enqueue_again(bench: Bench) -> Iterator[None]:
    bench.enqueue("a", 1)
    yield
    bench.enqueue("a", 1)


def spool_and_enqueue(bench: Bench) -> Iterator[None]:
    key, content = bench.key("a"), bench.dice.randbytes(2000)
    bench.begins(key, {"photo": content, "again": content})
    yield
    ahead = bench.outbox.spool(content)
    with bench.engine.begin() as connection:
        files = {"photo": ahead, "again": ahead}
        bench.outbox.enqueue(connection, "enos", event(key, *files), files=files, key=key)
    bench.notes.say("committed", key=key)


def deliver(bench: Bench) -> Iterator[None]:
    bench.enqueue("a", 2, ordering_key=bench.key("stream"))
    bench.enqueue("b", ordering_key=bench.key("share"), ordered=False)
    hand = bench.hand()
    yield
    hand.turn()


def fail(bench: Bench) -> Iterator[None]:
    """The destination's fault: its answer is a 503."""
    bench.enqueue("a", 1)
    hand = bench.hand()
    yield
    hand.turn()


def lose_an_answer(bench: Bench) -> Iterator[None]:
    bench.enqueue("a", 1)
    bench.enqueue("b")
    hand = bench.hand()
    yield
    hand.turn()


def be_refused(bench: Bench) -> Iterator[None]:
    """One in the batch is refused: it is halved, and the guilty one refused by name."""
    bench.enqueue("a", 1)
    bench.enqueue("bad")
    hand = bench.hand()
    yield
    for _ in range(3):
        hand.turn()


def rescue(bench: Bench) -> Iterator[None]:
    bench.left_behind()
    hand = bench.hand()
    bury(bench.outbox, except_for=hand.presence.id)
    yield
    hand.dispatcher.rescue()


def replay(bench: Bench) -> Iterator[None]:
    key = bench.delivered()
    yield
    bench.outbox.replay(Selection(keys=(key,)), "ada")


def cancel(bench: Bench) -> Iterator[None]:
    key = bench.enqueue("a", 1, due_at=bench.clock.wall + timedelta(hours=1), ordering_key=bench.key("stream"))
    yield
    bench.outbox.cancel(Selection(keys=(key,)), "ada")


def purge(bench: Bench) -> Iterator[None]:
    key = bench.delivered()
    bench.notes.say("purges", keys=[key])
    yield
    bench.outbox.purge(Selection(keys=(key,)), "ada")


def free_files(bench: Bench) -> Iterator[None]:
    bench.delivered(2)
    bench.clock.move(hours=2)
    yield
    bench.outbox.free_files()


def sweep(bench: Bench) -> Iterator[None]:
    bench.enqueue("a", 1)
    for content in (b"rubbish", b"more of it"):
        bench.outbox.spool_store.put(bench.outbox.ambient.new_id(), io.BytesIO(content))
    bench.clock.move(hours=1)
    yield
    bench.outbox.sweep(timedelta(0))


def expire(bench: Bench) -> Iterator[None]:
    bench.enqueue("a", 1, expires_at=bench.clock.wall + timedelta(minutes=1), ordering_key=bench.key("stream"))
    hand = bench.hand()
    bench.clock.move(minutes=2)
    yield
    hand.dispatcher.expire()


def tidy(bench: Bench) -> Iterator[None]:
    """What is over is purged in time, whoever it belongs to, and its files and workers go."""
    bench.delivered()
    with bench.outbox.database.read() as connection:
        bench.notes.say("purges", keys=list(connection.execute(sa.select(message.c.key)).scalars()))
    bench.notes.say("forgets deliveries")
    bench.clock.move(days=8)
    yield
    while bench.outbox.care.tidy() is not None:
        bench.clock.move(seconds=1)
    bench.outbox.free_files()


def arrive_and_beat(bench: Bench) -> Iterator[None]:
    hand = bench.hand(arrive=False)
    yield
    hand.arrive()
    bench.clock.move(seconds=5)
    hand.presence.beat()
    hand.presence.look()
    hand.presence.leave()


def pause_and_resume(bench: Bench) -> Iterator[None]:
    bench.enqueue("a")
    yield
    bench.outbox.pause("enos", "maintenance", "ada")
    bench.outbox.resume("enos", "ada")


def mark(bench: Bench) -> Iterator[None]:
    """The spool's mark was lost, and is written anew."""
    (Path(str(bench.outbox.spool_store)) / ".outbox").unlink(missing_ok=True)
    yield
    bench.outbox.mark_spool()


def keep_room(bench: Bench) -> Iterator[None]:
    """The reserve beside a SQLite database is taken, given back and taken again."""
    bench.enqueue("a", 1)
    path = bench.outbox.database.path
    reserve = None if path is None else path.with_name(f"{path.name}-reserve")
    if reserve is not None:
        reserve.unlink(missing_ok=True)
    yield
    bench.outbox.care.keep_room()
    if reserve is not None:
        reserve.unlink()
        bench.outbox.care.keep_room()
    bench.outbox.database.checkpoint(shrink=True)


@dataclass(frozen=True)
class Operation:
    """What is done, how the receiver meets the next request, and how far the clock is afterwards."""

    steps: Callable[[Bench], Iterator[None]]
    behaviour: Behaviour | None = None
    passes: timedelta = timedelta(0)
    reserve: int = 0


OPERATIONS: dict[str, Operation] = {
    each.steps.__name__.replace("_", " "): each
    for each in (
        Operation(enqueue_nothing_else),
        Operation(enqueue_a_file),
        Operation(enqueue_three_files),
        Operation(enqueue_and_roll_back),
        Operation(enqueue_again),
        Operation(spool_and_enqueue),
        Operation(deliver),
        Operation(fail, Status(503)),
        Operation(lose_an_answer, HangUp("after_body")),
        Operation(be_refused),
        Operation(rescue),
        Operation(replay),
        Operation(cancel),
        Operation(purge),
        Operation(free_files, passes=timedelta(hours=2)),
        Operation(sweep, passes=timedelta(hours=1)),
        Operation(expire, passes=timedelta(minutes=2)),
        Operation(arrive_and_beat),
        Operation(pause_and_resume),
        Operation(mark),
        Operation(keep_room, reserve=256 * 1024),
        Operation(tidy, passes=timedelta(days=8)),
    )
}
