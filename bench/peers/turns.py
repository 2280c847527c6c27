"""What every peer says and hears: `ready`, then for each number of seconds how many units a second it managed.

Nobody is made to look bad. A queue is empty when a slice begins, and what is to be drained is put in before the clock runs:
from the first job to the last, without the start and the end of the worker.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

logging.disable(logging.CRITICAL)  # whoever is compared with us need not write down what it does

#: About what an event is, as other libraries want it: a dictionary or its text.
PAYLOAD = {
    "assetId": "turbine-7",
    "time": 1579580182824,
    "events": {
        "crack": {"severity": 3, "text": "x" * 110, "place": [1.25, 2.5, 3.75], "confirmed": False, "model": "crack-seg-4"}
    },
}


def take(work: Callable[[float], float], *, how: str = "") -> None:
    """Let it work whenever we are asked to, until nobody asks any more; `how` says what it is that works."""
    print(f"ready {how}".strip(), flush=True)
    for line in sys.stdin:
        print(work(float(line)), flush=True)


def rate(step: Callable[[], int], seconds: float) -> float:
    """Units a second of something done again and again; `step` returns how many units it did."""
    began = time.perf_counter()
    done = 0
    while (took := time.perf_counter() - began) < seconds:
        done += step()
    return done / took


class Drain:
    """How many jobs fill a slice, by what the last one managed; and how long they took, from the first to the last."""

    def __init__(self, guess: float, step: int = 100) -> None:
        self._rate = guess
        self._step = step
        self._began = 0.0
        self._ended = 0.0
        self.seen = 0

    def number(self, seconds: float) -> int:
        """So many jobs, please."""
        self.seen = 0
        return max(1, round(self._rate * seconds / self._step)) * self._step

    def count(self) -> None:
        """What each job calls, and nothing else."""
        self._ended = time.perf_counter()
        if not self.seen:
            self._began = self._ended
        self.seen += 1

    def rate(self, expected: int) -> float:
        """Jobs a second."""
        if self.seen != expected:
            raise RuntimeError(f"of {expected} jobs {self.seen} were run")
        self._rate = self.seen / (self._ended - self._began)
        return self._rate
