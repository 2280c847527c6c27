"""`make planted`: every planted fault meets the tests that must catch it. `python -m tests.planted [NAME...]` takes some only.

With `--write PAGE` the table also takes its place on a page, once every fault was caught.

Ends with 1 when a fault survives, or when one of these tests fails on the product as it is. A test that a tool is missing for
is passed over, unless OUTBOX_ALL_TOOLS=1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.pages import Part
from tests.planted.catching import Nursery, Report, Verdict, verdicts
from tests.planted.faults import FAULTS
from tests.planted.planting import Fault
from tests.planted.telling import in_markdown, line, table
from tests.postgres import NoBinariesError, Postgres

PART = Part("planted faults", "make planted")
SERVER_URL = "OUTBOX_TEST_PG_URL"
#: Jobs at a time.
TOGETHER = 2


class Nurseries:
    """Several nurseries, for as many jobs at a time."""

    def __init__(self, nurseries: Sequence[Nursery]) -> None:
        self._free: SimpleQueue[Nursery] = SimpleQueue()
        for each in nurseries:
            self._free.put(each)

    def catch(self, fault: Fault) -> tuple[list[Verdict], str]:
        """Whether each detector of a fault catches it; and what they said."""
        report = self._run(fault, fault.detectors)
        return verdicts(report, fault.detectors, planted=True), report.output

    def stand(self, detectors: Sequence[str]) -> tuple[list[Verdict], str]:
        """Whether each of these passes on the product as it is; and what they said."""
        report = self._run(None, detectors)
        return verdicts(report, detectors, planted=False), report.output

    def _run(self, fault: Fault | None, detectors: Sequence[str]) -> Report:
        nursery = self._free.get()
        try:
            return nursery.run(fault, detectors)
        finally:
            self._free.put(nursery)


@contextlib.contextmanager
def a_server() -> Iterator[None]:
    """One Postgres for all, starting while the first jobs are under way; whoever needs it waits until it is up."""
    if SERVER_URL in os.environ:
        yield
        return
    try:
        server = Postgres()
    except NoBinariesError:  # the tests that need it will say so
        yield
        return
    starting = threading.Thread(target=server.start)
    starting.start()
    os.environ[SERVER_URL] = server.url
    try:
        yield
    finally:
        starting.join()
        server.close()
        del os.environ[SERVER_URL]


def is_wrong(verdict: Verdict) -> bool:
    """Whether a verdict fails the run."""
    return not verdict.right and (not verdict.skipped or os.environ.get("OUTBOX_ALL_TOOLS") == "1")


def main(names: Sequence[str], page: Path | None = None) -> int:
    """Catch these faults, or all."""
    if unknown := set(names) - set(FAULTS):
        print(f"no fault named {', '.join(sorted(unknown))}; known: {', '.join(FAULTS)}")
        return 1
    chosen = [FAULTS[name] for name in names or FAULTS]
    tests = list(dict.fromkeys(detector for fault in chosen for detector in fault.detectors))
    began = time.monotonic()
    with a_server(), Nursery() as one, Nursery() as other, ThreadPoolExecutor(TOGETHER) as pool:
        nurseries = Nurseries([one, other])
        jobs = [pool.submit(nurseries.catch, fault) for fault in chosen]
        last = [pool.submit(nurseries.stand, tests[first::TOGETHER]) for first in range(TOGETHER)]
        caught = list(zip(chosen, [job.result() for job in jobs], strict=True))
        stood = [job.result() for job in last]
    survived = [fault.name for fault, (found, _) in caught if any(is_wrong(each) for each in found)]
    fallen = [verdict for found, _ in stood for verdict in found if is_wrong(verdict)]
    for fault, (_, output) in caught:
        if fault.name in survived:
            print(f"--- {fault.name}: {fault.broken}\n{output}")
    for found, output in stood:
        if any(verdict in fallen for verdict in found):
            print(f"--- the product as it is\n{output}")
    lines = [line(fault, verdict) for fault, (found, _) in caught for verdict in found]
    print(table(lines))
    for verdict in fallen:
        print(f"{verdict.detector}, on the product as it is: {verdict.words}")
    words = f"not caught: {', '.join(survived)}" if survived else "all caught"
    summary = (
        f"{len(chosen)} planted faults, {len(tests)} tests that must catch them, {words}; {time.monotonic() - began:.0f} s"
    )
    print(summary)
    if page is not None and not (names or survived or fallen):
        PART.write(page, f"{summary}.\n\n{in_markdown(lines)}")
    return int(bool(survived or fallen))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="these faults only")
    parser.add_argument("--write", type=Path, help="a page to put the table in, once all are caught")
    asked = parser.parse_args()
    sys.exit(main(asked.names, asked.write))
