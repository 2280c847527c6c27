"""Claim: the oldest due messages, and the heads of streams, become one worker's and nobody else's."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Lane, State
from outbox.database import Database
from outbox.model import Outcome
from outbox.store import arriving, claiming, living
from outbox.tables import delivery, head, message
from outbox.timekeeping import When
from tests.factories import (
    NOW,
    add_row,
    claim,
    dead,
    join,
    message_values,
    new_message,
    put,
    record,
    row_of,
    settlement,
    spooled,
    start_delivery,
    waiting,
)

Reopen = Callable[[], Database]
SECOND = timedelta(seconds=1)
RIGHT = When.certain(NOW)


def test_a_claim_takes_what_is_due_oldest_first(database: Database) -> None:
    with database.begin() as connection:
        later = put(connection, due_at=NOW + SECOND)
        young, old = put(connection, due_at=NOW), put(connection, due_at=NOW - SECOND)

        claimed = claim(connection, now=NOW)

        assert claimed is not None
        assert [old, young] == claimed.ids
        assert State.PENDING == row_of(connection, later).state


def test_of_equal_age_the_first_to_come_is_the_first_to_go(database: Database) -> None:
    with database.begin() as connection:
        ids = [put(connection) for _ in range(5)]

        assert ids[:3] == [each.id for each in waiting(connection, limit=3)]


def test_a_claim_is_of_one_destination_and_one_lane(database: Database) -> None:
    with database.begin() as connection:
        mine = put(connection)
        put(connection, lane=Lane.BULK)
        put(connection, destination="elsewhere")

        claimed = claim(connection)

    assert claimed is not None
    assert [mine] == claimed.ids


def test_only_pending_messages_are_claimed(database: Database) -> None:
    with database.begin() as connection:
        for state in State:
            add_row(connection, state)

        claimed = claim(connection)

        assert claimed is not None
        assert len(claimed.ids) == 1
        assert claim(connection) is None


def test_a_claimed_message_names_its_worker_its_delivery_and_a_new_attempt(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
        claimed = claim(connection, "w1")
        row = row_of(connection, message_id)

    assert claimed is not None
    assert (State.CLAIMED, "w1", claimed.delivery, 1) == (row.state, row.claimed_by, row.delivery_id, row.attempt)
    assert [1] == [message.attempt for message in claimed.messages]


def test_a_claim_carries_payload_counters_and_files(database: Database) -> None:
    photo = spooled()
    with database.begin() as connection:
        arriving.add_file(connection, photo, NOW)
        put(connection, "bare", payload='{"a":1}', size=7)
        put(connection, "full", files=[photo], file_bytes=3)

        claimed = claim(connection)

    assert claimed is not None
    bare, full = claimed.messages
    assert ("bare", '{"a":1}', 7, 0, ()) == (bare.key, bare.text, bare.size, bare.file_bytes, bare.attachments)
    assert [photo.name] == [each.file.name for each in full.attachments]


def test_a_claim_carries_the_trace_that_its_producer_was_in(database: Database) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with database.begin() as connection:
        put(connection, traceparent=trace)

        claimed = claim(connection)

    assert claimed is not None
    assert [trace] == [each.traceparent for each in claimed.messages]


@pytest.mark.parametrize("sizes", [[4096], [4097], [10, 5000, 4096, 100_000, 3]], ids=str)
def test_a_claim_carries_whatever_is_in_a_message_however_long(database: Database, sizes: list[int]) -> None:
    texts = [f'"{"x" * (size - 2)}"' for size in sizes]
    with database.begin() as connection:
        for text in texts:
            put(connection, payload=text, size=len(text))

        claimed = claim(connection)

    assert claimed is not None
    assert texts == [each.text for each in claimed.messages]


def test_what_does_not_wait_any_more_when_it_is_marked_is_left_out(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "w1")
        gone, stays = put(connection, "gone"), put(connection, "stays")
        taken = waiting(connection)
        connection.execute(sa.update(message).where(message.c.id == gone).values(state=State.CANCELLED, finished_at=NOW))
        number = start_delivery(connection, taken)

        marked = claiming.mark_claimed(connection, "w1", {number: taken}, RIGHT)

        assert [stays] == [each.id for each in marked[number]]
        assert State.CANCELLED == row_of(connection, gone).state


def test_a_delivery_is_written_before_anything_is_sent(database: Database) -> None:
    with database.begin() as connection:
        put(connection, size=10, file_bytes=5)
        put(connection, size=20)
        claim(connection, "w1")

        row = connection.execute(sa.select(delivery)).one()

    assert ("enos", "normal", "w1", 2, 35, False, None, None) == (
        row.destination,
        row.lane,
        row.worker,
        row.messages,
        row.bytes,
        row.probe,
        row.finished_at,
        row.outcome,
    )


def test_nothing_claimed_is_claimed_twice(database: Database, reopen: Reopen) -> None:
    with database.begin() as connection:
        ids = [put(connection) for _ in range(3)]
    with database.begin() as connection:
        first = claim(connection, "w1", limit=2)
    with reopen().begin() as connection:
        second = claim(connection, "w2")

    assert first is not None
    assert second is not None
    assert (ids[:2], ids[2:]) == (first.ids, second.ids)


def test_a_claim_passes_over_what_another_is_claiming(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        ids = [put(connection) for _ in range(4)]
    with postgres_database.begin() as connection, reopen_postgres().begin() as other:
        claim(connection, "w1", limit=2)

        second = claim(other, "w2")

    assert second is not None
    assert ids[2:] == second.ids


def test_a_claim_passes_over_a_stream_that_another_is_claiming(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        put(connection, ordering_key="pump")
        fan = put(connection, ordering_key="fan")
    with postgres_database.begin() as connection, reopen_postgres().begin() as other:
        claim(connection, "w1", limit=1)

        second = claim(other, "w2")

    assert second is not None
    assert [fan] == second.ids


def test_of_a_stream_only_the_head_is_claimed(database: Database) -> None:
    with database.begin() as connection:
        first, _ = (put(connection, ordering_key="pump") for _ in range(2))
        fan = put(connection, ordering_key="fan")
        loose = put(connection)

        claimed = claim(connection)

        assert claimed is not None
        assert {first, fan, loose} == set(claimed.ids)
        assert claim(connection) is None


def test_a_head_that_is_not_due_yet_holds_up_those_behind_it(database: Database) -> None:
    with database.begin() as connection:
        put(connection, ordering_key="pump", due_at=NOW + SECOND)
        put(connection, ordering_key="pump", due_at=NOW)

        assert claim(connection, now=NOW) is None
        assert claim(connection, now=NOW + SECOND) is not None


def test_streams_are_served_in_turns(database: Database) -> None:
    order = []
    with database.begin() as connection:
        for name in ("pump", "fan", "pump", "fan", "pump", "fan"):
            put(connection, f"{name}-{len(order)}", ordering_key=name)
            order.append(name)
    served = []
    for _ in range(6):
        with database.begin() as connection:
            claimed = claim(connection, limit=1)
            assert claimed is not None
            served += [message.key.partition("-")[0] for message in claimed.messages]
            record(connection, claimed.delivery, "w1", claimed.settled(), NOW)

    assert ["pump", "fan"] * 3 == served


def test_a_blocked_stream_is_left_alone(database: Database) -> None:
    with database.begin() as connection:
        put(connection, ordering_key="pump")
        put(connection, ordering_key="pump")
        claimed = claim(connection)
        assert claimed is not None
        record(connection, claimed.delivery, "w1", {claimed.ids[0]: dead()}, NOW)

        assert claim(connection) is None


def test_a_repeated_key_does_not_wake_its_stream(database: Database) -> None:
    with database.begin() as connection:
        put(connection, "a", ordering_key="pump")
        claimed = claim(connection)
        assert claimed is not None
        record(connection, claimed.delivery, "w1", claimed.settled(), NOW)

        # The stream steps on, and no message comes of it.
        arriving.next_in_stream(connection, new_message("a"), "pump")
        assert arriving.add_message(connection, new_message("a")) is None

        assert not claiming.anything_due(connection, "enos", list(Lane), When.certain(NOW))
        assert connection.execute(sa.select(head.c.due_at)).scalar_one() is None


def test_a_stream_lives_on_after_a_repeated_key(database: Database) -> None:
    with database.begin() as connection:
        put(connection, "a", ordering_key="pump")
        claimed = claim(connection)
        assert claimed is not None
        record(connection, claimed.delivery, "w1", claimed.settled(), NOW)
        arriving.next_in_stream(connection, new_message("a"), "pump")
        following = put(connection, "b", ordering_key="pump")

        found = claim(connection)

    assert found is not None
    assert [following] == found.ids


def test_a_look_sees_what_a_claim_would_take(database: Database) -> None:
    with database.begin() as connection:
        assert not claiming.anything_due(connection, "enos", [Lane.NORMAL], When.certain(NOW))
        put(connection, due_at=NOW + SECOND)
        put(connection, ordering_key="pump", lane=Lane.BULK)

        looks = [
            claiming.anything_due(connection, name, lanes, When.certain(now))
            for name, lanes, now in [
                ("enos", [Lane.NORMAL], NOW),
                ("enos", [Lane.NORMAL], NOW + SECOND),
                ("enos", [Lane.BULK], NOW),
                ("enos", [Lane.EXPRESS, Lane.LARGE], NOW + SECOND),
                ("elsewhere", list(Lane), NOW + SECOND),
            ]
        ]

    assert [False, True, True, False, False] == looks


def test_a_worker_is_here_until_it_is_declared_gone(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "w1", "w2")
        living.declare_gone(connection, "w2", 0)

        found = [claiming.outlook(connection, each, "enos", {}) for each in ("w1", "w2", "nobody")]

    assert [True, False, False] == [each is not None for each in found]


def test_the_look_of_a_claim_reads_the_index_of_what_waits_and_not_the_table(postgres_database: Database) -> None:
    with postgres_database.begin() as connection:
        join(connection, "w1")
        for state in (State.DELIVERED, State.PENDING):
            connection.execute(sa.insert(message), [message_values(state) for _ in range(3000)])
    with postgres_database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE outbox_message")

    asked: list[tuple[str, Any]] = []
    with postgres_database.begin() as connection:
        sa.event.listen(connection, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
        claiming.outlook(connection, "w1", "enos", {})
        ((statement, parameters),) = asked
        plan = [str(row[0]) for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]

    assert not [line for line in plan if "Seq Scan on outbox_message" in line], plan
    assert [line for line in plan if "ix_outbox_message_due" in line], plan


def test_a_claim_that_slips_in_while_its_worker_is_declared_gone_is_rescued_like_the_rest(
    postgres_database: Database, reopen_postgres: Reopen
) -> None:
    with postgres_database.begin() as connection:
        join(connection, "w1")
        put(connection)
    with postgres_database.begin() as connection:
        assert claiming.outlook(connection, "w1", "enos", {}) is not None
        with reopen_postgres().begin() as other:
            assert living.declare_gone(other, "w1", 0)
        claimed = claim(connection, "w1")
    assert claimed is not None

    with postgres_database.begin() as connection:
        assert [claimed.delivery] == living.deliveries_of_the_gone(connection, ["enos"], 10)


def test_a_released_claim_can_be_made_again_under_the_next_number(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
        first = claim(connection)
        assert first is not None
        back = settlement(State.PENDING, Outcome.NOT_SENT)
        record(connection, first.delivery, "w1", {message_id: back}, NOW)

        second = claim(connection, "w2")

    assert second is not None
    assert [2] == [message.attempt for message in second.messages]
    assert first.delivery != second.delivery


# Two times.

AHEAD = When(NOW, chosen=NOW, invented=NOW + SECOND)


def found(connection: sa.Connection, when: When) -> list[int]:
    return [each.id for each in claiming.waiting(connection, "enos", Lane.NORMAL, when, 100, skip=False)[0]]


def test_what_a_producer_scheduled_waits_for_the_later_of_two_clocks_and_a_back_off_for_the_earlier(
    database: Database,
) -> None:
    with database.begin() as connection:
        put(connection, due_at=NOW + SECOND, scheduled=True)
        put_off = put(connection, due_at=NOW + SECOND)

        assert [put_off] == found(connection, AHEAD)
        assert 2 == len(found(connection, When.certain(NOW + SECOND)))


def test_the_same_holds_for_the_head_of_a_stream(database: Database) -> None:
    with database.begin() as connection:
        put(connection, ordering_key="scheduled", due_at=NOW + SECOND, scheduled=True)
        put_off = put(connection, ordering_key="put off", due_at=NOW + SECOND)

        assert [put_off] == found(connection, AHEAD)
        assert 2 == len(found(connection, When.certain(NOW + SECOND)))


def test_a_look_goes_by_the_same_two_times(database: Database) -> None:
    lanes = list(Lane)
    with database.begin() as connection:
        put(connection, due_at=NOW + SECOND, scheduled=True)
        put(connection, ordering_key="scheduled", due_at=NOW + SECOND, scheduled=True)
        before = claiming.anything_due(connection, "enos", lanes, AHEAD)
        put(connection, due_at=NOW + SECOND)

        assert [False, True] == [before, claiming.anything_due(connection, "enos", lanes, AHEAD)]


def test_a_scheduled_message_that_failed_once_waits_like_any_other(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection, scheduled=True)
        claimed = claim(connection)
        assert claimed is not None

        later = settlement(State.PENDING, Outcome.RETRY, failures=1, due_at=NOW + SECOND)
        record(connection, claimed.delivery, "w1", {message_id: later}, NOW)

        assert [message_id] == found(connection, AHEAD)


def test_a_scheduled_message_that_was_given_back_is_still_scheduled(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection, scheduled=True)
        claimed = claim(connection)
        assert claimed is not None
        record(connection, claimed.delivery, "w1", {message_id: settlement(State.PENDING, Outcome.NOT_SENT)}, NOW)

        assert [] == found(connection, When(NOW, chosen=NOW - SECOND, invented=NOW))


# How far away the furthest is.


def test_the_furthest_is_of_those_that_nobody_scheduled(database: Database) -> None:
    with database.begin() as connection:
        assert claiming.furthest(connection, "enos") is None
        put(connection, due_at=NOW + 9 * SECOND, scheduled=True)
        put(connection, ordering_key="s", due_at=NOW + 9 * SECOND, scheduled=True)
        put(connection, ordering_key="u", ordered=False, due_at=NOW + 9 * SECOND, scheduled=True)
        assert claiming.furthest(connection, "enos") is None
        put(connection, destination="elsewhere", due_at=NOW + 9 * SECOND)

        put(connection, due_at=NOW)
        assert NOW == claiming.furthest(connection, "enos")


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("place", [{}, {"ordering_key": "pump"}, {"ordering_key": "pump", "ordered": False}], ids=repr)
def test_the_furthest_is_found_wherever_it_waits(database: Database, lane: Lane, place: dict[str, Any]) -> None:
    with database.begin() as connection:
        put(connection, due_at=NOW + SECOND)
        put(connection, lane=lane, due_at=NOW + 5 * SECOND, **place)

        assert NOW + 5 * SECOND == claiming.furthest(connection, "enos")


@pytest.mark.parametrize("state", [State.DELIVERED, State.DEAD, State.CANCELLED, State.CLAIMED])
def test_what_waits_no_more_is_not_the_furthest(database: Database, state: State) -> None:
    with database.begin() as connection:
        add_row(connection, state, due_at=NOW + SECOND)

        assert claiming.furthest(connection, "enos") is None


# Giving up what is too old.


def expired(connection: sa.Connection, when: When = RIGHT, names: Sequence[str] = ("enos",), limit: int = 100) -> list[int]:
    return [each.id for each in claiming.expired(connection, names, when, limit)]


def test_messages_whose_time_is_over_are_found_wherever_they_wait_first_those_that_went_first(database: Database) -> None:
    with database.begin() as connection:
        second = put(connection, expires_at=NOW)
        first = put(connection, expires_at=NOW - SECOND, lane=Lane.BULK, due_at=NOW + SECOND)
        third = put(connection, expires_at=NOW, ordering_key="pump")
        fourth = put(connection, expires_at=NOW, ordering_key="pump", ordered=False)
        put(connection, expires_at=NOW + SECOND)
        put(connection)
        put(connection, expires_at=NOW, destination="elsewhere")
        put(connection, expires_at=NOW, clock_plausible=False)

        assert [first, second, third, fourth] == expired(connection)
        assert [first, second] == expired(connection, limit=2)


def test_while_the_time_is_in_dispute_nothing_expires_too_soon(database: Database) -> None:
    with database.begin() as connection:
        put(connection, expires_at=NOW + SECOND)

        assert [] == expired(connection, When(NOW + 9 * SECOND, chosen=NOW, invented=NOW + 9 * SECOND))


@pytest.mark.parametrize("state", [State.DELIVERED, State.DEAD, State.CANCELLED, State.CLAIMED])
def test_only_what_waits_can_expire(database: Database, state: State) -> None:
    with database.begin() as connection:
        message_id = add_row(connection, state, expires_at=NOW)

        assert [] == expired(connection)
        claiming.expire(connection, [message_id], NOW)
        assert state == row_of(connection, message_id).state


def test_an_expired_message_is_dead_and_says_why(database: Database) -> None:
    with database.begin() as connection:
        loose, first, other = put(connection), put(connection, ordering_key="pump"), put(connection, ordering_key="pump")

        gone = claiming.expire(connection, [loose, first], NOW)

        assert {loose: None, first: row_of(connection, first).stream_id} == {each.id: each.stream_id for each in gone}
        assert [("enos", 0)] * 2 == [(each.destination, each.attempt) for each in gone]

        for message_id in (loose, first):
            row = row_of(connection, message_id)
            assert (State.DEAD, "expired", NOW) == (row.state, row.reason, row.finished_at)
            assert "its expires_at passed before it could be delivered" == row.reason_text
        assert State.PENDING == row_of(connection, other).state


def test_what_another_is_giving_up_is_passed_over(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        first, second = (put(connection, expires_at=NOW) for _ in range(2))
    with reopen_postgres().begin() as other, postgres_database.begin() as connection:
        assert [first] == expired(other, limit=1)
        assert [second] == expired(connection)


# Suspects.


def test_a_suspect_is_under_way_from_its_claim_to_its_record(database: Database) -> None:
    with database.begin() as connection:
        put(connection)
        put(connection, destination="elsewhere")
        connection.execute(sa.update(message).values(suspect=True))
        before = claiming.suspect_under_way(connection, "enos")
        claimed = claim(connection)
        assert claimed is not None
        during = [claiming.suspect_under_way(connection, name) for name in ("enos", "elsewhere")]
        record(
            connection, claimed.delivery, "w1", claimed.settled(state=State.PENDING, outcome=Outcome.RETRY, suspect=True), NOW
        )

        assert (False, [True, False], False) == (before, during, claiming.suspect_under_way(connection, "enos"))


def test_of_those_who_have_nothing_against_them_none_is_suspect(database: Database) -> None:
    with database.begin() as connection:
        put(connection)
        claimed = claim(connection)

        assert claimed is not None
        assert [False] == [each.suspect for each in claimed.messages]
        assert not claiming.suspect_under_way(connection, "enos")


@pytest.mark.parametrize("place", [{}, {"ordering_key": "pump"}, {"ordering_key": "pump", "ordered": False}], ids=repr)
def test_a_claim_says_what_is_held_against_a_message(database: Database, place: dict[str, Any]) -> None:
    with database.begin() as connection:
        message_id = put(connection, expires_at=NOW + SECOND, **place)
        connection.execute(sa.update(message).values(suspect=True, batch_limit=3, attempt=5))

        (seen,) = waiting(connection)
        claimed = claim(connection)

    assert (message_id, True, 3, 5, NOW + SECOND) == (seen.id, seen.suspect, seen.batch_limit, seen.attempt, seen.expires_at)
    assert claimed is not None
    assert [(True, 3, 6)] == [(each.suspect, each.batch_limit, each.attempt) for each in claimed.messages]


def test_each_kind_of_message_leads_in_its_turn(database: Database) -> None:
    with database.begin() as connection:
        loose, ordered = put(connection), put(connection, ordering_key="pump")
        shared = put(connection, ordering_key="pump", ordered=False)

        leads = [
            [each.id for each in claiming.waiting(connection, "enos", Lane.NORMAL, RIGHT, 9, skip=False, lead=lead)[0]]
            for lead in range(4)
        ]

    turns = [[loose, ordered, shared], [ordered, shared, loose], [shared, loose, ordered]]
    assert [*turns, turns[0]] == leads
