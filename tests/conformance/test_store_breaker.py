"""A destination's breaker: patience that every worker shares, changed by whoever saw it last."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from outbox.database import Database
from outbox.patience import Breaker, Stop
from outbox.store import breaker
from outbox.tables import destination
from tests.factories import NOW

OPEN = Breaker()
SHUT = Breaker(5, NOW + timedelta(seconds=5))
REFUSED = Breaker(1, NOW + timedelta(minutes=15), Stop.CREDENTIALS)


@pytest.fixture(autouse=True)
def declared(database: Database) -> None:
    with database.begin() as connection:
        breaker.declare(connection, ["enos"])


def test_a_destination_is_declared_once(database: Database) -> None:
    with database.begin() as connection:
        breaker.move(connection, "enos", OPEN, SHUT, NOW)

        breaker.declare(connection, ["enos", "elsewhere"])

        assert (SHUT, OPEN) == (breaker.read(connection, "enos"), breaker.read(connection, "elsewhere"))


def test_a_destination_without_a_row_has_nothing_held_against_it(database: Database) -> None:
    with database.begin() as connection:
        assert breaker.read(connection, "nobody") == OPEN


@pytest.mark.parametrize("new", [SHUT, REFUSED, Breaker(stop=Stop.PAUSE)])
def test_a_breaker_is_kept_as_it_was_left(database: Database, new: Breaker) -> None:
    with database.begin() as connection:
        assert breaker.move(connection, "enos", OPEN, new, NOW, "why")

        assert new == breaker.read(connection, "enos")


@pytest.mark.parametrize(("there", "seen"), [(OPEN, SHUT), (SHUT, OPEN), (SHUT, REFUSED), (REFUSED, SHUT)])
def test_of_several_who_move_a_breaker_one_wins(database: Database, there: Breaker, seen: Breaker) -> None:
    with database.begin() as connection:
        breaker.move(connection, "enos", OPEN, there, NOW)

        assert not breaker.move(connection, "enos", seen, OPEN, NOW)
        assert there == breaker.read(connection, "enos")


def test_a_stop_says_since_when_and_why(database: Database) -> None:
    with database.begin() as connection:
        breaker.move(connection, "enos", OPEN, REFUSED, NOW, "the app key does not exist")
        stopped = connection.execute(sa.select(destination)).one()
        breaker.move(connection, "enos", REFUSED, OPEN, NOW)
        going = connection.execute(sa.select(destination)).one()

    assert (NOW, "the app key does not exist", "outbox") == (stopped.stopped_at, stopped.stop_text, stopped.stopped_by)
    assert (None, None, None) == (going.stopped_at, going.stop_text, going.stopped_by)


def test_the_reason_of_a_stop_is_not_lost_while_it_lasts(database: Database) -> None:
    with database.begin() as connection:
        breaker.move(connection, "enos", OPEN, REFUSED, NOW, "first")
        breaker.move(connection, "enos", REFUSED, Breaker(2, NOW, Stop.CREDENTIALS), NOW, "second")

        row = connection.execute(sa.select(destination)).one()

    assert (NOW, "first") == (row.stopped_at, row.stop_text)
