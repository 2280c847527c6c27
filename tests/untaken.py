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


_OTHER_SYSTEM = "another operating system"
_RACE = "another process has to act between two statements"

UNTAKEN: tuple[Untaken, ...] = ()
