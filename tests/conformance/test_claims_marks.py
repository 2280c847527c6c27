"""Marks: on Postgres a claim begins to look where the last one ended, and nothing before that is forgotten."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from outbox import Policy
from outbox.database import Database
from outbox.tables import message
from tests.factories import NOW, Clock, claims_of, keys_claimed, put

ONE = Policy(batch_messages=1)


def wait_in_turn(database: Database, *keys: str, ago: int = 100) -> None:
    """Messages that are due one second after the other, the first of them so many seconds ago."""
    with database.begin() as connection:
        for number, key in enumerate(keys):
            put(connection, key, due_at=NOW - timedelta(seconds=ago - number))


def test_a_claim_looks_on_from_where_the_last_one_ended(postgres_database: Database) -> None:
    claims = claims_of(postgres_database, Clock(), enos=ONE)
    wait_in_turn(postgres_database, "a", "b", "c")
    first = keys_claimed(postgres_database, claims)
    wait_in_turn(postgres_database, "before", ago=1000)

    assert [["a"], ["b"], ["c"]] == [first, *(keys_claimed(postgres_database, claims) for _ in range(2))]


def test_what_lies_before_a_mark_is_found_when_nothing_lies_behind(postgres_database: Database) -> None:
    claims = claims_of(postgres_database, Clock(), enos=ONE)
    wait_in_turn(postgres_database, "a")
    keys_claimed(postgres_database, claims)
    wait_in_turn(postgres_database, "before", ago=1000)

    assert ["before"] == keys_claimed(postgres_database, claims)


def test_what_lies_before_a_mark_is_found_after_two_seconds_whatever_lies_behind(postgres_database: Database) -> None:
    clock = Clock()
    claims = claims_of(postgres_database, clock, enos=ONE)
    wait_in_turn(postgres_database, "a", "b", "c")
    keys_claimed(postgres_database, claims)
    wait_in_turn(postgres_database, "before", ago=1000)

    clock.move(2)

    assert ["before"] == keys_claimed(postgres_database, claims)


def test_where_a_look_from_the_beginning_takes_long_it_is_taken_less_often(postgres_database: Database) -> None:
    clock = Clock()
    claims = claims_of(postgres_database, clock, enos=ONE)
    wait_in_turn(postgres_database, *"abcd")

    @sa.event.listens_for(postgres_database.engine, "before_cursor_execute")
    def take_long(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT outbox_destination.failures"):
            clock.move(0.5)

    taken = [keys_claimed(postgres_database, claims)]
    wait_in_turn(postgres_database, "before", ago=1000)
    for seconds in (15, 20):
        clock.move(seconds)
        taken.append(keys_claimed(postgres_database, claims))

    assert [["a"], ["b"], ["before"]] == taken


def test_what_came_back_is_looked_for_at_once(postgres_database: Database) -> None:
    claims = claims_of(postgres_database, Clock(), enos=ONE)
    wait_in_turn(postgres_database, "a", "b")
    keys_claimed(postgres_database, claims)
    wait_in_turn(postgres_database, "before", ago=1000)

    claims.came_back("enos")

    assert ["before"] == keys_claimed(postgres_database, claims)


def test_a_message_that_may_not_travel_with_the_first_is_not_left_behind(postgres_database: Database) -> None:
    """The mark stays at the first that was found and not taken."""
    claims = claims_of(postgres_database, Clock(), enos=Policy(batch_messages=3))
    with postgres_database.begin() as connection:
        for number, key in enumerate(["a", "halved", "b", "c"]):
            put(connection, key, due_at=NOW - timedelta(seconds=100 - number))
        connection.execute(sa.update(message).where(message.c.key == "halved").values(batch_limit=1))

    taken = [keys_claimed(postgres_database, claims) for _ in range(3)]

    assert [["a", "b"], ["halved"], ["c"]] == taken


def test_on_sqlite_every_claim_looks_from_the_beginning(migrated_sqlite_url: str) -> None:
    with closing(Database(migrated_sqlite_url)) as database:
        claims = claims_of(database, Clock(), enos=ONE)
        wait_in_turn(database, "a", "b")
        keys_claimed(database, claims)
        wait_in_turn(database, "before", ago=1000)

        assert ["before"] == keys_claimed(database, claims)
