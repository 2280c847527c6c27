"""The metronome: loops that are run when it is time, or at once, each on one thread at a time.

The scheduler follows the wall clock: whoever owns a metronome lets it `watch` now and then, by the monotonic one.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from apscheduler.executors.pool import BasePoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger

#: A loop that is this many seconds late was let down by the scheduler.
_LATE = 1.0
#: Firings of one loop that the scheduler may have under way: one arms the next before it is over itself, and a firing that the
#: scheduler takes for one too many is lost. Which of them runs the loop, `take` decides.
_FIRINGS = 16


@dataclass(eq=False)
class Loop:
    """Rounds that are taken one at a time: `round` returns the seconds until the next one, None for the usual pause."""

    name: str
    round: Callable[[], float | None]
    pause: float | None  #: seconds between two rounds; None: until it is woken
    retry: float  #: and after one that failed
    due: float = math.inf  #: when it should run next, by the monotonic clock
    running: bool = False
    again: bool = False  #: somebody wanted a round while one was taken
    timed: bool = False  #: it runs because it was time to
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rest(self, again: float | None) -> float | None:
        """Seconds until the next round, after one that said this."""
        if again is None:
            return self.pause
        return again if self.pause is None else min(again, self.pause)

    def begins(self) -> None:
        """Another round is about to be taken."""

    def ends(self, *, failed: bool) -> None:
        """No other round follows for now."""

    def rests(self, pause: float | None) -> None:
        """It is at rest for so many seconds; None: until it is woken."""


class Metronome:
    """Runs loops until `stop` is set. `went_well` and `went_wrong` are told how each round ended."""

    def __init__(
        self, stop: threading.Event, went_well: Callable[[Loop], object], went_wrong: Callable[[Loop, Exception], object]
    ) -> None:
        self.loops: list[Loop] = []
        self._stop = stop
        self._went_well = went_well
        self._went_wrong = went_wrong
        self._here = threading.local()
        self._pool: ThreadPoolExecutor | None = None
        self._scheduler = _Scheduler(
            jobstores={"default": MemoryJobStore()},
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": _FIRINGS},
            timezone=UTC,
        )

    @property
    def here(self) -> Loop | None:
        """The loop that this thread runs."""
        found: Loop | None = getattr(self._here, "loop", None)
        return found

    @property
    def busy(self) -> bool:
        """Whether a loop is running."""
        return any(loop.running for loop in self.loops)

    def start(self, loops: Sequence[Loop]) -> None:
        """Begin with those that run by themselves."""
        self.loops = list(loops)
        self._pool = ThreadPoolExecutor(len(self.loops), "outbox")
        self._scheduler.add_executor(_Executor(self._pool))
        self._scheduler.start()
        for loop in self.loops:
            if loop.pause is not None:
                self.arm(loop, 0.0)

    def shut_down(self) -> None:
        """Wait for the rounds that are being taken."""
        if self._scheduler.running and self._pool is not None:
            # It waits for its threads with a lock in its hand, which one that is just arming its loop waits for: so we wait.
            self._scheduler.shutdown(wait=False)
            self._pool.shutdown(wait=True)

    def take(self, loop: Loop) -> bool:
        """Whether a loop is ours to run now; else whoever is running it takes one more round."""
        with loop.lock:
            if loop.running or self._stop.is_set():
                loop.again = loop.running
                return False
            loop.running, loop.due, loop.timed = True, math.inf, False
            return True

    def run_now(self, loop: Loop) -> None:
        """Run a loop on this thread, unless another one does."""
        if self.take(loop):
            self._work(loop)

    def run_aside(self, loop: Loop) -> bool:
        """Run a loop that was taken on a thread of the pool; False when we end."""
        try:
            if self._pool is not None:
                self._pool.submit(self._work, loop)
                return True
        except RuntimeError:  # it is closed
            pass
        loop.running = False
        return False

    def arm(self, loop: Loop, pause: float) -> None:
        """Let a loop run once, `pause` seconds from now."""
        loop.due = time.monotonic() + pause
        when = DateTrigger(datetime.now(UTC) + timedelta(seconds=pause), timezone=UTC)
        self._scheduler.add_job(self._fire, when, [loop], id=loop.name, replace_existing=True)

    def watch(self) -> None:
        """Run loops that the scheduler sleeps over: after a step back of the wall clock it would for as long as the step."""
        for loop in self.loops:
            if not loop.running and not self._stop.is_set() and time.monotonic() > loop.due + _LATE:
                self.arm(loop, 0.0)

    def late(self, seconds: float) -> list[tuple[str, float]]:
        """The loops that should have been run so many seconds ago, by name."""
        now = time.monotonic()
        return [(loop.name, now - loop.due) for loop in self.loops if not loop.running and now - loop.due > seconds]

    def _fire(self, loop: Loop) -> None:
        if self.take(loop):
            loop.timed = True
            self._work(loop)

    def _work(self, loop: Loop) -> None:
        """Round after round of a loop that was taken, while something moves."""
        before, self._here.loop = self.here, loop
        pause: float | None = loop.retry
        failed = True
        try:
            while not self._stop.is_set():
                loop.begins()
                again = loop.round()
                self._went_well(loop)
                if again is None or again > 0:
                    pause, failed = loop.rest(again), False
                    break
        except Exception as error:  # noqa: BLE001 (whoever is told minds it)
            self._went_wrong(loop, error)
        finally:
            self._here.loop = before
            loop.ends(failed=failed)
            with loop.lock:
                wanted, loop.running, loop.again = loop.again, False, False
                if pause is not None and not self._stop.is_set():
                    self.arm(loop, 0.0 if wanted else pause)
        loop.rests(pause)


class _Scheduler(BackgroundScheduler):  # type: ignore[misc]  # apscheduler ships no types
    def remove_job(self, job_id: str, jobstore: str | None = None) -> None:
        """Take away a job that has fired. While it is being shut down, the library looks for it where it is not."""
        with contextlib.suppress(JobLookupError):
            super().remove_job(job_id, jobstore)


class _Executor(BasePoolExecutor):  # type: ignore[misc]  # as above
    """Lets a scheduler's jobs run in a pool that is used without it too: to wake somebody by way of it takes longer."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        super().__init__(pool)
