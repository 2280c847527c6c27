"""One turn: claim, encode, send, judge, settle, record."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from outbox.ambient import Ambient
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.model import Batch, Lane, Message
from outbox.policy import (
    FREE_AFTER,
    Breaker,
    Passage,
    Policy,
    Stop,
    after_fault,
    after_probe_began,
    after_success,
    fill,
    passage,
)
from outbox.sending import Sender
from outbox.spool.base import Spool
from outbox.store import breaker, claiming, living, recording, streams
from outbox.transport import Transport
from outbox.verdict import (
    Delivered,
    Facts,
    NotSent,
    Reject,
    Retry,
    Unknown,
    Verdict,
    charges_destination,
    fit_for_a_row,
    outcome,
    settle,
)

log = logging.getLogger("outbox.dispatcher")


class WorkerGone(Exception):
    """This worker was declared gone: what it holds is somebody else's, and it needs a new identity."""


@dataclass(frozen=True)
class Result:
    """A delivery that is over: what is to be recorded of it."""

    delivery: int
    worker: str
    destination: str
    messages: tuple[Message, ...]
    size: int  #: messages in the delivery when it began
    verdict: Verdict
    probe: bool = False
    witnessed: bool = True  #: False for a delivery that another worker left behind: it tells nothing about the destination


