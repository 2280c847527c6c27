"""Who comes after a crash: opens what is left, rescues, delivers everything, sweeps; and then the ledger must add up."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from outbox import Outbox, Policy, migrate
from outbox.tables import message, unfinished
from outbox.testing import Received, Receiver
from tests import ledger
from tests.factories import Clock, enos, real_clock
from tests.ledger.history import Promise, Promises
from tests.power.hand import Hand, bury
from tests.power.model import Left, write_out
from tests.power.notes import Promised

#: More turns than any story here has messages, so that one that never ends is noticed.
_TURNS = 200


def settle(outbox: Outbox, clock: Clock) -> None:
    """One worker, after every other is gone, until nothing is left to do; then a sweep of what nobody needs."""
    outbox.mark_spool()
    hand = Hand(outbox)
    try:
        bury(outbox, except_for=hand.presence.id)
        hand.dispatcher.rescue()
        hand.dispatcher.free_streams()
        for _ in range(_TURNS):
            clock.move(hours=2)  # every back-off is over, and the breaker's patience
            if not hand.turn() and not _unfinished(outbox):
                break
        clock.move(hours=2)
        hand.presence.leave()
    finally:
        hand.close()
    outbox.free_files()
    outbox.sweep(timedelta(0))


def _unfinished(outbox: Outbox) -> bool:
    with outbox.database.read() as connection:
        return connection.execute(sa.select(message.c.id).where(unfinished).limit(1)).one_or_none() is not None


class Successor:
    """Takes over one crash state after the other, each in the same folder, and delivers to one receiver."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self._folder = folder
        self._receiver = receiver

    def faults(self, left: Left, promised: Promised, before: Sequence[Received]) -> list[str]:
        """What does not add up after it took over; `before` is what the receiver of the recording had got by its end."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        write_out(left, self._folder)
        clock = real_clock()
        clock.move(days=1000)
        spool = self._folder / "spool"
        outbox = Outbox(
            f"sqlite:///{self._folder / 'outbox.db'}",
            spool=spool,
            destinations=[enos(self._receiver.url, policy=Policy(batch_messages=3))],
            ambient=clock.ambient,
            reserve=0,
        )
        known = len(self._receiver.requests)
        try:
            migrate.upgrade(outbox.database)
            settle(outbox, clock)
            arrived = [each for each in before if each.number <= promised.requests]
            balance = ledger.examine(
                outbox.database,
                [*arrived, *self._receiver.requests[known:]],
                promises(promised),
                purged=promised.may_go,
                spool=spool,
                swept=True,
            )
        finally:
            outbox.close()
        return balance.faults


def promises(promised: Promised) -> Promises:
    """In the ledger's words."""
    told = {key: Promise(files) for key, files in promised.begun.items()}

    def of(keys: Collection[str]) -> dict[str, Promise]:
        return {key: told[key] for key in sorted(keys)}

    unknown = told.keys() - promised.committed - promised.never
    return Promises(of(promised.committed), of(unknown), of(promised.never))
