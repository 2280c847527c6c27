"""`make cover`: which branches of nouns and verbs the tests take.

`python -m tests.covering` runs pure, conformance, story, skins and security, on both databases, measured with the programs that
they start, and reports; `--again` reports once more of what was measured last, and `--write` puts it on a page, too. Ends with
1 when a test failed, when nouns or verbs take less of their branches than they must, or when tests/untaken.py does not say of a
branch that no test takes why none does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.pages import Part
from tests.untaken import UNTAKEN, Untaken

PART = Part("untaken branches", "make cover")
ROOT = Path(__file__).parents[1]
FOLDERS = tuple(f"tests/{each}" for each in ("pure", "conformance", "story", "skins", "security"))
#: The rings that are held to it, and how many of a hundred branches.
HELD, ENOUGH = ("nouns", "verbs"), 98.0


@dataclass(frozen=True)
class Branch:
    """One that no test takes."""

    path: str
    function: str
    start: int
    end: int  #: below zero: out of the function
    line: str  #: what stands at its start

    def __str__(self) -> str:
        goes = "the end" if self.end < 0 else f"line {self.end}"
        return f"{self.path}:{self.start} ({self.function}) never goes on to {goes}: {self.line}"

    @property
    def argued(self) -> Untaken | None:
        """What is said of it."""
        place = (self.path, self.function)
        return next((each for each in UNTAKEN if (each.path, each.function) == place and each.line in self.line), None)


@dataclass
class Ring:
    """What the tests took of a ring."""

    lines: int = 0
    lines_taken: int = 0
    branches: int = 0
    branches_taken: int = 0
    missing: list[Branch] = field(default_factory=list)

    @property
    def share(self) -> float:
        return 100.0 * self.branches_taken / self.branches if self.branches else 100.0


def rings() -> dict[str, str]:
    """The ring of each module directly in the package, as the contract in pyproject.toml has them."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    contract = re.search(r"^layers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert contract is not None
    found, ring = {}, ""
    for line in contract[1].splitlines():
        if heading := re.fullmatch(r"\s*# (\w+)", line):
            ring = heading[1]
        elif name := re.fullmatch(r'\s*"\(?(\w+)\)?",', line):
            found[name[1]] = ring
    return found


def by_ring(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Ring]:
    """The files of coverage's own report, by ring."""
    ring_of, found = rings(), defaultdict(Ring)
    for path, measured in sorted(files.items()):
        module = Path(path).parts[1].removesuffix(".py")
        if module not in ring_of:  # __init__ and __main__, which are nothing but imports
            continue
        ring, counts = found[ring_of[module]], measured["summary"]
        ring.lines += counts["num_statements"]
        ring.lines_taken += counts["covered_lines"]
        ring.branches += counts["num_branches"]
        ring.branches_taken += counts["covered_branches"]
        ring.missing += _missing(path, measured)
    return dict(found)


def _missing(path: str, measured: Mapping[str, Any]) -> Iterator[Branch]:
    lines = (ROOT / path).read_text("utf-8").splitlines()
    for start, end in measured["missing_branches"]:
        function = next(
            (name for name, each in measured["functions"].items() if name and [start, end] in each["missing_branches"]), ""
        )
        yield Branch(path, function, start, end, lines[start - 1].strip())


def report(data: Path) -> dict[str, Ring]:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "coverage.json"
        _coverage(data, "json", "-q", "--include", "outbox/*", "-o", str(written))  # some ran an older code, elsewhere
        return by_ring(json.loads(written.read_text("utf-8"))["files"])


def _coverage(data: Path, *arguments: str) -> int:
    environment = os.environ | {"COVERAGE_FILE": str(data)}
    return subprocess.run([sys.executable, "-m", "coverage", *arguments], cwd=ROOT, env=environment).returncode


def table(found: Mapping[str, Ring]) -> str:
    rows = [f"{'ring':8}{'lines':>8}{'%':>8}{'branches':>10}{'%':>8}"]
    for name, ring in found.items():
        lines = 100.0 * ring.lines_taken / ring.lines
        rows.append(f"{name:8}{ring.lines:>8}{lines:>8.2f}{ring.branches:>10}{ring.share:>8.2f}")
    return "\n".join(rows)


def in_markdown(found: Mapping[str, Ring]) -> str:
    """The rings that are held to it, and of each branch that is not taken why it is not."""
    rows = ["| ring | branches | taken |", "|---|---:|---|"]
    rows += [f"| {name} | {found[name].branches} | {found[name].branches_taken}, {found[name].share:.1f} % |" for name in HELD]
    rows += ["", "| where | not taken | why |", "|---|---|---|"]
    for each in (branch for name in HELD for branch in found[name].missing):
        why = each.argued.why if each.argued is not None else "**not argued**"
        rows.append(f"| `{each.path}`, `{each.function}` | `{each.line.replace('|', chr(92) + '|')}` | {why} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.covering")
    parser.add_argument("--again", action="store_true", help="run nothing: report of what was measured last")
    parser.add_argument("--workers", default="logical", help="tests at a time (default: one for each processor)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it in its place on this page, too")
    given = parser.parse_args(arguments)
    data, failed = ROOT / ".coverage", 0
    if not given.again:
        _coverage(data, "erase")
        apart = ["-n", given.workers, "--maxprocesses", "4", "--dist", "worksteal"]
        failed = _coverage(data, "run", "-m", "pytest", "-q", *apart, *FOLDERS)
        _coverage(data, "combine", "-q")
    found = report(data)
    missing = [branch for name in HELD for branch in found[name].missing]
    unargued = [branch for branch in missing if branch.argued is None]
    for branch in missing:
        print(branch, branch.argued.why if branch.argued is not None else "NOT ARGUED", sep="\n    ")
    print(f"\n{table(found)}")
    if given.write is not None:
        PART.write(given.write, in_markdown(found))
    return 1 if failed or unargued or any(found[name].share < ENOUGH for name in HELD) else 0


if __name__ == "__main__":
    sys.exit(main())
