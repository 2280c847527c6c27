"""The claim builder: which message probes a destination that may be down, and what goes into a batch."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from outbox import Lane, Policy
from outbox.claims import Claims, WorkerGone
from outbox.database import Database
from outbox.limits import Learned
from outbox.model import Batch
from outbox.patience import Breaker
from outbox.store import breaker
from tests.factories import NOW, Clock, claims_of, enos, join, keys_claimed, put

LANES = [Lane.LARGE, Lane.NORMAL]
SHUT = Breaker(5, NOW)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claims(database: Database, clock: Clock) -> Claims:
    """Of the worker w1, at two destinations; enos has an open breaker and may be probed."""
    with database.begin() as connection:
        join(connection, "w1")
        breaker.declare(connection, ["enos", "elsewhere"])
        breaker.move(connection, "enos", Breaker(), SHUT, NOW)
    return Claims(database, {name: enos(name=name) for name in ("enos", "elsewhere")}, clock.ambient, lambda: "w1")


def claimed(claims: Claims, connection: sa.Connection) -> Batch | None:
    return claims.claim(connection, "enos", LANES)


def test_a_large_message_is_the_probe_where_nothing_smaller_is_due(database: Database, claims: Claims) -> None:
    with database.begin() as connection:
        large = put(connection, lane=Lane.LARGE)

        batch = claimed(claims, connection)

    assert batch is not None
    assert ([large], Lane.LARGE) == ([each.id for each in batch.messages], batch.lane)
    assert batch.probe_until is not None


@pytest.mark.parametrize("lane", [Lane.EXPRESS, Lane.NORMAL, Lane.BULK])
def test_a_smaller_message_that_is_due_is_the_probe_in_its_stead(database: Database, claims: Claims, lane: Lane) -> None:
    with database.begin() as connection:
        put(connection, lane=Lane.LARGE)
        small = put(connection, lane=lane)

        assert claims.claim(connection, "enos", [Lane.LARGE]) is None
        batch = claims.claim(connection, "enos", [Lane.LARGE, lane])

    assert batch is not None
    assert [small] == [each.id for each in batch.messages]


def test_while_a_large_probe_is_under_way_no_other_large_one_is(database: Database, claims: Claims, clock: Clock) -> None:
    with database.begin() as connection:
        for _ in range(2):
            put(connection, lane=Lane.LARGE)
        first = claimed(claims, connection)
        clock.move(hours=1)

        second = claimed(claims, connection)
        small = put(connection)
        third = claimed(claims, connection)

    assert first is not None
    assert second is None
    assert third is not None
    assert [small] == [each.id for each in third.messages]


def test_a_large_upload_to_another_destination_keeps_no_probe_from_this_one(database: Database, claims: Claims) -> None:
    with database.begin() as connection:
        put(connection, lane=Lane.LARGE, destination="elsewhere")
        assert claims.claim(connection, "elsewhere", [Lane.LARGE]) is not None
        put(connection, lane=Lane.LARGE)

        assert claimed(claims, connection) is not None


def test_a_worker_that_never_joined_claims_nothing(database: Database, claims: Claims, clock: Clock) -> None:
    stranger = Claims(database, {"enos": enos()}, clock.ambient, lambda: "w2")
    with database.begin() as connection:
        put(connection)

        with pytest.raises(WorkerGone, match=r"^w2$"):
            claimed(stranger, connection)


def test_an_upload_that_began_before_the_breaker_opened_is_no_probe(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy(batch_messages=1))
    with database.begin() as connection:
        put(connection, "before")
        put(connection, "probe")
        put(connection, "waits")
    before = keys_claimed(database, claims)
    with database.begin() as connection:
        breaker.move(connection, "enos", Breaker(), SHUT, NOW)

    assert [["before"], ["probe"], []] == [before, keys_claimed(database, claims), keys_claimed(database, claims)]


def test_a_batch_keeps_to_the_size_that_was_learned_and_says_when_it_began(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        breaker.save_learned(connection, "enos", Learned(250, NOW))
        for _ in range(3):
            put(connection, size=100)

        batch = claims.claim(connection, "enos", [Lane.NORMAL])

    assert batch is not None
    assert (2, NOW) == (len(batch.messages), batch.started_at)


def test_of_an_ordering_key_without_an_order_all_go_together(database: Database, clock: Clock) -> None:
    claims = claims_of(database, clock, enos=Policy())
    with database.begin() as connection:
        for key in ("a", "b"):
            put(connection, key, ordering_key="k", ordered=False)

    assert ["a", "b"] == keys_claimed(database, claims)
