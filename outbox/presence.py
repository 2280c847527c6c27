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
from outbox.database import Database
from outbox.policy import GONE_AFTER
from outbox.store import living


@dataclass
class _Seen:
    beat: int
    still_for: float = 0.0


class Presence:
    """One worker's identity, new at every start and whenever the worker finds that it was declared gone."""

    def __init__(
        self, database: Database, ambient: Ambient, gone_after: float = GONE_AFTER, serves: Collection[str] = ()
    ) -> None:
        self._database = database
        self._ambient = ambient
        self._gone_after = gone_after
        self._serves = serves
        # Often enough for whoever is less patient with us than we are with others.
        often = min(gone_after, GONE_AFTER)
        self.look_every = often / 30
        self._beat_every = often / 5
        self._others: dict[str, _Seen] = {}
        self._looked_at = 0.0
        self._beaten_at = 0.0
        self.id = ""
        self.stop_asked = False  #: somebody asked, through the database, that we end

    def arrive(self) -> None:
        """Take an identity. What the one before still holds is left for a rescue."""
        identity, now = self._ambient.new_id(), self._ambient.now()
        with self._database.begin() as connection:
            host, pid = socket.gethostname(), os.getpid()
            living.register(connection, identity, host, pid, now, self._serves, _version(), self._gone_after)
        self.id = identity
        self._others.clear()
        self._looked_at = self._beaten_at = self._ambient.monotonic()

    def leave(self) -> None:
        """End in order: nobody needs to wait for a beat that will not come."""
        with self._database.begin() as connection:
            living.leave(connection, self.id)

    def beat(self) -> bool:
        """Raise our beat if it is time to; False when we were declared gone."""
        if self._ambient.monotonic() - self._beaten_at < self._beat_every:
            return True
        with self._database.begin() as connection:
            alive = living.beat(connection, self.id, self._ambient.now())
            # Also when we were declared gone: whoever asked meant this worker, whatever its name is by then.
            self.stop_asked = self.stop_asked or living.stop_asked(connection, self.id)
        self._beaten_at = self._ambient.monotonic()
        return alive

    def look(self) -> list[str]:
        """Look at the beats of the others, and declare gone those that stood still for too long; returns these."""
        with self._database.read() as connection:
            beats = living.beats(connection)
        now = self._ambient.monotonic()
        passed, self._looked_at = now - self._looked_at, now
        # A look that comes late, or while our own beats fail, says little about the others: at most two looks' time counts.
        credible = min(passed, 2 * self.look_every) if now - self._beaten_at <= 2 * self._beat_every else 0.0
        self._others = {
            identity: self._noted(identity, beat, credible) for identity, beat in beats.items() if identity != self.id
        }
        gone = [identity for identity, seen in self._others.items() if seen.still_for >= self._gone_after]
        declared = []
        for identity in gone:
            with self._database.begin() as connection:
                if living.declare_gone(connection, identity, self._others[identity].beat):
                    declared.append(identity)
        return declared

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
