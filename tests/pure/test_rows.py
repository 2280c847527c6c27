"""A row as it lies there: what in it cannot have been written by us is named by its column, and never by its content."""

from __future__ import annotations

import pytest

from outbox.checkup import rows
from outbox.tables import message


def told(column: str, value: object) -> list[str]:
    """What is said of one column of a message."""
    said = rows.faults(message, dict.fromkeys(message.c.keys()) | {column: value})
    return [each for each in said if each.startswith(f"{column} ")]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("key", None, "key is missing"),
        ("key", "a\x07b", "key holds control characters"),
        ("key", "a" * 256, "key is longer than 255 characters"),
        ("key", b"a", "key is no text"),
        ("key", "a\udcff", "key is no UTF-8"),
        ("state", "pendinw", "state is none of its words"),
    ],
)
def test_what_no_constraint_would_have_let_pass_is_told(column: str, value: object, words: str) -> None:
    assert [words] == told(column, value)


@pytest.mark.parametrize(
    ("column", "value"), [("key", "a" * 255), ("key", "ключ"), ("state", "pending"), ("reason_text", None)]
)
def test_what_may_be_there_is_not(column: str, value: object) -> None:
    assert [] == told(column, value)
