"""Producers, workers and operators that a torture runs as processes of their own: `python -m tests.torture.victims`.

What to do comes as JSON in the environment variable STORY. Each writes a history, and goes on until it is killed or stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import itertools
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox import EnosEvents, Lane, Outbox, Policy, Token, Worker, prepare
from outbox.errors import SpoolError
from outbox.model import SpooledFile
from outbox.policy import Retention
from tests.ledger.history import Diary, History

Story = dict[str, Any]

#: The caller's own table: its rows must come and go with the messages.
HOST = sa.Table("host", sa.MetaData(), sa.Column("key", sa.String(100), primary_key=True))
PR_SET_PDEATHSIG = 1
STREAMS, SHARES = 6, 3
SHARED = b"a file that several messages share" * 40


@dataclass(frozen=True)
class Meant:
    """A message as its key has it: whoever enqueues the key again, in another process, means the same."""

    key: str
    payload: Mapping[str, Any]
    contents: Mapping[str, bytes]
    ordering_key: str | None
    ordered: bool
    lane: Lane | None
    later: float  #: seconds until it is due
    lasts: float | None  #: seconds until it is over, delivered or not
    shares_file: bool


def is_poison(key: str) -> bool:
    """Whether the receiver refuses it, by name."""
    return key.endswith("!")


def may_be_purged(key: str) -> bool:
    """Whether an operator may purge it: nobody enqueues such a key twice."""
    return key.endswith("x")


def meant_by(key: str) -> Meant:
    """The message of a key."""
    dice = random.Random(key)
    contents: dict[str, bytes] = {}
    for number in range(dice.choices((0, 1, 2), (60, 30, 10))[0]):
        size = dice.choices((0, dice.randrange(3_000), dice.randrange(200_000)), (5, 85, 10))[0]
        contents[f"photo{number}"] = dice.randbytes(size)
    shares_file = dice.random() < 0.05
    if shares_file:
        contents["shared"] = SHARED
    ordering_key, ordered = None, True
    kind = dice.random()
    if kind < 0.35:
        ordering_key = f"stream-{dice.randrange(STREAMS)}"
    elif kind < 0.45:
        ordering_key, ordered = f"share-{dice.randrange(SHARES)}", False
    lane = dice.choices((None, Lane.EXPRESS, Lane.BULK), (80, 10, 10))[0]
    later = dice.uniform(0, 0.5) if dice.random() < 0.05 else 0.0
    lasts = later + dice.uniform(0.2, 3) if dice.random() < 0.05 else None
    values = {"severity": dice.randrange(10), "words": "é\u4e2d" * dice.randrange(40)}
    references = {name: f"local://{name}" for name in contents}
    payload = {"assetId": key, "time": 1579580182824, "events": {"crack": values | references}}
    return Meant(key, payload, contents, ordering_key, ordered, lane, later, lasts, shares_file)


def outbox_of(story: Story) -> Outbox:
    policy = Policy(**story["policy"])
    token = Token(story["url"], "app-key", "app-secret", allow_plain_http=True) if story["token"] else None
    destination = EnosEvents(name="enos", url=story["url"], org_id="o1", allow_plain_http=True, policy=policy, token=token)
    kept = story["kept"] and timedelta(seconds=story["kept"])
    retention = Retention(delivered=kept, cancelled=kept, free_after=timedelta(seconds=story["free_after"]))
    return Outbox(
        story["database"],
        spool=story["spool"],
        destinations=[destination],
        durability="ignore",
        retention=retention,
        reserve=0,
    )


def work(story: Story) -> None:
    """A worker that says what it does."""
    random.seed(story["seed"])
    with History(Path(story["history"])) as history:
        Worker(outbox_of(story), watcher=Diary(history), **story["worker"]).run()


class Abandoned(Exception):
    """The caller's own trouble in the middle of its transaction."""