class Dispatcher:
    """Takes turns for a worker; any number of threads may, at the same time.

    `identity` gives the worker's present one. `stopping` says that no send may begin any more.
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
    ) -> None:
        self._database = database
        self._destinations = destinations
        self._ambient = ambient
        self._sender = Sender(spool, ambient, transport)
        self._identity = identity
        self._stopping = stopping
        self._lock = threading.Lock()
        self._claiming = 0
        self._held: set[int] = set()
        self._unrecorded: list[Result] = []

    def turn(self, name: str, lanes: Sequence[Lane], *, peek: bool = True) -> bool:
        """Claim one batch of a destination, send it and record what became of it.

        Returns whether something moved, so that another turn is worth while at once. `peek` first looks without writing whether
        there is anything to claim. Raises WorkerGone. Errors of the database come through as they are, and then nothing is
        lost: a claim that was made is released with one of the next beats, an outcome that was not recorded is kept.
        """
        self.record_leftovers()
        destination = self._destinations[name]
        if peek and not self._anything_due(name, lanes):
            return False
        batch = self._claim(destination, lanes)
        if batch is None:
            return False
        verdict = self._deliver(destination, batch)
        result = Result(batch.delivery, batch.worker, name, batch.messages, len(batch.messages), verdict, batch.probe)
        self._record_or_keep(result)
        match verdict:
            case Delivered() | Reject():
                return True
            case NotSent(accused=accused):
                return accused is not None
            case _:
                return False

    def record_leftovers(self) -> None:
        """Try again to record what the database did not take."""
        with self._lock:
            leftovers, self._unrecorded = self._unrecorded, []
        errors = []
        while leftovers:  # each by itself: one that cannot be recorded must not hold up the others
            try:
                self._record_or_keep(leftovers.pop(0))
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
        verdict = NotSent(Facts(text="the claim was never begun"), charged=False)
        return self._settle_left_behind(unheld, verdict)

    def rescue(self) -> int:
        """Settle the deliveries of workers that are gone, to destinations that we know the rules of; returns how many."""
        with self._database.read() as connection:
            orphans = living.deliveries_of_the_gone(connection, self._destinations, 100)
        return self._settle_left_behind(orphans, Unknown(Facts(text="the worker is gone")))

    def free_streams(self) -> None:
        """Free streams that a record could not, because a producer was writing to them."""
        with self._database.read() as connection:
            idle = streams.idle(connection)
        if idle:
            with self._database.begin() as connection:
                streams.release(connection, idle, self._ambient.now())

    @property
    def holds(self) -> int:
        """Deliveries in hand, those included whose outcome is still to be recorded."""
        with self._lock:
            return len(self._held)

    def _anything_due(self, name: str, lanes: Sequence[Lane]) -> bool:
        now = self._ambient.now()
        with self._database.read() as connection:
            seen = breaker.read(connection, name)
            if passage(seen, now, self._destinations[name].policy) is Passage.NONE:
                return False
            return claiming.anything_due(connection, name, lanes, now)

    def _claim(self, destination: Destination, lanes: Sequence[Lane]) -> Batch | None:
        with self._claim_under_way() as hold, self._database.begin() as connection:
            now = self._ambient.now()
            worker = self._identity()
            if not claiming.still_here(connection, worker):
                raise WorkerGone(worker)
            batch = self._take(connection, destination, lanes, worker, now)
            if batch is not None:
                hold.append(batch.delivery)
        return batch

    def _take(
        self, connection: Connection, destination: Destination, lanes: Sequence[Lane], worker: str, now: datetime
    ) -> Batch | None:
        """The next batch of the first lane that has one, claimed."""
        name, policy = destination.name, destination.policy
        seen = breaker.read(connection, name)
        allowed = passage(seen, now, policy)
        if allowed is Passage.NONE:
            return None
        for lane in lanes:
            waiting = claiming.waiting(connection, name, lane, now, policy.batch_messages)
            if not waiting:
                continue
            if allowed is Passage.PROBE:
                # The one tried least: a message that breaks its destination must not be the only one to knock.
                taken = [min(waiting, key=lambda each: each.attempt)]
                opened = after_probe_began(seen, now, taken[0].size + taken[0].file_bytes, policy)
                if not breaker.move(connection, name, seen, opened, now):
                    return None
            else:
                taken = fill(waiting, policy.batch_messages, policy.batch_bytes, destination.text_limit)
            probe = allowed is Passage.PROBE
            delivery = claiming.start_delivery(connection, name, lane, worker, taken, probe, now)
            messages = claiming.mark_claimed(connection, taken, worker, delivery)
            return Batch(delivery, worker, name, lane, tuple(messages), now, probe)
        return None

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

    def _deliver(self, destination: Destination, batch: Batch) -> Verdict:
        """What became of a batch; a stop of ours is nobody's fault."""
        if self._stopping():
            return NotSent(Facts(text="stopped before the send began"), charged=False)
        verdict = self._sender.send(destination, batch)
        if isinstance(verdict, NotSent) and self._stopping():
            verdict = replace(verdict, charged=False)
        return verdict

    def _record_or_keep(self, result: Result) -> None:
        try:
            self._record(result)
        except BaseException:
            with self._lock:
                self._unrecorded.append(result)
            raise

    def _record(self, result: Result) -> None:
        written = self._write(result)
        with self._lock:
            self._held.discard(result.delivery)
        self._say(result, written)

    def _write(self, result: Result) -> set[int]:
        """One short transaction: the breaker, the messages with their attempts, the delivery."""
        now = self._ambient.now()
        declared = self._destinations.get(result.destination)
        policy = declared.policy if declared else Policy()
        with self._database.begin() as connection:
            self._mind_breaker(connection, result, policy, now)
            ids = [message.id for message in result.messages]
            charged = charges_destination(result.verdict)
            recovered = recording.recovered(connection, result.destination, ids) if charged and result.witnessed else set(ids)
            settled = {
                message.id: (
                    message.attempt,
                    settle(
                        message,
                        result.verdict,
                        result.size,
                        policy,
                        now,
                        self._ambient.random(),
                        recovered=message.id in recovered,
                    ),
                )
                for message in result.messages
            }
            written = recording.record(connection, result.delivery, result.worker, settled, now, keep_late=result.witnessed)
            facts = fit_for_a_row(result.verdict.facts)
            recording.finish_delivery(connection, result.delivery, outcome(result.verdict), facts, now)
            with_files = [each.id for each in result.messages if each.attachments and each.id in written]
            if with_files and isinstance(result.verdict, Delivered):
                recording.free_later(connection, with_files, now + FREE_AFTER)
        return written

    def _mind_breaker(self, connection: Connection, result: Result, policy: Policy, now: datetime) -> None:
        """What the outcome says about the destination itself."""
        name, verdict = result.destination, result.verdict
        charged = charges_destination(verdict)
        answered = isinstance(verdict, Delivered | Reject) and verdict.facts.status is not None
        if not result.witnessed:
            return
        if not (charged or answered):
            if result.probe:  # it never knocked: another may at once
                seen = breaker.read(connection, name, lock=True)
                breaker.move(connection, name, seen, Breaker(seen.failures, now if seen.is_open else None, seen.stop), now)
            return
        seen = breaker.read(connection, name)
        if not charged and seen == Breaker(stop=seen.stop) and seen.stop is not Stop.CREDENTIALS:
            return
        seen = breaker.read(connection, name, lock=True)
        if not charged:
            # A refusal of a message is an answer too: the destination is there and knows us.
            changed = after_success(seen)
        elif seen.is_open and not result.probe:
            return  # begun before the breaker opened: it tells nothing new
        else:
            wait = verdict.wait if isinstance(verdict, Retry) else None
            credentials = isinstance(verdict, Retry) and verdict.credentials
            changed = after_fault(seen, now, policy, self._ambient.random(), wait, credentials=credentials)
        breaker.move(connection, name, seen, changed, now, verdict.facts.text)
        if changed.is_open and not seen.is_open:
            log.warning(
                "destination %s is left alone until %s: %s",
                name,
                changed.open_until,
                verdict.facts.text,
                extra={"destination": name},
            )

    def _settle_left_behind(self, ids: Sequence[int], verdict: Verdict) -> int:
        if not ids:
            return 0
        with self._database.read() as connection:
            found = living.left_behind(connection, ids)
        for each in found:
            self._write(Result(each.id, each.worker, each.destination, each.messages, each.size, verdict, witnessed=False))
            log.warning(
                "delivery %s to %s was left behind (%s)",
                each.id,
                each.destination,
                verdict.facts.text,
                extra={"delivery_id": each.id, "destination": each.destination, "worker_id": each.worker},
            )
        return len(found)

    def _say(self, result: Result, written: set[int]) -> None:
        ids = {"delivery_id": result.delivery, "destination": result.destination, "worker_id": result.worker}
        if lost := len(result.messages) - len(written):
            log.warning(
                "the claim on %s messages of delivery %s was lost; their outcome (%s) is kept as late",
                lost,
                result.delivery,
                outcome(result.verdict),
                extra=ids,
            )
        facts = result.verdict.facts
        log.log(
            logging.INFO if isinstance(result.verdict, Delivered) else logging.WARNING,
            "%s: delivery %s to %s, %s messages%s",
            outcome(result.verdict),
            result.delivery,
            result.destination,
            len(result.messages),
            f": {facts.text}" if facts.text and not isinstance(result.verdict, Delivered) else "",
            extra=ids | {"status": facts.status, "code": facts.code, "request_id": facts.request_id},
        )
