"""What was looked at, what is wrong with it, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.exc import DBAPIError

from outbox.secret import conceal


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


def in_words(error: BaseException) -> str:
    """An error in one line, without the statement it came from and without a secret."""
    cause: BaseException = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return conceal(lines[0] if lines else type(cause).__name__).rstrip(".")
