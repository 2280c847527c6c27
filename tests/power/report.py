"""What a series of power cuts came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


class Unavailable(Exception):
    """A tool is missing, in words."""


@dataclass
class Report:
    """How much was done, and everything that was found to be wrong."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        done = ", ".join(f"{number:,} {what}" for what, number in sorted(self.counts.items()))
        return f"{done}; faults: {len(self.faults)}; OUTBOX_TEST_SEED={self.seed}"
