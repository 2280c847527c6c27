"""Time, dice and names: whatever differs on every run."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

_SLEEPLESS: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def utc_now() -> datetime:
    """The wall clock, as an aware instant."""
    return datetime.now(UTC)


def uptime() -> float:
    """Seconds on a clock that nobody sets; where the system has such a one, it goes on while the machine sleeps."""
    return time.clock_gettime(_SLEEPLESS) if _SLEEPLESS is not None else time.monotonic()


def uuid7(milliseconds: int | None = None) -> str:
    """A time-ordered UUID (RFC 9562, version 7) as 32 hexadecimal digits.

    The 74 random bits come from the operating system, not from `random`, whose state forked processes share.
    """
    stamp = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    noise = int.from_bytes(os.urandom(10), "big")
    high = (stamp & (1 << 48) - 1) << 80 | 7 << 76 | (noise >> 68 & 0xFFF) << 64
    low = 0b10 << 62 | noise & (1 << 62) - 1
    return f"{high | low:032x}"


@dataclass(frozen=True)
class Ambient:
    """The only door to time, randomness and identity; tests hand in their own."""

    now: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = uptime
    new_id: Callable[[], str] = uuid7
    random: Callable[[], float] = random.random
