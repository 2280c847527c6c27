"""A row that contradicts itself is refused by the database, whoever writes it."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import State, migrate
from outbox.database import Database
from outbox.model import Lane, Outcome, Reason
from outbox.patience import Stop
from outbox.tables import attempt, delivery, destination, file, head, message
from tests.factories import NOW, add_row, message_values
from tests.postgres import create_database, drop_database


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """One for all the tests of this file: what they write is refused, or is in nobody's way."""
    kinds = {"sqlite": empty_sqlite, "postgres": empty_postgres}
    database = Database(kinds[request.param](request, tmp_path_factory))
    migrate.upgrade(database)
    yield database
    database.close()


def empty_sqlite(_request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('rows') / 'outbox.db'}"


def empty_postgres(request: pytest.FixtureRequest, _tmp_path_factory: pytest.TempPathFactory) -> str:
    url = create_database(request.getfixturevalue("postgres_server_url"))
    request.addfinalizer(lambda: drop_database(url))
    return url


CONTRADICTIONS: dict[str, tuple[State, dict[str, Any]]] = {
    "no such state": (State.PENDING, {"state": "waiting"}),
    "no such lane": (State.PENDING, {"lane": "fast"}),
    "no such reason": (State.DEAD, {"reason": "bored"}),
    "dead without a reason": (State.DEAD, {"reason": None}),
    "a reason and not dead": (State.DELIVERED, {"reason": Reason.REJECTED}),
    "delivered and never finished": (State.DELIVERED, {"finished_at": None}),
    "dead and never finished": (State.DEAD, {"finished_at": None}),
    "cancelled and never finished": (State.CANCELLED, {"finished_at": None}),
    "pending and finished": (State.PENDING, {"finished_at": NOW}),
    "claimed by nobody": (State.CLAIMED, {"claimed_by": None}),
    "claimed for no delivery": (State.CLAIMED, {"delivery_id": None}),
    "pending and somebody's": (State.PENDING, {"claimed_by": "w1"}),
    "delivered and still under way": (State.DELIVERED, {"delivery_id": 1}),
    "a number in no stream": (State.PENDING, {"stream_number": 1}),
    "a stream that is not there": (State.PENDING, {"stream_id": 77, "stream_number": 1}),
    "less than no failures": (State.PENDING, {"failures": -1}),
    "more failures than attempts": (State.PENDING, {"failures": 2, "attempt": 1}),
    "more unknowns than attempts": (State.PENDING, {"unknowns": 1}),
    "a batch of none": (State.PENDING, {"batch_limit": 0}),
    "a negative size": (State.PENDING, {"size": -1}),
    "negative files": (State.PENDING, {"file_bytes": -1}),
    "fewer than no files": (State.PENDING, {"files": -1}),
    "no key": (State.PENDING, {"key": None}),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradictory_message_is_refused(database: Database, name: str) -> None:
    state, wrong = CONTRADICTIONS[name]
    with pytest.raises(sa.exc.IntegrityError), database.begin() as connection:
        connection.execute(sa.insert(message).values(message_values(state) | wrong))


@pytest.mark.parametrize("state", State)
def test_a_coherent_message_is_taken_in_every_state(database: Database, state: State) -> None:
    with database.begin() as connection:
        add_row(connection, state)


@pytest.mark.parametrize("wrong", [{"state": State.DEAD}, {"state": State.CLAIMED}, {"state": State.DELIVERED}])
def test_a_message_cannot_be_edited_into_a_contradiction(database: Database, wrong: dict[str, Any]) -> None:
    with database.begin() as connection:
        message_id = add_row(connection)
    with pytest.raises(sa.exc.IntegrityError), database.begin() as connection:
        connection.execute(sa.update(message).where(message.c.id == message_id).values(wrong))


def a_delivery(**changes: Any) -> dict[str, Any]:
    values = {"destination": "enos", "lane": Lane.NORMAL, "worker": "w1", "messages": 1, "bytes": 1, "probe": False}
    return values | {"started_at": NOW} | changes


OTHERS: dict[str, tuple[sa.Table, dict[str, Any]]] = {
    "a delivery that ended with no outcome": (delivery, a_delivery(finished_at=NOW)),
    "a delivery with an outcome that did not end": (delivery, a_delivery(outcome=Outcome.DELIVERED)),
    "a delivery with no such outcome": (delivery, a_delivery(outcome="fine", finished_at=NOW)),
    "a delivery in no such lane": (delivery, a_delivery(lane="fast")),
    "a stop without a beginning": (destination, {"name": "x", "stop": Stop.PAUSE}),
    "a beginning without a stop": (destination, {"name": "x", "stopped_at": NOW}),
    "no such stop": (destination, {"name": "x", "stop": "holiday", "stopped_at": NOW}),
    "less than no failures": (destination, {"name": "x", "failures": -1}),
    "a file of negative size": (
        file,
        {"name": "0" * 32, "size": -1, "sha256": "", "md5": "", "created_at": NOW},
    ),
    "a stream in no such lane": (
        head,
        {"stream_id": 1, "destination": "enos", "lane": "fast"},
    ),
    "an attempt of no message": (
        attempt,
        {"message_id": 77, "number": 1, "delivery_id": 1, "finished_at": NOW, "outcome": Outcome.DELIVERED},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_contradictions_are_refused_too(database: Database, name: str) -> None:
    table, values = OTHERS[name]
    with pytest.raises(sa.exc.IntegrityError), database.begin() as connection:
        connection.execute(sa.insert(table).values(values))


def test_an_instant_without_a_time_zone_is_refused_rather_than_guessed_at(database: Database) -> None:
    naive = message_values(due_at=NOW.replace(tzinfo=None))

    with pytest.raises(sa.exc.StatementError, match="time zone"), database.begin() as connection:
        connection.execute(sa.insert(message).values(naive))


def test_an_instant_comes_back_as_it_went_in(database: Database) -> None:
    precise = NOW.replace(microsecond=123456)
    with database.begin() as connection:
        message_id = add_row(connection, due_at=precise)

        assert precise == connection.execute(sa.select(message.c.due_at).where(message.c.id == message_id)).scalar_one()


def test_an_id_is_never_given_twice(database: Database) -> None:
    with database.begin() as connection:
        last = add_row(connection)
        connection.execute(sa.delete(message))

        assert add_row(connection) > last
