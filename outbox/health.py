"""Whether the database, its schema and the spool are there, asked so that nobody waits long for an answer."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

from outbox import migrate
from outbox.ambient import Ambient
from outbox.database import Database
from outbox.errors import OutboxError
from outbox.secret import conceal
from outbox.spool.base import Spool

T = TypeVar("T")


class NoAnswerYet(OutboxError):
    """What was asked has not answered in time."""


class Glance(Generic[T]):
    """Asks a question that may hang: on one thread, never two at a time, and waits no longer than told.

    An answer, or the error there was instead, is given again for `fresh` seconds.
    """

    def __init__(self, ask: Callable[[], T], name: str, fresh: float) -> None:
        self._ask = ask
        self._name = name
        self._fresh = fresh
        self._lock = threading.Lock()
        self._asking: threading.Event | None = None
        self._asked_at = 0.0
        self._answered_at: float | None = None
        self._answer: Future[T] | None = None

    def begin(self) -> None:
        """Ask, unless the last answer is fresh or the question is under way."""
        with self._lock:
            fresh = self._answered_at is not None and time.monotonic() - self._answered_at < self._fresh
            if self._asking is not None or fresh:
                return
            self._asking = asking = threading.Event()
            self._asked_at = time.monotonic()
        try:
            threading.Thread(target=self._run, args=(asking,), name=f"outbox-{self._name}", daemon=True).start()
        except RuntimeError as error:  # there is none to be had now
            answer: Future[T] = Future()
            answer.set_exception(error)
            self._keep(answer, asking)

    def end(self, by: float) -> T:
        """The answer, waited for until the monotonic clock says `by`. Raises NoAnswerYet, or what asking raised."""
        with self._lock:
            asking = self._asking
        if asking is not None and not asking.wait(max(0.0, by - time.monotonic())):
            raise NoAnswerYet(f"no answer for {time.monotonic() - self._asked_at:.1f} s")
        with self._lock:
            answer = self._answer
        if answer is None:
            raise NoAnswerYet("nobody has asked yet")
        return answer.result()

    def __call__(self, within: float) -> T:
        """Ask and wait at most `within` seconds."""
        self.begin()
        return self.end(time.monotonic() + within)

    def latest(self, age: float) -> T | None:
        """The last good answer if it is at most `age` seconds old; asks nobody."""
        with self._lock:
            answer, at = self._answer, self._answered_at
        if answer is None or at is None or time.monotonic() - at > age or answer.exception() is not None:
            return None
        return answer.result()

    def _run(self, asking: threading.Event) -> None:
        answer: Future[T] = Future()
        try:
            answer.set_result(self._ask())
        except Exception as error:  # noqa: BLE001 (given to whoever asks)
            answer.set_exception(error)
        self._keep(answer, asking)

    def _keep(self, answer: Future[T], asking: threading.Event) -> None:
        with self._lock:
            self._answer, self._answered_at, self._asking = answer, time.monotonic(), None
        asking.set()


class Part(NamedTuple):
    """One thing that a worker needs: whether it is there, and in words what is wrong."""

    ok: bool
    text: str | None = None


#: Seconds that answers are given again: a probe that asks every second costs a look in two of them.
_FRESH = 2.0
_SPOOL_FRESH = 10.0
#: Seconds within which everything must have answered, and for which somebody may keep SQLite's write lock.
WITHIN = 1.5
_LOCK_KEPT = 1.0


class Health:
    """What a worker depends on. Every question has a thread of its own, so that one that hangs holds up nothing else."""

    def __init__(self, database: Database, spool: Spool, ambient: Ambient) -> None:
        self._database = database
        self._spool = spool
        self._ambient = ambient
        self._spool_seen = spool.is_there()
        self._schema = Glance(self._look_at_schema, "look-database", _FRESH)
        self._writable = Glance(self._write_to_spool, "look-spool", _SPOOL_FRESH)
        self._unlocked = Glance(lambda: database.takes_writers(_LOCK_KEPT), "look-lock", _FRESH)

    def parts(self, within: float = WITHIN) -> dict[str, Part]:
        """The database, its schema and the spool, each asked at the same time."""
        by = time.monotonic() + within
        for each in (self._schema, self._writable, self._unlocked):
            each.begin()
        spool = _part(lambda: self._writable.end(by))
        found = {**self._database_parts(by), "spool": spool}
        if found["database"].ok:
            found["database"] = _part(lambda: self._require_unlocked(by))
        return found

    def _require_unlocked(self, by: float) -> None:
        try:
            unlocked = self._unlocked.end(by)
        except NoAnswerYet as error:  # on a machine that stood still meanwhile
            raise NoAnswerYet(f"it answers; whether its write lock is free, nobody knows: {error}") from error
        if not unlocked:
            raise NoAnswerYet(f"somebody keeps its write lock for more than {_LOCK_KEPT:g} s")

    def database_is_there(self, within: float = WITHIN) -> bool:
        """Whether the database answers with the schema of this code."""
        self._schema.begin()
        return all(part.ok for part in self._database_parts(time.monotonic() + within).values())

    def _database_parts(self, by: float) -> dict[str, Part]:
        found: list[str | None] = []
        database = _part(lambda: found.append(self._schema.end(by)))
        if not database.ok:
            return {"database": database, "schema": Part(ok=False, text="not known while the database does not answer")}
        has, needs = found[0], migrate.newest()
        if has == needs:
            return {"database": database, "schema": Part(ok=True)}
        return {"database": database, "schema": Part(ok=False, text=f"it is {has or 'not there'}, this code needs {needs}")}

    def _look_at_schema(self) -> str | None:
        with self._database.read() as connection:
            return migrate.current(connection)

    def _write_to_spool(self) -> None:
        if not self._spool_seen and not self._spool.is_there():
            return  # the first file makes it; a look shall not, perhaps on the disk below its mount
        self._spool_seen = True
        name = self._ambient.new_id()
        self._spool.put(name, io.BytesIO(b"outbox"))
        self._spool.delete(name)


def _part(ask: Callable[[], object]) -> Part:
    try:
        ask()
    except Exception as error:  # noqa: BLE001 (said in the part)
        lines = str(error).splitlines() or [type(error).__name__]
        words = lines[0] if isinstance(error, OutboxError) else f"{type(error).__name__}: {lines[0]}"
        return Part(ok=False, text=conceal(words))
    return Part(ok=True)
