"""What a look ahead says: what can be claimed now, and else when to look again; about every destination in one statement."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Lane, Policy
from outbox.claims import Claims, Horizon, Prospect
from outbox.database import Database
from outbox.limits import Bucket
from outbox.model import Pause
from outbox.patience import Breaker, Stop, paused
from outbox.store import breaker, pausing
from outbox.tables import delivery, destination
from tests.factories import NOW, Clock, claim, claims_of, join, put

NOTHING = Prospect()
DUE = Prospect(due=True)
HELD = Prospect(held=True)
MINUTE = timedelta(minutes=1)
ORDINARY, LARGE = (Lane.EXPRESS, Lane.NORMAL, Lane.BULK), (Lane.LARGE,)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ahead(claims: Claims, name: str = "enos") -> Horizon:
    return claims.look_ahead([name])[name]


def test_of_nothing_nothing_comes(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())

    assert {"enos": Horizon(NOTHING, NOTHING), "elsewhere": Horizon(NOTHING, NOTHING)} == claims.look_ahead(
        ["enos", "elsewhere"]
    )


KINDS: dict[str, dict[str, Any]] = {
    "loose": {},
    "in a stream": {"ordering_key": "pump"},
    "in a share": {"ordering_key": "fan", "ordered": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lane", Lane)
def test_what_is_due_is_told_with_its_destination_and_the_senders_that_serve_its_lane(
    database: Database, clock: Clock, kind: str, lane: Lane
) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())
    with database.begin() as connection:
        put(connection, lane=lane, due_at=NOW + 2 * MINUTE, **KINDS[kind])
        put(connection, lane=lane, due_at=NOW + MINUTE, scheduled=True, **KINDS[kind])
    early = claims.look_ahead(["elsewhere", "enos"])
    clock.move(60)

    first = Prospect(wait=120.0 if kind == "in a stream" else 60.0)
    found, other = ("large", "ordinary") if lane is Lane.LARGE else ("ordinary", "large")
    assert (first, NOTHING) == (getattr(early["enos"], found), getattr(early["enos"], other))
    assert Horizon(NOTHING, NOTHING) == early["elsewhere"]
    later = getattr(ahead(claims), found)
    assert (Prospect(wait=60.0) if kind == "in a stream" else DUE) == later
    clock.move(60)
    assert DUE == getattr(ahead(claims), found)


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_that_something_is_due_whenever_a_claim_could_find_something(
    database: Database, clock: Clock, kind: str
) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        join(connection, "w2")
        for lane in Lane:
            put(connection, f"{lane}", lane=lane, **KINDS[kind])
    for _ in range(len(Lane) + 1):
        looked = [ahead(claims).ordinary.due, ahead(claims).large.due]
        assert [claims.anything_due("enos", lanes) for lanes in (ORDINARY, LARGE)] == looked
        with database.begin() as connection:
            next((claimed for lane in Lane if (claimed := claim(connection, "w2", lane))), None)


def test_a_key_that_is_paused_or_blocked_is_not_due(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection, ordering_key="pump")
        pausing.write(connection, "enos", Pause("pump", NOW, "anna", "look first"))

    assert not ahead(claims).ordinary.due


SHUT: dict[str, tuple[Breaker, Prospect]] = {
    "open": (Breaker(5, NOW + MINUTE), Prospect(wait=60.0)),
    "credentials": (Breaker(1, NOW + 2 * MINUTE, Stop.CREDENTIALS), Prospect(wait=120.0)),
    "paused": (paused(Breaker()), NOTHING),
    "a probe is due": (Breaker(5, NOW), DUE),
    "open for longer than anybody would say": (Breaker(5, NOW + timedelta(days=9)), DUE),
}


@pytest.mark.parametrize("how", SHUT)
def test_a_destination_that_is_shut_is_waited_for(database: Database, clock: Clock, how: str) -> None:
    state, expected = SHUT[how]
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection)
        put(connection, lane=Lane.LARGE)
        breaker.move(connection, "enos", Breaker(), state, NOW, "shut")

    found = ahead(claims)

    assert expected == found.ordinary
    assert (NOTHING if expected.due else expected) == found.large, "one message probes"


def test_while_a_probe_is_under_way_nobody_can_tell_when_the_next_may(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection)
        breaker.move(connection, "enos", Breaker(), Breaker(5, NOW), NOW)
        values = {"destination": "enos", "lane": "normal", "worker": "w9", "messages": 1, "bytes": 1, "probe": True}
        connection.execute(sa.insert(delivery).values(started_at=NOW, **values))

    assert HELD == ahead(claims).ordinary


def test_a_rate_says_how_long_and_a_limit_does_not(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(rate=2.0), elsewhere=Policy(in_flight=1))
    with database.begin() as connection:
        join(connection, "w2")
        put(connection)
        put(connection, destination="elsewhere")
        breaker.save_bucket(connection, "enos", Bucket(0.0, NOW))
        values = {"destination": "elsewhere", "lane": "normal", "worker": "w2", "messages": 1, "bytes": 1, "probe": False}
        connection.execute(sa.insert(delivery).values(started_at=NOW, **values))

    found = claims.look_ahead(["enos", "elsewhere"])

    assert [Prospect(wait=0.5), HELD] == [found[name].ordinary for name in ("enos", "elsewhere")]


def test_a_destination_without_a_row_is_left_to_a_claim(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        connection.execute(sa.delete(destination))

    assert Horizon(DUE, DUE) == ahead(claims)


def test_what_a_wrong_clock_put_off_is_due(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())
    with database.begin() as connection:
        put(connection, due_at=NOW + timedelta(days=4000))

    assert [True, False] == [claims.look_ahead(["enos", "elsewhere"])[each].ordinary.due for each in ("enos", "elsewhere")]


def test_while_the_clock_is_in_dispute_nothing_is_counted_on(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        put(connection, due_at=NOW + timedelta(days=2), scheduled=True)
    clock.wall += timedelta(days=1)

    assert HELD == ahead(claims).ordinary


def test_the_first_end_of_a_message_is_told(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(), elsewhere=Policy())
    with database.begin() as connection:
        put(connection, expires_at=NOW + 2 * MINUTE)
        put(connection, expires_at=NOW + MINUTE, due_at=NOW + 3 * MINUTE)
        put(connection, expires_at=NOW - MINUTE, clock_plausible=False)

    found = claims.look_ahead(["enos", "elsewhere"])

    assert [60.0, 60.0] == [found[name].expires_in for name in ("enos", "elsewhere")]


def test_all_of_it_is_one_statement(database: Database, clock: Clock) -> None:
    names = [f"d{number}" for number in range(5)]
    claims = claims_of(database, clock, **dict.fromkeys(names, Policy()))
    with database.begin() as connection:
        for name in names:
            put(connection, destination=name)
    asked: list[str] = []
    for engine in {database.engine, database._reader}:
        assert engine is not None

        @sa.event.listens_for(engine, "before_cursor_execute")
        def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if not statement.startswith("BEGIN"):
                asked.append(statement)

    found = claims.look_ahead(names)

    assert all(found[name].ordinary.due for name in names)
    assert 1 == len(asked)
