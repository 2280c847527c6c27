"""The table of a torture is right only when everything was done that was asked for, and nothing was found."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outbox.errors import OutboxError
from tests.power.report import Report, Unavailable
from tests.torture.__main__ import PART, chosen, main
from tests.torture.course import Course, News
from tests.torture.lanes import LANES
from tests.torture.table import ALWAYS, Row, all_kept, drawn, rows

KILLS = LANES["kills:sqlite"]
ALL_LOOKED = tuple(ALWAYS)
GOOD = News(
    "kills:sqlite",
    7,
    {"kills": 1000},
    ledger={"acknowledged": 50, "extra_copies": 3, "unknown_attempts": 2, "replays": 1},
    looked=ALL_LOOKED,
)


def told(*news: News, minutes: float = 30, lanes: Any = (KILLS,), **options: Any) -> dict[str, Row]:
    return {row.what: row for row in rows(news, list(lanes), minutes, **options)}


def test_what_was_done_in_full_and_adds_up_is_right() -> None:
    assert all_kept(told(GOOD).values())


def test_rounds_are_added_up() -> None:
    table = told(replace(GOOD, counts={"kills": 600}), replace(GOOD, counts={"kills": 400}))

    assert ("1,000", True) == (table[KILLS.told].done, table[KILLS.told].kept)
    assert "100" == table["messages acknowledged"].done


def test_one_kill_too_few_is_not_enough() -> None:
    table = told(replace(GOOD, counts={"kills": 999}))

    assert ["999"] == [row.done for row in table.values() if not row.kept]


@pytest.mark.parametrize(("minutes", "asked"), [(60, 1000), (30, 1000), (15, 500), (1, 34)])
def test_less_time_is_asked_for_less_and_more_time_for_the_same(minutes: float, asked: int) -> None:
    assert f"at least {asked:,}" == told(GOOD, minutes=minutes)[KILLS.told].asked


@pytest.mark.parametrize("number", [*ALWAYS, "I15", "I16", "power", "server", "odd"])
def test_anything_that_was_found_makes_it_wrong(number: str) -> None:
    table = told(replace(GOOD, found={number: ("one", "two")}))

    assert ["2"] == [row.done for row in table.values() if not row.kept]


@pytest.mark.parametrize("number", ALWAYS)
def test_an_invariant_that_a_round_did_not_look_at_makes_it_wrong(number: str) -> None:
    table = told(GOOD, replace(GOOD, looked=tuple(each for each in ALL_LOOKED if each != number)))

    assert [f"{number}: "] == [re.match(r"\w+: ", row.what)[0] for row in table.values() if not row.kept]  # type: ignore[index]


def test_more_copies_than_unknown_attempts_and_replays_make_it_wrong() -> None:
    table = told(replace(GOOD, ledger={**GOOD.ledger, "extra_copies": 4}))

    assert ["copies beyond the first"] == [row.what for row in table.values() if not row.kept]


def test_what_cannot_be_done_here_is_said_and_counts_only_where_all_tools_were_promised() -> None:
    lane = LANES["cuts:sqlite"]
    missing = News(lane.key, 7, missing="needs root")

    assert "not possible here: needs root" == told(missing, lanes=[lane])[lane.told].done
    assert all_kept(told(missing, lanes=[lane]).values())
    assert not all_kept(told(missing, lanes=[lane], all_tools=True).values())


def test_a_lane_that_came_to_nothing_is_not_right() -> None:
    assert not all_kept(told().values())


def test_it_is_a_table_in_markdown() -> None:
    lines = drawn(list(told(GOOD).values())).splitlines()

    assert {5} == {line.count("|") for line in lines}
    assert 1 == len({len(line) for line in lines})
    assert re.fullmatch(r"\|-+\|-+:\|-+\|-+\|", lines[1])


def test_it_takes_the_place_of_the_one_before_and_nothing_else() -> None:
    page = f"above\n{PART.begin}\nold\n{PART.end}\nbelow\n"

    once = PART.in_place(page, "new")

    assert f"above\n{PART.begin}\n\nnew\n\n{PART.end}\nbelow\n" == once
    assert once == PART.in_place(once, "new")


def test_a_page_without_a_place_for_it_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("no place")

    assert 2 == main(["--minutes", "30", "--write", str(page)])
    assert "there is no place for it" in capsys.readouterr().err


def test_lanes_are_chosen_by_kind_and_by_database() -> None:
    assert list(LANES) == [lane.key for lane in chosen(None, None)]
    assert ["kills:postgres", "pauses:postgres"] == [lane.key for lane in chosen("pauses, kills", "postgres")]
    assert [] == chosen("kils", None)


def test_news_come_through_a_pipe_as_they_are() -> None:
    news = replace(GOOD, found={"I5": ("m7 arrived twice",)}, kept="somewhere", missing=None)

    assert news == News.from_json(news.as_json())


def course(folder: Path, told: list[News]) -> Course:
    return Course("cuts:sqlite", folder, 7, "cuts", 100, 60, told.append)


def test_what_others_found_counts_against_the_invariant_that_they_name(tmp_path: Path) -> None:
    news: list[News] = []
    report = Report(1, faults=["I5 m7 arrived twice", "disk 2: a row without bytes", "I12 a file too many"])
    report.counts.update({"cuts": 3, "unknown attempts": 2, "milliseconds to resume": 700})

    course(tmp_path, news).borrowed(lambda folder, seed: report, "power")

    (one,) = news
    assert {"I5": (report.faults[0],), "power": (report.faults[1],), "I12": (report.faults[2],)} == one.found
    assert ({"cuts": 3}, {"unknown_attempts": 2}, {"milliseconds to resume": 700}) == (one.counts, one.ledger, one.most)
    assert Path(str(one.kept)).is_dir()


def test_what_adds_up_leaves_nothing_behind(tmp_path: Path) -> None:
    news: list[News] = []

    course(tmp_path, news).borrowed(lambda folder, seed: Report(seed), "power")

    assert [None] == [each.kept for each in news]
    assert [] == list(tmp_path.iterdir())


def test_a_tool_that_is_missing_ends_the_lane_and_an_accident_does_not(tmp_path: Path) -> None:
    news: list[News] = []
    lane = course(tmp_path, news)

    def accident(folder: Path, seed: int) -> Report:
        raise OutboxError("an accident")

    def without(folder: Path, seed: int) -> Report:
        raise Unavailable("needs root")

    lane.borrowed(accident, "power")
    went_on = lane.goes_on
    lane.borrowed(without, "power")

    assert (True, False) == (went_on, lane.goes_on)
    assert "OutboxError: an accident" in news[0].found["odd"][0]
    assert ("needs root", {}) == (news[1].missing, news[1].found)
