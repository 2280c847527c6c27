"""What comes out: what does not add up, by its invariant, and how much there was of everything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True)
class Counts:
    """How much there was of everything; several rounds can be added."""

    acknowledged: int = 0  #: K: messages that a COMMIT said yes to
    unknown: int = 0  #: U: messages whose COMMIT nobody knows of
    rolled_back: int = 0  #: X
    recovered: int = 0  #: R and U: they arrived although their producer was told nothing
    delivered: int = 0
    dead: int = 0
    cancelled: int = 0
    purged: int = 0
    attempts: int = 0
    unknown_attempts: int = 0
    late_outcomes: int = 0
    replays: int = 0
    requests: int = 0
    copies: int = 0  #: messages that arrived whole and were taken, each as often as it was
    extra_copies: int = 0  #: those beyond the first of each
    kept_parts: int = 0  #: messages that were taken from requests which were refused
    changes: int = 0  #: of messages, in the trail

    @property
    def unexplained(self) -> int:
        """Copies beyond the first of each, in all, that neither an unknown attempt nor a replay explains."""
        return max(0, self.extra_copies - self.unknown_attempts - self.replays)

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


@dataclass(frozen=True)
class Balance:
    """What does not add up, in sentences by the number of the invariant (`I5`); those that nothing is said of are not in it.

    `looked`: the numbers of those that were looked at. Without a trail, a spool or a history some cannot be.
    """

    found: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counts: Counts = Counts()
    looked: tuple[str, ...] = ()

    @property
    def faults(self) -> list[str]:
        """Everything in one list: `I5 m7 arrived 3 times, 1 without an explanation`."""
        return [f"{number} {sentence}" for number, sentences in self.found.items() for sentence in sentences]

    @property
    def adds_up(self) -> bool:
        return not any(self.found.values())

    def plus(self, number: str, sentences: Iterable[str]) -> Balance:
        """With one more invariant looked at, by the scenario itself: its bounds of time (I15) and of size (I16)."""
        said = (*self.found.get(number, ()), *sentences)
        found = {**self.found, number: said} if said else self.found
        return replace(self, found=found, looked=in_order({*self.looked, number}))

    def __add__(self, other: Balance) -> Balance:
        """Of two rounds: looked at is what both have looked at."""
        numbers = in_order({*self.found, *other.found})
        found = {each: (*self.found.get(each, ()), *other.found.get(each, ())) for each in numbers}
        return Balance(found, self.counts + other.counts, in_order({*self.looked} & {*other.looked}))


def in_order(numbers: Iterable[str]) -> tuple[str, ...]:
    """I2 before I10."""
    return tuple(sorted(numbers, key=lambda number: int(number.removeprefix("I"))))
