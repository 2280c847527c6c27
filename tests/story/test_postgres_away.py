"""A Postgres that is stopped at once or killed in the middle of anything: what was committed stays, and the work goes on."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import NotDurable, State
from outbox.testing import Hold, Receiver
from tests.conftest import missing
from tests.factories import careless_engine, event, in_full, outcomes, states
from tests.postgres import NoBinariesError, Postgres, create_database
from tests.story.conftest import Place
from tests.torture.postgres_kills import database_kills

pytestmark = [pytest.mark.merge, pytest.mark.postgres]

#: Seconds that commits which nobody waits for may stay in the server's memory: enough for a story.
SLOW = {"wal_writer_delay": "10s"}


@pytest.fixture(scope="module")
def one_server() -> Iterator[Postgres]:
    try:
        server = Postgres(durable=True, settings=SLOW)
    except NoBinariesError as error:
        missing(str(error))
    with server:
        yield server


@pytest.fixture
def slow_postgres(one_server: Postgres) -> Postgres:
    """As durable as it comes for those who wait for it, and in no hurry for others; whoever kills it starts it again."""
    one_server.start_again()
    return one_server


@pytest.fixture
def place(slow_postgres: Postgres, tmp_path: Path, receiver: Receiver) -> Iterator[Place]:
    place = Place(create_database(slow_postgres.url), tmp_path, receiver, empty=True)
    yield place
    place.close()


def test_nothing_is_lost_when_the_server_is_killed_at_any_moment_and_the_same_workers_go_on(
    slow_postgres: Postgres, tmp_path: Path
) -> None:
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")

    report = database_kills(tmp_path, seed, count=in_full(200, 8), server=slow_postgres)

    print(report)
    assert [] == report.faults
    assert {"immediate stops", "SIGKILLs"} <= report.counts.keys()


def test_whoever_does_not_wait_for_the_disk_loses_what_was_committed_and_strict_durability_refuses_that(
    slow_postgres: Postgres, place: Place
) -> None:
    waits, does_not = place.engine, careless_engine(place.url)
    lenient, strict = (place.outbox(durability=durability) for durability in ("ignore", "strict"))
    with waits.begin() as connection:
        strict.enqueue(connection, "enos", event("waited for"), key="waited for")
    with does_not.begin() as connection, pytest.raises(NotDurable, match="synchronous_commit switched off"):
        strict.enqueue(connection, "enos", event("refused"), key="refused")
    for number in range(5):
        with does_not.begin() as connection:
            lenient.enqueue(connection, "enos", event(f"m{number}"), key=f"m{number}")
    committed = states(place.database)

    slow_postgres.kill()
    for each in (place.database, lenient, strict):
        each.close()
    does_not.dispose()
    place.engine.dispose()
    slow_postgres.start_again()

    assert {"waited for", "m0", "m1", "m2", "m3", "m4"} == committed.keys()
    assert {"waited for"} == states(place.database).keys()


def test_a_claim_is_on_the_disk_before_anything_is_sent_whatever_the_servers_default(
    slow_postgres: Postgres, place: Place
) -> None:
    """A claim that the server forgot would be made again, and nothing would explain the second copy."""
    with place.engine.begin() as connection:
        connection.execute(sa.text(f'ALTER DATABASE "{sa.make_url(place.url).database}" SET synchronous_commit = off'))
    place.engine.dispose()
    place.database.close()
    hand = place.hand(place.outbox())
    place.enqueue(hand.outbox, "a")
    with place.database.begin() as connection:
        connection.execute(sa.text("SELECT pg_switch_wal()"))  # what is on the disk by now is not in question
    place.receiver.misbehave(Hold())
    with ThreadPoolExecutor(1) as pool:
        turn = pool.submit(hand.turn)
        place.receiver.wait_for(lambda each: each.held == 1)
        slow_postgres.kill()
        place.receiver.release()
        with pytest.raises(sa.exc.OperationalError):
            turn.result(30)
    slow_postgres.start_again()
    place.database.close()
    hand.turn_while_it_moves()

    assert {"a": State.DELIVERED} == states(place.database)
    assert [("delivered", None)] == outcomes(place.database, "a")
    assert 1 == len(place.receiver.requests)
    place.check()
