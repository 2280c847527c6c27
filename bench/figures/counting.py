"""Statements: how many a delivered batch takes, counted exactly."""

from __future__ import annotations

from collections.abc import Iterator

from bench.figures.claiming import Loop
from bench.ground import KINDS, Ground
from bench.harness import Figure, Target, absolute, benchmark
from tests.counting import counted

TURNS = 5


@benchmark("statements", "SQL statements for each delivered batch of 100, all but BEGIN, COMMIT and beats, counted")
def statements() -> Iterator[Figure]:
    for kind in KINDS:
        with Ground(kind) as ground:
            loop = Loop(ground)
            ground.fill(100 * TURNS)
            with counted(ground.outbox.database) as executed:
                for _ in range(TURNS):
                    loop.turn()
            yield absolute(
                "statements",
                [len(executed) / TURNS],
                Target(8, 6, "lower"),
                what="statements of a turn that claims, sends and records 100 messages",
                unit="a batch",
                database=kind,
            )
