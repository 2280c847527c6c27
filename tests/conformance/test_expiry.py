"""What a worker looks at besides its claims: whose time is over, how far away messages are, whether anything is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from outbox import Lane, Policy
from outbox.claims import Claims
from outbox.database import Database
from outbox.patience import Breaker
from outbox.store import breaker, claiming
from tests.factories import NOW, Clock, enos, join, put, states

SOON = NOW + timedelta(seconds=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def claims_of(database: Database, clock: Clock, **policies: Policy) -> Claims:
    """Of the worker w1, at these destinations."""
    with database.begin() as connection:
        join(connection, "w1")
        breaker.declare(connection, list(policies))
    destinations = {name: enos(name=name, policy=policy) for name, policy in policies.items()}
    return Claims(database, destinations, clock.ambient, lambda: "w1")


@pytest.mark.parametrize(("on_dead", "left"), [("skip", ["second"]), ("block", [])])
def test_a_stream_whose_head_ran_out_of_time_goes_on_if_its_own_destination_skips(
    database: Database, clock: Clock, on_dead: str, left: list[str]
) -> None:
    other = "block" if on_dead == "skip" else "skip"
    claims = claims_of(database, clock, enos=Policy(on_dead=on_dead), elsewhere=Policy(on_dead=other))  # type: ignore[arg-type]
    with database.begin() as connection:
        put(connection, "first", ordering_key="k", expires_at=SOON)
        put(connection, "second", ordering_key="k")
    clock.move(seconds=5)

    assert 1 == claims.expire()

    with database.begin() as connection:
        batch = claims.claim(connection, "enos", [Lane.NORMAL])
    assert left == [each.key for each in (batch.messages if batch else ())]
    assert "dead" == states(database)["first"]


def test_they_are_given_up_a_handful_at_a_time(database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.claims.HANDFUL", 2)
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        for number in range(3):
            put(connection, f"m{number}", expires_at=SOON)
    clock.move(seconds=5)

    assert [2, 1, 0] == [claims.expire() for _ in range(3)]


def test_a_clock_that_was_never_set_gives_nothing_up(database: Database) -> None:
    clock = Clock(wall=datetime(1970, 1, 2, tzinfo=UTC))
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection, "m", expires_at=datetime(1970, 1, 1, tzinfo=UTC))

    assert 0 == claims.expire()
    assert {"m": "pending"} == states(database)


def test_a_look_minds_the_breaker_of_its_own_destination(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())
    with database.begin() as connection:
        breaker.move(connection, "enos", Breaker(), Breaker(5, NOW + timedelta(seconds=30)), NOW)
        put(connection, destination="enos")
        put(connection, destination="elsewhere")

    assert [False, True] == [claims.anything_due(name, [Lane.NORMAL]) for name in ("enos", "elsewhere")]


def test_where_there_is_no_rate_nobody_waits_for_it(database: Database, clock: Clock) -> None:
    assert claims_of(database, clock, enos=Policy()).wait_for_rate("enos") is None


@pytest.mark.parametrize("on_dead", ["skip", "block"])
def test_a_stream_whose_head_ran_out_of_time_waits_for_no_claim_to_know_where_it_stands(
    database: Database, clock: Clock, on_dead: str
) -> None:
    claims = claims_of(database, clock, enos=Policy(on_dead=on_dead), elsewhere=Policy())  # type: ignore[arg-type]
    with database.begin() as connection:
        put(connection, "first", ordering_key="k", expires_at=SOON)
        put(connection, "second", ordering_key="k", due_at=NOW + timedelta(hours=1), scheduled=True)
    clock.move(seconds=5)

    before = claims.anything_due("enos", [Lane.NORMAL])
    claims.expire()

    assert [True, False] == [before, claims.anything_due("enos", [Lane.NORMAL])]


def test_what_is_further_away_than_any_back_off_was_put_off_by_a_wrong_clock(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())
    with database.begin() as connection:
        put(connection, due_at=NOW + timedelta(days=4000))

    assert [True, False] == [claims.anything_due(name, [Lane.NORMAL]) for name in ("enos", "elsewhere")]


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
