"""A clock that stands still until a test moves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from outbox.ambient import Ambient, uptime


class Clock:
    """The time of an outbox in a test. It begins with the true time, and passes only when it is told to."""

    def __init__(self) -> None:
        self._wall = datetime.now(UTC)
        self._ticks = uptime()

    @property
    def now(self) -> datetime:
        """What the wall clock says; set it to let the time come that a test is about. Set back, it is a clock that was set."""
        return self._wall

    @now.setter
    def now(self, instant: datetime) -> None:
        if instant.tzinfo is None:
            raise ValueError("expected an aware instant, such as datetime(2026, 3, 1, tzinfo=UTC)")
        self._ticks += max(0.0, (instant - self._wall).total_seconds())
        self._wall = instant.astimezone(UTC)

    def move(self, seconds: float = 0, **more: float) -> None:
        """Let time pass: `move(90)`, `move(minutes=5)`, `move(days=30)`; what `timedelta` takes."""
        step = timedelta(seconds=seconds, **more)
        if step < timedelta(0):
            raise ValueError("time passes forwards; to set the clock back, give `now` an earlier instant")
        self.now = self._wall + step

    @property
    def ambient(self) -> Ambient:
        """This time, and dice that always fall the same: a back-off takes as long as it may."""
        return Ambient(now=lambda: self._wall, monotonic=lambda: self._ticks, random=lambda: 1.0)

    @contextmanager
    def over(self, ambient: Ambient) -> Iterator[None]:
        """Give this time to an outbox that was made with another, for a while: all its parts share one Ambient."""
        ours, before = self.ambient, {}
        for name in ("now", "monotonic", "random"):
            before[name] = getattr(ambient, name)
            object.__setattr__(ambient, name, getattr(ours, name))  # frozen for everybody else
        try:
            yield
        finally:
            for name, value in before.items():
                object.__setattr__(ambient, name, value)
