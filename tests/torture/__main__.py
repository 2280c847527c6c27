"""`make torture MINUTES=30`: run the lanes, print the table; ends with 1 unless everything is as it was asked for."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sqlite3
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.pages import Part
from tests.torture.lanes import IN_FULL, LANES, NAMES, Lane
from tests.torture.runner import Runner, begin_lane
from tests.torture.table import all_kept, drawn, rows

PART = Part("torture", "make torture")


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    asked = _parser().parse_args(arguments)
    if asked.lane:
        begin_lane(LANES[asked.lane], asked.folder, asked.seed, asked.target, asked.seconds)
        return 0
    lanes = chosen(asked.only, asked.database)
    if not lanes:
        print("no lane is left; there are " + ", ".join(LANES), file=sys.stderr)
        return 2
    if asked.write is not None:
        try:
            PART.in_place(asked.write.read_text("utf-8"), "")
        except LookupError as error:
            print(f"{asked.write}: {error}", file=sys.stderr)
            return 2
    seed = asked.seed if asked.seed is not None else time.time_ns() % 2**32
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="outbox-torture-"))
    print(f"{asked.minutes:g} minutes, OUTBOX_TEST_SEED={seed}, what goes wrong is kept in {folder}", flush=True)
    runner = Runner(lanes, asked.minutes, seed, folder, lambda line: print(line, flush=True))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.interrupt())
    runner.run()
    found = rows(runner.news, lanes, asked.minutes, all_tools=os.environ.get("OUTBOX_ALL_TOOLS") == "1")
    table = drawn(found)
    print(f"\n{table}\n")
    for each in runner.news:
        if each.found:
            print(f"{each.lane}: seed {each.seed}, kept in {each.kept}")
    if runner.interrupted:
        print("It was interrupted.")
    good = all_kept(found)
    print("Everything is as it was asked for." if good else "Not everything is as it was asked for.")
    if asked.write is not None and good:
        PART.write(asked.write, f"{description(asked.minutes)}\n\n{table}")
    if not any(folder.iterdir()):
        folder.rmdir()
    return 0 if good and not runner.interrupted else 1


def chosen(only: str | None, database: str | None) -> list[Lane]:
    """The lanes of these kinds and this database."""
    kinds = None if only is None else {each.strip() for each in only.split(",")}
    return [
        lane
        for lane in LANES.values()
        if (kinds is None or lane.kind in kinds) and (database is None or lane.database == database)
    ]


def description(minutes: float) -> str:
    """When, where and how."""
    command = " ".join(["make", "torture", f"MINUTES={minutes:g}"])
    machine = f"{os.cpu_count()} cores, {platform.system()} on {platform.machine()}, Python {platform.python_version()}"
    return f"`{command}` on {datetime.now(UTC):%Y-%m-%d}: {machine}, SQLite {sqlite3.sqlite_version}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=IN_FULL, help="how long; useful from 15 upwards [%(default)g]")
    kinds = ", ".join(dict.fromkeys(lane.kind for lane in LANES.values()))
    parser.add_argument("--only", help=f"these kinds of lanes, with commas between them: {kinds}")
    parser.add_argument("--database", choices=[*NAMES, "none"], help="on this database alone")
    given = os.environ.get("OUTBOX_TEST_SEED")
    parser.add_argument("--seed", type=int, default=int(given) if given else None, help="[OUTBOX_TEST_SEED, or any]")
    parser.add_argument("--folder", type=Path, help="for everything that is made [a temporary one]")
    parser.add_argument("--write", type=Path, help="a page to put the table in, once everything is as it was asked for")
    for hidden, kind in (("--lane", str), ("--target", int), ("--seconds", float)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
