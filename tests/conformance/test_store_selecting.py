"""A selection means the same rows on both databases, whatever is done with them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Reason, Selection, State
from outbox.database import Database
from outbox.model import FINAL
from outbox.store import selecting
from outbox.tables import message
from tests.factories import NOW, message_values

HOUR = timedelta(hours=1)


def add(database: Database, key: str, **values: Any) -> None:
    with database.begin() as connection:
        connection.execute(sa.insert(message).values(message_values(key=key) | values))


def dead(database: Database, key: str, ago: timedelta = timedelta(), text: str = "no such model", **values: Any) -> None:
    died = {"state": State.DEAD, "reason": Reason.REJECTED, "reason_text": text, "finished_at": NOW - ago}
    add(database, key, **(died | values))


def keys(database: Database, selection: Selection, among: Any = tuple(State)) -> list[str]:
    with database.read() as connection:
        statement = sa.select(message.c.key).where(*selecting.conditions(selection, among)).order_by(message.c.id)
        return list(connection.execute(statement).scalars())


def test_nothing_said_means_all(database: Database) -> None:
    add(database, "a")
    dead(database, "b")

    assert ["a", "b"] == keys(database, Selection())


def test_states_are_those_said_among_those_allowed(database: Database) -> None:
    add(database, "a")
    dead(database, "b")

    assert ["b"] == keys(database, Selection(states=(State.DEAD, State.PENDING)), among=FINAL)


def test_an_id_or_a_key_is_enough(database: Database) -> None:
    add(database, "a")
    add(database, "b")
    add(database, "c")

    assert ["a", "c"] == keys(database, Selection(ids=(1,), keys=("c",)))


def test_since_means_the_end_of_what_has_ended(database: Database) -> None:
    dead(database, "long ago", 3 * HOUR)
    dead(database, "just then", 2 * HOUR)
    dead(database, "lately", HOUR)

    assert ["just then", "lately"] == keys(database, Selection(states=(State.DEAD,), since=NOW - 2 * HOUR))
    assert ["long ago"] == keys(database, Selection(states=(State.DEAD,), until=NOW - 2 * HOUR))


def test_since_means_the_enqueue_of_what_is_unfinished(database: Database) -> None:
    add(database, "old", created_at=NOW - 3 * HOUR)
    add(database, "new", created_at=NOW - HOUR)
    dead(database, "enqueued long ago, dead lately", HOUR, created_at=NOW - 9 * HOUR)

    assert ["new"] == keys(database, Selection(states=(State.PENDING,), since=NOW - 2 * HOUR))
    assert ["new", "enqueued long ago, dead lately"] == keys(database, Selection(since=NOW - 2 * HOUR))


@pytest.mark.parametrize("text", ["MODEL", "no such", "such model"])
def test_words_are_found_in_what_was_said(database: Database, text: str) -> None:
    dead(database, "a")
    dead(database, "b", text="quota exceeded")

    assert ["a"] == keys(database, Selection(text=text))


@pytest.mark.parametrize("text", ["%", "_", "\\"])
def test_signs_that_mean_something_to_sql_mean_themselves(database: Database, text: str) -> None:
    dead(database, "a", text="100% of it")
    dead(database, "b", text="snake_case")
    dead(database, "c", text="back\\slash")
    dead(database, "d", text="plain")

    assert 1 == len(keys(database, Selection(text=text)))


def test_hostile_words_are_only_words(database: Database) -> None:
    dead(database, "a")

    assert [] == keys(database, Selection(keys=("' OR 1=1 --",), destination="x'; DROP TABLE outbox_message; --"))
    assert ["a"] == keys(database, Selection())
