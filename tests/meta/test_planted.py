"""Planted faults: each still finds its place in the product, none is there unasked, and each is caught by who must catch it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.planted.catching import Nursery, Report, Run, verdicts
from tests.planted.faults import FAULTS
from tests.planted.planting import PACKAGE, PLANTED, Edit, Fault, Planter, PlantError, has_grown, planted_source, source_of
from tests.planted.telling import PROPERTY, line

ROOT = Path(__file__).parents[2]
#: What the programme asks for; the others are named after what they break.
PROGRAMME = {f"P{number:02}" for number in range(1, 21)}

every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


# That there are faults at all, and only where they were asked for


def test_the_whole_programme_is_planted() -> None:
    assert set() == PROGRAMME - set(FAULTS)


@every_fault
def test_a_fault_still_finds_its_place(fault: Fault) -> None:
    for module in {edit.module for edit in fault.edits}:
        planted = planted_source(fault.edits, module)

        assert planted != source_of(module)
        compile(planted, module, "exec")


def test_what_a_fault_makes_of_the_product_names_nothing_that_is_not_there(tmp_path: Path) -> None:
    for fault in FAULTS.values():
        for module in {edit.module for edit in fault.edits}:
            (tmp_path / f"{fault.name}-{module}.py").write_text(planted_source(fault.edits, module))

    ruff = [Path(sys.executable).with_name("ruff"), "check", "--isolated", "--no-cache", "--select", "E9,F821,F823", tmp_path]
    checked = subprocess.run(ruff, capture_output=True, text=True)

    assert 0 == checked.returncode, checked.stdout


@pytest.mark.parametrize("before", ["what nobody has written", "import"])
def test_a_fault_without_a_place_of_its_own_is_an_error(before: str) -> None:
    edit = Edit("outbox.verdict", before, "")

    with pytest.raises(PlantError, match="expected once"):
        planted_source([edit], edit.module)


def test_a_fault_that_comes_too_late_is_an_error() -> None:
    import outbox.verdict
    from tests.planted.planting import plant

    with pytest.raises(PlantError, match=r"outbox\.verdict is imported already"):
        plant(Fault("late", "", (Edit(outbox.verdict.__name__, "class Unknown", "class Known"),), ()))


@pytest.mark.skipif(PLANTED in os.environ, reason="a fault was asked for")
def test_the_product_has_no_fault_unless_one_is_asked_for() -> None:
    assert not has_grown()
    assert [] == [finder for finder in sys.meta_path if isinstance(finder, Planter)]


def test_the_product_knows_nothing_of_planted_faults() -> None:
    knowing = [path for path in PACKAGE.rglob("*.py") if re.search(r"OUTBOX_PLANTED|tests\.planted", path.read_text("utf-8"))]

    assert [] == knowing


@every_fault
def test_who_must_catch_a_fault_is_there(fault: Fault) -> None:
    assert fault.detectors

    for detector in fault.detectors:
        path, _, name = detector.partition("::")
        function = re.escape(name.partition("[")[0].rpartition("::")[2])
        assert re.search(
            rf"^ *(async )?def {function}\(|^ *class {function}\b|^{function} = ", (ROOT / path).read_text(), re.MULTILINE
        )


# That what is called caught is


DETECTOR = "tests/a.py::test_it"


REPORTS = {
    "a failure": (Report(1, True, [Run(DETECTOR, failed=True, error="AssertionError")]), "caught"),
    "one of several": (Report(1, True, [Run(f"{DETECTOR}[1]"), Run(f"{DETECTOR}[2]", failed=True, error="Failed")]), "caught"),
    "no failure": (Report(0, True, [Run(DETECTOR)]), "SURVIVED"),
    "a skip": (Report(0, True, [Run(DETECTOR, skipped=True)]), "was skipped"),
    "no fault": (Report(0, False, [Run(DETECTOR)]), "ran on the product as it is"),
    "no end": (Report(-1), "came to no end"),
    "no test": (Report(4, True), "is not there"),
    "another test": (Report(1, True, [Run(f"{DETECTOR}_too", failed=True, error="AssertionError")]), "is not there"),
    "no collection": (Report(2, True, broken=["SyntaxError: what"]), "cannot be collected: SyntaxError: what"),
    "no setup": (Report(1, True, [Run(DETECTOR, broken="setup: what")]), "could not be run: setup: what"),
    "a blunder": (
        Report(1, True, [Run(DETECTOR, failed=True, error="NameError")]),
        "failed of a blunder in the fault itself: NameError",
    ),
}


@pytest.mark.parametrize(("report", "words"), REPORTS.values(), ids=REPORTS)
def test_only_a_test_that_ran_and_failed_has_caught_a_fault(report: Report, words: str) -> None:
    (verdict,) = verdicts(report, [DETECTOR], planted=True)

    assert words == verdict.words
    assert (words == "caught") == verdict.right


def test_without_a_fault_a_test_must_pass() -> None:
    passed = Report(0, False, [Run(DETECTOR)])
    failed = Report(1, False, [Run(DETECTOR, failed=True, error="AssertionError")])

    assert [True, False] == [verdicts(report, [DETECTOR], planted=False)[0].right for report in (passed, failed)]


# And that each is


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.mark.merge
def test_some_planted_faults_are_caught(
    nursery: Nursery, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """Five by chance, each by the quickest of those that must catch it; all of them by all: `make planted`."""
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")
    for fault in random.Random(seed).sample(list(FAULTS.values()), 5):
        caught(fault, fault.detectors[-1:], nursery, request, record_property)


@pytest.mark.full
@every_fault
def test_a_planted_fault_is_caught(
    fault: Fault, nursery: Nursery, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    caught(fault, fault.detectors, nursery, request, record_property)


def caught(
    fault: Fault,
    detectors: Sequence[str],
    nursery: Nursery,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    if any("postgres" in each for each in detectors):
        request.getfixturevalue("postgres_server_url")  # else each fault would start a server of its own

    found, output = nursery.catch(fault, detectors)

    for verdict in found:
        record_property(PROPERTY, list(line(fault, verdict)))
    assert [] == [verdict for verdict in found if not (verdict.right or verdict.skipped)], output
    if any(verdict.skipped for verdict in found):
        missing(output)
