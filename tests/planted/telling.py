"""The table of who caught what, made from the verdicts at hand, or from what the tests of a run were recorded to have found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.planted.catching import Verdict
from tests.planted.planting import Fault

#: The property under which a test tells what it found.
PROPERTY = "planted"


class Line(NamedTuple):
    """A fault and one of the tests that must catch it."""

    fault: str
    broken: str
    words: str
    seconds: float
    detector: str


def line(fault: Fault, verdict: Verdict) -> Line:
    return Line(fault.name, fault.broken, verdict.words, verdict.seconds, verdict.detector.removeprefix("tests/"))


def table(lines: Sequence[Line]) -> str:
    """A line for each test that must catch a fault."""
    cells = [(each.fault, each.broken, each.words, f"{each.seconds:.1f}", each.detector) for each in lines]
    cells.insert(0, ("fault", "what is broken", "", "s", "by"))
    widths = [max(len(row[column]) for row in cells) for column in range(4)] + [0]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def in_markdown(lines: Sequence[Line]) -> str:
    """A row for each fault, with all who caught it."""
    by: dict[tuple[str, str], list[str]] = {}
    for each in lines:
        by.setdefault((each.fault, each.broken), []).append(f"`{each.detector}`")
    rows = [f"| {fault} | {broken} | {', '.join(detectors)} |" for (fault, broken), detectors in by.items()]
    return "\n".join(["| | what is broken | caught by |", "|---|---|---|", *rows])


def recorded(reports: Iterable[object]) -> list[Line]:
    """What tests told of planted faults, from the reports of a run, in whatever process they were run."""
    properties = [each for report in reports for each in getattr(report, "user_properties", ())]
    return sorted({Line(*value) for name, value in properties if name == PROPERTY})
