"""Claim: what may be sent to a destination now becomes ours, in one short transaction."""

from __future__ import annotations

import itertools
import math
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection

from outbox.ambient import Ambient
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.limits import Bucket, drawn, fill, has_room, learned_limit, refill_wait, refilled
from outbox.model import Batch, Lane
from outbox.patience import Passage, Stop, after_probe_began, passage
from outbox.policy import HANDFUL, Policy
from outbox.store import ahead, breaker, claiming, deliveries, streams
from outbox.store.ahead import Ahead, Next
from outbox.store.breaker import Standing
from outbox.store.claiming import THE_BEGINNING, Expired, Outlook, Waiting
from outbox.store.deliveries import Ended, Start
from outbox.timekeeping import SKEW, Timekeeper, When, plausible

#: Seconds that marks are believed, at least; and so many times as long as a look from the beginning takes.
_MARKS_LAST, _MARKS_LAST_TIMES = 2.0, 40
#: Seconds between two looks at how far away messages are that nobody put off on purpose.
_LOOK_FAR_EVERY = 5.0


class WorkerGone(Exception):
    """This worker was declared gone: what it holds is somebody else's, and it needs a new identity."""


@dataclass
class _Far:
    """How far away a destination's messages are, and when that was looked at."""

    instant: datetime | None
    looked_at: float
    wall: datetime


@dataclass(frozen=True)
class Prospect:
    """What some lanes of a destination have for a worker: something that can be claimed now, or after so many seconds."""

    due: bool = False
    wait: float = math.inf
    held: bool = False  #: something is due, and held up by what nobody can tell the end of


@dataclass(frozen=True)
class Horizon:
    """What comes next for a destination, and in how many seconds the time of a message is over, whosever it is."""

    ordinary: Prospect
    large: Prospect
    expires_in: float = math.inf


#: Of a destination that has no row: a claim will find out.
_UNKNOWN = Horizon(Prospect(due=True), Prospect(due=True))


class View(NamedTuple):
    """What a claim knows before it looks for messages, and for whom."""

    worker: str
    marks: Mapping[Lane, datetime]  #: from where on each lane is looked at
    outlook: Outlook


_SUSPECT = operator.attrgetter("suspect")


class _Queues:
    """The queues of a destination's lanes, each read when it is first asked for; what is taken from one is in it no more."""

    def __init__(self, read: Callable[[Lane], tuple[list[Waiting], list[Waiting]]]) -> None:
        self._read = read
        self._lanes: dict[Lane, list[Waiting]] = {}
        self._oldest: dict[Lane, list[Waiting]] = {}
        self._taken: set[int] = set()

    def start(self, lanes: Sequence[Lane], choose: Callable[[Sequence[Waiting]], list[Waiting]]) -> Start | None:
        """The next upload, of the first of these lanes that has anything."""
        for lane in lanes:
            if lane not in self._lanes:
                self._lanes[lane], self._oldest[lane] = self._read(lane)
            if waiting := self._lanes[lane]:
                taken = choose(waiting)
                self._taken.update([each.id for each in taken])
                if any(map(_SUSPECT, taken)):
                    # One that a worker may have died of goes with no other such message under way.
                    waiting = [each for each in waiting if not each.suspect]
                at_its_head = waiting[: len(taken)] == taken  # nearly always
                left = waiting[len(taken) :] if at_its_head else [each for each in waiting if each.id not in self._taken]
                self._lanes[lane] = left
                return Start(lane, taken)
        return None

    def marks(self, limit: int) -> Iterator[tuple[Lane, datetime | None]]:
        """From where on each lane that was read has more: the first that was not taken; None where it came to its end."""
        for lane, oldest in self._oldest.items():
            left = (each.due_at for each in oldest if each.id not in self._taken)
            yield lane, next(left, oldest[-1].due_at) if len(oldest) >= limit else None


