"""A destination's breaker: patience that every worker shares, changed by whoever saw it last."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from outbox import Lane
from outbox.database import Database
from outbox.limits import Bucket, Learned, Traffic
from outbox.model import Outcome
from outbox.patience import Breaker, Stop
from outbox.store import breaker
from outbox.tables import destination
from outbox.verdict import Facts
from tests.factories import NOW, claim, finish_delivery, put

Reopen = Callable[[], Database]
OPEN = Breaker()
SHUT = Breaker(5, NOW + timedelta(seconds=5))
REFUSED = Breaker(1, NOW + timedelta(minutes=15), Stop.CREDENTIALS)
STREAK = Breaker(0, NOW + timedelta(minutes=15), Stop.REJECT_STREAK, 20)
RAMP = Breaker(ramp=3)


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


@pytest.mark.parametrize("new", [SHUT, REFUSED, STREAK, RAMP, Breaker(stop=Stop.PAUSE), Breaker(reject_streak=4)])
def test_a_breaker_is_kept_as_it_was_left(database: Database, new: Breaker) -> None:
    with database.begin() as connection:
        assert breaker.move(connection, "enos", OPEN, new, NOW, "why")

        assert new == breaker.read(connection, "enos")


PAIRS = [
    (OPEN, SHUT),
    (SHUT, OPEN),
    (SHUT, REFUSED),
    (REFUSED, SHUT),
    (RAMP, OPEN),
    (OPEN, RAMP),
    (RAMP, Breaker(ramp=2)),
    (Breaker(reject_streak=1), OPEN),
    (OPEN, Breaker(reject_streak=1)),
    (STREAK, Breaker(0, STREAK.open_until, Stop.REJECT_STREAK, 21)),
]


@pytest.mark.parametrize(("there", "seen"), PAIRS)
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


def test_the_reason_of_a_stop_is_the_latest_and_not_lost_while_it_lasts(database: Database) -> None:
    again, probing = Breaker(2, NOW, Stop.CREDENTIALS), Breaker(2, NOW + timedelta(hours=1), Stop.CREDENTIALS)
    with database.begin() as connection:
        breaker.move(connection, "enos", OPEN, REFUSED, NOW, "the app key is not set")
        breaker.move(connection, "enos", REFUSED, again, NOW + timedelta(hours=1), "the app secret is wrong")
        breaker.move(connection, "enos", again, probing, NOW + timedelta(hours=2))

        row = connection.execute(sa.select(destination)).one()

    assert (NOW, "the app secret is wrong") == (row.stopped_at, row.stop_text)


def test_a_failure_does_not_speak_for_the_person_who_paused(database: Database) -> None:
    paused, failed = Breaker(stop=Stop.PAUSE), Breaker(1, stop=Stop.PAUSE)
    with database.begin() as connection:
        breaker.stop(connection, "enos", paused, NOW, "they move house", "ann")
        breaker.move(connection, "enos", paused, failed, NOW, "HTTP 503")

        assert "they move house" == connection.execute(sa.select(destination.c.stop_text)).scalar_one()


def test_a_person_stops_also_what_is_stopped_already_and_what_it_waits_for_is_kept(database: Database) -> None:
    paused = Breaker(REFUSED.failures, REFUSED.open_until, Stop.PAUSE)
    later = NOW + timedelta(hours=1)
    with database.begin() as connection:
        breaker.move(connection, "enos", OPEN, REFUSED, NOW, "the app key does not exist")

        breaker.stop(connection, "enos", paused, NOW, "they move house", "ann")
        breaker.stop(connection, "enos", paused, later, "they still do", "bob")

        row = connection.execute(sa.select(destination)).one()
        assert paused == breaker.read(connection, "enos")
    assert (later, "they still do", "bob") == (row.stopped_at, row.stop_text, row.stopped_by)


@pytest.mark.parametrize(
    ("before", "tried"), [(REFUSED, True), (STREAK, True), (SHUT, False), (OPEN, False), (Breaker(stop=Stop.PAUSE), False)]
)
def test_a_new_worker_tries_what_waits_for_a_remedy_and_nothing_else(database: Database, before: Breaker, tried: bool) -> None:
    with database.begin() as connection:
        breaker.declare(connection, ["elsewhere"])
        for name in ("enos", "elsewhere"):
            breaker.move(connection, name, OPEN, before, NOW)

        breaker.try_again(connection, ["enos"], NOW)

        assert (NOW if tried else before.open_until) == breaker.read(connection, "enos").open_until
        assert before == breaker.read(connection, "elsewhere")


# What else its row says.


def test_a_fresh_destination_stands_well(database: Database) -> None:
    with database.begin() as connection:
        stands = [breaker.standing(connection, name) for name in ("enos", "nobody")]

    assert [(Breaker(), Bucket(), Learned())] * 2 == stands


def test_a_standing_is_kept_as_it_was_left_and_no_part_touches_another(database: Database) -> None:
    bucket, learned = Bucket(2.5, NOW), Learned(150_000, NOW + timedelta(seconds=1))
    with database.begin() as connection:
        breaker.declare(connection, ["elsewhere"])
        breaker.save_bucket(connection, "enos", bucket)
        breaker.save_learned(connection, "enos", learned)
        breaker.move(connection, "enos", OPEN, RAMP, NOW)

        assert (RAMP, bucket, learned) == breaker.standing(connection, "enos")
        assert (OPEN, Bucket(), Learned()) == breaker.standing(connection, "elsewhere")


def test_whoever_locks_a_standing_is_waited_for(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        breaker.declare(connection, ["enos", "elsewhere"])
    with reopen_postgres().begin() as holder:
        breaker.standing(holder, "enos", lock=True)
        with postgres_database.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            breaker.standing(connection, "enos")
            breaker.standing(connection, "elsewhere", lock=True)
            with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                breaker.standing(connection, "enos", lock=True)
            connection.rollback()


def test_uploads_under_way_are_counted_for_the_whole_fleet_large_ones_by_themselves(database: Database) -> None:
    with database.begin() as connection:
        for lane in (Lane.EXPRESS, Lane.NORMAL, Lane.BULK, Lane.LARGE):
            put(connection, lane=lane)
            put(connection, lane=lane, destination="elsewhere")
        before = breaker.traffic(connection, "enos")
        claims = [claim(connection, f"w{number}", lane) for number, lane in enumerate(Lane)]
        during = breaker.traffic(connection, "enos")
        for each in claims[:2]:
            assert each is not None
            finish_delivery(connection, each.delivery, Outcome.DELIVERED, Facts(200), NOW)

        after = breaker.traffic(connection, "enos")

        assert [Traffic(0, 0), Traffic(3, 1), Traffic(1, 1)] == [before, during, after]
        assert Traffic(0, 0) == breaker.traffic(connection, "elsewhere")
