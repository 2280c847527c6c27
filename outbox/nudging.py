"""Nudges: whoever waits for work is told that there may be some, and need not ask for it all the time.

A nudge is a hint and no more: one may come for nothing, and one may be lost. On Postgres it is a NOTIFY of the enqueuing
transaction. On SQLite it is that somebody else has written to the database: the kernel says so where it can, else one looks
often; and from a producer in the same process the news that it is about to commit.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event

from outbox.bell import Bell

#: What Postgres calls it; the payload is the name of a destination, or empty for any.
CHANNEL, _LISTEN = "outbox", "LISTEN outbox"
#: The name that stands for any destination.
ANY = ""
#: Seconds between two looks at a SQLite database at most, by somebody who is told of writes, and where nobody tells.
_LOOK_SELDOM, _LOOK_OFTEN = 2.0, 0.065
#: Seconds between two looks when a commit of this process is on its way, and for how long it may be.
_LOOK_SHARPLY = 0.001
_AWAITED_FOR = 1.0
#: Seconds between the looks that follow a write: its commit comes when the disk has it.
_AFTER_A_WRITE = tuple(_LOOK_SHARPLY * 2**each for each in range(11))
#: And those that follow a write of our own, or of something else in the folder: somebody may have come right behind it.
_AFTER_ANOTHER = (_LOOK_OFTEN,)
#: Seconds between two tries to listen to a server that does not let us, at first and at most; and between two proofs that it
#: is still there.
_RETRY, _RETRY_AT_MOST = 0.5, 30.0
_PROVE_EVERY = 60.0
#: What a connection of the driver's remembers: the destinations that its transaction has something for; of a caller's
#: connection, and of one of ours.
_MARKS, _OURS = "outbox.nudges", "outbox.our-nudges"


class Nudges(Protocol):
    """Where nudges come from. One thread waits; any other may interrupt it."""

    @property
    def heard(self) -> bool:
        """Whether nudges come this way at the moment: else whoever waits must look for himself, and often."""

    def wait(self, seconds: float) -> set[str]:
        """The destinations that there is a nudge for, as soon as there is; none after so many seconds or an interruption."""

    def interrupt(self) -> None:
        """Let whoever waits go on, from now on always at once."""

    def close(self) -> None:
        """Nobody waits here any more."""


# SQLite: a database file, seen from outside and from within the process.

_listening: dict[str, list[FileNudges]] = {}
_heard: WeakSet[Engine] = WeakSet()
_ours: WeakSet[Engine] = WeakSet()
_lock = threading.Lock()


def _forget_all() -> None:
    """In a forked child nobody listens: the threads that did are the parent's."""
    global _lock  # noqa: PLW0603 (it may have been in the hands of a thread that is not here)
    _lock = threading.Lock()
    _listening.clear()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_forget_all)


class FileNudges:
    """Waits for others to write to a SQLite database.

    `version` is two values: one that changes whenever somebody else has, and one whenever we have, as the connection sees it
    that we write with: what we write ourselves wakes nobody.
    """

    heard = True

    def __init__(self, path: str, version: Callable[[], tuple[Hashable, Hashable]]) -> None:
        self._path = path
        self._version = version
        self._wal = f"{os.path.realpath(path)}-wal"
        self._bell = Bell(os.path.dirname(self._wal))  # noqa: PTH120 (what a Path costs has no place here)
        self._touched: tuple[int, int] | None = None
        self._seen: tuple[Hashable, Hashable] | None = None
        self._pauses = iter(_AFTER_A_WRITE)
        self._rests = False  #: they are over
        self._ended = False
        self._told: set[str] = set()
        self._awaited: set[str] = set()
        self._awaited_until = 0.0
        with _lock:
            _listening.setdefault(path, []).append(self)

    def wait(self, seconds: float) -> set[str]:
        ends = time.monotonic() + seconds
        written = False
        while not self._ended:
            now = time.monotonic()
            sharp = now < self._awaited_until
            touched = self._was_touched()
            watching = not (sharp or touched or written) and self._bell.watch()
            found, ours = self._news()
            if found or now >= ends:
                return found
            pause = self._next_pause(written, touched, ours)
            if sharp:
                pause = _LOOK_SHARPLY
            elif not watching:
                pause = min(pause, _LOOK_OFTEN)
            written = self._bell.wait(min(pause, ends - now), watching=watching)
        return set()

    def _next_pause(self, written: bool, touched: bool, ours: bool) -> float:
        """Seconds until the next look: less and less often."""
        if ours or (written and not touched):
            self._pauses = iter(_AFTER_ANOTHER)
        elif written or (touched and self._rests):
            self._pauses = iter(_AFTER_A_WRITE)
        pause = next(self._pauses, None)
        self._rests = pause is None
        return _LOOK_SELDOM if pause is None else pause

    def _news(self) -> tuple[set[str], bool]:
        """Whom there may be something for; and whether we have written ourselves since the last look."""
        before, self._seen = self._seen, self._version()
        if before is None:  # nobody knows what was there before; what is awaited may still come
            return {ANY}, False
        changed, ours = (one != other for one, other in zip(before, self._seen, strict=True))
        with _lock:
            found, self._told = self._told, set()
            if changed:
                found |= self._awaited or {ANY}
                self._awaited, self._awaited_until = set(), 0.0
        return found, ours

    def _was_touched(self) -> bool:
        """Whether anybody has written since the last look, ourselves included."""
        try:
            there = os.stat(self._wal)  # noqa: PTH116 (what a Path costs for that is what there is to save)
        except OSError:
            return True
        before, self._touched = self._touched, (there.st_mtime_ns, there.st_size)
        return before != self._touched

    def expect(self, names: set[str]) -> None:
        """Somebody in this process is about to commit something for these."""
        with _lock:
            self._awaited |= names
            self._awaited_until = time.monotonic() + _AWAITED_FOR
        self._bell.ring()

    def tell(self, names: set[str]) -> None:
        """Something for these has been committed, with a connection of ours."""
        with _lock:
            self._told |= names
        self._bell.ring()

    def interrupt(self) -> None:
        self._ended = True
        self._bell.ring()

    def close(self) -> None:
        with _lock:
            if self in (those := _listening.get(self._path, [])):
                those.remove(self)
            if not those:
                _listening.pop(self._path, None)
        self._bell.close()


