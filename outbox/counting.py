"""How many there are of something, as it stands in a sentence."""

from __future__ import annotations


def counted(number: int, what: str) -> str:
    """A number of things: 1 file, 2 files, 12,000 deliveries."""
    return f"{number:,} {what if number == 1 else plural(what)}"


def verb(number: int, one: str, many: str) -> str:
    """What so many things do: one is, many are."""
    return one if number == 1 else many


def plural(what: str) -> str:
    """Several of something."""
    return f"{what[:-1]}ies" if what.endswith("y") and what[-2] not in "aeiou" else f"{what}s"
