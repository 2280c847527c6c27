"""A table of answers: rules in order, of which the first that fits says what an answer means."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Generic, TypeAlias, TypeVar

from outbox.errors import ConfigurationError


class Meaning(StrEnum):
    """What an answer to an upload can mean."""

    DELIVERED = "delivered"  #: the destination has every message
    REJECT = "reject"  #: a message is at fault
    TOO_LARGE = "too_large"  #: a message is at fault, or there were too many: less may pass
    RENEW = "renew"  #: our token has ended: get another one and send again, once
    CREDENTIALS = "credentials"  #: we are refused: stop the destination
    RETRY = "retry"  #: the destination is at fault: try again when it is well


M = TypeVar("M", bound=StrEnum)

#: What rules look at: numbers by name. None where the answer has no such number.
Reading: TypeAlias = Mapping[str, int | None]
#: The number wanted, or several of which any will do.
Condition: TypeAlias = int | Collection[int | None]

#: The condition that there is no such number.
ABSENT: Condition = frozenset({None})


class Rule(Generic[M]):
    """One line of a table: answers that fit every condition mean `meaning`, and `note` says why in words.

    A condition is named after the number it looks at: `Rule(Meaning.RETRY, "devices are made later here", code=11404)`. It is a
    number, a set or range of numbers, or ABSENT. What is not named may be anything; a rule without conditions fits always.
    """

    __slots__ = ("meaning", "note", "when")

    def __init__(self, meaning: M, note: str, **when: Condition) -> None:
        self.meaning = meaning
        self.note = note
        self.when = {name: _several(wanted) for name, wanted in when.items()}

    def __repr__(self) -> str:
        conditions = "".join(f", {name}={wanted!r}" for name, wanted in self.when.items())
        return f"Rule({self.meaning!r}, {self.note!r}{conditions})"

    def fits(self, reading: Reading) -> bool:
        """Whether an answer that reads so meets every condition."""
        return all(reading[name] in wanted for name, wanted in self.when.items())


Verdicts: TypeAlias = tuple[Rule[Meaning], ...]


def first(rules: Sequence[Rule[M]], reading: Reading) -> Rule[M]:
    """The rule that decides: the first that fits, and the last where none does."""
    return next((rule for rule in rules if rule.fits(reading)), rules[-1])


def check_table(rules: Sequence[Rule[M]], names: Collection[str], owner: str) -> None:
    """Raises ConfigurationError unless the last rule fits always, and conditions name only what is read from an answer."""
    if not rules or rules[-1].when:
        raise ConfigurationError(f"{owner}: expected the last verdict to fit every answer; end with the verdicts of the base")
    for rule in rules:
        for name in rule.when.keys() - set(names):
            raise ConfigurationError(f"{owner}: {rule!r} looks at {name!r}; known: {', '.join(names)}")


def _several(wanted: Condition) -> Collection[int | None]:
    if isinstance(wanted, int):
        return frozenset({wanted})
    return wanted if isinstance(wanted, range) else frozenset(wanted)
