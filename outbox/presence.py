"""A worker's proof of life: its own beats, and who else has stopped beating.

Nobody's clock is compared with anybody else's. A worker counts as gone when its beat stood still through `gone_after` seconds
of the observer's monotonic clock, and only the time counts in which the observer's own beats were being written: one who
was suspended, or could not reach the database, has seen nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass

from outbox.ambient import Ambient
from outbox.database import Database, nudge_at_commit
from outbox.nudging import ANY
from outbox.policy import GONE_AFTER
from outbox.store import living
from outbox.store.living import Beat

#: So many beats' time passes between two looks of one whose beats see nobody else.
_ALONE = 20


@dataclass
class _Seen:
    beat: int
    still_for: float = 0.0


class Presence:
    """One worker's identity, new at every start and whenever the worker finds that it was declared gone."""

    def __init__(
        self,
        database: Database,
        ambient: Ambient,
        gone_after: float = GONE_AFTER,
        serves: Collection[str] = (),
        skipping: Collection[str] = (),
    ) -> None:
        self._database = database
        self._ambient = ambient
        self._gone_after = gone_after
        self._serves = serves
        self._skipping = skipping
        # Often enough for whoever is less patient with us than we are with others.
        often = min(gone_after, GONE_AFTER)
        self.look_every = often / 30
        self._beat_every = often / 5
        self._beat_at_rest = often / 3
        self._others: dict[str, _Seen] = {}
        self._looked_at = self._ticked_at = 0.0
        self._watched_for = 0.0
        self._beaten_at = 0.0
        self._has_looked = False
        self.id = ""
        self.stop_asked = False  #: somebody asked, through the database, that we end
        self.seen = Beat(stop_asked=False)  #: with the last beat
        self.beats = 0  #: so many were written

    def arrive(self) -> None:
        """Take an identity. What the one before still holds is left for a rescue."""
        identity, now = self._ambient.new_id(), self._ambient.now()
        with self._database.begin() as connection:
            host, pid = socket.gethostname(), os.getpid()
            living.register(connection, identity, host, pid, now, self._serves, _version(), self._gone_after)
        self.id = identity
        self._others.clear()
        self._has_looked = False
        self._watched_for = 0.0
        self.seen = Beat(stop_asked=False)
        self._looked_at = self._ticked_at = self._beaten_at = self._ambient.monotonic()

    def leave(self) -> None:
        """End in order: nobody needs to wait for a beat that will not come."""
        with self._database.begin() as connection:
            living.leave(connection, self.id)
            nudge_at_commit(connection, ANY)  # what it had in hand others may have

    def beat(self, *, at_rest: bool = False) -> bool:
        """Raise our beat if it is time to; False when we were declared gone.

        Who is `at_rest` holds nothing. With nobody there to watch it either, it need not beat so often.
        """
        every = self._beat_at_rest if at_rest and not self.seen.others else self._beat_every
        if self._ambient.monotonic() - self._beaten_at < every:
            return True
        with self._database.begin() as connection:
            seen = living.beat(connection, self.id, self._ambient.now(), self._skipping)
            # Also when we were declared gone: whoever asked meant this worker, whatever its name is by then.
            asked = seen.stop_asked if seen is not None else living.stop_asked(connection, self.id)
        self.stop_asked = self.stop_asked or asked
        if seen is not None:
            self.seen = seen
        self.beats += 1
        self._beaten_at = self._ambient.monotonic()
        return seen is not None

    def look(self) -> list[str]:
        """Look at the beats of the others, and declare gone those that stood still for too long; returns these.

        To be called at every tick, `look_every`: only time in which it was counts. It asks the database when it is time to.
        """
        now = self._ambient.monotonic()
        # A tick that comes late, or while our own beats fail, says little about the others: at most two ticks' time counts.
        if now - self._beaten_at <= 2 * self._beat_every:
            self._watched_for += min(now - self._ticked_at, 2 * self.look_every)
        self._ticked_at = now
        if not self._time_to_look(now):
            return []
        with self._database.read() as connection:
            beats = living.beats(connection)
        self._has_looked, self._looked_at = True, now
        passed, self._watched_for = self._watched_for, 0.0
        self._others = {
            identity: self._noted(identity, beat, passed) for identity, beat in beats.items() if identity != self.id
        }
        gone = [identity for identity, seen in self._others.items() if seen.still_for >= self._gone_after]
        declared = []
        for identity in gone:
            with self._database.begin() as connection:
                if living.declare_gone(connection, identity, self._others[identity].beat):
                    declared.append(identity)
        return declared

    def _time_to_look(self, now: float) -> bool:
        """As often as the others beat; more often when the time of one is nearly over, and seldom when nobody is there."""
        if not self._has_looked:
            return True
        if any(each.still_for >= self._gone_after - 2 * self._beat_every for each in self._others.values()):
            return True
        every = self._beat_every if self.seen.others or self._others else _ALONE * self._beat_every
        return now - self._looked_at >= every

    def _noted(self, identity: str, beat: int, passed: float) -> _Seen:
        seen = self._others.get(identity)
        if seen is None or seen.beat != beat:
            return _Seen(beat)
        return _Seen(beat, seen.still_for + passed)


def _version() -> str | None:
    """The version of durable-outbox; none when it runs without being installed."""
    try:
        return importlib.metadata.version("durable-outbox")
    except importlib.metadata.PackageNotFoundError:
        return None
