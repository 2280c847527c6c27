"""One turn: claim, encode, send, judge, settle, record."""

from __future__ import annotations

import itertools
import logging
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from enum import Enum, auto
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from outbox import blame, telling
from outbox.ambient import Ambient
from outbox.claims import Claims, Horizon, View, WorkerGone
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.errors import OutboxError
from outbox.hooks import Middleware
from outbox.model import Batch, Lane, State
from outbox.patience import Stop
from outbox.policy import FREE_AFTER, Policy
from outbox.sending import Sender
from outbox.spool.base import Spool
from outbox.store import breaker, deliveries, living, recording, shares, streams
from outbox.store.deliveries import Ended
from outbox.telemetry import TRACEPARENT, trace_id_of
from outbox.timekeeping import When
from outbox.together import ForEach, Together
from outbox.transport import Transport
from outbox.verdict import (
    Delivered,
    Facts,
    NotSent,
    Reject,
    Result,
    Settlement,
    Unknown,
    Verdict,
    charges_destination,
    delivered,
    fit_for_a_row,
    outcome,
    settle,
)
from outbox.watching import Recorded, Watcher, Watchers

__all__ = ["Dispatcher", "WorkerGone"]

log = logging.getLogger("outbox.dispatcher")


#: A send that begins this many seconds after its claim looks once more whether a person has paused the destination.
_STALE_AFTER = 0.5
#: Turns follow each other for so many seconds, before whoever takes them hears how it went.
_STRETCH = 1.0


class Took(Enum):
    """How the last turn of a stretch ended."""

    NOTHING = auto()  #: nothing was there to claim
    IN_VAIN = auto()  #: what was sent moved nothing: another try would most likely end like it
    MORE = auto()  #: something moved, and there may be more


class _Asked(NamedTuple):
    """An outcome that is to be recorded, and the lanes in which the same thread would claim next, if it would."""

    result: Result
    lanes: Sequence[Lane] | None


class _Done(NamedTuple):
    """What was written of a result; and whether a claim was made with it, and what that found."""

    written: dict[int, Settlement]
    looked: bool = False
    batch: Batch | None = None


