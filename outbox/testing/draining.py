"""A worker without threads: it takes turns until nothing is due, and then returns."""

from __future__ import annotations

from collections.abc import Iterable

from outbox.app import Outbox
from outbox.dispatcher import Dispatcher
from outbox.errors import OutboxError
from outbox.model import Batch, Lane
from outbox.presence import Presence
from outbox.store import breaker, living
from outbox.testing.memory import MemoryTransport
from outbox.testing.sent import Sent
from outbox.verdict import Retry, Verdict, fit_for_a_row, outcome
from outbox.watching import Watcher, Watchers

#: So many requests in a row that move nothing have no end.
_IN_VAIN = 200
#: Seconds that a transaction of somebody's may hold SQLite's write lock before it is taken for one that was forgotten.
_PATIENCE = 0.5


class KitError(OutboxError):
    """The test kit cannot do what a test asks for; it says why."""


class Drainer(Watcher):
    """The real claim, encode, send, judge, settle and record, taken by hand; only the transport is not real."""

    def __init__(self, outbox: Outbox, transport: MemoryTransport) -> None:
        self._outbox = outbox
        self._transport = transport
        skipping = [each.name for each in outbox.destinations.values() if each.policy.on_dead == "skip"]
        self._presence = Presence(outbox.database, outbox.ambient, serves=list(outbox.destinations), skipping=skipping)
        self._dispatcher = Dispatcher(
            outbox.database,
            outbox.spool_store,
            outbox.destinations,
            outbox.ambient,
            transport,
            lambda: self._presence.id,
            watcher=Watchers([self, outbox.hooks.watcher]),
            middleware=outbox.hooks.finished,
        )
        self._dispatcher.free_after = outbox.retention.free_after
        self._begun = 0
        self._in_vain = 0
        self._refused: str | None = None

    def drain(self, at_most: int) -> list[Sent]:
        """Turns until nothing is due, or so many requests were sent; returns what was sent.

        Raises KitError when there is no end of it, when a transaction is in the way, or when credentials cannot be had.
        """
        self._require_room()
        if not self._presence.id:
            self._arrive()
        first, self._in_vain, self._refused = len(self._transport.sent), 0, None
        ends = self._begun + at_most
        while self._begun < ends:
            before = self._begun
            self._dispatcher.record_leftovers()
            self._dispatcher.expire()
            self._dispatcher.free_streams()
            for name in list(self._outbox.destinations):
                if self._begun < ends:
                    self._dispatcher.turn(name, [Lane.EXPRESS, Lane.NORMAL, Lane.BULK, Lane.LARGE])
                self._require_progress(name)
            if self._begun == before:
                break
        return self._transport.sent[first:]

    def close(self) -> None:
        """Leave, as a worker that ends in order does."""
        if self._presence.id:
            self._presence.leave()

    def upload_begins(self, batch: Batch) -> dict[str, str]:
        self._begun += 1
        self._transport.batch = batch
        return {}

    def upload_ended(self, batch: Batch, verdict: Verdict, seconds: float) -> None:
        facts, word = fit_for_a_row(verdict.facts), outcome(verdict)
        self._in_vain = self._in_vain + 1 if word not in ("delivered", "reject") else 0
        if self._transport.sent and self._transport.sent[-1].outcome is None:
            self._transport.sent[-1].outcome, self._transport.sent[-1].words = word, facts.text
        if isinstance(verdict, Retry) and verdict.credentials and facts.status is None:
            self._refused = f"{batch.destination} was sent nothing: {facts.text}"

    def _require_progress(self, name: str) -> None:
        if self._refused is not None:
            raise KitError(f"{self._refused}; give a test what it needs for that, such as monkeypatch.setenv(...)")
        if self._in_vain >= _IN_VAIN:
            raise KitError(
                f"{_IN_VAIN} requests in a row have moved nothing, and something is still due to {name}; say another answer, "
                "or drain(at_most=...)"
            )

    def _require_room(self) -> None:
        if not self._outbox.database.takes_writers(_PATIENCE):
            raise KitError("a transaction that has written is still open: commit it, and then drain; nobody else can write")

    def _arrive(self) -> None:
        with self._outbox.database.read() as connection:
            others: Iterable[str] = living.beats(connection)
        if others:
            raise KitError(f"another worker is alive on this database ({', '.join(others)}): give the test one of its own")
        with self._outbox.database.begin() as connection:
            breaker.declare(connection, self._outbox.destinations)
        self._presence.arrive()
