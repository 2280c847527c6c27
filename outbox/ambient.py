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


#: The digit of a version 7 UUID that says which kind of UUID it is has two random bits, given here by another digit.
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def uuid7(milliseconds: int | None = None) -> str:
    """A time-ordered UUID (RFC 9562, version 7) as 32 hexadecimal digits.

    The 74 random bits come from the operating system, not from `random`, whose state forked processes share.
    """
    stamp = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    dice = os.urandom(10).hex()
    return f"{stamp & (1 << 48) - 1:012x}7{dice[:3]}{_VARIANT[dice[3]]}{dice[4:19]}"


def several(new_id: Callable[[], str], count: int) -> list[str]:
    """So many new ids; of `uuid7` they take a quarter of the time together."""
    if new_id is not uuid7 or count < 2:
        return [new_id() for _ in range(count)]
    begin, dice = uuid7()[:13], os.urandom(10 * count).hex()
    return [f"{begin}{dice[at : at + 3]}{_VARIANT[dice[at + 3]]}{dice[at + 4 : at + 19]}" for at in range(0, 20 * count, 20)]


@dataclass(frozen=True)
class Ambient:
    """The only door to time, randomness and identity; tests hand in their own."""

    now: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = uptime
    new_id: Callable[[], str] = uuid7
    random: Callable[[], float] = random.random