class Producer:
    """A caller that writes rows of its own and enqueues messages with them, again and again."""

    def __init__(self, story: Story, history: History) -> None:
        self.story = story
        self.history = history
        self.dice = random.Random(story["seed"])
        self.outbox = outbox_of(story)
        self.engine = prepare(sa.create_engine(story["database"]))
        self.again: list[str] = list(story["again"])
        self.numbers = iter(range(story["messages"]))
        self.shared: SpooledFile | None = None

    def run(self) -> None:
        """One transaction after the other, some of which come to nothing; first those that the one before may have lost."""
        self.shared = self.outbox.spool(SHARED)
        for keys in self._batches():
            fate = self.dice.choices(("commit", "rollback", "raise", "savepoint"), (75, 10, 7, 8))[0]
            with contextlib.suppress(Abandoned):
                # In one order: two callers that lock the same two streams the other way round would wait for each other.
                self._transaction(sorted(map(meant_by, keys), key=lambda each: each.ordering_key or ""), fate)
            time.sleep(self.dice.expovariate(1 / self.story["pace"]) if self.story["pace"] else 0)

    def _batches(self) -> Iterator[list[str]]:
        while self.again:
            size = self.dice.randint(1, 4)
            keys, self.again = self.again[:size], self.again[size:]
            yield keys
        while keys := list(itertools.islice(self.numbers, self.dice.choices((1, 2, 3, 8), (60, 20, 15, 5))[0])):
            yield [self._new_key(each) for each in keys]
        while True:  # the backlog must not grow for ever: whoever is not killed in time rests
            time.sleep(60)

    def _new_key(self, number: int) -> str:
        mark = self.dice.choices(("", "x", "!"), (78, 20, self.story["poison"]))[0]
        return f"{self.story['name']}.{number}{mark}"

    def _transaction(self, wanted: Sequence[Meant], fate: str) -> None:
        with contextlib.ExitStack() as tries:
            entered = [
                tries.enter_context(
                    self.history.enqueue(
                        each.key,
                        files=each.contents,
                        payload=each.payload,
                        ordering_key=each.ordering_key if each.ordered else None,
                    )
                )
                for each in wanted
            ]
            with Session(self.engine) as session:
                for number, each in enumerate(wanted):
                    if fate == "savepoint" and number == 0:
                        with contextlib.suppress(Abandoned), session.begin_nested():
                            self._enqueue(session, each)
                            entered[0].rolled_back()
                            raise Abandoned
                    else:
                        self._enqueue(session, each)
                if self.dice.random() < self.story["dawdles"]:
                    time.sleep(self.dice.uniform(0, 0.3))  # a caller that takes its time, with its locks held
                if fate == "raise":
                    raise Abandoned
                if fate == "rollback":
                    session.rollback()
                    for each in entered:
                        each.rolled_back()
                    return
                # Whoever dies before this line has asked for no commit: of its keys none may be there.
                self.history.write("info", "commit", keys=[each.key for each in wanted])
                session.commit()

    def _enqueue(self, session: Session, each: Meant) -> None:
        files: dict[str, Any] = dict(each.contents)
        if each.shares_file:
            files["shared"] = self.shared
        now = self.outbox.ambient.now()
        enqueued = self.outbox.enqueue(
            session,
            "enos",
            each.payload,
            files=files,
            key=each.key,
            ordering_key=each.ordering_key,
            ordered=each.ordered,
            lane=each.lane,
            due_at=now + timedelta(seconds=each.later) if each.later else None,
            expires_at=now + timedelta(seconds=each.lasts) if each.lasts else None,
        )
        if enqueued.new:
            session.execute(sa.insert(HOST).values(key=each.key))
        elif session.execute(sa.select(HOST.c.key).where(HOST.c.key == each.key)).scalar_one_or_none() is None:
            raise AssertionError(f"{each.key} was enqueued before, and the caller's own row of that transaction is not there")


def produce(story: Story) -> None:
    """A producer; ends only by force."""
    with History(Path(story["history"])) as history:
        producer = Producer(story, history)
        while True:
            try:
                producer.run()
            except SpoolError as error:  # it was freed since: no message of ours has it any more
                if "spool it again" not in str(error):
                    raise


def operate(story: Story) -> None:
    """An operator; ends only by force."""
    from tests.torture.operator import Operator

    with History(Path(story["history"])) as history:
        Operator(story, outbox_of(story), history).run()


PROGRAMS = {each.__name__: each for each in (work, produce, operate)}

if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)  # where it stands, for whoever wonders
    # Nobody must go on when whoever would kill us has been killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    logging.basicConfig(format="%(asctime)s %(threadName)s %(name)s %(message)s")
    logging.getLogger("outbox").setLevel(logging.INFO)
    told = json.loads(os.environ["STORY"])
    PROGRAMS[told["program"]](told)
    sys.exit(0)
