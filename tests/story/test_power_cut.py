"""The power is cut at any moment: what was committed is there, its files are whole, and what was sent is known to have been."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from outbox.testing import Receiver
from tests.conftest import missing
from tests.factories import in_full
from tests.power import Report, Unavailable, crash_states, cuts
from tests.power.recording import What
from tests.power.states import BRIEF, SCENES, Examiner, Recordings, recordings


@pytest.fixture(scope="module")
def seed() -> int:
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")
    return seed


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Callable[[], Recordings]:
    """Every scene in brief, recorded once for the tests of this file, by the first that asks."""

    @functools.cache
    def recorded() -> Recordings:
        try:
            return recordings(tmp_path_factory.mktemp("recording"), seed, BRIEF)
        except Unavailable as error:
            missing(str(error))

    return recorded


def adds_up(report: Report) -> None:
    print(report)
    assert [] == report.faults, "\n".join([f"OUTBOX_TEST_SEED={report.seed}", *report.faults[:20]])


def test_nothing_is_lost_in_whatever_a_power_cut_may_leave(
    recording: Callable[[], Recordings], receiver: Receiver, tmp_path: Path, seed: int
) -> None:
    """At some points, by chance; at more of them: `make test-merge`, at all: `make test-all`."""
    found = recording()
    examiner = Examiner(tmp_path, seed, receiver)

    examiner.examine(found, part=in_full(350, 200) / 3 / found.operations)

    adds_up(examiner.report)
    assert any(each.other.startswith("/spool/.swept/") for each in found.scenes["slow producer"]), "nothing was set aside"
    assert {"recordings": len(BRIEF)} | examiner.report.counts == examiner.report.counts
    assert examiner.report.counts["states"] >= 120
    assert examiner.report.counts["taken over"] >= 1


def test_a_caller_whose_setting_would_lose_a_commit_is_refused_every_time(recording: Callable[[], Recordings]) -> None:
    """Python's own default, a journal that is deleted; replayed, it loses what it committed last."""
    told = [each.data for each in recording().scenes["delete and full"] if each.what is What.WROTE]

    assert sum(b'"fact": "refused"' in each for each in told) == BRIEF["delete and full"]["messages"]
    assert not any(b'"fact": "committed"' in each for each in told)


@pytest.mark.merge
@pytest.mark.parametrize(
    "scene", [pytest.param(each, marks=[] if each in ("producer", "worker") else pytest.mark.full) for each in SCENES]
)
def test_nothing_is_lost_at_any_point_of_a_recording(receiver: Receiver, tmp_path: Path, seed: int, scene: str) -> None:
    """In full after every operation: the least that may be left, the most, and something in between; in brief after some."""
    try:
        found = recordings(tmp_path / "recording", seed, {scene: in_full(SCENES, BRIEF)[scene]})
    except Unavailable as error:
        missing(str(error))
    examiner = Examiner(tmp_path, seed, receiver)

    examiner.examine(found, part=in_full(100, 25) / 100)
    examiner.examine(found, part=0.1, some=2)

    adds_up(examiner.report)
    assert examiner.report.counts["states"] >= 20


@pytest.mark.merge
def test_so_many_states_as_are_asked_for_are_replayed(tmp_path: Path, seed: int) -> None:
    """As a torture asks for them."""
    try:
        report = crash_states(tmp_path, 60, seed)
    except Unavailable as error:
        missing(str(error))

    adds_up(report)
    assert report.counts["states"] == 60
    assert report.counts["taken over"] >= 1


@pytest.mark.merge
def test_nothing_is_lost_when_the_power_of_a_real_disk_is_cut(tmp_path: Path, seed: int) -> None:
    """Of ext4, with two producers and a worker at work. As root, which no CI need be; in full `make torture`."""
    try:
        report = cuts(tmp_path, seed, count=5)
    except Unavailable as error:
        pytest.skip(str(error))

    adds_up(report)
    assert report.counts["cuts"] == 5
    assert report.counts["acknowledged"] >= 5
    assert report.counts["delivered"] >= 5
