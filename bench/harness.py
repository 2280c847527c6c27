"""A figure: what is measured and what it is compared with, in slices that take turns, so that a machine's moods cancel out.

Slices of half a second to a second, five rounds at least; a ratio is taken in each round, and the median of the ratios counts.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

#: Seconds of one slice, and how many rounds of them there are.
SLICE = 0.7
ROUNDS = 7


class Target(NamedTuple):
    """What a ratio should be at least, or at most; the stretch is what we would like."""

    floor: float
    stretch: float
    better: Literal["higher", "lower"] = "higher"

    def met(self, ratio: float) -> bool:
        return ratio >= self.floor if self.better == "higher" else ratio <= self.floor

    def stretched(self, ratio: float) -> bool:
        return ratio >= self.stretch if self.better == "higher" else ratio <= self.stretch


@dataclass(frozen=True)
class Figure:
    """What was found. `baseline` and `measure` are medians in `unit`; without a baseline the ratio is the measure itself."""

    name: str
    ratio: float
    min: float
    max: float
    target: float | None
    stretch: float | None
    better: Literal["higher", "lower"]
    baseline: float | None
    measure: float
    rounds: int
    database: str | None
    unit: str
    what: str  #: what was measured, in words
    against: str | None  #: what it was compared with, in words

    @property
    def verdict(self) -> str:
        """`stretch`, `ok`, `MISSED`; nothing where nothing was asked for."""
        if self.target is None or self.stretch is None:
            return ""
        target = Target(self.target, self.stretch, self.better)
        return "stretch" if target.stretched(self.ratio) else "ok" if target.met(self.ratio) else "MISSED"

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def as_line(self) -> str:
        """One line for a person."""
        asked = "" if self.target is None else f"{'>=' if self.better == 'higher' else '<='} {self.target:g} / {self.stretch:g}"
        where = f" ({self.database})" if self.database else ""
        spread = f"{self.min:.3g} to {self.max:.3g}"
        values = f"{self.measure:,.4g} {self.unit}" + ("" if self.baseline is None else f" : {self.baseline:,.4g}")
        return f"{self.name + where:<38}{self.ratio:>9.3g}  {spread:<18}{asked:<16}{self.verdict:<8} {values}"


#: Runs for about so many seconds; returns units a second, or what one unit costs.
Slice = Callable[[float], float]


def rate(step: Callable[[], int], seconds: float) -> float:
    """Units a second of something done again and again; `step` returns how many units it did."""
    began = time.perf_counter()
    done = 0
    while (took := time.perf_counter() - began) < seconds:
        done += step()
    return done / took


def cost(step: Callable[[], int], seconds: float) -> float:
    """Seconds of this thread's CPU that one unit takes."""
    ends = time.perf_counter() + seconds
    began = time.thread_time()
    done = 0
    while time.perf_counter() < ends:
        done += step()
    return (time.thread_time() - began) / done


def compare(
    name: str,
    measure: Slice,
    baseline: Slice,
    target: Target | None,
    *,
    what: str,
    against: str,
    unit: str,
    database: str | None = None,
    rounds: int = ROUNDS,
    seconds: float = SLICE,
) -> Figure:
    """Slices of both in turn, after one of each that does not count; who goes first changes with each round."""
    for warm_up in (baseline, measure):
        warm_up(min(seconds, 0.3))
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            measured = measure(seconds)
            compared = baseline(seconds)
        else:
            compared = baseline(seconds)
            measured = measure(seconds)
        pairs.append((measured, compared))
    return ratios(name, pairs, target, what=what, against=against, unit=unit, database=database)


def ratios(
    name: str,
    pairs: Sequence[tuple[float, float]],
    target: Target | None,
    *,
    what: str,
    against: str,
    unit: str,
    database: str | None = None,
) -> Figure:
    """The figure of rounds that have been run: in each, what was measured and what it is compared with."""
    found = [measured / compared for measured, compared in pairs]
    return Figure(
        name=name,
        ratio=statistics.median(found),
        min=min(found),
        max=max(found),
        target=target.floor if target else None,
        stretch=target.stretch if target else None,
        better=target.better if target else "higher",
        baseline=statistics.median(compared for _, compared in pairs),
        measure=statistics.median(measured for measured, _ in pairs),
        rounds=len(pairs),
        database=database,
        unit=unit,
        what=what,
        against=against,
    )


def absolute(
    name: str,
    values: Sequence[float],
    target: Target | None,
    *,
    what: str,
    unit: str,
    database: str | None = None,
) -> Figure:
    """A figure that is compared with nothing: milliseconds, megabytes. The median counts."""
    return Figure(
        name=name,
        ratio=statistics.median(values),
        min=min(values),
        max=max(values),
        target=target.floor if target else None,
        stretch=target.stretch if target else None,
        better=target.better if target else "lower",
        baseline=None,
        measure=statistics.median(values),
        rounds=len(values),
        database=database,
        unit=unit,
        what=what,
        against=None,
    )


class Benchmark(NamedTuple):
    """One name on the command line; it may make several figures, for instance one for each database."""

    name: str
    what: str
    run: Callable[[], Iterator[Figure]]


REGISTER: dict[str, Benchmark] = {}


def benchmark(name: str, what: str) -> Callable[[Callable[[], Iterator[Figure]]], Callable[[], Iterator[Figure]]]:
    """Put a function that yields figures on the list, under a name."""

    def enter(run: Callable[[], Iterator[Figure]]) -> Callable[[], Iterator[Figure]]:
        REGISTER[name] = Benchmark(name, what, run)
        return run

    return enter


def percentile(values: Iterable[float], part: float) -> float:
    """The value that so many hundredths are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part / 100 * (len(ordered) - 1)))]
