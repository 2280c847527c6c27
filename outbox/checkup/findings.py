"""What was looked at, what is wrong with it, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.exc import DBAPIError

from outbox.errors import SpoolError
from outbox.marks import ForeignSpool
from outbox.secret import conceal
from outbox.timekeeping import SKEW
from outbox.units import in_words as length_in_words

#: What helps where we may not even look.
AS_ITS_USER = "run this as the user that the worker runs as"


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"  #: it works, and might not for long
    PROBLEM = "problem"  #: something is not delivered, or may be lost


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` is a sentence that says what to do; empty when nothing is to be done."""

    check: str
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at; its name is put on whatever it finds."""

    name: str
    look: Callable[[], Iterable[Finding]]
    database: bool = False  #: it needs one that answers
    network: bool = False


def ok(text: str) -> Finding:
    """Nothing is to be done."""
    return Finding("", Level.OK, text)


def warning(text: str, remedy: str) -> Finding:
    """It works, and might not for long."""
    return Finding("", Level.WARNING, text, remedy)


def problem(text: str, remedy: str) -> Finding:
    """Something is not delivered, or may be lost."""
    return Finding("", Level.PROBLEM, text, remedy)


def compared(whose: str, ahead: float, level: Level = Level.WARNING) -> Finding:
    """What it means that a clock is so many seconds ahead of ours."""
    if abs(ahead) <= SKEW:
        return ok(f"this machine's clock agrees with {whose} to {length_in_words(abs(ahead))}")
    text = f"this machine's clock is {length_in_words(abs(ahead))} {'behind' if ahead > 0 else 'ahead of'} {whose}"
    return Finding("", level, text, "set the clocks by the network (chrony, systemd-timesyncd)")


def about_mark(error: ForeignSpool | SpoolError) -> tuple[str, str]:
    """What it means that a spool's mark is not the database's, or is none, and what to do about it."""
    if isinstance(error, ForeignSpool):
        return f"{error.text}: nothing is swept, and new files are refused", error.remedy
    text, _, remedy = str(error).partition("; ")
    return text, remedy or "look whether its disk is well, and whether we may read it"


def in_words(error: BaseException) -> str:
    """What an error says itself, in one line: without its class, its statement, SQLAlchemy's advice, and a secret."""
    cause: BaseException = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    words = (lines[0] if lines else type(cause).__name__).partition(" (Background on")[0]
    return conceal(words).rstrip(".")
