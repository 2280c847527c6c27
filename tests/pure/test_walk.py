"""Where rows may be over by now: nothing that is over is forgotten, and what is kept is not looked at again and again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.care import Row, Walk
from outbox.policy import HANDFUL
from tests.pure.making import NOW

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)


@dataclass
class Table:
    """Rows that are purged when they are over, and how many were looked at."""

    walk: Walk
    rows: dict[int, Row] = field(default_factory=dict)
    looks: int = 0
    looked_at: int = 0

    def add(self, born: datetime, ends: datetime | None) -> int:
        number = max(self.rows, default=0) + 1
        self.rows[number] = Row(number, born, ends)
        return number

    def tidy(self, now: datetime, at_most: int = 10_000) -> None:
        """Look until nothing can be over any more."""
        for _ in range(at_most):
            if (first := self.walk.next(now)) is None:
                return
            found = sorted(row for number, row in self.rows.items() if number >= first)[:HANDFUL]
            self.looks += 1
            self.looked_at += len(found)
            for each in self.walk.seen(first, found, now):
                del self.rows[each]
        raise AssertionError("it never comes to an end")


def test_what_is_over_goes_and_what_is_not_stays() -> None:
    table = Table(Walk(WEEK))
    over = table.add(NOW - 8 * DAY, NOW - HOUR)
    waits = table.add(NOW - 8 * DAY, None)
    later = table.add(NOW - 8 * DAY, NOW + HOUR)

    table.tidy(NOW)

    assert {waits, later} == set(table.rows) == {1, 2, 3} - {over}


def test_what_is_kept_is_looked_at_again_when_it_is_over_and_not_before() -> None:
    table = Table(Walk(WEEK))
    for _ in range(10 * HANDFUL):
        table.add(NOW - 8 * DAY, NOW + 90 * DAY)
    one = table.add(NOW - 8 * DAY, NOW + HOUR)
    table.tidy(NOW)
    table.looked_at = 0

    table.tidy(NOW + HOUR - timedelta(seconds=1))
    idle = table.looked_at
    table.tidy(NOW + HOUR)

    assert 0 == idle, "an idle look costs nothing"
    assert one not in table.rows
    assert table.looked_at <= 2 * HANDFUL, "only where it is is looked"


def test_the_first_that_is_too_young_ends_a_look() -> None:
    table = Table(Walk(WEEK))
    for number in range(5 * HANDFUL):
        table.add(NOW + number * timedelta(seconds=1), None)

    table.tidy(NOW + HOUR)

    assert 1 == table.looks
    assert table.walk.next(NOW + DAY - HOUR) is None


def test_a_row_of_a_wrong_clock_hides_none_behind_it() -> None:
    table = Table(Walk(WEEK))
    table.add(NOW + 1000 * DAY, None)
    over = table.add(NOW - 8 * DAY, NOW)

    table.tidy(NOW)

    assert over not in table.rows


def test_what_ends_unexpectedly_is_found_within_a_day() -> None:
    table = Table(Walk(WEEK))
    for _ in range(3 * HANDFUL):
        table.add(NOW - 30 * DAY, NOW + 60 * DAY)
    table.tidy(NOW)
    table.rows[5] = Row(5, NOW - 30 * DAY, NOW + HOUR)

    table.tidy(NOW + DAY)

    assert 5 not in table.rows


def test_churn_leaves_no_trail() -> None:
    table = Table(Walk(WEEK))
    kept = [table.add(NOW - 8 * DAY, NOW + 900 * DAY) for _ in range(3 * HANDFUL)]
    for hour in range(24 * 14):
        now = NOW + hour * HOUR
        for _ in range(20):
            table.add(now, now + WEEK)
        table.tidy(now)

    assert set(kept) <= set(table.rows)
    assert len(table.rows) <= len(kept) + 20 * (24 * 7 + 1)
    assert len(table.walk) <= 2 * len(table.rows) // HANDFUL + 3


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 72), st.one_of(st.none(), st.integers(0, 72))), min_size=1, max_size=80),
    st.lists(st.integers(1, 24), max_size=12),
)
def test_nothing_that_is_over_stays_for_more_than_a_day(rows: list[tuple[int, int | None]], steps: list[int]) -> None:
    table = Table(Walk(HOUR))
    now = NOW + 72 * HOUR
    for born, kept in sorted(rows, key=lambda each: each[0]):
        begun = NOW + born * HOUR
        table.add(begun, None if kept is None else begun + HOUR + kept * HOUR)

    table.tidy(now)
    for step in steps:
        now += step * HOUR
        table.tidy(now)

    overdue = [row for row in table.rows.values() if row.ends is not None and row.ends <= now]
    assert [] == overdue
