"""What time it is when the wall clock may be wrong.

A clock can step back a day, jump ahead a year, or stand in 1970 until the network sets it right. Which of two times is true
cannot be told, only what each mistake would cost. So an instant that a person chose (a message's `due_at`, its `expires_at`)
has come when the later of the two says so, and one that we invented (a back-off) when the earlier does.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from outbox.ambient import Ambient

#: Before this, a clock is taken to have not been set yet.
_CLOCK_FLOOR = datetime(2024, 1, 1, tzinfo=UTC)
#: Seconds by which the clocks of one fleet may differ.
SKEW = 60.0
#: Seconds by which the wall clock may run away from the monotonic one between two looks.
_TOLERANCE = 60.0
#: Seconds after which a wall clock that stepped, and then went on steadily, is believed.
_CONFIRMED_AFTER = 3600.0


def plausible(now: datetime) -> bool:
    """Whether a clock can be believed: a machine without a battery wakes up in 1970."""
    return now >= _CLOCK_FLOOR


class When(NamedTuple):
    """The time, as three questions need it."""

    now: datetime  #: what the wall clock says: for rows and people
    chosen: datetime  #: instants that a person chose have come up to here
    invented: datetime  #: instants that we invented have come up to here; new ones are counted from here
    beyond: datetime | None = None  #: and those after this, which no clock that was right would have said

    @classmethod
    def certain(cls, now: datetime) -> When:
        """With a clock that is right."""
        return cls(now, now, now)

    def has_come(self, instant: datetime, *, chosen: bool) -> bool:
        """Whether an instant has come, which a person chose or we invented."""
        if chosen:
            return instant <= self.chosen
        return instant <= self.invented or (self.beyond is not None and instant > self.beyond)


class Timekeeper:
    """Watches the wall clock of this process with its monotonic one. Any number of threads may ask."""

    def __init__(self, ambient: Ambient) -> None:
        self._ambient = ambient
        self._lock = threading.Lock()
        self._wall, self._ticks = ambient.now(), ambient.monotonic()
        self._offset = 0.0
        self._disputed_since: float | None = None

    def read(self) -> When:
        """The time now. While the clock is in dispute, `chosen` is the earlier of the two times and `invented` the later."""
        with self._lock:
            now, ticks = self._ambient.now(), self._ambient.monotonic()
            passed = ticks - self._ticks
            offset = (now - self._wall).total_seconds() - passed
            if abs(offset) <= _TOLERANCE or not plausible(self._wall + timedelta(seconds=passed)):
                self._wall, self._ticks, self._disputed_since = now, ticks, None
                return When(now, now, now)
            expected = self._wall + timedelta(seconds=passed)
            if self._disputed_since is None or abs(offset - self._offset) > _TOLERANCE:
                self._disputed_since, self._offset = ticks, offset
            if ticks - self._disputed_since >= _CONFIRMED_AFTER:
                self._wall, self._ticks, self._disputed_since = now, ticks, None
                return When.certain(now)
            return When(now, min(now, expected), max(now, expected))
