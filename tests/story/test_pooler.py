"""Behind a pooler that gives each transaction another session, everything works, and nothing is left in a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import Lane, Policy, Selection, State, Worker, migrate
from outbox.database import Database
from outbox.policy import GONE_AFTER
from outbox.testing import Receiver, Status
from tests import ledger
from tests.factories import count, outcomes, real_clock, states
from tests.ledger import history
from tests.pooler import Pooler
from tests.postgres import create_database, drop_database
from tests.story.conftest import Place, eventually
from tests.story.test_contention import together

pytestmark = [pytest.mark.merge, pytest.mark.postgres]


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[Pooler]:
    with Pooler(postgres_url) as pooler:
        yield pooler


@pytest.fixture
def pooled(pooler: Pooler, tmp_path: Path, receiver: Receiver) -> Iterator[Place]:
    """A place whose database is behind a pooler; callers prepare nothing, as poolers want it."""
    place = Place(pooler.url, tmp_path, receiver)
    place.engine.dispose()
    place.engine = sa.create_engine(pooler.url, connect_args={"prepare_threshold": None})
    yield place
    place.close()


def test_everything_works_behind_a_pooler_and_nothing_is_left_in_a_session(pooler: Pooler, pooled: Place) -> None:
    policy = Policy(backoff_first=0.01, backoff_cap=0.05, probe_first=0.03, probe_cap=0.06)
    place, outbox = pooled, pooled.outbox(policy)
    place.receiver.sometimes(Status(503), 0.1, 1)

    def produce(name: str) -> None:
        for number in range(15):
            key, files = f"{name}-{number}", {"photo": b"bytes"} if number % 5 == 0 else None
            ordering = {"ordering_key": "pump", "ordered": number % 2 == 0} if number % 3 == 0 else {}
            place.enqueue(outbox, key, files, lane=Lane.EXPRESS if number % 7 == 0 else None, **ordering)

    together([lambda name=name: produce(name) for name in ("a", "b", "c")])
    outbox.pause("enos", "look first", "anna")
    assert 1 == outbox.cancel(Selection(keys=("a-1",)), "anna")
    outbox.resume("enos", "anna")
    with Worker(outbox, poll=0.05), Worker(place.outbox(policy), poll=0.05):
        eventually(lambda: set(states(place.database).values()) == {State.DELIVERED, State.CANCELLED}, 60)
        assert 2 == outbox.replay(Selection(keys=("a-1", "b-0")), "anna")
        eventually(lambda: set(states(place.database).values()) == {State.DELIVERED}, 60)
        assert 2 == len(outbox.stop_workers("anna"))
    place.check()

    place.purged |= place.acknowledged.keys()
    assert 45 == outbox.purge(Selection(states=(State.DELIVERED,)), "anna")
    assert [] == place.spooled()
    assert pooler.transactions > 100
    assert {} == pooler.left_behind()


def test_what_a_dead_worker_held_is_taken_back_behind_a_pooler(pooler: Pooler, pooled: Place) -> None:
    place, clock = pooled, real_clock()
    dead, successor = (place.hand(place.outbox(clock=clock)) for _ in range(2))
    place.enqueue(dead.outbox, "a", {"photo": b"bytes"}, ordering_key="pump")
    with dead.outbox.database.begin() as connection:
        dead.dispatcher._claims.claim(connection, "enos", [Lane.NORMAL])

    gone: list[str] = []
    for _ in range(100):
        clock.move(GONE_AFTER / 50)
        successor.presence.beat()
        gone += successor.presence.look()

    assert [dead.presence.id] == gone
    assert 1 == successor.dispatcher.rescue()
    assert 1 == successor.turn_while_it_moves()
    assert [("unknown", None), ("delivered", None)] == outcomes(place.database, "a")
    place.check()
    assert {} == pooler.left_behind()


@pytest.fixture
def fresh_postgres(postgres_server_url: str) -> Iterator[str]:
    """A Postgres database without a table."""
    url = create_database(postgres_server_url)
    yield url
    drop_database(url)


def test_upgrades_at_once_wait_for_each_other_behind_a_pooler(fresh_postgres: str) -> None:
    with Pooler(fresh_postgres) as pooler:
        databases = [Database(pooler.url) for _ in range(3)]
        together([lambda each=each: migrate.upgrade(each) for each in databases])
        migrate.require_current(databases[0])
        for each in databases:
            each.close()
        assert {} == pooler.left_behind()


def test_a_transaction_that_stands_still_is_ended_behind_a_pooler_too(pooled: Place) -> None:
    with pooled.database.begin() as connection:
        ours = connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one()
    with pooled.engine.begin() as connection:
        theirs = connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one()

    assert ("10s", "0") == (ours, theirs)


def test_without_a_pooler_a_session_is_set_up_once_and_statements_are_prepared(
    postgres_place: Place, statements: Callable[[sa.Engine], list[str]]
) -> None:
    heard = statements(postgres_place.database.engine)
    for _ in range(8):
        count(postgres_place.database, sa.table("outbox_message"))
    with postgres_place.database.begin() as connection:
        prepared = connection.execute(sa.text("SELECT count(*) FROM pg_prepared_statements")).scalar_one()
        patience = connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one()

    assert [] == [each for each in heard if "set_config" in each]
    assert (True, "10s") == (prepared > 0, patience)


# A COMMIT that is cut off


def cut_at_commit(engine: sa.Engine, pooler: Pooler, when: str) -> None:
    """The next COMMIT of an engine does not come to its end."""
    sa.event.listen(engine, "commit", lambda _: setattr(pooler, "cut", when), once=True)


@pytest.mark.parametrize(("when", "there"), [("before", False), ("after", True)])
def test_a_caller_who_is_not_told_what_became_of_a_commit_asks_again_and_one_message_comes_of_it(
    pooler: Pooler, pooled: Place, when: str, there: bool
) -> None:
    outbox, files = pooled.outbox(), {"photo": b"bytes"}
    cut_at_commit(pooled.engine, pooler, when)

    with pytest.raises(sa.exc.OperationalError) as nobody_knows:
        pooled.enqueue(outbox, "a", files, ordering_key="pump")
    found = "a" in states(pooled.database)
    pooled.enqueue(outbox, "a", files, ordering_key="pump")
    pooled.hand(outbox).turn_while_it_moves()

    assert history.may_be_committed(nobody_knows.value)
    assert there is found
    assert ["a"] == [struct["assetId"] for request in pooled.receiver.requests for struct in request.structs]
    outbox.sweep(timedelta(0))
    balance = ledger.examine(pooled.database, pooled.receiver.requests, pooled.acknowledged, spool=pooled.spool, swept=True)
    assert balance.adds_up, balance.faults


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_is_spooled_ahead_is_not_a_row_without_bytes_whatever_became_of_the_commit(
    pooler: Pooler, pooled: Place, when: str
) -> None:
    outbox = pooled.outbox()
    engine = outbox.database.engine

    @sa.event.listens_for(engine, "after_cursor_execute")
    def arm(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO outbox_file"):
            pooler.cut = when

    with pytest.raises(sa.exc.OperationalError):
        outbox.spool(b"bytes")
    sa.event.remove(engine, "after_cursor_execute", arm)

    outbox.sweep(timedelta(0))
    balance = ledger.examine(pooled.database, [], {}, spool=pooled.spool, swept=True)
    assert balance.adds_up, balance.faults
