"""Durations and sizes as people write and read them: 5m, 7d, 20 GiB; 3 d 4 h, 1.5 MiB."""

from __future__ import annotations

import re
from datetime import timedelta

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|kib|mib|gib|tib|kb|mb|gb|tb)?", re.ASCII | re.IGNORECASE)
_BYTES = {"b": 1} | {
    prefix + unit: base**power for unit, base in (("ib", 1024), ("b", 1000)) for power, prefix in enumerate("kmgt", 1)
}


def duration(text: str) -> timedelta:
    """A length of time: a number with s, m, h, d or w, several of them added up ("1h30m"). Raises ValueError."""
    found, left = _DURATION.findall(text.strip().lower()), _DURATION.sub("", text.strip().lower()).strip()
    if not found or left:
        raise ValueError(f"expected a time such as 90s, 5m, 2h, 7d or 1h30m, got {text!r}")
    try:
        return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in found))
    except OverflowError:
        raise ValueError(f"expected a shorter time than {text!r}") from None


def size(text: str) -> int:
    """A number of bytes: plain, or with KiB, MiB, GiB, TiB (of 1024) or kB, MB, GB, TB (of 1000). Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected a size such as 500 MB, 20 GiB or a number of bytes, got {text!r}")
    return int(float(found[1]) * _BYTES[(found[2] or "b").lower()])


def in_words(length: timedelta | float) -> str:
    """A length of time to read: its two largest units, such as 3 d 4 h, 12 s or 0.4 s."""
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    if seconds < 0:
        return f"-{in_words(-seconds)}"
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    left = round(seconds)
    parts: list[str] = []
    for unit, each in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, each)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def bytes_in_words(count: int) -> str:
    """A number of bytes in a unit that can be read."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
