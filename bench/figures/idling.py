"""Idling: what a worker costs that has nothing to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.figures.waking import process
from bench.ground import KINDS, Ground, Kind, folder
from bench.harness import Figure, Target, absolute, benchmark

#: Seconds after which a worker that has begun is idle, and how many it is watched for.
SETTLES = 12.0
WATCHED = float(os.environ.get("OUTBOX_BENCH_IDLE", "60"))
_WRITES = ("INSERT", "UPDATE", "DELETE")
_BEAT = "UPDATE outbox_worker"


def _cost(worker: subprocess.Popen[bytes], path: Path) -> tuple[float, Counter[str]]:
    """Seconds of CPU and the statements of a worker so far."""
    path.unlink(missing_ok=True)
    worker.send_signal(signal.SIGUSR1)
    while not path.exists():
        time.sleep(0.005)
    told: dict[str, Any] = json.loads(path.read_text())
    return float(told["cpu"]), Counter(told["executed"])


def _idle(kind: Kind) -> tuple[float, Counter[str]]:
    """Percent of one processor, and the statements of a minute."""
    path = folder() / "cost"
    with Ground(kind) as ground, process(ground, BENCH_COST=str(path)) as worker:
        time.sleep(SETTLES)
        began, (before, already) = time.perf_counter(), _cost(worker, path)
        time.sleep(WATCHED)
        after, executed = _cost(worker, path)
        took = time.perf_counter() - began
    executed.subtract(already)
    return 100 * (after - before) / took, Counter({each: round(n * 60 / took) for each, n in executed.items() if n})


@benchmark("idle_cost", "what an idle worker costs: CPU, statements and rows written in a minute, on both databases")
def idle_cost() -> Iterator[Figure]:
    for kind in KINDS:
        cpu, executed = _idle(kind)
        if "OUTBOX_BENCH_TELL" in os.environ:
            for statement, times in executed.most_common():
                print(f"  {times:>4}  {statement[:150]}")
        yield absolute(
            f"idle_cpu_{kind}",
            [cpu],
            Target(0.5, 0.2, "lower"),
            what="CPU of an idle worker",
            unit="% of one core",
            database=kind,
        )
        yield absolute(
            f"idle_statements_{kind}",
            [float(executed.total())],
            Target(60, 20, "lower"),
            what="statements of an idle worker, but BEGIN, COMMIT, ROLLBACK and PRAGMA data_version",
            unit="a minute",
            database=kind,
        )
        written = sum(times for each, times in executed.items() if each.startswith(_WRITES) and not each.startswith(_BEAT))
        yield absolute(
            f"idle_writes_{kind}",
            [float(written)],
            Target(0, 0, "lower"),
            what="statements of an idle worker that write, but its beats",
            unit="a minute",
            database=kind,
        )