class _Marks:
    """Where in the order of `due_at` the next claim may begin to look, lane by lane; for Postgres.

    While a transaction is open elsewhere, what was claimed since stays in its indexes, and a look from the beginning walks past
    all of it. What comes to lie before a mark is found when that is dropped: every other second, and less often where a look
    from the beginning takes long.
    """

    def __init__(self, database: Database) -> None:
        self.wanted = database.kind == "postgresql"
        self._lock = threading.Lock()
        self._marks: dict[tuple[str, Lane], datetime] = {}
        self._good_until: dict[str, float] = {}

    def read(self, name: str, now: float) -> dict[Lane, datetime]:
        """The marks of a destination's lanes, those that are still to be believed."""
        if now >= self._good_until.get(name, -math.inf):
            self._good_until[name] = now + _MARKS_LAST
            self.drop(name)
        with self._lock:
            return {lane: self._marks[name, lane] for lane in Lane if (name, lane) in self._marks}

    def drop(self, name: str) -> None:
        """The next look is from the beginning."""
        with self._lock:
            for lane in Lane:
                self._marks.pop((name, lane), None)

    def looked(self, name: str, now: float, took: float) -> None:
        """A look from the beginning has taken so many seconds: the next one comes when that is a small part of the time."""
        self._good_until[name] = max(self._good_until.get(name, now), now + took * _MARKS_LAST_TIMES)

    def move(self, name: str, lane: Lane, further: datetime | None) -> None:
        """The next look may begin there; None when there was an end to what was found."""
        with self._lock:
            if further is None:
                self._marks.pop((name, lane), None)
            else:
                self._marks[name, lane] = further


