"""Purge: what goes with a final message, what stays, and who is waited for."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from threading import Thread

import pytest
import sqlalchemy as sa

from outbox import State
from outbox.database import Database
from outbox.model import FINAL, Outcome, SpooledFile
from outbox.store import arriving, keeping, purging
from outbox.tables import attachment, attempt, file, message
from tests.factories import NOW, add_row, put, spooled
from tests.story.conftest import eventually

Reopen = Callable[[], Database]
HOUR = timedelta(hours=1)
LATER = NOW + HOUR


def a_file(connection: sa.Connection, *, freed: bool = False, size: int = 3) -> SpooledFile:
    kept = spooled(content_length=size)
    arriving.add_file(connection, kept, NOW, NOW if freed else None)
    if freed:
        connection.execute(sa.update(file).where(file.c.name == kept.name).values(freed_at=NOW))
    return kept


def a_message(connection: sa.Connection, *files: SpooledFile, state: State = State.DELIVERED) -> int:
    """A message that was tried once, with these files."""
    message_id = add_row(connection, state, files=len(files))
    for position, each in enumerate(files):
        values = {"message_id": message_id, "position": position, "name": f"photo-{position}", "file": each.name}
        connection.execute(sa.insert(attachment).values(values | {"filename": "photo.jpg", "content_type": "image/jpeg"}))
    tried = {"message_id": message_id, "number": 1, "delivery_id": 1, "finished_at": NOW, "outcome": Outcome.DELIVERED}
    connection.execute(sa.insert(attempt).values(tried))
    return message_id


def left(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def ids(connection: sa.Connection) -> set[int]:
    return set(connection.execute(sa.select(message.c.id)).scalars())


def free_at(connection: sa.Connection, names: Iterable[SpooledFile]) -> list[object]:
    """When each of these files may go; "no row" for one that is forgotten."""
    found = {row.name: row.free_at for row in connection.execute(sa.select(file))}
    return [found.get(each.name, "no row") for each in names]


def locks_waited_for(database: Database) -> int:
    with database.read() as connection:
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return int(connection.execute(sa.text(waits)).scalar_one())


def test_a_message_goes_with_its_attempts_and_attachments(database: Database) -> None:
    with database.begin() as connection:
        going, staying = a_message(connection, a_file(connection)), a_message(connection, a_file(connection))

        purged = purging.purge(connection, [going], LATER)

        assert 1 == purged.messages
        assert {staying} == ids(connection)
        assert (1, 1) == (left(connection, attempt), left(connection, attachment))


@pytest.mark.parametrize("state", State)
def test_only_what_is_final_goes(database: Database, state: State) -> None:
    with database.begin() as connection:
        one = a_message(connection, a_file(connection), state=state)

        purged = purging.purge(connection, [one], LATER)

        assert (state in FINAL) == (purged.messages == 1) == (ids(connection) == set())


def test_nothing_asked_for_is_nothing_done(database: Database) -> None:
    with database.begin() as connection:
        a_message(connection)

        assert purging.Purged() == purging.purge(connection, [], LATER)
        assert purging.Purged() == purging.purge(connection, [99], LATER)


def test_the_bytes_of_a_file_that_nobody_refers_to_any_more_may_go_now(database: Database) -> None:
    with database.begin() as connection:
        photo, log = a_file(connection, size=1000), a_file(connection, size=24)
        one = a_message(connection, photo, log, state=State.DEAD)

        purged = purging.purge(connection, [one], LATER)

        assert (2, 1024) == (purged.files, purged.bytes)
        assert [LATER, LATER] == free_at(connection, [photo, log])
        due = keeping.files_to_free(connection, LATER, 10)
        keeping.mark_freed(connection, due, LATER)
        assert 0 == left(connection, file), "and with the bytes the row goes"


def test_a_file_that_another_message_refers_to_is_left_alone(database: Database) -> None:
    with database.begin() as connection:
        shared = a_file(connection)
        one = a_message(connection, shared)
        a_message(connection, shared, state=State.PENDING)

        purged = purging.purge(connection, [one], LATER)

        assert (1, 0, 0) == (purged.messages, purged.files, purged.bytes)
        assert [None] == free_at(connection, [shared])


def test_of_a_file_that_was_freed_the_row_goes(database: Database) -> None:
    with database.begin() as connection:
        freed, shared = a_file(connection, freed=True), a_file(connection, freed=True)
        one = a_message(connection, freed, shared)
        a_message(connection, shared)

        purged = purging.purge(connection, [one], LATER)

        assert 0 == purged.files, "its bytes went long ago"
        assert ["no row", NOW] == free_at(connection, [freed, shared])


def test_messages_that_share_a_file_go_together(database: Database) -> None:
    with database.begin() as connection:
        shared = a_file(connection)
        both = [a_message(connection, shared), a_message(connection, shared)]

        assert (2, 1, 3) == purging.purge(connection, both, LATER)[:3]


def test_it_says_which_streams_may_go_on(database: Database) -> None:
    with database.begin() as connection:
        first = put(connection, ordering_key="pump")
        loose = put(connection)
        done = {"state": State.DELIVERED, "finished_at": NOW}
        connection.execute(sa.update(message).where(message.c.id.in_([first, loose])).values(done))
        stream_id = connection.execute(sa.select(message.c.stream_id).where(message.c.id == first)).scalar_one()

        assert {stream_id} == purging.purge(connection, [first, loose], LATER).streams


def test_a_message_that_somebody_replays_at_this_moment_is_passed_over(
    postgres_database: Database, reopen_postgres: Reopen
) -> None:
    with postgres_database.begin() as connection:
        busy, other = a_message(connection), a_message(connection)
    with reopen_postgres().begin() as person:
        person.execute(sa.select(message.c.id).where(message.c.id == busy).with_for_update())

        with postgres_database.begin() as connection:
            assert 1 == purging.purge(connection, [busy, other], LATER).messages
            assert {busy} == ids(connection)


def test_a_producer_that_is_using_the_file_again_is_not_waited_for_and_keeps_it(
    postgres_database: Database, reopen_postgres: Reopen
) -> None:
    with postgres_database.begin() as connection:
        shared = a_file(connection)
        old = a_message(connection, shared, state=State.DEAD)
    with reopen_postgres().begin() as producer:
        assert set() == arriving.freed(producer, [shared.name])
        put(producer, files=[shared])

        with postgres_database.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
            purging.purge(connection, [old], LATER)
        with postgres_database.begin() as connection:
            assert [] == keeping.files_to_free(connection, LATER, 10), "not while its transaction is open"

    with postgres_database.begin() as connection:
        due = keeping.files_to_free(connection, LATER, 10)
        assert {shared.name} == set(due) == keeping.still_needed(connection, due)


def test_of_two_that_purge_the_last_messages_of_a_file_one_lets_it_go(
    postgres_database: Database, reopen_postgres: Reopen
) -> None:
    with postgres_database.begin() as connection:
        shared = a_file(connection)
        one, other = a_message(connection, shared), a_message(connection, shared)
    second = reopen_postgres()
    files: list[int] = []

    def purge_the_other() -> None:
        with second.begin() as connection:
            files.append(purging.purge(connection, [other], LATER).files)

    thread = Thread(target=purge_the_other)
    with postgres_database.begin() as connection:
        files.append(purging.purge(connection, [one], LATER).files)
        thread.start()
        eventually(lambda: locks_waited_for(postgres_database))
    thread.join()

    assert [0, 1] == files
    with postgres_database.read() as connection:
        assert [LATER] == free_at(connection, [shared])
