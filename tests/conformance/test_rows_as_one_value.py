"""Rows that travel in a statement as one value arrive as they were sent, on both databases."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from outbox.database import Database
from outbox.dialects import listed
from outbox.statements import Ready, document, filled_in, lists, parameter, unlisted
from outbox.tables import message, read_instant

INDIA = timezone(timedelta(hours=5, minutes=30))
COLUMNS = (message.c.id, message.c.key, message.c.scheduled, message.c.due_at)
TAKEN_APART = Ready(lambda connection: sa.select(*listed(connection, "rows", COLUMNS).c))


def sent(database: Database, *rows: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The rows as a statement finds them, in the order of their ids."""
    with database.read() as connection:
        found = TAKEN_APART.run(connection, {"rows": document(COLUMNS, rows)}).all()
    plain = ((row.id, row.key, row.scheduled if row.scheduled is None else bool(row.scheduled), row.due_at) for row in found)
    return sorted((*first, read_instant(due_at)) for *first, due_at in plain)


@pytest.mark.parametrize(
    "words",
    ["", "plain", "'\";--\\", '{"json": [1]}', "zwölf Boxkämpfer 🥊", "\t\n\r", "%s %(rows)s ? :rows $1", "x" * 100_000],
)
def test_words_arrive_as_they_were(database: Database, words: str) -> None:
    assert [(1, words, None, None)] == sent(database, (1, words, None, None))


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63)])
def test_numbers_arrive_as_they_were(database: Database, number: int) -> None:
    assert [(number, "a", None, None)] == sent(database, (number, "a", None, None))


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2026, 3, 1, 12, tzinfo=UTC),
        datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC),
        datetime(2026, 3, 1, 12, 30, tzinfo=INDIA),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ],
)
def test_instants_arrive_as_they_were(database: Database, instant: datetime) -> None:
    assert [(1, "a", None, instant)] == sent(database, (1, "a", None, instant))


def test_an_instant_is_kept_as_any_other_is(database: Database) -> None:
    """What is compared in the database is compared as it is written: a text, on SQLite."""
    instant = datetime(2026, 3, 1, 12, 0, 0, 7, tzinfo=UTC)
    rows = document(COLUMNS, [(1, "a", True, instant)])
    given = parameter(message.c.due_at, "instant")
    same = Ready(lambda connection: sa.select(listed(connection, "rows", COLUMNS).c.due_at == given))

    with database.read() as connection:
        assert same.run(connection, {"rows": rows, "instant": instant}).scalar_one()


@pytest.mark.parametrize("yes", [True, False])
def test_what_is_so_or_not_arrives_as_it_was(database: Database, yes: bool) -> None:
    assert [(1, "a", yes, None)] == sent(database, (1, "a", yes, None))


def test_no_rows_are_no_rows(database: Database) -> None:
    assert [] == sent(database)


def test_many_rows_are_one_statement(database: Database) -> None:
    rows = [(number, f"{number}", None, None) for number in range(40_000)]

    assert rows == sent(database, *rows)


def test_what_cannot_travel_is_refused(database: Database) -> None:
    with pytest.raises(TypeError, match="cannot travel in a statement: bytes"):
        document(COLUMNS, [(1, b"bytes", None, None)])


def test_rows_as_lists_arrive_as_they_were(postgres_database: Database) -> None:
    columns = (message.c.key, message.c.payload, message.c.size)
    rows = [
        ("a", "zwölf Boxkämpfer 🥊", 2**31 - 1),
        ("", "'\";--\\ %s ? :rows $1", 0),
        ("NULL", "", -1),
        ("{a,b}", "x" * 100_000, 7),
    ]
    taken_apart = Ready(lambda _: sa.select(*unlisted("rows", columns).c))

    with postgres_database.read() as connection:
        assert rows == [tuple(row) for row in taken_apart.run(connection, lists(columns, rows))]
        assert rows[:1] == [tuple(row) for row in taken_apart.run(connection, lists(columns, rows[:1]))]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 100, 500, 1000])
def test_rows_as_parameters_arrive_as_they_were(sqlite_url: str, count: int) -> None:
    columns = (message.c.key, message.c.payload, message.c.size)
    rows = [(f"{number}", "zwölf 'Boxkämpfer' 🥊 ? (?, ?, ?)", number) for number in range(count)]
    given = filled_in(columns)
    filled = Ready(lambda _: sa.select(parameter(message.c.due_at), *given.c).where(given.c.column1.is_not(None)))
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    values = {"due_at": now, **dict.fromkeys(("key", "payload", "size"))}

    with closing(Database(sqlite_url)) as database, database.read() as connection:
        for some in (rows, rows[: count // 2 + 1]):
            found = filled.run_with(connection, values, some).all()
            assert [(now, *row) for row in some] == [(read_instant(due_at), *row) for due_at, *row in found]
