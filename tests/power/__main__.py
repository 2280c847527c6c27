"""`python -m tests.power --states 5000 --cuts 100 --seed 7`: prints what was done, and ends with 1 if anything was wrong."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.power import Report, Unavailable, crash_states, cuts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.power", description="Power cuts, modelled and real.")
    parser.add_argument("--states", type=int, default=5000, help="states that a power cut may leave")
    parser.add_argument("--cuts", type=int, default=100, help="cuts of a real file system")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="outbox-power-") as folder:
        reports: list[Report] = []
        for what, many, run in (
            ("states", asked.states, lambda: crash_states(Path(folder) / "states", asked.states, asked.seed)),
            ("cuts", asked.cuts, lambda: cuts(Path(folder) / "cuts", asked.seed, count=asked.cuts)),
        ):
            if many:
                try:
                    reports.append(run())
                    print(f"{what}: {reports[-1]}", flush=True)
                except Unavailable as error:
                    print(f"{what}: skipped, {error}", flush=True)
    faults = [fault for report in reports for fault in report.faults]
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