def mark(connection: Connection, path: Callable[[], str | None], name: str) -> None:
    """Note that a transaction has something for a destination; whoever listens in this process is told when it commits."""
    if not _listening:
        return
    known: dict[str, Any] = connection.info
    marks: set[str] | None = known.get(_MARKS)
    if marks is not None:
        marks.add(name)
    elif path() in _listening:
        engine = connection.engine
        if engine in _ours:
            known.setdefault(_OURS, set()).add(name)
            return
        known[_MARKS] = {name}
        with _lock:
            if engine not in _heard:
                event.listen(engine, "commit", _committing)
                _heard.add(engine)


def is_ours(engine: Engine) -> None:
    """What this engine writes others of this process need to be told, with `tell`: it is not looked for."""
    _ours.add(engine)


def _committing(connection: Connection) -> None:
    """A caller's transaction ends. One that was rolled back before has left its marks: they wake somebody in vain."""
    if names := connection.info.pop(_MARKS, None):
        with _lock:
            those = [each for several in _listening.values() for each in several]
        for each in those:
            each.expect(names)


def tell(known: dict[str, Any], path: str | None) -> None:
    """A transaction of ours has been committed, on a connection that remembers this."""
    if path is not None and (names := known.pop(_OURS, None)):
        with _lock:
            those = list(_listening.get(path, ()))
        for each in those:
            each.tell(names)


# Postgres: a connection that does nothing but listen.


class ServerNudges:
    """Listens to a Postgres server. A connection that is lost is made again, with patience.

    `connect` makes one of psycopg's, of ours alone, and what closes it; None where that cannot be had, and never will be.
    """

    def __init__(self, connect: Callable[[], tuple[Any, Callable[[], None]] | None]) -> None:
        self._connect = connect
        self._connection: Any | None = None
        self._close: Callable[[], object] = bool
        self._possible = True
        self._ended = False
        self._retry_at = 0.0
        self._patience = _RETRY
        self._proved_at = 0.0
        self._arrived: set[str] = set()
        self._bell, self._button = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)

    @property
    def heard(self) -> bool:
        return self._connection is not None

    def wait(self, seconds: float) -> set[str]:
        if self._ended:
            return set()
        if self._connection is None:
            if self._possible and time.monotonic() >= self._retry_at:
                return self._begin()
            until = self._retry_at - time.monotonic() if self._possible else seconds
            self._selector.select(max(0.0, min(seconds, until)))
            return set()
        try:
            until = self._proved_at + _PROVE_EVERY - time.monotonic()
            ready = self._selector.select(max(0.0, min(seconds, until)))
            if not ready and until <= seconds:
                self._connection.execute("SELECT 1")
                self._proved_at = time.monotonic()
            elif any(key.fileobj is not self._bell for key, _ in ready):
                self._connection.pgconn.consume_input()
            while (notice := self._connection.pgconn.notifies()) is not None:
                self._arrived.add(notice.extra.decode("utf-8", "replace"))
        except Exception:  # noqa: BLE001 (the driver's own; whatever it is, nothing is heard there any more)
            self._lose()
            return {ANY}
        arrived, self._arrived = self._arrived, set()
        return arrived

    def _begin(self) -> set[str]:
        """Listen; whoever waits looks once, since something may have come before."""
        try:
            made = self._connect()
            if made is None:
                self._possible = False
                return set()
            connection, self._close = made
            self._connection = connection
            connection.add_notify_handler(lambda notice: self._arrived.add(notice.payload))  # those that come with an answer
            connection.execute(_LISTEN)
            self._selector.register(connection.fileno(), selectors.EVENT_READ)
        except Exception:  # noqa: BLE001 (as above)
            self._lose()
            return set()
        self._patience, self._proved_at = _RETRY, time.monotonic()
        return {ANY}

    def _lose(self) -> None:
        self._drop()
        self._retry_at = time.monotonic() + self._patience
        self._patience = min(2 * self._patience, _RETRY_AT_MOST)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        close, self._close = self._close, bool
        for key in list(self._selector.get_map().values()):
            if key.fileobj is not self._bell:
                self._selector.unregister(key.fileobj)
        if connection is not None:
            with contextlib.suppress(Exception):
                close()

    def interrupt(self) -> None:
        self._ended = True
        with contextlib.suppress(OSError):
            self._button.send(b"x")

    def close(self) -> None:
        self._ended = True
        self._drop()
        self._selector.close()
        self._bell.close()
        self._button.close()
