"""Care: what is over is purged in time, the room it took is given back, and a full disk is lived through."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from outbox.ambient import Ambient
from outbox.counting import counted
from outbox.database import Database, Pages
from outbox.destinations.base import Destination
from outbox.errors import OutboxError, OutOfRoom
from outbox.model import State
from outbox.policy import ATTEMPTS_KEPT, HANDFUL, LONG_TRANSACTION, MIB, WORKERS_KEPT, Retention
from outbox.reserve import Reserve, Room
from outbox.spool.base import Spool
from outbox.store import keeping, purging
from outbox.store.keeping import Kept
from outbox.timekeeping import Timekeeper, plausible
from outbox.units import bytes_in_words, in_words

log = logging.getLogger("outbox.care")

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_DAY, _MINUTE = timedelta(days=1), timedelta(minutes=1)
#: After each handful the database is left to others for so many times as long as it took; and for so many seconds at least.
_REST, _SHORTEST_REST = 2.0, 0.02
#: Messages that one transaction purges: on SQLite nobody else writes meanwhile.
_TOGETHER = 100
#: Seconds before the next look when nothing of a handful was over.
_STROLL = 0.2
#: Seconds between two looks for workers whose rows may go.
_WORKERS_EVERY = 3600.0
#: Pages that one step gives back to the file system.
_STEP = 256
#: A database keeps this much of itself free, to grow into, before it gives any of it back: bytes, and a part of the whole.
_LOOSE, _LOOSE_PART = 4 * MIB, 20
#: Seconds between two searches for messages that may go before their time; and between two looks while room is short.
_EARLY_EVERY = 1.0
#: Seconds without an error after which a server that ran full counts as well again.
_QUIET = 30.0
#: Bytes of text that a producer shall be able to bring as long as room is not short.
_LARGE = MIB // 2
#: So many times the reserve must be free beyond that before it is over that room was short: else it would be again at once.
_AMPLE = 0.5


class Row(NamedTuple):
    """Something that is kept for a time."""

    id: int
    born: datetime
    ends: datetime | None  #: when its time is over; None as long as nobody can tell


@dataclass
class _Stretch:
    """Rows from `first` up to the next stretch: none of them is over before `due`, and `kept` are known to be there."""

    first: int
    due: datetime
    kept: int = 0


class Walk:
    """Where rows may be over by now, looked at in the order of their ids, a handful at a time.

    What was looked at is not looked at again before something in it can be over: a million rows that are kept cost one look,
    and the same once a day. Rows are born in the order of their ids, nearly: behind the first that is too young none is over.
    """

    def __init__(self, shortest: timedelta | None) -> None:
        self._young = _DAY if shortest is None else shortest
        #: What is not over yet, or not there yet, is looked at again after this.
        self._again = max(_MINUTE, min(self._young, _DAY))
        self._stretches = [_Stretch(0, _LONG_AGO)]  # nobody has looked yet

    def __len__(self) -> int:
        return len(self._stretches)

    def next(self, now: datetime) -> int | None:
        """The id from which to look; None when nothing can be over."""
        return next((each.first for each in self._stretches if each.due <= now), None)

    def seen(self, first: int, rows: Sequence[Row], now: datetime) -> list[int]:
        """The ids of those that are over, of what was found from `first` on; less than a handful is all there is."""
        # One that seems to come from far in the future was born by a wrong clock, and says nothing about those behind it.
        young = next((row for row in rows if now - self._young < row.born <= now + _DAY), None)
        looked = rows if young is None else rows[: rows.index(young)]
        over = [row.id for row in looked if row.ends is not None and row.ends <= now]
        soonest = min((now + self._again if row.ends is None else row.ends for row in looked), default=now + _DAY)
        # What is over is gone by the next look, unless something came in between.
        found = _Stretch(first, min(soonest, now + _DAY), len(looked))
        if young is not None:
            self._put(found, young.id)
            self._put(_Stretch(young.id, min(young.born + self._young, now + _DAY)), None)
        elif len(rows) < HANDFUL:
            self._put(_Stretch(first, min(found.due, now + self._again), len(looked)), None)
        else:
            self._put(found, rows[-1].id + 1)
        self._join(first, now)
        return over

    def _put(self, new: _Stretch, end: int | None) -> None:
        """Set what is known of the ids from `new.first` up to `end`, or of all that follow."""
        before = [each for each in self._stretches if each.first < new.first]
        covered = [each for each in self._stretches if each.first >= new.first and (end is None or each.first < end)]
        after = [] if end is None else [each for each in self._stretches if each.first >= end]
        if end is not None and (not after or after[0].first > end):
            # Of what nobody has looked at, and of a stretch that was looked at in part, the rest stays as it was.
            after.insert(0, _Stretch(end, covered[-1].due, covered[-1].kept))
        self._stretches = [*before, *([new] if end != new.first else []), *after]

    def _join(self, first: int, now: datetime) -> None:
        """Two neighbours that have little left become one: their number stays that of the rows that are kept."""
        at = next((at for at, each in enumerate(self._stretches) if each.first == first), 0)
        if 0 < at < len(self._stretches) - 1:
            one, other = self._stretches[at - 1], self._stretches[at]
            if one.kept + other.kept <= HANDFUL and min(one.due, other.due) > now:
                self._stretches[at - 1 : at + 1] = [_Stretch(one.first, min(one.due, other.due), one.kept + other.kept)]


@dataclass
class _Early:
    """How far messages were purged before their time."""

    next_id: int = 0
    told: bool = False
    began: float = 0.0
    rests_until: float = -math.inf  #: nothing was left that may go


class Care:
    """The housekeeping of one outbox in one worker. Nothing here waits: each step is short and says when to come again."""

    def __init__(
        self,
        database: Database,
        spool: Spool,
        ambient: Ambient,
        destinations: Mapping[str, Destination],
        retention: Retention,
        room: Room,
    ) -> None:
        self._database = database
        self._spool = spool
        self._ambient = ambient
        self._destinations = destinations
        self._retention = retention
        self._room = room
        self._time = Timekeeper(ambient)
        self._messages = Walk(_shortest(retention.delivered, retention.cancelled, retention.dead))
        self._over: list[int] = []  #: messages that were found and are still to be purged
        self._uploads = Walk(_shortest(retention.delivered, retention.dead))
        self._workers_at: float | None = None
        path = database.path
        self._reserve = Reserve(path.with_name(f"{path.name}-reserve"), room.reserve) if path and room.reserve else None
        self._tidying = threading.Lock()
        self._giving_way = threading.Lock()
        self._short = False  #: the database's disk, or the database itself, is full or nearly so
        self._full_at = -math.inf
        self._inside: bool | None = None  #: whether the reserve inside the database is there; None: nobody has looked
        self._early = _Early()
        self._held_by: str | None = None

    def tidy(self) -> float | None:
        """Purge a handful of what is over; returns after how many seconds there may be more, None when there is nothing now.

        By the earlier of two times while the clock is in dispute: what is purged does not come back.
        """
        now = self._time.read().chosen
        if not plausible(now):
            return None
        if not self._tidying.acquire(blocking=False):
            return _STROLL  # another thread is at it
        try:
            began = self._ambient.monotonic()
            purged = self._tidy_messages(now) + self._tidy_uploads(now)
            self._forget_workers(now)
            if purged:
                return max(_SHORTEST_REST, _REST * (self._ambient.monotonic() - began))
            return None if not self._over and self._messages.next(now) is None and self._uploads.next(now) is None else _STROLL
        finally:
            self._tidying.release()

    def free_files(self, *, early: bool = False) -> int:
        """Delete the bytes of files whose time has come and that nothing needs; returns how many.

        `early`: also of those whose message was delivered just now.
        """
        now = self._ambient.now()
        until = now + (self._retention.free_after or timedelta(0)) if early else now
        with self._database.read() as connection:
            if not keeping.files_to_free(connection, until, 1):
                return 0
        with self._database.begin() as connection:
            due = keeping.files_to_free(connection, until, HANDFUL)
            needed = keeping.still_needed(connection, due)
            going = [name for name in due if name not in needed]
            keeping.keep(connection, needed)
            keeping.mark_freed(connection, going, now)
        # Only now: had the commit failed, a row would be without its bytes.
        for name in going:
            self._spool.delete(name)
        return len(going)

    def give_way(self, error: OutOfRoom) -> None:
        """After a statement that found no room: give back what was kept for this, so that the next one finds some."""
        if not self._giving_way.acquire(blocking=False):
            return  # another thread is at it
        try:
            if not self._short:
                log.warning("%s; messages are refused until there is room again, those that are here are delivered", error)
            self._short, self._full_at = True, self._ambient.monotonic()
            if self._reserve is not None and self._reserve.release():
                log.warning("the reserve %s was given back to the disk", self._reserve.path)
            for step in (self._give_reserve_inside, lambda: self._database.checkpoint(shrink=True)):
                try:
                    step()
                except (OutboxError, SQLAlchemyError) as failed:
                    log.warning("cannot make room yet: %s", failed)
        finally:
            self._giving_way.release()

    def keep_room(self) -> float | None:
        """Look at the room that is left: keep the reserves, give back what a purge left, and make room where it is short.

        Returns after how many seconds to look again, None for the usual pause.
        """
        moved = self._spool_is_short() and self.free_files(early=True) > 0
        pages = self._database.pages()
        beside = self._room.left_beside_database()
        if pages is not None and pages.limited and self._inside is None:
            with self._database.read() as connection:
                self._inside = keeping.has_reserve(connection)
        if not self._short and not self._is_short(pages, beside):
            self._take_reserves(pages, beside)
            again = self._give_back(pages, _LOOSE)
            if moved:
                return _SHORTEST_REST
            # Near the end it is looked at often: producers may fill what is left in a moment.
            return again if self._is_ample(pages, beside, times=2) else again or _STROLL
        if not self._short:
            log.warning("room is short (%s); what may go is purged", _told(pages, beside))
        self._short = True
        moved = self._make_room(pages, beside) or moved
        pages, beside = self._database.pages(), self._room.left_beside_database()
        if not self._is_ample(pages, beside):
            return _SHORTEST_REST if moved else _EARLY_EVERY
        self._short, self._early = False, _Early()
        self._take_reserves(pages, beside)
        log.warning("there is room again (%s)", _told(pages, beside))
        return _STROLL

    def look_for_old_transactions(self) -> None:
        """Warn of a transaction, anybody's, that keeps Postgres from vacuuming; once, until it is over."""
        oldest = self._database.oldest_transaction()
        if oldest is None or oldest.seconds < LONG_TRANSACTION:
            if self._held_by is not None:
                log.info("%s is over", self._held_by)
            self._held_by = None
        elif oldest.what != self._held_by:
            self._held_by = oldest.what
            log.warning(
                "%s has been open for %s: what was purged takes up room, and claims become slower, until it ends",
                oldest.what,
                in_words(oldest.seconds),
            )

    @property
    def _skipping(self) -> list[str]:
        return [each.name for each in self._destinations.values() if each.policy.on_dead == "skip"]

    def _tidy_messages(self, now: datetime) -> int:
        if not self._over:
            self._look_for_messages(now)
        if not self._over:
            return 0
        with self._database.begin() as connection:
            locked = keeping.messages_locked(connection, self._over[:_TOGETHER], self._skipping)
            still = [each.id for each in locked if (ends := self._ends(each)) is not None and ends <= now]
            purged = purging.purge(connection, still, now)
        del self._over[:_TOGETHER]
        log.debug("purged: %s; of theirs may go: %s", counted(purged.messages, "message"), counted(purged.files, "file"))
        return purged.messages

    def _look_for_messages(self, now: datetime) -> None:
        """Note those of the next handful that are over; and put right what else is found."""
        first = self._messages.next(now)
        if first is None:
            return
        with self._database.read() as connection:
            found = keeping.messages_from(connection, first, HANDFUL, self._skipping)
        self._over = self._messages.seen(first, [Row(each.id, each.created_at, self._ends(each)) for each in found], now)
        odd = [each.id for each in found if each.finished_at and not _believable(each.finished_at, now)]
        tired = [each.id for each in found if each.attempt > ATTEMPTS_KEPT]
        if odd or tired:
            with self._database.begin() as connection:
                keeping.count_from(connection, odd, now)
                keeping.forget_attempts(connection, tired, ATTEMPTS_KEPT)

    def _ends(self, each: Kept) -> datetime | None:
        kept = self._retention.of(each.state)
        if kept is None or each.finished_at is None or each.holds_up or not plausible(each.finished_at):
            return None
        return each.finished_at + kept

    def _tidy_uploads(self, now: datetime) -> int:
        first = self._uploads.next(now)
        if first is None:
            return 0
        with self._database.read() as connection:
            found = keeping.deliveries_from(connection, first, HANDFUL)
        rows: list[Row] = []
        believed: datetime | None = None
        for each in reversed(found):
            # What a clock says that was not set yet is not believed: it ended before the next one that can be believed.
            if each.finished_at is not None and _believable(each.finished_at, now):
                believed = each.finished_at
            kept = None if each.outcome is None or each.last else self._retention.of_delivery(each.outcome)
            rows.append(Row(each.id, each.started_at, None if kept is None or believed is None else believed + kept))
        rows.reverse()
        over = self._uploads.seen(first, rows, now)
        if over:
            with self._database.begin() as connection:
                keeping.forget_deliveries(connection, over)
        return len(over)

    def _forget_workers(self, now: datetime) -> None:
        ticks = self._ambient.monotonic()
        if self._workers_at is not None and ticks - self._workers_at < _WORKERS_EVERY:
            return
        self._workers_at = ticks
        with self._database.read() as connection:
            gone = keeping.workers_to_forget(connection, now - WORKERS_KEPT, HANDFUL)
        if gone:
            with self._database.begin() as connection:
                keeping.forget_workers(connection, gone)

    def _make_room(self, pages: Pages | None, beside: int | None) -> bool:
        """Free and purge what may go, and then the oldest delivered messages before their time; whether anything went."""
        freed = self.free_files(early=True)
        rest = self.tidy()
        moved = freed > 0 or (rest is not None and rest != _STROLL)
        if not moved and self._purging_helps(pages, beside):
            moved = self._purge_early()
        if beside is not None and not self._is_ample(None, beside):
            moved = self._give_back(self._database.pages(), 0) is not None or moved
            self._database.checkpoint(shrink=True)
        return moved

    def _give_reserve_inside(self) -> None:
        if self._database.path is not None and self._inside is not False:
            with self._database.begin() as connection:
                keeping.give_reserve(connection)
            self._inside = False

    def _purging_helps(self, pages: Pages | None, beside: int | None) -> bool:
        """Whether purging more could make the room that is missing: on a disk only what is given back does."""
        if pages is None:
            return False
        if not self._is_ample(pages, None):
            return True
        held = (pages.used - pages.free) * pages.size
        spare = pages.free * pages.size
        return not self._is_ample(None, beside) and held > self._room.reserve and (pages.shrinks or spare < self._room.reserve)

    def _purge_early(self) -> bool:
        """A handful of the oldest delivered messages goes, however young; never one that is pending or dead."""
        early = self._early
        if self._ambient.monotonic() < early.rests_until:
            return False
        with self._database.read() as connection:
            found = keeping.messages_from(connection, early.next_id, HANDFUL, ())
        if not found:
            # Others may have been delivered meanwhile. A long search is not begun again at once.
            now = self._ambient.monotonic()
            early.next_id, early.rests_until = 0, now + max(_EARLY_EVERY, now - early.began)
            return False
        if early.next_id == 0:
            early.began = self._ambient.monotonic()
        early.next_id = found[-1].id + 1
        with self._database.begin() as connection:
            locked = keeping.messages_locked(connection, [each.id for each in found], ())
            going = [each.id for each in locked if each.state is State.DELIVERED]
            purging.purge(connection, going, self._ambient.now())
        if going and not early.told:
            log.warning("delivered messages are purged before their time, oldest first, since there is no room for new ones")
            early.told = True
        return True

    def _give_back(self, pages: Pages | None, loose: int) -> float | None:
        """Return some of what a purge left to the file system; seconds until the next step, None when there is none."""
        if pages is None or not pages.shrinks or pages.limited:
            return None
        keep = max(loose // pages.size, pages.used // _LOOSE_PART) if loose else 0
        if pages.free <= keep:
            return None
        began = self._ambient.monotonic()
        self._database.give_back(min(_STEP, pages.free - keep))
        return max(_SHORTEST_REST, _REST * (self._ambient.monotonic() - began))

    def _take_reserves(self, pages: Pages | None, beside: int | None) -> None:
        """Take what can be given back when there is no room; not so much that it would be short at once."""
        reserve = self._reserve
        if reserve is not None and beside is not None and not reserve.there and beside > self._goal_beside():
            reserve.take()
        if pages is not None and pages.limited and not self._inside and pages.room > self._goal_inside(pages):
            with self._database.begin() as connection:
                keeping.take_reserve(connection, self._room.least_inside(pages))
            self._inside = True

    def _is_short(self, pages: Pages | None, beside: int | None) -> bool:
        """Whether a producer with a large message is refused because of the database, or nearly so."""
        if beside is not None and beside < self._low_beside():
            return True
        return pages is not None and pages.limited and pages.room < self._low_inside(pages)

    def _is_ample(self, pages: Pages | None, beside: int | None, times: int = 1) -> bool:
        """Whether there is room for producers, for a while, and for the reserves."""
        if beside is None and pages is None:  # nobody can look: it is over when nobody has run into it for a while
            return self._ambient.monotonic() - self._full_at >= _QUIET
        if beside is not None and beside < times * self._goal_beside():
            return False
        return pages is None or not pages.limited or pages.room >= times * self._goal_inside(pages)

    def _spool_is_short(self) -> bool:
        """Whether the largest file that a destination takes would be refused, or nearly so."""
        largest = max((each.file_limit or 0 for each in self._destinations.values()), default=0)
        left = self._spool.left()
        return (left is not None and left < self._room.reserve + largest) or self._room.quota_is_tight(largest)

    def _goal_beside(self) -> float:
        missing = self._reserve is not None and not self._reserve.there
        return self._low_beside() + self._room.reserve * (_AMPLE + missing)

    def _goal_inside(self, pages: Pages) -> float:
        return self._low_inside(pages) + self._room.least_inside(pages) * (_AMPLE + (not self._inside))

    def _low_beside(self) -> int:
        return self._room.reserve + self._room.cost(_LARGE)

    def _low_inside(self, pages: Pages) -> int:
        least = self._room.least_inside(pages)
        return least + min(self._room.cost(_LARGE), least)


def _shortest(*lengths: timedelta | None) -> timedelta | None:
    return min((each for each in lengths if each is not None), default=None)


def _told(pages: Pages | None, beside: int | None) -> str:
    said = (
        f"{bytes_in_words(max(0, beside))} left beside the database" if beside is not None else "",
        f"{bytes_in_words(pages.room)} inside it" if pages is not None and pages.limited else "",
    )
    return ", ".join(filter(None, said)) or "nobody has run into its end for a while"


def _believable(instant: datetime, now: datetime) -> bool:
    """Whether a message can have ended then: a machine without a battery says 1970, or a year that has not come."""
    return plausible(instant) and instant <= now + _DAY