class Dispatcher:
    """Takes turns for a worker; any number of threads may, at the same time.

    `identity` gives the worker's present one. `stopping` says that no send may begin any more. `watcher` is told what happens.
    `middleware` gives back each request as it shall be sent.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        destinations: Mapping[str, Destination],
        ambient: Ambient,
        transport: Transport,
        identity: Callable[[], str],
        stopping: Callable[[], bool] = lambda: False,
        watcher: Watcher | None = None,
        middleware: Middleware | None = None,
    ) -> None:
        self._database = database
        self._destinations = destinations
        self._ambient = ambient
        self._sender = Sender(spool, ambient, transport, middleware)
        self._claims = Claims(database, destinations, ambient, identity)
        self._identity = identity
        self._stopping = stopping
        self._watcher = Watchers([watcher] if watcher else [])
        self._lock = threading.Lock()
        self._claiming = 0
        at_once = database.writers
        self._claiming_for: ForEach[Together[Sequence[Lane], Batch | None]] = ForEach(
            lambda name: Together(lambda asks: self._claim(name, asks), at_once)
        )
        self._recording_for: ForEach[Together[_Asked, _Done]] = ForEach(lambda _: Together(self._record, at_once))
        self._held: set[int] = set()
        self._unrecorded: list[Result] = []
        self._untold: set[tuple[str, int]] = set()
        self.free_after: timedelta | None = FREE_AFTER  #: how long the bytes of what was delivered stay in the spool

    def turn(self, name: str, lanes: Sequence[Lane], *, peek: bool = True) -> bool:
        """Claim one batch of a destination, send it and record what became of it.

        Returns whether something moved, so that another turn is worth while at once. `peek` first looks without writing whether
        there is anything to claim. Raises WorkerGone. Errors of the database come through as they are, and then nothing is
        lost: a claim that was made is released with one of the next beats, an outcome that was not recorded is kept.
        """
        self.record_leftovers()
        if peek and not self._claims.anything_due(name, lanes):
            return False
        began = self._ambient.monotonic()
        batch = self._claiming_for[name].ask(lanes)
        if batch is None:
            return False
        verdict, trace_id = self._deliver(batch, began)
        self._record_or_keep(_result(batch, verdict, trace_id))
        return _moves(verdict)

    def work(self, name: str, lanes: Callable[[], Sequence[Lane]], *, peek: bool = True) -> Took:
        """Turn after turn for a while, until one moves nothing; `lanes` gives those of each.

        As `turn`, but what a turn records and what the next one claims are one transaction, where that is allowed.
        """
        self.record_leftovers()
        mine = lanes()
        if peek and not self._claims.anything_due(name, mine):
            return Took.NOTHING
        began = self._ambient.monotonic()
        ends = began + _STRETCH
        batch = self._claiming_for[name].ask(mine)
        while batch is not None:
            verdict, trace_id = self._deliver(batch, began)
            result = _result(batch, verdict, trace_id)
            began = self._ambient.monotonic()
            if not _moves(verdict) or began >= ends:
                self._record_or_keep(result)
                return Took.MORE if _moves(verdict) else Took.IN_VAIN
            batch = self._record_and_claim(result, lanes())
        return Took.NOTHING

    def look_ahead(self, names: Sequence[str]) -> dict[str, Horizon]:
        """What there is to do for each of these destinations, now or later; reads only."""
        return self._claims.look_ahead(names)

    def wait_for_rate(self, name: str) -> float | None:
        """Seconds until the destination's rate allows one more request, if that is what holds it up."""
        return self._claims.wait_for_rate(name)

    def record_leftovers(self) -> None:
        """Try again to record what the database did not take."""
        with self._lock:
            leftovers, self._unrecorded = self._unrecorded, []
        errors = []
        while leftovers:  # each by itself: one that cannot be recorded must not hold up the others
            try:
                self._record_or_keep(leftovers.pop(0), again=True)
            except Exception as error:  # noqa: BLE001 (raised below)
                errors.append(error)
            except BaseException:
                with self._lock:
                    self._unrecorded += leftovers
                raise
        if errors:
            raise errors[0]

    def release_unheld(self) -> int:
        """Give back deliveries that are ours in the database and that no thread of ours knows of; returns how many.

        Such a claim was committed and the news of it lost. It was never sent, so it costs nothing.
        """
        worker = self._identity()
        with self._database.read() as connection:
            ours = living.deliveries_of(connection, worker)
        with self._lock:
            # A claim that began before we looked may be among them and not be held yet; the next beat will tell.
            unheld = [] if self._claiming else [each for each in ours if each not in self._held]
        return self._settle_left_behind(unheld, NotSent(Facts(text="the claim was never begun"), charged=False))

    def rescue(self) -> int:
        """Settle the deliveries of workers that are gone, to destinations that we know the rules of; returns how many."""
        with self._database.read() as connection:
            orphans = living.deliveries_of_the_gone(connection, self._destinations, 100)
        return self._settle_left_behind(orphans, Unknown(Facts(text="the worker is gone"), gone=True))

    def expire(self) -> int:
        """Give up messages whose time is over; returns how many."""
        expired = self._claims.expire()
        self._tell_expired()
        return expired

    def free_streams(self) -> int:
        """Free streams and shares that a record could not, because a producer was writing to them; returns how many, nearly."""
        freed = 0
        for name, destination in self._destinations.items():
            skip = destination.policy.on_dead == "skip"
            with self._database.read() as connection:
                idle = streams.idle(connection, name)
                # Whoever declares that its streams skip the dead means also those that stand already.
                idle += streams.blocked(connection, name) if skip else []
            if idle:
                with self._database.begin() as connection:
                    streams.release(connection, idle, self._claims.when(name), skip=skip)
            freed += len(idle) + self._tell_shares(name)
        return freed

    def _tell_shares(self, name: str) -> int:
        with self._lock:
            untold = {each for each in self._untold if each[0] == name}
        if untold:
            with self._database.begin() as connection:
                held = shares.release(connection, {share_id for _, share_id in untold}, self._claims.when(name))
            with self._lock:
                self._untold -= {each for each in untold if each[1] not in held}
        return len(untold)

    def find_strays(self) -> None:
        """Find shares that were not told of a message: whoever should have told them died, or rolled back."""
        for name in self._destinations:
            with self._database.read() as connection:
                found = shares.strayed(connection, name)
            with self._lock:
                self._untold.update((name, each) for each in found)

    @property
    def owes(self) -> bool:
        """Whether shares are still to be told that messages of theirs came back."""
        with self._lock:
            return bool(self._untold)

    @property
    def holds(self) -> int:
        """Deliveries in hand, those included whose outcome is still to be recorded."""
        with self._lock:
            return len(self._held)

    def _claim(self, name: str, asks: Sequence[Sequence[Lane]]) -> list[Batch | None]:
        """One short transaction for all who ask at this moment."""
        with self._claim_under_way() as hold, self._database.begin() as connection:
            batches = self._claims.claim_for(connection, name, asks)
            hold.extend(each.delivery for each in batches if each is not None)
        self._tell_expired()
        return batches

    def _tell_expired(self) -> None:
        if expired := self._claims.expired():
            self._watcher.expired(expired)

    @contextmanager
    def _claim_under_way(self) -> Iterator[list[int]]:
        """Between the moment a claim may be committed and the moment we hold it, nothing is released."""
        claimed: list[int] = []
        with self._lock:
            self._claiming += 1
        try:
            yield claimed
        except BaseException:
            with self._lock:
                self._claiming -= 1
            raise
        with self._lock:
            self._claiming -= 1
            self._held.update(claimed)

    def _record_and_claim(self, result: Result, lanes: Sequence[Lane]) -> Batch | None:
        """Record an outcome and claim the next batch: at once if nothing speaks against it, else one after the other."""
        with self._lock:
            left = bool(self._unrecorded)  # those are recorded before anything else is sent
        done = self._record_or_keep(result, lanes=None if left else lanes)
        if done.looked:
            return done.batch
        self.record_leftovers()
        return None if self._stopping() else self._claiming_for[result.destination].ask(lanes)

    def _deliver(self, batch: Batch, claimed_at: float) -> tuple[Verdict, str | None]:
        """What became of a batch, and the trace it was sent in; a stop of ours is nobody's fault."""
        destination = self._destinations[batch.destination]
        headers = self._watcher.upload_begins(batch)
        began = self._ambient.monotonic()
        verdict = self._sender.send(destination, batch, lambda: self._held_back(batch, claimed_at), headers)
        if isinstance(verdict, NotSent) and self._stopping():
            verdict = replace(verdict, charged=False)
        self._watcher.upload_ended(batch, verdict, self._ambient.monotonic() - began)
        return verdict, trace_id_of(headers.get(TRACEPARENT))

    def _held_back(self, batch: Batch, claimed_at: float) -> str | None:
        """Why an upload that is about to begin must not. The claim looked for a pause, but a token may take its time."""
        if self._stopping():
            return "stopped before the send began"
        if self._ambient.monotonic() - claimed_at <= _STALE_AFTER:
            return None
        try:
            with self._database.read() as connection:
                stop = breaker.read(connection, batch.destination).stop
        except (SQLAlchemyError, OutboxError):
            return "the database went away before the send began"
        return "paused before the send began" if stop is Stop.PAUSE else None

    def _record_or_keep(self, result: Result, *, again: bool = False, lanes: Sequence[Lane] | None = None) -> _Done:
        try:
            if again:
                done = _Done(self._write(result, again=True))
            else:
                done = self._recording_for[result.destination].ask(_Asked(result, lanes))
        except BaseException:
            with self._lock:
                self._unrecorded.append(result)
            raise
        with self._lock:
            self._held.discard(result.delivery)
        telling.of_delivery(result, done.written)
        self._watcher.recorded(Recorded(result, done.written))
        return done

    def _record(self, asked: Sequence[_Asked]) -> list[_Done]:
        """What came to its end at this moment under one name of ours; and for those who claim next, what there is."""
        asked = list(itertools.takewhile(lambda each: each.result.worker == asked[0].result.worker, asked))
        claimed: list[Batch | None] = []
        lanes = [each.lanes for each in asked if each.lanes is not None]
        results = [each.result for each in asked]
        try:
            written = self._write_all(results, lanes=lanes, claimed=claimed, whole=all(map(_is_plain, results)))
        except recording.SomeAreLost:
            written = self._write_all(results, lanes=lanes, claimed=claimed)
        batches = iter(claimed)
        return [
            _Done(each, True, next(batches)) if claimed and ask.lanes is not None else _Done(each)
            for each, ask in zip(written, asked, strict=True)
        ]

    def _write(self, result: Result, *, again: bool = False) -> dict[int, Settlement]:
        return self._write_all([result], again=again)[0]

    def _write_all(
        self,
        results: Sequence[Result],
        *,
        again: bool = False,
        lanes: Sequence[Sequence[Lane]] = (),
        claimed: list[Batch | None] | None = None,
        whole: bool = False,
    ) -> list[dict[int, Settlement]]:
        """One short transaction: the destination's row, the messages with their attempts, the deliveries; all of one worker's.

        Returns what became of the messages whose claim still held. `again`: an earlier try failed, perhaps with its COMMIT done
        and only the news of it lost; then nobody is charged a second time. For each of `lanes` the next batch is put into
        `claimed`, unless that must wait until this is committed. `whole` as in `record`.
        """
        name, worker = results[0].destination, results[0].worker
        when = self._claims.when(name)
        declared = self._destinations.get(name)
        policy = declared.policy if declared else Policy()
        claims: AbstractContextManager[list[int]] = self._claim_under_way() if lanes else nullcontext([])
        with claims as hold, self._database.begin() as connection:
            done = again and recording.ended_as(connection, results[0].delivery, outcome(results[0].verdict))
            arrived = all(isinstance(each.verdict, Delivered) for each in results)
            view = self._look(connection, worker, name) if lanes and arrived else None
            well = arrived and blame.is_well(view.outlook.standing if view else breaker.standing(connection, name))
            settled = {
                each.delivery: self._settled(connection, each, policy, when, blamed=not (done or well)) for each in results
            }
            if done:
                return [settled[results[0].delivery]]
            recorded = recording.record(
                connection,
                worker,
                settled,
                when,
                keep_late=results[0].witnessed,
                skip=policy.on_dead == "skip",
                whole=whole,
            )
            theirs = (each.messages for each in results if isinstance(each.verdict, Delivered))
            with_files = [
                each.id for messages in theirs for each in messages if each.attachments and each.id in recorded.written
            ]
            if with_files and self.free_after is not None:
                recording.free_later(connection, with_files, when.now + self.free_after)
            ended = [Ended(each.delivery, outcome(each.verdict), fit_for_a_row(each.verdict.facts)) for each in results]
            along = view if well else None
            batches = self._claim_along(connection, name, lanes, along, recorded, ended) if along else []
            hold.extend(each.delivery for each in batches if each is not None)
            if not any(batches):
                deliveries.end(connection, name, worker, ended, when.now)
        if along:
            self._tell_expired()
        if claimed is not None:
            claimed += batches
        with self._lock:
            self._untold |= {(name, each) for each in recorded.shares}
        became = [
            {each: made for each, made in settled[result.delivery].items() if each in recorded.written} for result in results
        ]
        if not arrived and any(made.state is State.PENDING for each in became for made in each.values()):
            self._claims.came_back(name)
        return became

    def _look(self, connection: Connection, worker: str, name: str) -> View | None:
        """What a claim would see; none if there shall be no claim in the name of this worker."""
        if self._stopping() or worker != self._identity():
            return None
        try:
            return self._claims.look(connection, name)
        except WorkerGone:  # what was sent is written down all the same; whoever claims next hears of it
            return None

    def _claim_along(
        self,
        connection: Connection,
        name: str,
        lanes: Sequence[Sequence[Lane]],
        view: View,
        recorded: recording.Recorded,
        ended: Sequence[Ended],
    ) -> list[Batch | None]:
        """The next batches, claimed in the transaction that records the last ones; none if that is not for now."""
        if recorded.streams:  # one of them may go on by now, which it could not when we looked
            view = view._replace(outlook=view.outlook._replace(streams=True))
        return self._claims.claim_along(connection, name, lanes, view, ended)

    def _settled(
        self, connection: Connection, result: Result, policy: Policy, when: When, *, blamed: bool
    ) -> dict[int, Settlement]:
        """What becomes of each message of a delivery, after what it says about its destination is written."""
        verdict = replace(result.verdict, facts=fit_for_a_row(result.verdict.facts))
        spared = blamed and blame.place(connection, result, policy, when.invented, self._ambient.random())
        if isinstance(verdict, Delivered):
            return {message.id: delivered(message) for message in result.messages}
        recovered = self._recovered(connection, result)
        return {
            message.id: settle(
                message,
                verdict,
                result.size,
                policy,
                when.invented,
                self._ambient.random(),
                recovered=message.id in recovered,
                spared=spared,
            )
            for message in result.messages
        }

    def _recovered(self, connection: Connection, result: Result) -> set[int]:
        """Of the messages of a delivery, those whose failure says something about themselves; see `settle`."""
        ids = [message.id for message in result.messages]
        if not (result.witnessed and charges_destination(result.verdict)):
            return set(ids)
        if result.probe_until is not None:
            return set()  # while the breaker is open, no message is charged with anything
        return recording.recovered(connection, result.destination, ids)

    def _settle_left_behind(self, ids: Sequence[int], verdict: Verdict) -> int:
        if not ids:
            return 0
        with self._database.read() as connection:
            found = living.left_behind(connection, ids)
        for each in found:
            result = Result(each.id, each.worker, each.destination, each.messages, each.size, verdict, witnessed=False)
            written = self._write(result)
            log.warning(
                "delivery %s to %s was left behind (%s)",
                each.id,
                each.destination,
                verdict.facts.text,
                extra=telling.ids_of(result) | {"outcome": outcome(verdict).value},
            )
            telling.of_messages(result, written)
            self._watcher.recorded(Recorded(result, written))
        return len(found)


def _result(batch: Batch, verdict: Verdict, trace_id: str | None) -> Result:
    size = len(batch.messages)
    return Result(
        batch.delivery, batch.worker, batch.destination, batch.messages, size, verdict, batch.probe_until, trace_id=trace_id
    )


_HAS_ORDERING_KEY = operator.attrgetter("has_ordering_key")


def _is_plain(result: Result) -> bool:
    """Whether nobody else waits for what becomes of these messages."""
    return not any(map(_HAS_ORDERING_KEY, result.messages))


def _moves(verdict: Verdict) -> bool:
    """Whether an outcome moves something, so that another turn is worth while at once."""
    match verdict:
        case Delivered() | Reject():
            return True
        case NotSent(accused=accused):
            return accused is not None
        case _:
            return False
