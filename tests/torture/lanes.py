"""All that a torture does, lane by lane: how much of it half an hour is asked for, and what part of the time it gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests import power
from tests.explore.machine import machine
from tests.explore.scopes import deep
from tests.power.report import Report
from tests.security.fuzz import fuzz
from tests.torture import crowd, kills, pauses
from tests.torture.course import Course
from tests.torture.postgres_kills import database_kills

#: Minutes in which the targets are as they were asked for; in fewer they are in proportion.
IN_FULL = 30.0
NAMES = {"sqlite": "SQLite", "postgres": "Postgres"}
#: Of what has a ledger of its own, so much between two looks at it.
STATES, CUTS, DATABASE_KILLS, LIVES = 1000, 20, 40, 25
#: Seconds of what only takes time.
PART = 50.0


@dataclass(frozen=True)
class Lane:
    """Something that is done again and again until it was done `target` times."""

    kind: str
    database: str
    what: str  #: the count that the target is for
    told: str  #: in the table
    target: int  #: in half an hour; 0 is as many as there is time for
    seconds: float  #: what it takes, about: its part of the time
    run: Callable[[Course], None]

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.database}"

    def asked(self, minutes: float) -> int:
        """The target in so many minutes."""
        return math.ceil(self.target * min(1.0, minutes / IN_FULL))


def _crash_states(course: Course) -> None:
    while course.goes_on:
        many = min(STATES, course.missing)
        course.borrowed(lambda folder, seed, many=many: power.crash_states(folder, many, seed), "power")


def _cuts(course: Course) -> None:
    while course.goes_on:
        many = min(CUTS, course.missing)
        course.borrowed(lambda folder, seed, many=many: power.cuts(folder, seed, count=many), "power")


def _database_kills(course: Course) -> None:
    while course.goes_on:
        many = min(DATABASE_KILLS, course.missing)
        course.borrowed(lambda folder, seed, many=many: database_kills(folder, seed, count=many, seconds=course.left), "server")


def _explorer(course: Course) -> None:
    def explored(folder: Path, seed: int) -> Report:
        report = Report(seed)
        for each in deep(min(PART, course.left)):
            report.counts.update({"states explored": each.states, "orders of steps that they stand for": each.schedules})
            report.faults += [str(found) for found in each.violations]
        return report

    while course.goes_on:
        course.borrowed(explored, "odd")


def _lives(course: Course) -> None:
    def lived(folder: Path, seed: int) -> Report:
        report = Report(seed)
        report.counts["lives"] = machine(LIVES, seed)["lives"]
        return report

    while course.goes_on:
        course.borrowed(lived, "odd")


def _fuzz(course: Course) -> None:
    def fuzzed(folder: Path, seed: int) -> Report:
        report = Report(seed)
        report.counts["cases"] = sum(fuzz(min(PART, course.left), seed).values())
        return report

    while course.goes_on:
        course.borrowed(fuzzed, "odd")


def _lanes() -> list[Lane]:
    every = []
    for database, name in NAMES.items():
        for kind, module, what, told, target, seconds in (
            ("kills", kills, "kills", "SIGKILLs of producers and workers", 1000, 700.0),
            ("pauses", pauses, "pauses", "pauses longer than the gone time", 100, 250.0),
            ("crowd", crowd, "crowds", "crowds of eight producers and three workers", 1, 70.0),
        ):
            every.append(Lane(kind, database, what, f"{told}, {name}", target, seconds, partial(module.run, kind=database)))
    return [
        *every,
        Lane("database-kills", "postgres", "database kills", "kills of the database, Postgres", 200, 400.0, _database_kills),
        Lane("crash-states", "sqlite", "states", "crash states replayed, SQLite", 5000, 250.0, _crash_states),
        Lane("explorer", "sqlite", "states explored", "states of two workers explored, SQLite", 0, 100.0, _explorer),
        Lane("machine", "sqlite", "lives", "random lives compared with a model, SQLite", 0, 60.0, _lives),
        Lane("fuzz", "none", "cases", "cases of what others may write, at random", 0, 60.0, _fuzz),
        Lane("cuts", "sqlite", "cuts", "real power cuts on ext4, SQLite", 100, 80.0, _cuts),
    ]


LANES = {lane.key: lane for lane in _lanes()}
