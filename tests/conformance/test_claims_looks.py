"""Whether a claim could find something: a look minds the breaker, the rate, who is under way, and clocks that were wrong."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from outbox import Lane, Policy
from outbox.database import Database
from outbox.patience import Breaker
from outbox.store import breaker, claiming
from outbox.tables import message
from tests.factories import NOW, Clock, claims_of, keys_claimed, put


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_look_minds_the_breaker_of_its_own_destination(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())
    with database.begin() as connection:
        breaker.move(connection, "enos", Breaker(), Breaker(5, NOW + timedelta(seconds=30)), NOW)
        put(connection, destination="enos")
        put(connection, destination="elsewhere")

    assert [False, True] == [claims.anything_due(name, [Lane.NORMAL]) for name in ("enos", "elsewhere")]


def test_where_there_is_no_rate_nobody_waits_for_it(database: Database, clock: Clock) -> None:
    assert claims_of(database, clock, enos=Policy()).wait_for_rate("enos") is None


def test_what_is_further_away_than_any_back_off_was_put_off_by_a_wrong_clock(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())
    with database.begin() as connection:
        put(connection, "m", due_at=NOW + timedelta(days=4000))

    assert [True, False] == [claims.anything_due(name, [Lane.NORMAL]) for name in ("enos", "elsewhere")]
    assert ["m"] == keys_claimed(database, claims)


def test_the_furthest_message_is_the_one_that_is_due_last_and_not_the_one_that_came_last(database: Database) -> None:
    with database.begin() as connection:
        for days in (2, 3, 1):
            put(connection, due_at=NOW + timedelta(days=days))

        assert NOW + timedelta(days=3) == claiming.furthest(connection, "enos")


def test_how_far_away_that_is_each_destination_says_for_itself(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(backoff_cap=30 * 86_400), elsewhere=Policy())
    with database.begin() as connection:
        for name in ("enos", "elsewhere"):
            put(connection, destination=name, due_at=NOW + timedelta(days=20))

    assert [False, True] == [claims.anything_due(name, [Lane.NORMAL]) for name in ("enos", "elsewhere")]


def test_what_is_not_so_far_away_waits(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection, due_at=NOW + timedelta(minutes=1))

    assert not claims.anything_due("enos", [Lane.NORMAL])


def test_how_far_away_messages_are_is_looked_at_now_and_then_and_when_the_clock_steps_back(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    furthest = claiming.furthest
    monkeypatch.setattr(claiming, "furthest", lambda connection, name: looks.append(name) or furthest(connection, name))
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())

    def looked(name: str = "enos") -> int:
        claims.anything_due(name, [Lane.NORMAL])
        return len(looks)

    counted = [looked(), looked(), looked("elsewhere")]
    clock.move(seconds=4.9)
    counted.append(looked())
    clock.move(seconds=0.1)
    counted.append(looked())
    clock.wall -= timedelta(seconds=1)
    counted.append(looked())

    assert [1, 1, 2, 2, 3, 4] == counted


def test_whoever_is_let_through_again_has_no_rate_to_wait_for(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(rate=0.5, batch_messages=1))

    def claim() -> bool:
        with database.begin() as connection:
            return claims.claim(connection, "enos", [Lane.NORMAL]) is not None

    with database.begin() as connection:
        for _ in range(9):
            put(connection)
    while claim():
        pass
    waited = claims.wait_for_rate("enos")
    clock.move(seconds=2)

    assert 2.0 == waited
    assert claim()
    assert claims.wait_for_rate("enos") is None


def test_no_more_uploads_are_under_way_than_may_be(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(in_flight=1, batch_messages=1))
    with database.begin() as connection:
        put(connection, "a")
        put(connection, "b")

    assert claims.anything_due("enos", [Lane.NORMAL])
    assert ["a"] == keys_claimed(database, claims)
    assert not claims.anything_due("enos", [Lane.NORMAL])
    assert [] == keys_claimed(database, claims)


def test_after_an_outage_one_more_upload_begins_for_each_that_was_answered(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(batch_messages=1))
    with database.begin() as connection:
        breaker.move(connection, "enos", Breaker(), Breaker(ramp=1), NOW)
        put(connection, "a")
        put(connection, "b")

    assert ["a"] == keys_claimed(database, claims)
    assert not claims.anything_due("enos", [Lane.NORMAL])
    assert [] == keys_claimed(database, claims)


def test_of_messages_that_a_worker_may_have_died_of_one_is_under_way_at_a_time_and_the_others_wait(
    database: Database, clock: Clock
) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())
    with database.begin() as connection:
        for key in ("suspect", "another", "good"):
            put(connection, key)
        suspects = sa.update(message).where(message.c.key != "good").values(suspect=True, batch_limit=1)
        connection.execute(suspects)

    assert [["suspect"], ["good"], []] == [keys_claimed(database, claims) for _ in range(3)]
