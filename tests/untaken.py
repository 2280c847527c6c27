"""Branches of nouns and verbs that no test takes, and why none does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Untaken:
    """A branch, or several at one line."""

    path: str
    function: str
    line: str  #: what the line says from which it goes
    why: str


_WINDOWS = "only on Windows, which has no modes"

UNTAKEN = (
    Untaken(
        "outbox/producing.py",
        "Producing._mind_durability",
        "if self._durability ==",
        "two threads meet their first careless connection at the same moment, and one has warned before the other could",
    ),
    Untaken("outbox/checkup/machine_looks.py", "MachineLooks._permissions", "if os.name ==", _WINDOWS),
    Untaken("outbox/checkup/places.py", "permission_faults", "if os.name ==", _WINDOWS),
    Untaken("outbox/checkup/places.py", "room", "statvfs", "only on Windows, which has no statvfs"),
    Untaken(
        "outbox/checkup/rows.py",
        "_fault",
        "case String()",
        "every column of our tables is an instant, a boolean, a number or a text: the last case is for another kind",
    ),
)
