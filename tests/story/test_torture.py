"""A little of `make torture`: producers, workers and operators are killed and frozen at random, and everything adds up."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.factories import in_full
from tests.torture import crowd, kills, pauses
from tests.torture.course import Course, News
from tests.torture.lanes import LANES
from tests.torture.table import ALWAYS, all_kept, drawn, rows
from tests.torture.victim import ROOT


def tortured(lane: str, what: str, target: int, folder: Path, **options: Any) -> list[News]:
    """What came of a lane that went on until there was so much of it."""
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(2**32)))
    print(f"OUTBOX_TEST_SEED={seed}")
    news: list[News] = []
    module = {"kills": kills, "pauses": pauses, "crowd": crowd}[lane]
    module.run(Course(lane, folder, seed, what, target, seconds=300, tell=news.append), **options)
    return news


def adds_up(news: list[News]) -> None:
    """Nothing was found, and whatever can be looked at was."""
    assert [] == [(each.seed, number, said) for each in news for number, said in each.found.items()]
    assert all(set(ALWAYS) <= set(each.looked or ()) for each in news)


def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    """On Postgres, and more of them, where a change is about to land."""
    acknowledged = 0
    for once in range(3):  # on a busy machine each producer may be killed before its first commit: that shows nothing
        (folder := tmp_path / str(once)).mkdir()
        news = tortured("kills", "kills", 10, folder, kind="sqlite", scene=kills.BRIEF)
        adds_up(news)
        assert 10 <= sum(each.counts["kills"] for each in news)
        if acknowledged := sum(each.ledger["acknowledged"] for each in news):
            break

    assert 0 < acknowledged


@pytest.mark.merge
@pytest.mark.parametrize(
    "kind", [pytest.param("sqlite", marks=pytest.mark.full), pytest.param("postgres", marks=pytest.mark.postgres)]
)
def test_many_kills_lose_nothing(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server = None if kind == "sqlite" else request.getfixturevalue("postgres_server_url")

    many = in_full(100, 12)

    news = tortured("kills", "kills", many, tmp_path, kind=kind, server=server)

    adds_up(news)
    assert many <= sum(each.counts["kills"] for each in news)


@pytest.mark.merge
@pytest.mark.parametrize(
    "kind", [pytest.param("sqlite", marks=pytest.mark.full), pytest.param("postgres", marks=pytest.mark.postgres)]
)
def test_pauses_beyond_the_gone_time_lose_nothing(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server = None if kind == "sqlite" else request.getfixturevalue("postgres_server_url")

    many = in_full(30, 3)

    news = tortured("pauses", "pauses", many, tmp_path, kind=kind, server=server)

    adds_up(news)
    assert many <= sum(each.counts["pauses"] for each in news)
    # Whether anybody is declared gone in so few is up to chance; the table of a long run says how many were.
    print(sum(each.counts["declared gone in a pause"] for each in news), "were declared gone")


@pytest.mark.full
def test_what_is_broken_is_found_and_the_table_says_so(tmp_path: Path) -> None:
    """A claim that does not ask which message of a stream goes first sends them out of order, or twice at a time."""
    asked = ["--minutes", "0.4", "--only", "kills", "--database", "sqlite", "--folder", tmp_path / "kept"]

    done = subprocess.run(
        [sys.executable, "-m", "tests.torture", *asked],
        cwd=ROOT,
        env=os.environ | {"OUTBOX_PLANTED": "P09"},
        capture_output=True,
        text=True,
    )

    assert 1 == done.returncode, done.stdout + done.stderr
    assert re.search(r"^\| I(5|9|11): .* NO +\|$", done.stdout, re.MULTILINE), done.stdout
    seeds = re.findall(r"^kills:sqlite: seed (\d+), kept in (.+)$", done.stdout, re.MULTILINE)
    assert seeds
    assert all((Path(kept) / "found.json").exists() for _, kept in seeds)


def test_a_torture_is_the_same_list_of_lanes_that_its_table_has() -> None:
    found = rows([], list(LANES.values()), 30)

    assert not all_kept(found)
    assert [each.told for each in LANES.values()] == [row.what for row in found[: len(LANES)]]
    assert all(line.count("|") == 5 for line in drawn(found).splitlines())
