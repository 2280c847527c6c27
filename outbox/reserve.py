"""The room that is left, and what of it is kept for finishing what is there when the rest is full."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from outbox.database import Database, Pages, pages_of, rolled_back, wal_of
from outbox.errors import OutboxError, OutOfRoom
from outbox.policy import MIB, RESERVE_INSIDE
from outbox.spool.base import Spool
from outbox.spool.directory import disk_left
from outbox.store import arriving, keeping
from outbox.units import bytes_in_words as words

#: Seconds that what the database counts is believed; and before somebody is refused, or sees how full it is.
_BELIEVED, _BELIEVED_WHEN_FULL = 2.0, 0.25
#: Bytes of free disk at which it does not matter yet how long the WAL is.
_PLENTY = 4 * 1024 * MIB
#: Seconds for which a disk is not asked again that has so much more than is needed: nothing fills it meanwhile.
_PLENTY_LASTS = 0.1
#: Counting takes a hundredth of the time, at most.
_COUNTING = 100
#: What a message may cost beside its text: pages that it changes, twice, and indexes.
_AROUND = 64 * 1024


class Reserve:
    """A file beside the database that takes room on its disk, to be given back when that is full."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size

    @property
    def there(self) -> bool:
        """Whether the room is taken."""
        try:
            return self.path.stat().st_size >= self.size
        except OSError:
            return False

    def take(self) -> bool:
        """Take the room, all of it or nothing; False when the disk has not so much."""
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            unfinished.unlink(missing_ok=True)  # a crash left it, or somebody put a link there for us to write through
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(unfinished, flags, 0o600)
            try:
                _allocate(descriptor, self.size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            unfinished.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            return False
        return True

    def release(self) -> bool:
        """Give the room back; False when there was none."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True


def _allocate(descriptor: int, size: int) -> None:
    """Blocks of the disk, and not only a length: a file with holes takes no room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block = os.urandom(1024 * 1024)
    while size > 0:
        size -= os.write(descriptor, block[:size])


class Room:
    """What the quota of the spool, its disk and that of the database have left. Any number of threads may ask.

    The disks are asked each time, one with gigabytes to spare ten times a second. What the database counts is believed for a
    few seconds, together with what this process added since; on connections of our own, so that nobody waits for the
    transaction of a caller.
    """

    def __init__(self, database: Database, spool: Spool, quota: int | None, reserve: int) -> None:
        self.quota = quota
        self.reserve = reserve  #: bytes of each disk that producers leave alone
        self._database = database
        self._spool = spool
        self._beside = database.path
        self._disk = None if self._beside is None else str(self._beside.parent)
        self._counting = threading.Lock()
        self._pid = os.getpid()
        self._kept = 0
        self._added = 0
        self._growth = 0
        self._counted_at: float | None = None
        self._plenty_until = -math.inf
        self._took = 0.0

    def admit(self, files: int, text: int) -> None:
        """Raises OutOfRoom unless so many bytes of files and of text may come in."""
        if files and self.quota is not None:
            left = self._left_of_quota(files)
            if left is not None and files > left:
                raise OutOfRoom(
                    f"the spool is full: its quota is {words(self.quota)}, {words(max(0, left))} of it are left and "
                    f"{words(files)} were to come; deliver, cancel or purge messages with files, or raise the quota"
                )
        left = self._spool.left() if files else None
        if left is not None and left < self.reserve + files:
            raise self._disk_full("spool", left, files)
        if text <= MIB and time.monotonic() < self._plenty_until:
            return
        left, needed = self.left_beside_database(text), self.reserve + self.cost(text)
        if left is not None and left < needed:
            raise self._disk_full("database", left, text)
        if left is not None and left - needed > _PLENTY:
            self._plenty_until = time.monotonic() + _PLENTY_LASTS

    def admit_inside(self, connection: Connection, text: int) -> None:
        """The same for the pages of a caller's SQLite database, if it may not grow for ever.

        Nothing is read before a transaction that writes has begun: one that reads first could not write any more.
        """
        known = connection.info
        if known.get("outbox.pages_limited") is False:
            return
        if "outbox.pages_limited" in known:
            connection.execute(arriving.TAKE_WRITE_LOCK)  # the first time, looking whether it is power-safe has taken it
        pages = pages_of(connection)
        known["outbox.pages_limited"] = pages is not None and pages.limited
        if pages is not None and pages.limited and pages.room < self.least_inside(pages) + self.cost(text):
            raise OutOfRoom(
                f"the database is full: it may have {pages.most} pages (PRAGMA max_page_count), {words(pages.room)} are left, "
                f"of which {words(self.least_inside(pages))} are kept for finishing what is there; when that was delivered and "
                "purged, messages are taken again by themselves; or raise the limit"
            )

    def added(self, files: int) -> None:
        """So many bytes of files came in through this process."""
        self._added += files

    def most_of_a_file(self, limit: int | None) -> int | None:
        """How long a file may be whose length nobody knows before it is copied, when its destination takes up to `limit`."""
        found = [] if limit is None else [limit]
        if self.quota is not None and (left := self._left_of_quota(0)) is not None:
            found.append(max(0, left))
        if (left := self._spool.left()) is not None:
            found.append(max(0, left - self.reserve))
        return min(found, default=None)

    def quota_is_tight(self, largest: int) -> bool:
        """Whether less than a tenth of the quota is left, or not enough for the largest file."""
        left = self._left_of_quota(0)
        return self.quota is not None and left is not None and left < max(self.quota // 10, largest)

    def left_beside_database(self, text: int = 0) -> int | None:
        """Bytes of the database's disk that are left when its WAL has become part of it; None where nobody knows."""
        if self._beside is None or self._disk is None or (left := disk_left(self._disk)) is None:
            return None
        # Only when it matters: counting costs more than looking at the disk.
        if left < _PLENTY and left < self.reserve + self.cost(text) + wal_of(self._beside):
            self._count(_BELIEVED_WHEN_FULL)
            left -= self._growth
        return left

    @staticmethod
    def cost(text: int) -> int:
        """Bytes that a message with so many of text may take in the database and in its WAL."""
        return 2 * text + _AROUND

    @staticmethod
    def least_inside(pages: Pages) -> int:
        """Bytes inside a database of limited size that producers leave alone."""
        return min(RESERVE_INSIDE, pages.most * pages.size // 8)

    def _left_of_quota(self, files: int) -> int | None:
        """Bytes left of the quota, counted afresh before somebody is refused; None as long as nobody could count."""
        if self.quota is None:
            return None
        self._count(_BELIEVED)
        if self._kept + self._added + files > self.quota:
            self._count(_BELIEVED_WHEN_FULL)
        return None if self._counted_at is None else self.quota - self._kept - self._added

    def _count(self, believed: float) -> None:
        """Count what the database knows, unless that was done a moment ago, or somebody else does so now."""
        if self._pid != os.getpid():  # a lock that a thread of the parent held would be held for ever
            self._pid, self._counting = os.getpid(), threading.Lock()
        now = time.monotonic()
        if self._counted_at is not None and now - self._counted_at < max(believed, _COUNTING * self._took):
            return
        if self._database.exhausted or not self._counting.acquire(blocking=False):
            return
        try:
            added = self._added
            with self._database.read() as connection:
                kept = keeping.kept_bytes(connection) if self.quota is not None else 0
                pages = pages_of(connection)
            self._growth = self._still_to_come(pages)
            self._kept, self._added = kept, self._added - added
            self._counted_at, self._took = time.monotonic(), time.monotonic() - now
        except (OutboxError, SQLAlchemyError, OSError):
            return  # whatever it is, the statements of the enqueue will say it
        finally:
            self._counting.release()

    def _still_to_come(self, pages: Pages | None) -> int:
        """Bytes by which the database's file will grow when its WAL becomes part of it."""
        if pages is None or self._beside is None:
            return 0
        return max(0, pages.used * pages.size - self._beside.stat().st_size)

    def _disk_full(self, what: str, left: int, incoming: int) -> OutOfRoom:
        kept = f" and {words(self.reserve)} are kept for finishing what is there" if self.reserve else ""
        return OutOfRoom(
            f"the disk of the {what} is full: {words(max(0, left))} are left{kept}, {words(incoming)} were to come; make room "
            "on it, and messages are taken again by themselves"
        )


def spoiled(connection: Connection, error: BaseException) -> None:
    """After an error for which the database may have rolled back: what came before it must not be taken for committed."""
    if rolled_back(connection):
        connection.invalidate(error)
