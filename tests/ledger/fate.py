"""What became of one message, as its rows have it, or, of a purged one, the trail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FINAL = frozenset({"delivered", "dead", "cancelled"})
#: Of a message that was tried more often than this only the last attempts are kept.
KEPT = 1000


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt that is over."""

    number: int
    delivery_id: int
    outcome: str
    late_outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """A file as its rows have it."""

    file: str
    sha256: str
    filename: str


@dataclass(frozen=True, slots=True)
class Fate:
    """A message and its attempts."""

    id: int
    key: str
    state: str
    attempt: int = 0
    replays: int = 0
    stream_id: int | None = None
    stream_number: int | None = None
    attempts: tuple[Tried, ...] = ()
    payload: str | None = None  #: None of a purged one
    attached: Mapping[str, Attached] = field(default_factory=dict)  #: by the producer's names
    purged: bool = False
    lives: int = 1  #: messages that had this key, one after the other

    @property
    def over(self) -> bool:
        return self.state in FINAL

    @property
    def finished(self) -> int:
        """Attempts that should be written down."""
        return self.attempt - (self.state == "claimed")

    @property
    def forgotten(self) -> int:
        """Attempts that were written down once, and are not kept."""
        return self.attempts[0].number - 1 if len(self.attempts) >= KEPT else 0

    @property
    def unknown_attempts(self) -> int:
        """Those that may have brought a copy although nobody was told; of those that were forgotten, any."""
        return sum(each.outcome == "unknown" for each in self.attempts) + self.forgotten