class Claims:
    """Claims batches for a worker; any number of threads may, at the same time. `identity` gives the worker's present one."""

    def __init__(
        self, database: Database, destinations: Mapping[str, Destination], ambient: Ambient, identity: Callable[[], str]
    ) -> None:
        self._database = database
        self._destinations = destinations
        self._ambient = ambient
        self._identity = identity
        self._time = Timekeeper(ambient)
        self._far: dict[str, _Far] = {}
        self._waits: dict[str, float] = {}
        self._lead = itertools.count()
        self._marks = _Marks(database)
        self._expired = threading.local()

    def anything_due(self, name: str, lanes: Sequence[Lane]) -> bool:
        """Whether a claim could find something; reads only."""
        with self._database.read() as connection:
            when = self._look_far(connection, name)
            seen = breaker.standing(connection, name)
            if self._passage(connection, name, seen, when) is Passage.NONE:
                return False
            if not claiming.anything_due(connection, name, lanes, when):
                return False
            return self._admitted(connection, name, lanes, seen, when.now) is not None

    def look_ahead(self, names: Sequence[str]) -> dict[str, Horizon]:
        """What can be claimed for each of these destinations, or when there may be something; reads only."""
        with self._database.read() as connection:
            whens = {name: self.when(name) for name in names}
            found = ahead.look(connection, whens)
            waiting = [name for name, each in found.items() if each.ordinary.comes_at or each.large.comes_at]
            for name in waiting:
                # What waits may wait for an instant that a wrong clock has said.
                seen = self._look_far(connection, name)
                if seen.beyond != whens[name].beyond:
                    found |= ahead.look(connection, {name: seen})
                    whens[name] = seen
            return {name: self._horizon(connection, name, found.get(name), whens[name]) for name in names}

    def _horizon(self, connection: Connection, name: str, found: Ahead | None, when: When) -> Horizon:
        if found is None:
            return _UNKNOWN
        expires_in = math.inf if found.expires_at is None else (found.expires_at - when.chosen).total_seconds()
        seen = found.standing
        allowed = self._passage(connection, name, seen, when) if found.ordinary.due or found.large.due else Passage.FREE
        if allowed is Passage.NONE:
            passes = Prospect()
            if seen.breaker.stop is not Stop.PAUSE:
                until = seen.breaker.open_until
                patient = until is not None and until > when.invented
                passes = Prospect(wait=(until - when.invented).total_seconds()) if until and patient else Prospect(held=True)
            return Horizon(passes, passes, expires_in)
        ordinary = self._prospect(connection, name, ahead.ORDINARY, found.ordinary, seen, when)
        large = self._prospect(connection, name, ahead.LARGE, found.large, seen, when)
        if allowed is Passage.PROBE and ordinary.due:
            large = Prospect()  # one message probes, and a small one first
        return Horizon(ordinary, large, expires_in)

    def _prospect(
        self, connection: Connection, name: str, lanes: Sequence[Lane], found: Next, seen: Standing, when: When
    ) -> Prospect:
        if found.due:
            if self._admitted(connection, name, lanes, seen, when.now) is not None:
                return Prospect(due=True)
            wait = self.wait_for_rate(name)
            return Prospect(held=True) if wait is None else Prospect(wait=wait)
        if found.comes_at is None:
            return Prospect()
        if when.chosen != when.invented:
            return Prospect(held=True)  # which of two times is true nobody can tell
        return Prospect(wait=max(0.0, (found.comes_at - when.invented).total_seconds()))

    def claim(self, connection: Connection, name: str, lanes: Sequence[Lane]) -> Batch | None:
        """The next batch of the first lane that has one, claimed. Raises WorkerGone."""
        return self.claim_for(connection, name, [lanes])[0]

    def claim_for(self, connection: Connection, name: str, asks: Sequence[Sequence[Lane]]) -> list[Batch | None]:
        """A batch for each who asks, claimed: of the first of its lanes that has one. Raises WorkerGone.

        Where uploads are counted, only the first is answered; the others are to ask again, when that one is committed.
        """
        self._expired.here = ()  # those of a claim that was rolled back did not expire
        view = self.look(connection, name)
        batches = self._claim(connection, name, asks, view)
        if view.marks and not any(batches):  # what there is lies before them
            self._marks.drop(name)
            batches = self._claim(connection, name, asks, self.look(connection, name, marked=False))
        return batches

    def claim_along(
        self, connection: Connection, name: str, asks: Sequence[Sequence[Lane]], view: View, ended: Sequence[Ended]
    ) -> list[Batch | None]:
        """The same in a transaction that holds messages already: none at all where the destination's row would be locked.

        If there is any batch, the statement that begins its delivery has ended those that are over.
        """
        self._expired.here = ()
        batches = self._claim(connection, name, asks, view, along=True, ended=ended)
        if view.marks and not any(batches):
            self._marks.drop(name)
            return []
        return batches

    def look(self, connection: Connection, name: str, *, marked: bool = True) -> View:
        """What a claim must know first, in one statement; if it is not `marked`, from the beginning. Raises WorkerGone."""
        began = self._ambient.monotonic()
        worker, marks = self._identity(), self._marks.read(name, began) if marked else {}
        outlook = claiming.outlook(connection, worker, name, marks)
        if self._marks.wanted and not marks:
            now = self._ambient.monotonic()
            self._marks.looked(name, now, now - began)
        if outlook is None:
            raise WorkerGone(worker)
        return View(worker, marks, outlook)

    def came_back(self, name: str) -> None:
        """Messages of a destination are pending again: the next claim looks from the beginning."""
        self._marks.drop(name)

    def _claim(
        self,
        connection: Connection,
        name: str,
        asks: Sequence[Sequence[Lane]],
        view: View,
        *,
        along: bool = False,
        ended: Sequence[Ended] = (),
    ) -> list[Batch | None]:
        policy = self._destinations[name].policy
        when = self.when(name)
        worker, seen = view.worker, view.outlook.standing
        bucket = None
        limited = policy.rate is not None or policy.in_flight is not None or seen.breaker.ramp is not None
        # The destination's row is locked before messages are, and those who record together hold some.
        if along and (limited or passage(seen.breaker, when.invented, policy) is not Passage.FREE):
            return []
        if limited:
            # Whoever wants to pass does so one after the other, so that what is counted stays true.
            seen = breaker.standing(connection, name, lock=True)
        allowed = self._passage(connection, name, seen, when)
        if allowed is Passage.NONE:
            return [None] * len(asks)
        if limited:
            admitted = self._admitted(connection, name, asks[0], seen, when.now)
            if admitted is None:
                return [None]
            asks, bucket = [admitted[0]], admitted[1]
        queues = _Queues(lambda lane: self._waiting(connection, name, lane, when, len(asks), view))
        if allowed is Passage.PROBE:
            return [self._probe(connection, name, worker, seen, asks[0], queues, when, bucket)]
        most = min(policy.batch_bytes, learned_limit(seen.learned, when.now) or policy.batch_bytes)
        text = self._destinations[name].text_limit
        starts = [queues.start(lanes, lambda waiting: fill(waiting, policy.batch_messages, most, text)) for lanes in asks]
        if self._marks.wanted:
            for lane, mark in queues.marks(len(asks) * policy.batch_messages):
                self._marks.move(name, lane, mark)
        return self._begin(connection, name, worker, starts, when, bucket, ended)

    def _waiting(
        self, connection: Connection, name: str, lane: Lane, when: When, batches: int, view: View
    ) -> tuple[list[Waiting], list[Waiting]]:
        """What may go now of a lane, for so many batches; and those of them that have no ordering key."""
        policy = self._destinations[name].policy
        skip, lead, limit = policy.on_dead == "skip", next(self._lead), batches * policy.batch_messages
        seen, mark = view.outlook, view.marks.get(lane, THE_BEGINNING)
        waiting, oldest = claiming.waiting(connection, name, lane, when, limit, skip=skip, lead=lead, seen=seen, mark=mark)
        waiting = self._without_expired(connection, policy, waiting, when)
        return self._without_second_suspect(connection, name, waiting), oldest

    def _probe(
        self,
        connection: Connection,
        name: str,
        worker: str,
        seen: Standing,
        lanes: Sequence[Lane],
        queues: _Queues,
        when: When,
        bucket: Bucket | None,
    ) -> Batch | None:
        """A batch of one message, if it is ours to try whether the destination answers again."""
        lanes = [each for each in lanes if each is not Lane.LARGE or self._may_probe_large(connection, name, when)]
        # The one tried least: a message that breaks its destination must not be the only one that probes.
        start = queues.start(lanes, lambda waiting: [min(waiting, key=lambda each: each.attempt)])
        if start is None:
            return None
        opened = after_probe_began(seen.breaker, when.invented, self._destinations[name].policy)
        if not breaker.move(connection, name, seen.breaker, opened, when.now):
            return None
        (batch,) = self._begin(connection, name, worker, [start._replace(probe=True)], when, bucket)
        return batch and replace(batch, probe_until=opened.open_until)

    def _begin(
        self,
        connection: Connection,
        name: str,
        worker: str,
        starts: Sequence[Start | None],
        when: When,
        bucket: Bucket | None,
        ended: Sequence[Ended] = (),
    ) -> list[Batch | None]:
        """Write what was decided: the deliveries, and whose the messages are."""
        real = [each for each in starts if each is not None]
        if not real:
            return [None] * len(starts)
        if bucket is not None:
            breaker.save_bucket(connection, name, bucket)
        begun = deliveries.end_and_start(connection, name, worker, ended, real, when.now)
        carried = claiming.mark_claimed(connection, worker, {each: start.taken for each, start in begun.items()}, when)
        batches = {
            id(start): Batch(number, worker, name, start.lane, tuple(carried[number]), when.now)
            for number, start in begun.items()
        }
        return [None if each is None else batches[id(each)] for each in starts]

    def expire(self) -> int:
        """Give up messages whose time is over, wherever they wait; returns how many."""
        self._expired.here = ()
        when = self._time.read()
        if not plausible(when.chosen):
            return 0
        with self._database.read() as connection:
            if not claiming.expired(connection, self._destinations, when, 1):
                return 0
        with self._database.begin() as connection:
            over = claiming.expired(connection, self._destinations, when, HANDFUL)
            expired = claiming.expire(connection, [each.id for each in over], when.now)
            of_streams = {each.stream_id for each in expired if each.stream_id is not None}
            for name, destination in self._destinations.items():
                mine = streams.of(connection, of_streams, name)
                streams.release(connection, mine, when, skip=destination.policy.on_dead == "skip")
        self._expired.here = expired
        return len(over)

    def expired(self) -> Sequence[Expired]:
        """The messages that this thread's last claim, or look for those whose time is over, gave up; once each."""
        found: Sequence[Expired] = getattr(self._expired, "here", ())
        if found:
            self._expired.here = ()
        return found

    def wait_for_rate(self, name: str) -> float | None:
        """Seconds until the destination's rate allows one more request, if that was what the last look ran into."""
        until = self._waits.get(name)
        return None if until is None else max(0.0, until - self._ambient.monotonic())

    def when(self, name: str) -> When:
        """The time, for the messages of a destination.

        One that nobody put off on purpose is never further away than the longest back-off, unless a clock was wrong: those that
        are have come.
        """
        when, far = self._time.read(), self._far.get(name)
        declared = self._destinations.get(name)
        longest = declared.policy.longest_backoff if declared else Policy().longest_backoff
        beyond = when.invented + timedelta(seconds=longest + SKEW)
        return when if far is None or far.instant is None or far.instant <= beyond else when._replace(beyond=beyond)

    def _look_far(self, connection: Connection, name: str) -> When:
        """The same, after looking again how far away messages are: now and then, and when the clock stepped back."""
        far, ticks, wall = self._far.get(name), self._ambient.monotonic(), self._ambient.now()
        if far is None or wall < far.wall or ticks - far.looked_at >= _LOOK_FAR_EVERY:
            self._far[name] = _Far(claiming.furthest(connection, name), ticks, wall)
        return self.when(name)

    def _admitted(
        self, connection: Connection, name: str, lanes: Sequence[Lane], seen: Standing, now: datetime
    ) -> tuple[Sequence[Lane], Bucket | None] | None:
        """The lanes in which one more upload may begin, and what the rate has left then; None when none may."""
        policy = self._destinations[name].policy
        self._waits.pop(name, None)
        bucket = None
        if policy.rate is not None:
            full = refilled(seen.bucket, now, policy)
            bucket = drawn(full)
            if bucket is None:
                self._waits[name] = self._ambient.monotonic() + refill_wait(full, policy)
                return None
        if policy.in_flight is not None or seen.breaker.ramp is not None:
            traffic = breaker.traffic(connection, name)
            lanes = [lane for lane in lanes if has_room(traffic, lane, policy.in_flight, seen.breaker.ramp)]
        return (lanes, bucket) if lanes else None

    def _passage(self, connection: Connection, name: str, seen: Standing, when: When) -> Passage:
        """What the breaker lets a claim do. There is one probe at a time; a large one, which may take hours, does not count."""
        allowed = passage(seen.breaker, when.invented, self._destinations[name].policy)
        if allowed is Passage.PROBE and breaker.traffic(connection, name, probes=True).small:
            return Passage.NONE
        return allowed

    def _may_probe_large(self, connection: Connection, name: str, when: When) -> bool:
        """Whether a large message may be the probe: with nothing smaller due, and no other large one under way."""
        if breaker.traffic(connection, name).large:
            return False
        return not claiming.anything_due(connection, name, [lane for lane in Lane if lane is not Lane.LARGE], when)

    def _without_expired(self, connection: Connection, policy: Policy, waiting: list[Waiting], when: When) -> list[Waiting]:
        """Those whose time is not over; the others are given up."""
        over = [each for each in waiting if each.expires_at is not None and _is_over(each, when)]
        if not over:
            return waiting
        expired = claiming.expire(connection, [each.id for each in over], when.now)
        self._expired.here = [*getattr(self._expired, "here", ()), *expired]
        of_streams = [each.stream_id for each in expired if each.stream_id is not None]
        streams.release(connection, of_streams, when, skip=policy.on_dead == "skip")
        return [each for each in waiting if each not in over]

    def _without_second_suspect(self, connection: Connection, name: str, waiting: list[Waiting]) -> list[Waiting]:
        """A message that a worker may have died of is tried with no other such message under way.

        Else the innocent that happened to travel at the same time would go down with the guilty one again and again.
        """
        if not any(map(_SUSPECT, waiting)):
            return waiting
        # Once more when nobody else can claim one, without waiting for that: the row stands out of the lock order here.
        alone = not claiming.suspect_under_way(connection, name) and breaker.hold(connection, name)
        if alone and not claiming.suspect_under_way(connection, name):
            return waiting
        return [each for each in waiting if not each.suspect]


def _is_over(message: Waiting, when: When) -> bool:
    if message.expires_at is None or not message.clock_plausible or not plausible(when.chosen):
        return False
    return message.expires_at <= when.chosen
