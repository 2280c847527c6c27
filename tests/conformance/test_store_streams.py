"""Streams: where each one stands after a death, after it was forgiven, and for those who skip the dead."""

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from outbox import State
from outbox.database import Database
from outbox.model import Outcome
from outbox.store import recording, streams
from outbox.tables import head
from outbox.timekeeping import When
from tests.factories import NOW, claim, dead, put, record, row_of, waiting

Reopen = Callable[[], Database]
RIGHT = When.certain(NOW)


def add(connection: sa.Connection, ordering_key: str, number: int) -> list[int]:
    return [put(connection, ordering_key=ordering_key) for _ in range(number)]


def kill(connection: sa.Connection, *, skip: bool = False) -> list[int]:
    """Claim the heads of all streams, and let them die; their ids."""
    claimed = claim(connection)
    assert claimed is not None
    settled = {each.id: dead() for each in claimed.messages}
    recording.record(connection, "w1", {claimed.delivery: settled}, RIGHT, skip=skip)
    return claimed.ids


def ids(connection: sa.Connection, *, skip: bool = False) -> list[int]:
    return [each.id for each in waiting(connection, skip=skip)]


def blockers(connection: sa.Connection) -> list[int | None]:
    return list(connection.execute(sa.select(head.c.blocked_by).order_by(head.c.stream_id)).scalars())


def stream_of(connection: sa.Connection, message_id: int) -> int:
    return int(row_of(connection, message_id).stream_id)


def test_who_skips_the_dead_goes_on_with_the_next(database: Database) -> None:
    with database.begin() as connection:
        first, second, _ = add(connection, "pump", 3)

        assert [first] == kill(connection, skip=True)

        assert [None] == blockers(connection)
        assert [second] == ids(connection, skip=True)


def test_who_skips_the_dead_rests_after_the_last(database: Database) -> None:
    with database.begin() as connection:
        add(connection, "pump", 1)
        kill(connection, skip=True)

        assert connection.execute(sa.select(head.c.due_at)).scalar_one() is None


def test_a_stream_that_stands_already_goes_on_when_its_destination_begins_to_skip(database: Database) -> None:
    with database.begin() as connection:
        pump = add(connection, "pump", 2)
        kill(connection)
        assert [] == ids(connection)
        (held_up,) = streams.blocked(connection, "enos")

        streams.release(connection, [held_up], RIGHT, skip=True)

        assert [] == streams.blocked(connection, "enos")
        assert pump[1:] == ids(connection, skip=True)


def test_a_stream_stands_when_its_destination_skips_no_more(database: Database) -> None:
    with database.begin() as connection:
        first, _ = add(connection, "pump", 2)
        kill(connection, skip=True)

        assert [] == ids(connection, skip=False)
        assert [first] == blockers(connection)


def test_those_held_up_are_listed_for_their_destination(database: Database) -> None:
    with database.begin() as connection:
        pump, _ = add(connection, "pump", 2), add(connection, "fan", 1)
        kill(connection)
        add(connection, "valve", 1)
        put(connection, ordering_key="pump", destination="elsewhere")

        assert 2 == len(streams.blocked(connection, "enos"))
        assert stream_of(connection, pump[0]) in streams.blocked(connection, "enos")
        assert [] == streams.blocked(connection, "elsewhere")


def test_one_key_is_forgiven_and_the_others_still_stand(database: Database) -> None:
    with database.begin() as connection:
        pump, fan = add(connection, "pump", 3), add(connection, "fan", 2)
        kill(connection)

        assert streams.forgive(connection, "enos", "pump", RIGHT)

        assert [None, fan[0]] == blockers(connection)
        assert [pump[1]] == ids(connection)


def test_only_deaths_up_to_now_are_forgiven(database: Database) -> None:
    with database.begin() as connection:
        _, second, third = add(connection, "pump", 3)
        kill(connection)
        streams.forgive(connection, "enos", "pump", RIGHT)

        assert [second] == kill(connection)

        assert [second] == blockers(connection)
        assert [] == ids(connection)
        assert streams.forgive(connection, "enos", "pump", RIGHT)
        assert [third] == ids(connection)


@pytest.mark.parametrize("key", ["fan", "nobody"])
def test_there_is_nothing_to_forgive_where_nothing_is_held_up(database: Database, key: str) -> None:
    with database.begin() as connection:
        add(connection, "fan", 1)
        put(connection, ordering_key="nobody", destination="elsewhere")

        assert not streams.forgive(connection, "enos", key, RIGHT)
        assert 1 == len(ids(connection))


def test_a_stream_of_another_destination_is_not_forgiven_along(database: Database) -> None:
    with database.begin() as connection:
        first, _ = add(connection, "pump", 2)
        kill(connection)

        assert not streams.forgive(connection, "elsewhere", "pump", RIGHT)
        assert [first] == blockers(connection)


def test_a_forgiven_stream_that_has_nothing_more_rests_and_wakes(database: Database) -> None:
    with database.begin() as connection:
        add(connection, "pump", 1)
        kill(connection)
        streams.forgive(connection, "enos", "pump", RIGHT)
        assert [] == ids(connection)

        assert add(connection, "pump", 1) == ids(connection)


def test_a_new_message_does_not_wake_a_stream_that_is_held_up(database: Database) -> None:
    with database.begin() as connection:
        add(connection, "pump", 1)
        kill(connection)

        add(connection, "pump", 1)

        assert [] == ids(connection)


def test_a_person_waits_for_whoever_holds_the_streams_place(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        _, second = add(connection, "pump", 2)
        kill(connection)
    with reopen_postgres().begin() as holder:
        holder.execute(sa.select(head.c.stream_id).with_for_update())
        with postgres_database.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
            with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                streams.forgive(connection, "enos", "pump", RIGHT)
            connection.rollback()

    with postgres_database.begin() as connection:
        assert streams.forgive(connection, "enos", "pump", RIGHT)
        assert [second] == ids(connection)


def test_a_retried_head_keeps_those_behind_it_waiting_also_where_the_dead_are_skipped(database: Database) -> None:
    with database.begin() as connection:
        first, _ = add(connection, "pump", 2)
        claimed = claim(connection)
        assert claimed is not None

        record(connection, claimed.delivery, "w1", claimed.settled(state=State.PENDING, outcome=Outcome.RETRY))

        assert [first] == ids(connection, skip=True)


def test_a_streams_turn_comes_when_its_head_is_done_and_not_sooner(database: Database) -> None:
    with database.begin() as connection:
        _, second = add(connection, "pump", 2)
        claimed = claim(connection)
        assert claimed is not None

        streams.release(connection, [stream_of(connection, second)], RIGHT, skip=False)
        assert [] == ids(connection)

        record(connection, claimed.delivery, "w1", claimed.settled())
        assert [second] == ids(connection)
