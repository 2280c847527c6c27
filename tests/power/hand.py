"""A worker without threads, whose turns are taken by hand and watched, for programs that must be small."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from outbox import Outbox
from outbox.dispatcher import Dispatcher
from outbox.model import Lane
from outbox.presence import Presence
from outbox.store import breaker
from outbox.tables import worker
from outbox.transport import RequestsTransport, Transport
from outbox.watching import Watcher

LANES = (Lane.EXPRESS, Lane.NORMAL, Lane.BULK, Lane.LARGE)


class Hand:
    """One worker, in order: it arrives, takes turns, and is never heard of again."""

    def __init__(
        self, outbox: Outbox, *, transport: Transport | None = None, watcher: Watcher | None = None, arrive: bool = True
    ) -> None:
        self.outbox = outbox
        self.presence = Presence(outbox.database, outbox.ambient)
        self.transport = transport or RequestsTransport()
        self.dispatcher = Dispatcher(
            outbox.database,
            outbox.spool_store,
            outbox.destinations,
            outbox.ambient,
            self.transport,
            lambda: self.presence.id,
            watcher=watcher,
        )
        if arrive:
            self.arrive()

    def arrive(self) -> None:
        with self.outbox.database.begin() as connection:
            breaker.declare(connection, self.outbox.destinations)
        self.presence.arrive()

    def turn(self, lanes: Collection[Lane] = LANES) -> bool:
        return self.dispatcher.turn("enos", list(lanes))

    def close(self) -> None:
        if isinstance(self.transport, RequestsTransport):
            self.transport.close()


class Killed(BaseException):
    """The end of a worker in the middle of an upload: nothing of it goes on."""


class DyingTransport(RequestsTransport):
    """Sends, and is killed before it can tell what came of it."""

    def send(self, *arguments: Any) -> Any:
        super().send(*arguments)
        raise Killed


def bury(outbox: Outbox, except_for: str = "") -> None:
    """Every other worker counts as gone: nobody waits here until its beat has stood still for long enough."""
    with outbox.database.begin() as connection:
        connection.execute(sa.update(worker).where(worker.c.id != except_for).values(gone=True))
