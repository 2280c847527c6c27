"""Record: what became of each message is written if the claim still holds, and changes nothing if it does not."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import State
from outbox.database import Database
from outbox.model import Outcome, Reason
from outbox.store import arriving, recording, streams
from outbox.tables import attempt, delivery, file, head, message
from outbox.verdict import Facts
from tests.factories import (
    NOW,
    Claimed,
    add_row,
    attempts_of,
    claim,
    dead,
    finish_delivery,
    join,
    message_values,
    put,
    record,
    row_of,
    settlement,
    spooled,
)

Reopen = Callable[[], Database]
LATER = NOW + timedelta(minutes=1)


def claimed_once(connection: sa.Connection, worker: str = "w1") -> Claimed:
    claimed = claim(connection, worker)
    assert claimed is not None
    return claimed


def taken_back(connection: sa.Connection, claimed: Claimed) -> None:
    """As a rescue does."""
    lost = claimed.settled(state=State.PENDING, outcome=Outcome.UNKNOWN, unknowns=1)
    assert set(claimed.ids) == record(connection, claimed.delivery, claimed.worker, lost, NOW)


@pytest.mark.parametrize("whole", [False, True])
def test_on_postgres_what_is_claimed_and_settled_is_found_by_its_id_however_many_there_are(
    postgres_database: Database, whole: bool
) -> None:
    heard: list[tuple[str, Any]] = []
    with postgres_database.begin() as connection:
        join(connection, "w1")
        for state, number in ((State.DELIVERED, 4000), (State.PENDING, 600)):
            connection.execute(sa.insert(message), [message_values(state) for _ in range(number)])
        sa.event.listen(connection, "before_cursor_execute", lambda *given: heard.append((given[2], given[3])))
        claimed = claim(connection, limit=500)
        assert claimed is not None
        assert set(claimed.ids) == record(connection, claimed.delivery, claimed.worker, claimed.settled(), whole=whole)
        updates = [each for each in heard if each[0].startswith("UPDATE outbox_message")]
        plans = [
            [str(row[0]) for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]
            for statement, parameters in updates
        ]

    assert 2 == len(plans)
    for plan in plans:
        assert [line for line in plan if "Index Scan using pk_outbox_message" in line], plan


SETTLEMENTS = {
    "delivered": settlement(),
    "back at once": settlement(State.PENDING, Outcome.RETRY, faulted=True),
    "back later": settlement(State.PENDING, Outcome.RETRY, failures=1, due_at=LATER, faulted=True),
    "halved": settlement(State.PENDING, Outcome.REJECT, batch_limit=3),
    "unknown": settlement(State.PENDING, Outcome.UNKNOWN, unknowns=1),
    "dead": dead(Reason.REJECTED),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", SETTLEMENTS)
def test_a_settlement_becomes_the_row(database: Database, name: str, whole: bool) -> None:
    decided = SETTLEMENTS[name]
    with database.begin() as connection:
        message_id = put(connection)
        claimed = claimed_once(connection)

        written = record(connection, claimed.delivery, "w1", {message_id: decided}, LATER, whole=whole)

        row = row_of(connection, message_id)
        assert {message_id} == written
        assert (decided.state, decided.reason) == (row.state, row.reason)
        assert (decided.failures, decided.unknowns, decided.batch_limit) == (row.failures, row.unknowns, row.batch_limit)
        assert (decided.due_at or NOW) == row.due_at
        assert (LATER if decided.state in (State.DELIVERED, State.DEAD) else None) == row.finished_at
        assert (claimed.delivery if decided.faulted else None) == row.faulted_in
        assert (None, None) == (row.claimed_by, row.delivery_id)
        assert [(1, decided.outcome, None)] == attempts_of(connection, message_id)


@pytest.mark.parametrize("name", SETTLEMENTS)
def test_who_records_a_whole_hears_when_a_claim_does_not_hold_any_more(database: Database, name: str) -> None:
    with database.begin() as connection:
        put(connection, "held")
        put(connection, "lost")
        claimed = claimed_once(connection)
        held, lost = claimed.ids
        taken_back(connection, Claimed(claimed.delivery, claimed.worker, claimed.messages[1:]))

        with pytest.raises(recording.SomeAreLost):
            record(connection, claimed.delivery, "w1", dict.fromkeys((held, lost), SETTLEMENTS[name]), whole=True)


def test_messages_of_one_delivery_may_be_settled_differently(database: Database) -> None:
    with database.begin() as connection:
        ids = [put(connection) for _ in range(3)]
        claimed = claimed_once(connection)
        decided = dict(zip(ids, [settlement(), dead(), settlement(State.PENDING, Outcome.RETRY)], strict=True))

        record(connection, claimed.delivery, "w1", decided, NOW)

        assert [State.DELIVERED, State.DEAD, State.PENDING] == [row_of(connection, each).state for each in ids]


def test_a_record_after_a_rescue_changes_nothing_and_is_kept_as_late(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
        lost = claimed_once(connection)
        taken_back(connection, lost)
        before = row_of(connection, message_id)

        written = record(connection, lost.delivery, "w1", lost.settled(), LATER)

        assert set() == written
        assert before == row_of(connection, message_id)
        assert [(1, "unknown", "delivered")] == attempts_of(connection, message_id)


def test_a_record_after_a_rescue_does_not_touch_the_successors_claim(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
        lost = claimed_once(connection, "w1")
        taken_back(connection, lost)
        successor = claimed_once(connection, "w2")

        assert set() == record(connection, lost.delivery, "w1", lost.settled(), NOW)
        assert (State.CLAIMED, "w2") == (row_of(connection, message_id).state, row_of(connection, message_id).claimed_by)
        assert {message_id} == record(connection, successor.delivery, "w2", successor.settled(), NOW)
        assert [(1, "unknown", "delivered"), (2, "delivered", None)] == attempts_of(connection, message_id)


def test_a_worker_does_not_write_over_its_own_next_attempt(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
        lost = claimed_once(connection, "w1")
        taken_back(connection, lost)
        claimed_once(connection, "w1")

        assert set() == record(connection, lost.delivery, "w1", lost.settled(), NOW)
        assert State.CLAIMED == row_of(connection, message_id).state


def test_a_record_for_somebody_elses_claim_writes_nothing(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
        claimed = claimed_once(connection, "w1")

        assert set() == record(connection, claimed.delivery, "w2", claimed.settled(), NOW)
        assert State.CLAIMED == row_of(connection, message_id).state
        assert [] == attempts_of(connection, message_id)


def test_recording_twice_is_recording_once(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
        claimed = claimed_once(connection)
        record(connection, claimed.delivery, "w1", claimed.settled(), NOW)

        assert set() == record(connection, claimed.delivery, "w1", claimed.settled(), LATER)
        assert NOW == row_of(connection, message_id).finished_at
        assert [(1, "delivered", None)] == attempts_of(connection, message_id)


def test_what_is_left_of_a_claim_is_recorded_and_the_rest_kept_as_late(database: Database) -> None:
    with database.begin() as connection:
        ids = [put(connection) for _ in range(2)]
        claimed = claimed_once(connection)
        lost = {ids[0]: settlement(State.PENDING, Outcome.UNKNOWN)}
        record(connection, claimed.delivery, "w1", lost, NOW)

        assert {ids[1]} == record(connection, claimed.delivery, "w1", claimed.settled(), NOW)
        assert [State.PENDING, State.DELIVERED] == [row_of(connection, each).state for each in ids]


def test_a_delivery_ends_once(database: Database) -> None:
    with database.begin() as connection:
        put(connection)
        claimed = claimed_once(connection)
        facts = Facts(200, 0, "ok", "r-1")

        answers = [
            finish_delivery(connection, claimed.delivery, outcome, facts, now)
            for outcome, now in ((Outcome.DELIVERED, NOW), (Outcome.UNKNOWN, LATER))
        ]

        row = connection.execute(sa.select(delivery)).one()
    assert [True, False] == answers
    assert ("delivered", NOW, 200, 0, "ok", "r-1") == (
        row.outcome,
        row.finished_at,
        row.status,
        row.code,
        row.text,
        row.request_id,
    )


def test_a_destination_has_recovered_once_it_delivered_something_since(database: Database) -> None:
    with database.begin() as connection:
        failed, untried = put(connection, "failed"), put(connection, "untried", due_at=LATER)
        first = claimed_once(connection)
        faulted = settlement(State.PENDING, Outcome.RETRY, faulted=True)
        record(connection, first.delivery, "w1", {failed: faulted}, NOW)
        finish_delivery(connection, first.delivery, Outcome.RETRY, Facts(503), NOW)
        before = recording.recovered(connection, "enos", [failed, untried])
        second = claimed_once(connection, "w2")

        finish_delivery(connection, second.delivery, Outcome.DELIVERED, Facts(200), NOW)

        assert set() == before
        assert {failed} == recording.recovered(connection, "enos", [failed, untried])
        assert set() == recording.recovered(connection, "elsewhere", [failed, untried])


def test_a_delivery_before_the_failure_is_no_recovery(database: Database) -> None:
    with database.begin() as connection:
        put(connection, "early")
        early = claimed_once(connection)
        record(connection, early.delivery, "w1", early.settled(), NOW)
        finish_delivery(connection, early.delivery, Outcome.DELIVERED, Facts(200), NOW)
        failed = add_row(connection, attempt=1, faulted_in=early.delivery)

        assert set() == recording.recovered(connection, "enos", [failed])


def test_a_streams_next_message_becomes_due_with_the_record_of_the_one_before(database: Database) -> None:
    with database.begin() as connection:
        put(connection, ordering_key="pump")
        following = put(connection, ordering_key="pump", due_at=LATER)
        claimed = claimed_once(connection)

        record(connection, claimed.delivery, "w1", claimed.settled(), NOW)

        row = connection.execute(sa.select(head)).one()
        assert (LATER, None, None) == (row.due_at, row.claimed_by, row.blocked_by)
        assert claim(connection, now=NOW) is None
        assert [following] == claimed_at(connection, LATER)


def claimed_at(connection: sa.Connection, now: object) -> list[int]:
    claimed = claim(connection, now=now)  # type: ignore[arg-type]
    return claimed.ids if claimed else []


def test_a_stream_whose_last_message_is_final_rests(database: Database) -> None:
    with database.begin() as connection:
        put(connection, ordering_key="pump")
        claimed = claimed_once(connection)

        record(connection, claimed.delivery, "w1", claimed.settled(), NOW)

        row = connection.execute(sa.select(head)).one()
    assert (None, None) == (row.due_at, row.claimed_by)


def test_a_stream_waits_as_long_as_its_head(database: Database) -> None:
    with database.begin() as connection:
        first = put(connection, ordering_key="pump")
        put(connection, ordering_key="pump")
        claimed = claimed_once(connection)
        later = settlement(State.PENDING, Outcome.RETRY, failures=1, due_at=LATER)

        record(connection, claimed.delivery, "w1", {first: later}, NOW)

        assert [] == claimed_at(connection, NOW)
        assert [first] == claimed_at(connection, LATER)


def test_a_dead_message_blocks_its_stream(database: Database) -> None:
    with database.begin() as connection:
        first = put(connection, ordering_key="pump")
        put(connection, ordering_key="pump")
        claimed = claimed_once(connection)

        record(connection, claimed.delivery, "w1", {first: dead()}, NOW)

        assert [first] == list(connection.execute(sa.select(head.c.blocked_by)).scalars())


def test_a_death_that_was_forgiven_blocks_no_more(database: Database) -> None:
    with database.begin() as connection:
        first = put(connection, ordering_key="pump")
        following = put(connection, ordering_key="pump")
        claimed = claimed_once(connection)
        connection.execute(sa.update(head).values(forgiven=1))

        record(connection, claimed.delivery, "w1", {first: dead()}, NOW)

        assert [following] == claimed_at(connection, NOW)


def test_a_producer_at_work_on_a_stream_does_not_hold_up_a_record(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        put(connection, "head", ordering_key="pump")
        claimed = claimed_once(connection)
    with reopen_postgres().begin() as producer:
        following = put(producer, "following", ordering_key="pump")

        with postgres_database.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
            written = record(connection, claimed.delivery, "w1", claimed.settled(), NOW)
    with postgres_database.begin() as connection:
        assert claimed.ids == sorted(written)
        assert [following] == claimed_at(connection, NOW)


def test_a_stream_is_not_idle_while_its_head_is_tried(database: Database) -> None:
    with database.begin() as connection:
        put(connection, ordering_key="pump")
        put(connection, ordering_key="pump")
        claimed_once(connection)

        assert [] == streams.idle(connection, "enos")


def test_files_of_a_delivered_message_may_go_later(database: Database) -> None:
    photo, other = spooled(), spooled()
    with database.begin() as connection:
        for each in (photo, other):
            arriving.add_file(connection, each, NOW)
        message_id = put(connection, files=[photo])
        put(connection, files=[other])

        recording.free_later(connection, [message_id], LATER)

        found = {row[0]: row[1] for row in connection.execute(sa.select(file.c.name, file.c.free_at))}
    assert {photo.name: LATER, other.name: None} == found


def test_an_attempt_is_written_once(database: Database) -> None:
    values = {"message_id": 1, "number": 1, "delivery_id": 1, "finished_at": NOW, "outcome": "delivered"}
    with database.begin() as connection:
        values["message_id"] = add_row(connection)
        connection.execute(sa.insert(attempt).values(values))
    with pytest.raises(sa.exc.IntegrityError), database.begin() as connection:
        connection.execute(sa.insert(attempt).values(values))
