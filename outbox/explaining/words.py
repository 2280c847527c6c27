"""Numbers, times and what others said, as they stand in a sentence."""

from __future__ import annotations

from datetime import datetime

from outbox import counting

#: So many rows are counted, at most: whoever waits behind more does not mind how many more.
COUNTED = 10_000
#: Characters of an answer that fit into a sentence.
_WORDS = 300


def at_time(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}Z" if instant is not None else "an unknown time"


def counted(number: int, what: str) -> str:
    """A number of things; of those that were counted up to a bound, that there are more."""
    if number > COUNTED:
        return f"more than {COUNTED:,} {counting.plural(what)}"
    return counting.counted(number, what)


def waits(number: int) -> str:
    return "waits" if number == 1 else "wait"


def nth(number: int) -> str:
    tens, ones = number // 10 % 10, number % 10
    return f"{number}{'th' if tens == 1 else {1: 'st', 2: 'nd', 3: 'rd'}.get(ones, 'th')}"


def brief(text: str | None) -> str:
    """What somebody said, short enough for a sentence."""
    words = " ".join((text or "").split())
    return words if len(words) <= _WORDS else f"{words[: _WORDS - 1]}…"
