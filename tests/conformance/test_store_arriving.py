"""What enqueue writes: streams, messages and files, as rows of a transaction that is somebody else's."""

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from outbox import Lane, State
from outbox.database import Database
from outbox.model import Attachment
from outbox.store import arriving, claiming
from outbox.tables import file, head
from tests.factories import NOW, new_message, put, row_of, spooled

Reopen = Callable[[], Database]


def test_a_new_message_is_pending_and_due_and_was_never_tried(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection, "a")

    with database.read() as connection:
        row = row_of(connection, message_id)
    assert ("a", State.PENDING, NOW, 0, 0, 0) == (row.key, row.state, row.due_at, row.attempt, row.failures, row.unknowns)


def test_a_key_names_one_message(database: Database) -> None:
    with database.begin() as connection:
        first = arriving.add_message(connection, new_message("a"))
        second = arriving.add_message(connection, new_message("a"))
        other = arriving.add_message(connection, new_message("a", destination="elsewhere"))

    assert first is not None
    assert second is None
    assert other not in (None, first)


def test_a_key_leads_to_its_message(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection, "a", digest="1" * 64)

        assert arriving.Known(message_id, "1" * 64, State.PENDING) == arriving.named(connection, "enos", "a")
        assert arriving.named(connection, "enos", "b") is None
        assert arriving.named(connection, "elsewhere", "a") is None


def test_a_stream_numbers_its_messages_from_one(database: Database) -> None:
    with database.begin() as connection:
        places = [arriving.next_in_stream(connection, new_message(), key) for key in ("pump", "pump", "fan", "pump")]

    assert [1, 2, 1, 3] == [number for _, number in places]
    assert [places[0][0]] * 2 == [places[1][0], places[3][0]]


def test_a_number_that_was_rolled_back_is_given_again(database: Database) -> None:
    connection = database.engine.connect()
    arriving.next_in_stream(connection, new_message(), "pump")
    connection.rollback()

    _, number = arriving.next_in_stream(connection, new_message(), "pump")

    connection.close()
    assert number == 1


def test_a_stream_at_rest_becomes_due_and_one_that_waits_stays_as_it_is(database: Database) -> None:
    with database.begin() as connection:
        put(connection, ordering_key="pump", due_at=NOW, lane=Lane.EXPRESS)
        put(connection, ordering_key="pump", due_at=NOW.replace(hour=1), lane=Lane.BULK)

        row = connection.execute(sa.select(head)).one()

    assert (NOW, Lane.EXPRESS) == (row.due_at, row.lane)


def test_the_second_producer_of_a_stream_waits_for_the_first_ones_commit(database: Database, reopen: Reopen) -> None:
    numbers: dict[str, int] = {}
    begun = threading.Event()

    def second_producer() -> None:
        other = reopen()
        sa.event.listen(other.engine, "before_cursor_execute", lambda *_: begun.set())
        sa.event.listen(other.engine, "begin", lambda *_: begun.set(), insert=True)
        with other.begin() as connection:
            _, numbers["second"] = arriving.next_in_stream(connection, new_message(), "pump")

    second = threading.Thread(target=second_producer)
    with database.begin() as connection:
        _, numbers["first"] = arriving.next_in_stream(connection, new_message(), "pump")
        second.start()
        assert begun.wait(10)
        second.join(0.2)
        assert "second" not in numbers
    second.join(10)

    assert {"first": 1, "second": 2} == numbers


def test_numbers_are_commit_order(database: Database, reopen: Reopen) -> None:
    order: list[int] = []

    def producer() -> None:
        other = reopen()
        for _ in range(10):
            with other.begin() as connection:
                _, number = arriving.next_in_stream(connection, new_message(), "pump")
                # Whoever is here holds the stream's row until COMMIT, so this list is in the order of the commits.
                order.append(number)

    producers = [threading.Thread(target=producer) for _ in range(4)]
    for each in producers:
        each.start()
    for each in producers:
        each.join(60)

    assert list(range(1, 41)) == order


def test_attachments_come_back_in_the_producers_order(database: Database) -> None:
    photo, log = spooled(), spooled()
    with database.begin() as connection:
        for each in (photo, log):
            arriving.add_file(connection, each, NOW)
        message_id = put(connection)
        given = [Attachment("z", photo, "photo.jpg", "image/jpeg"), Attachment("a", log, "log.txt", "text/plain")]
        arriving.attach(connection, {message_id: given})

        found = claiming.attachments(connection, [message_id])[message_id]

    assert [("z", photo.name, "photo.jpg", "image/jpeg"), ("a", log.name, "log.txt", "text/plain")] == [
        (each.name, each.file.name, each.filename, each.content_type) for each in found
    ]
    assert (photo.size, photo.sha256, photo.md5) == (found[0].file.size, found[0].file.sha256, found[0].file.md5)


def test_an_attachment_without_its_files_row_is_refused(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
    homeless = [Attachment("photo", spooled(), "photo.jpg", "image/jpeg")]

    with pytest.raises(sa.exc.IntegrityError), database.begin() as connection:
        arriving.attach(connection, {message_id: homeless})


def test_a_freed_or_unknown_file_is_not_to_be_used(database: Database) -> None:
    kept, freed = spooled(), spooled()
    with database.begin() as connection:
        for each in (kept, freed):
            arriving.add_file(connection, each, NOW)
        connection.execute(sa.update(file).where(file.c.name == freed.name).values(freed_at=NOW))

        assert {freed.name, "0" * 32} == arriving.freed(connection, [kept.name, freed.name, "0" * 32])


def test_a_withdrawn_message_was_never_there(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection, "a")

        arriving.withdraw(connection, [message_id], NOW)

        assert arriving.named(connection, "enos", "a") is None
