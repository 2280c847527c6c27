"""Pause of an ordering key: what a claim, a record and a producer make of it, whoever holds what at the time."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Lane, Policy, State
from outbox.database import Database
from outbox.model import Outcome, Pause
from outbox.store import acting, causes, claiming, looking, pausing, shares, streams
from outbox.tables import head, share, stream
from outbox.timekeeping import When
from tests.factories import NOW, Claimed, claim, dead, put, record, row_of, settlement, waiting

Reopen = Callable[[], Database]
RIGHT = When.certain(NOW)
LATER = NOW + timedelta(minutes=1)
PAUSE = Pause("pump", NOW, "ann", "the wrong model")
both = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])


def add(connection: sa.Connection, key: str, number: int = 1, *, ordered: bool, **changes: Any) -> list[int]:
    return [put(connection, ordering_key=key, ordered=ordered, **changes) for _ in range(number)]


def pause(connection: sa.Connection, key: str) -> None:
    pausing.write(connection, "enos", replace(PAUSE, ordering_key=key))


def resume(connection: sa.Connection, key: str) -> bool:
    lifted = pausing.lift(connection, "enos", key)
    return streams.forgive(connection, "enos", key, RIGHT) or lifted


def ids(connection: sa.Connection, lane: Lane = Lane.NORMAL) -> list[int]:
    return [each.id for each in waiting(connection, lane)]


def claimed_all(connection: sa.Connection, worker: str = "w1", lane: Lane = Lane.NORMAL) -> Claimed:
    claimed = claim(connection, worker, lane)
    assert claimed is not None
    return claimed


def anything_due(connection: sa.Connection) -> bool:
    return claiming.anything_due(connection, "enos", list(Lane), RIGHT)


@contextmanager
def impatient(database: Database) -> Iterator[sa.Connection]:
    """A transaction that fails where it would have to wait."""
    with database.begin() as connection:
        connection.execute(sa.text("SET LOCAL lock_timeout = '200ms'"))
        yield connection


# Claims.


@both
def test_what_is_paused_is_not_claimed_and_everything_else_is(database: Database, ordered: bool) -> None:
    with database.begin() as connection:
        pump, fan = add(connection, "pump", 2, ordered=ordered), add(connection, "fan", ordered=ordered)
        loose = put(connection)

        pause(connection, "pump")

        assert {*fan, loose} == set(claimed_all(connection).ids)
        assert [] == ids(connection)
        assert not anything_due(connection)
        assert resume(connection, "pump")
        assert anything_due(connection)
        assert pump[: 1 if ordered else 2] == ids(connection)


def test_a_key_of_both_kinds_is_paused_whole(database: Database) -> None:
    with database.begin() as connection:
        first, second = (add(connection, "pump", ordered=ordered)[0] for ordered in (True, False))
        pause(connection, "pump")
        assert [] == ids(connection)

        resume(connection, "pump")

        assert {first, second} == set(ids(connection))


@both
def test_another_destinations_key_of_the_same_name_goes_on(database: Database, ordered: bool) -> None:
    with database.begin() as connection:
        add(connection, "pump", ordered=ordered, destination="elsewhere")
        pause(connection, "pump")

        assert claiming.anything_due(connection, "elsewhere", list(Lane), RIGHT)
        assert claiming.waiting(connection, "elsewhere", Lane.NORMAL, RIGHT, 10, skip=False)[0]


@both
@pytest.mark.parametrize("lane", list(Lane))
def test_a_key_that_was_never_seen_is_paused_ahead_in_every_lane(database: Database, ordered: bool, lane: Lane) -> None:
    with database.begin() as connection:
        pause(connection, "pump")

        (late,) = add(connection, "pump", ordered=ordered, lane=lane)

        assert not anything_due(connection)
        assert [] == ids(connection, lane)
        resume(connection, "pump")
        assert [late] == ids(connection, lane)


def test_pausing_again_gives_it_new_words(database: Database) -> None:
    again = Pause("pump", LATER, "bob", "still wrong")
    with database.begin() as connection:
        pause(connection, "pump")

        pausing.write(connection, "enos", again)

        assert [again] == pausing.of_destination(connection, "enos", 10)
        assert again == pausing.of_key(connection, "enos", "pump")
        assert {"enos": 1} == pausing.counted(connection)


def test_what_is_paused_is_not_told_when_something_is_due(database: Database) -> None:
    with database.begin() as connection:
        for ordered in (True, False):
            add(connection, "pump", ordered=ordered, due_at=LATER)
        pause(connection, "pump")

        facts = causes.destination_facts(connection, "enos", Policy(), RIGHT, declared=True)

        assert (False, None, 1) == (facts.due, facts.next_due, facts.paused_keys)
        assert not looking.anything_left(connection, ["enos"], LATER)


# What is in hand, and everything that writes where a stream or a share stands.


@both
@pytest.mark.parametrize(
    "became",
    [settlement(), settlement(State.PENDING, Outcome.RETRY, due_at=NOW, failures=1), dead()],
    ids=["delivered", "retried", "dead"],
)
def test_what_is_in_hand_is_finished_and_the_rest_stays_paused(database: Database, ordered: bool, became: Any) -> None:
    with database.begin() as connection:
        first, _ = add(connection, "pump", 2, ordered=ordered)
        claimed = claim(connection, limit=1)
        assert claimed is not None
        pause(connection, "pump")

        assert {first} == record(connection, claimed.delivery, "w1", {first: became})

        assert became.state == row_of(connection, first).state
        assert [] == ids(connection)
        assert [PAUSE] == pausing.of_destination(connection, "enos", 10)
        assert resume(connection, "pump")
        assert ids(connection)


@both
def test_whoever_tidies_up_leaves_the_pause_alone(database: Database, ordered: bool) -> None:
    with database.begin() as connection:
        pause(connection, "pump")
        add(connection, "pump", ordered=ordered)
        of_streams = list(connection.execute(sa.select(stream.c.id)).scalars())
        connection.execute(sa.update(head).values(claimed_by="a worker that is gone"))

        streams.release(connection, streams.idle(connection, "enos"), RIGHT, skip=False)
        streams.release(connection, of_streams, RIGHT, skip=True)
        for _ in range(3):
            shares.release(connection, shares.strayed(connection, "enos"), RIGHT)

        assert [] == shares.strayed(connection, "enos"), "it is not looked at for ever"
        assert [] == streams.idle(connection, "enos")
        assert [PAUSE] == pausing.of_destination(connection, "enos", 10)
        assert [] == ids(connection)


# Resume.


def test_an_order_that_was_paused_is_kept(database: Database) -> None:
    arrived = []
    with database.begin() as connection:
        before = add(connection, "pump", 2, ordered=True)
        pause(connection, "pump")
        after = add(connection, "pump", 2, ordered=True)
        resume(connection, "pump")
        for _ in range(4):
            claimed = claimed_all(connection)
            arrived += claimed.ids
            record(connection, claimed.delivery, "w1", claimed.settled())

    assert before + after == arrived


def test_resuming_what_is_not_paused_changes_nothing(database: Database) -> None:
    with database.begin() as connection:
        add(connection, "pump", ordered=True)
        add(connection, "fan", ordered=False)

        assert [False] * 3 == [resume(connection, each) for each in ("pump", "fan", "nobody")]
        assert 2 == len(ids(connection))


def test_a_death_while_it_was_paused_is_forgiven_with_the_pause(database: Database) -> None:
    with database.begin() as connection:
        first, second = add(connection, "pump", 2, ordered=True)
        claimed = claimed_all(connection)
        pause(connection, "pump")
        record(connection, claimed.delivery, "w1", {first: dead()})

        assert resume(connection, "pump")

        assert connection.execute(sa.select(head.c.blocked_by)).scalar_one() is None
        assert [second] == ids(connection)


# Replay.


def finished(connection: sa.Connection, **options: Any) -> int:
    """The id of a message that was delivered."""
    (number,) = add(connection, "pump", **options)
    claimed = claimed_all(connection, lane=options.get("lane", Lane.NORMAL))
    record(connection, claimed.delivery, "w1", claimed.settled())
    return number


def replay(connection: sa.Connection, number: int) -> None:
    of_share = row_of(connection, number).share_id
    if missing := shares.missing_for_replay(connection, [of_share]):
        shares.make(connection, missing)
    assert [number] == acting.replay(connection, [number], NOW, [], [] if of_share is None else [of_share])


@both
@pytest.mark.parametrize("lane", [Lane.NORMAL, Lane.LARGE])
def test_a_replayed_message_of_a_paused_key_waits_until_that_is_resumed(database: Database, ordered: bool, lane: Lane) -> None:
    again = Lane.BULK if lane is Lane.NORMAL else lane
    with database.begin() as connection:
        number = finished(connection, ordered=ordered, lane=lane)
        pause(connection, "pump")

        replay(connection, number)
        of_streams = list(connection.execute(sa.select(stream.c.id)).scalars())
        streams.release(connection, of_streams, RIGHT, skip=False)
        shares.release(connection, shares.strayed(connection, "enos"), RIGHT)

        assert (State.PENDING, again) == (row_of(connection, number).state, row_of(connection, number).lane)
        assert not anything_due(connection)
        assert [] == ids(connection, again)
        resume(connection, "pump")
        assert [number] == ids(connection, again)


# Costs.


def heard(database: Database, act: Callable[[sa.Connection], object]) -> list[tuple[str, Any]]:
    """The statements that an act makes, with their parameters; it is undone."""
    found: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        found.append((statement, parameters))

    with database.engine.connect() as connection:
        sa.event.listen(database.engine, "before_cursor_execute", hear)
        act(connection)
        sa.event.remove(database.engine, "before_cursor_execute", hear)
        connection.rollback()
    return found


def test_a_claim_makes_no_more_statements_for_the_keys_that_are_paused(database: Database) -> None:
    with database.begin() as connection:
        for ordered in (True, False):
            for key in ("pump", "fan", "valve"):
                add(connection, key, 3, ordered=ordered)
    without = heard(database, claim)
    with database.begin() as connection:
        for key in ("pump", "fan", "nobody"):
            pause(connection, key)

    assert len(without) == len(heard(database, claim))


def test_a_claim_reads_the_places_that_are_due_from_their_index_whatever_is_paused(
    database: Database,
) -> None:
    many = range(1, 3001)
    with database.begin() as connection:
        streams_ = [{"id": n, "destination": "enos", "ordering_key": f"k{n}", "last_number": 1} for n in many]
        connection.execute(sa.insert(stream), streams_)
        connection.execute(
            sa.insert(head), [{"stream_id": n, "destination": "enos", "lane": "normal", "due_at": NOW} for n in many]
        )
        shares_ = [{"destination": "enos", "ordering_key": f"k{n}", "lane": "normal", "due_at": NOW} for n in many]
        connection.execute(sa.insert(share), shares_)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")

    how = "EXPLAIN QUERY PLAN " if database.kind == "sqlite" else "EXPLAIN "
    asked = [each for each in heard(database, waiting) if re.search(r"ORDER BY \w+\.served", each[0])]
    with database.read() as connection:
        if database.kind == "postgresql":
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))  # all of them are due here
        plans = [[str(row[-1]) for row in connection.exec_driver_sql(how + each, given)] for each, given in asked]

    for index, plan in zip(("ix_outbox_head_due", "ix_outbox_share_due"), plans, strict=True):
        assert any(index in line for line in plan), plan
    lines = [line for plan in plans for line in plan]
    assert not [line for line in lines if re.search("SCAN outbox_(head|share|stream)|Seq Scan", line)], lines
    every_one = r"SEARCH outbox_(share|stream)\b.*\(destination=\?\)"
    assert not [line for line in lines if re.search(every_one, line)], lines


# A producer has a row in its hands.


@both
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_a_producer_at_work_on_a_key_keeps_nobody_from_pausing_it(
    postgres_database: Database, reopen_postgres: Reopen, ordered: bool, isolation: Any
) -> None:
    with postgres_database.begin() as connection:
        finished(connection, ordered=ordered)
    producer = reopen_postgres().engine.connect().execution_options(isolation_level=isolation)
    (late,) = add(producer, "pump", ordered=ordered)

    with impatient(postgres_database) as connection:
        pause(connection, "pump")
    producer.commit()
    producer.close()

    with postgres_database.begin() as connection:
        assert [] == ids(connection), "what was committed since waits, too"
        assert resume(connection, "pump")
        assert [late] == ids(connection)


@both
def test_a_claim_that_began_before_a_pause_is_finished(
    postgres_database: Database, reopen_postgres: Reopen, ordered: bool
) -> None:
    with postgres_database.begin() as connection:
        first, second = add(connection, "pump", 2, ordered=ordered)
    claiming_ = reopen_postgres().engine.connect()
    claimed = claim(claiming_, limit=1)
    assert claimed is not None
    paused = threading.Thread(target=lambda: _pause_in(reopen_postgres()))
    paused.start()
    claiming_.commit()
    claiming_.close()
    paused.join(20)

    with postgres_database.begin() as connection:
        assert [first] == claimed.ids
        assert [] == ids(connection)
        record(connection, claimed.delivery, "w1", claimed.settled())
        assert State.DELIVERED == row_of(connection, first).state
        assert [] == ids(connection)
        resume(connection, "pump")
        assert [second] == ids(connection)


def _pause_in(database: Database) -> None:
    with database.begin() as connection:
        pause(connection, "pump")
