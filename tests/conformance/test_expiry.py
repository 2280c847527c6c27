"""Messages whose time is over: given up by who looks for them, by a claim that meets them, never by a clock that is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from outbox import Lane, Policy
from outbox.database import Database
from outbox.model import Reason
from tests.factories import NOW, Clock, claims_of, keys_claimed, put, reasons, states

SOON = NOW + timedelta(seconds=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


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


def test_a_claim_gives_up_what_is_over_at_this_moment_and_takes_the_others(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection, "over", expires_at=SOON)
        put(connection, "not yet", expires_at=SOON + timedelta(seconds=1))
        put(connection, "never")
    clock.move(seconds=1)

    assert ["not yet", "never"] == keys_claimed(database, claims)
    assert {"over": "dead", "not yet": "claimed", "never": "claimed"} == states(database)
    assert {"over": Reason.EXPIRED} == reasons(database)


def test_a_claim_does_not_believe_a_time_that_a_clock_gave_that_was_never_set(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection, "m", expires_at=SOON, clock_plausible=False)
    clock.move(seconds=5)

    assert ["m"] == keys_claimed(database, claims)


def test_nor_does_one_by_a_clock_that_was_never_set_believe_its_own(database: Database) -> None:
    clock = Clock(wall=datetime(1970, 1, 2, tzinfo=UTC))
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection, "m", due_at=datetime(1970, 1, 1, tzinfo=UTC), expires_at=datetime(1970, 1, 1, 1, tzinfo=UTC))

    assert ["m"] == keys_claimed(database, claims)


@pytest.mark.parametrize(("on_dead", "next_due"), [("skip", True), ("block", False)])
def test_a_claim_that_gives_up_the_head_of_a_stream_says_where_it_stands(
    database: Database, clock: Clock, on_dead: str, next_due: bool
) -> None:
    claims = claims_of(database, clock, enos=Policy(on_dead=on_dead))  # type: ignore[arg-type]
    with database.begin() as connection:
        put(connection, "first", ordering_key="k", expires_at=SOON)
        put(connection, "second", ordering_key="k")
    clock.move(seconds=5)

    assert [] == keys_claimed(database, claims)
    assert {"first": "dead", "second": "pending"} == states(database)
    assert next_due == claims.anything_due("enos", [Lane.NORMAL])
