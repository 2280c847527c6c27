"""The spool's rows: which bytes may go, which must stay, and which files nobody vouches for."""

from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa

from outbox import State
from outbox.database import Database
from outbox.model import SpooledFile
from outbox.store import arriving, keeping
from outbox.tables import attachment, file
from tests.factories import NOW, add_row, spooled

Reopen = Callable[[], Database]
HOUR = timedelta(hours=1)


def a_file(connection: sa.Connection, free_at: object = None, *states: State) -> SpooledFile:
    """A spooled file, attached to a message in each of these states."""
    kept = spooled()
    arriving.add_file(connection, kept, NOW, free_at)  # type: ignore[arg-type]
    for state in states:
        values = {"message_id": add_row(connection, state), "position": 0, "name": "photo", "file": kept.name}
        connection.execute(sa.insert(attachment).values(values | {"filename": "photo.jpg", "content_type": "image/jpeg"}))
    return kept


def test_a_file_may_go_when_its_time_has_come(database: Database) -> None:
    with database.begin() as connection:
        due = a_file(connection, NOW)
        later = a_file(connection, NOW + HOUR)
        a_file(connection, None)

        assert [due.name] == keeping.files_to_free(connection, NOW, 10)
        assert [due.name, later.name] == keeping.files_to_free(connection, NOW + HOUR, 10)
        assert [due.name] == keeping.files_to_free(connection, NOW + HOUR, 1)


def test_a_file_stays_while_any_message_may_yet_be_sent(database: Database) -> None:
    with database.begin() as connection:
        done = a_file(connection, NOW, State.DELIVERED, State.CANCELLED)
        needed = [a_file(connection, NOW, State.DELIVERED, other) for other in (State.PENDING, State.CLAIMED, State.DEAD)]
        names = [each.name for each in (done, *needed)]

        assert {each.name for each in needed} == keeping.still_needed(connection, names)


def test_a_freed_file_is_freed_once(database: Database) -> None:
    with database.begin() as connection:
        due = a_file(connection, NOW, State.DELIVERED)

        keeping.mark_freed(connection, [due.name], NOW)

        assert [] == keeping.files_to_free(connection, NOW, 10)
        assert arriving.freed(connection, [due.name]) == {due.name}


def test_of_a_file_that_no_message_was_given_nothing_stays(database: Database) -> None:
    with database.begin() as connection:
        given, never_given = a_file(connection, NOW, State.DELIVERED), a_file(connection, NOW)

        keeping.mark_freed(connection, [given.name, never_given.name], NOW)

        assert [given.name] == list(connection.execute(sa.select(file.c.name)).scalars())


def test_a_file_that_is_still_needed_asks_again_with_the_next_delivery(database: Database) -> None:
    with database.begin() as connection:
        needed = a_file(connection, NOW, State.PENDING)

        keeping.keep(connection, [needed.name])

        assert [] == keeping.files_to_free(connection, NOW + HOUR, 10)


def test_a_file_that_an_enqueue_is_using_is_passed_over(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        used, other = a_file(connection, NOW), a_file(connection, NOW)
    with reopen_postgres().begin() as producer:
        assert arriving.freed(producer, [used.name]) == set()

        with postgres_database.begin() as connection:
            assert [other.name] == keeping.files_to_free(connection, NOW, 10)


def test_a_name_without_a_row_or_with_freed_bytes_is_rubbish(database: Database) -> None:
    with database.begin() as connection:
        kept, freed = a_file(connection, None, State.PENDING), a_file(connection, NOW, State.DELIVERED)
        keeping.mark_freed(connection, [freed.name], NOW)
        unknown = "0" * 32

        assert {freed.name, unknown} == keeping.without_row(connection, [kept.name, freed.name, unknown])
