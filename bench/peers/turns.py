"""What every peer says and hears: `ready`, then for each number of seconds how many units a second it managed."""

from __future__ import annotations

import sys
from collections.abc import Callable


def take(work: Callable[[float], float]) -> None:
    """Let it work whenever we are asked to, until nobody asks any more."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(work(float(line)), flush=True)
