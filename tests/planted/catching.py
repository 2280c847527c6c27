"""Runs tests on the product with a fault in it, each time in a fork of a process that has imported all but the product.

`python -m tests.planted.catching` is that process: it takes a job as a line of JSON, and answers with a line of JSON.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.planted.planting import PLANTED, Fault, has_grown, plant_what_is_asked_for

ROOT = Path(__file__).parents[2]
#: What the tests import sooner or later, and what of it the product is not.
IMPORTED = (
    "_pytest.assertion.rewrite",
    "alembic.command",
    "apscheduler.schedulers.background",
    "certifi",
    "click",
    "multipart",
    "psycopg",
    "pydantic_settings",
    "requests",
    "rich.console",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm",
)
#: Seconds that the tests of one fault may take.
PATIENCE = 240.0
#: What a fault raises that was planted badly. A test that fails of it has caught nothing.
BLUNDERS = frozenset({"AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "TypeError"})
#: A random test looks at the same examples each time: whether it catches a fault is no matter of luck.
SEED = "1"

#: What is ours alone; and that a missing tool is a failure: a test that could not look has caught nothing.
NOT_INHERITED = (PLANTED, "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS", "OUTBOX_ALL_TOOLS", "CI")


@dataclass
class Run:
    """One test with one set of parameters."""

    id: str
    seconds: float = 0.0
    failed: bool = False  #: it was run, and failed
    error: str = ""  #: the type of what it raised
    skipped: bool = False
    broken: str = ""  #: what kept it from being run


@dataclass
class Report:
    """What became of the tests of one job."""

    code: int = -1  #: pytest's exit code; -1 when it came to no end
    planted: bool = False  #: there was a fault in what was imported
    runs: list[Run] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  #: what could not even be collected
    output: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a test caught a fault, or stood without one."""

    detector: str
    right: bool
    words: str
    seconds: float
    skipped: bool = False


def verdicts(report: Report, detectors: Sequence[str], *, planted: bool) -> list[Verdict]:
    """What a report says of each of these tests: on a planted product they must fail, as it is they must pass."""
    return [_verdict(report, each, planted=planted) for each in detectors]


def _verdict(report: Report, detector: str, *, planted: bool) -> Verdict:
    mine = [run for run in report.runs if run.id == detector or run.id.startswith((f"{detector}[", f"{detector}::"))]
    seconds = sum(run.seconds for run in mine)
    failed = [run for run in mine if run.failed]
    blunders = sorted({run.error for run in failed} & BLUNDERS)
    broken = next((run.broken for run in mine if run.broken), "")

    def so(right: bool, words: str, *, skipped: bool = False) -> Verdict:
        return Verdict(detector, right, words, seconds, skipped)

    if report.code == -1:
        return so(False, "came to no end")
    if report.broken:
        return so(False, f"cannot be collected: {report.broken[0]}")
    if report.planted is not planted:
        return so(False, "ran on the product as it is" if planted else "ran on a product with a fault in it")
    if not mine:
        return so(False, "is not there")
    if broken:
        return so(False, f"could not be run: {broken}")
    if all(run.skipped for run in mine):
        return so(False, "was skipped", skipped=True)
    if not planted:
        return so(not failed, "fails without a fault" if failed else "passed")
    if failed and len(blunders) == len({run.error for run in failed}):
        return so(False, f"failed of a blunder in the fault itself: {', '.join(blunders)}")
    return so(bool(failed), "caught" if failed else "SURVIVED")


class Nursery:
    """A process that runs jobs, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.planted.catching"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, fault: Fault | None, detectors: Sequence[str]) -> Report:
        """Run tests with this fault in the product, or with none."""
        if not detectors:
            return Report(4, fault is not None)  # pytest would take every test there is
        job = {"fault": fault.name if fault else "", "tests": list(detectors), "environment": dict(os.environ)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return Report(**told | {"runs": [Run(**each) for each in told["runs"]]})

    def catch(self, fault: Fault, detectors: Sequence[str] | None = None) -> tuple[list[Verdict], str]:
        """Whether each detector of a fault, or each of these, catches it; and what the tests said."""
        chosen = fault.detectors if detectors is None else detectors
        report = self.run(fault, chosen)
        return verdicts(report, chosen, planted=True), report.output


class _Listener:
    """A pytest plugin that notes what becomes of each test."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.broken: list[str] = []
        self.code = -1

    def pytest_sessionfinish(self, session: object, exitstatus: int) -> None:
        self.code = int(exitstatus)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(str(report.longrepr).strip().splitlines()[-1])

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        if call.excinfo is not None and getattr(report, "when", None) == "call":
            self._of(node.nodeid).error = call.excinfo.typename

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        run = self._of(report.nodeid)
        run.seconds += report.duration
        run.skipped = run.skipped or report.skipped
        if report.failed and report.when == "call":
            run.failed = True
        elif report.failed and not run.failed:
            run.broken = f"{report.when}: {str(report.longrepr).strip().splitlines()[-1]}"

    def _of(self, nodeid: str) -> Run:
        return self.runs.setdefault(nodeid, Run(nodeid))


def _do(job: dict[str, Any], folder: Path) -> None:
    """In a fork: the job, with its report in a file."""
    os.setsid()  # whatever is started from here on can be ended together
    os.environ.clear()
    os.environ.update(job["environment"])
    os.environ |= {"OUTBOX_TEST_SEED": SEED, "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis")}
    for name in NOT_INHERITED:
        os.environ.pop(name, None)
    os.environ["OUTBOX_LONG"] = "1"  # by chance nobody may find it
    if job["fault"]:
        os.environ[PLANTED] = job["fault"]
    plant_what_is_asked_for()
    listener = _Listener()
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed", SEED]
    options += ["--basetemp", str(folder / "tmp")]
    try:
        pytest.main([*options, *job["tests"]], plugins=[listener])
    except Exception:  # noqa: BLE001 (of what a failed test left open, for instance)
        traceback.print_exc()
    report = Report(listener.code, has_grown(), list(listener.runs.values()), listener.broken)
    (folder / "report").write_text(json.dumps(asdict(report)))


def _in_a_fork(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    output = folder / "output"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with output.open("wb") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _do(job, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stdout.flush()
            os._exit(code)
    ends = time.monotonic() + PATIENCE
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a test that failed has left behind
    told = folder / "report"
    report = json.loads(told.read_text()) if told.exists() else asdict(Report())
    return report | {"output": output.read_text(errors="replace")}


def _jobs() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


if __name__ == "__main__":
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert "outbox" not in sys.modules
    gc.collect()
    gc.freeze()
    for each in _jobs():
        with tempfile.TemporaryDirectory(prefix="outbox-planted-", ignore_cleanup_errors=True) as scratch:
            print(json.dumps(_in_a_fork(each, Path(scratch))), flush=True)
