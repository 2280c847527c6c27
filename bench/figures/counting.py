"""Statements: how many a delivered batch takes, counted exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from bench.figures.claiming import LANES, Loop
from bench.ground import KINDS, Ground
from bench.harness import Figure, Target, absolute, benchmark
from outbox import Lane
from tests.counting import counted

BATCHES = 10


@benchmark("statements", "SQL statements for each delivered batch of 100, all but BEGIN, COMMIT and beats, counted")
def statements() -> Iterator[Figure]:
    for kind in KINDS:
        with Ground(kind) as ground:
            loop = Loop(ground)
            ground.fill(100 * BATCHES)
            with counted(ground.outbox.database) as executed:
                after = _before_each_claim(loop, executed)
            first, *others = (then - before for before, then in itertools.pairwise(after))
            yield absolute(
                "statements",
                [float(each) for each in others],
                Target(8, 6, "lower"),
                what="statements of one sender for one more batch of 100: the last one is recorded and the next one claimed "
                f"({first} for the first claim, {len(executed) - after[-1]} for the last record)",
                unit="a batch",
                database=kind,
            )


def _before_each_claim(loop: Loop, executed: Sequence[str]) -> list[int]:
    """How many statements there were before each claim of a stretch."""
    found: list[int] = []

    def lanes() -> Sequence[Lane]:
        found.append(len(executed))
        return LANES

    loop.stretch(lanes)
    return found
