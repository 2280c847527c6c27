"""An idle worker begins at once with what is committed, where it looks so seldom by itself that nothing else could wake it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, Selection, State, Worker, nudging
from outbox.ambient import utc_now
from outbox.database import Database
from outbox.dispatcher import Dispatcher, Took
from outbox.testing import Hold, Receiver
from tests.conftest import missing
from tests.factories import Clock, event, states
from tests.postgres import NoBinariesError, Postgres, create_database
from tests.story.conftest import Place, eventually

#: Seconds between two looks of a worker that hears nothing; one that hears looks sixty times less often.
NEVER = 600.0
#: More than what is done at once may take on a busy machine, and much less than that.
SOON = 10.0


@contextmanager
def idle(outbox: Outbox, **options: Any) -> Iterator[Worker]:
    """A worker that sleeps until it is woken."""
    with Worker(outbox, **({"poll": NEVER} | options)) as worker:
        eventually(lambda: worker._lookout.hears)
        # Who begins to listen takes one look, perhaps right after the first: what that finds no nudge has told of.
        eventually(lambda: has_looked(worker) and worker._lookout._looked[0] >= 1 and rests(worker))
        yield worker


def has_looked(worker: Worker) -> bool:
    """Whether a worker has begun, and sleeps."""
    return worker._lookout._looked[0] >= 0 and not any(loop.running for loop in worker._loops)


def rests(worker: Worker) -> bool:
    """Whether the next look is not due yet."""
    loop = worker._lookout.loop
    return not loop.running and loop.due > time.monotonic()


def came(place: Place, *keys: str) -> None:
    place.receiver.wait_for(lambda each: set(keys) <= {taken.struct["assetId"] for taken in each.accepted}, SOON)
    eventually(lambda: {states(place.database)[key] for key in keys} == {State.DELIVERED})


def looks_of(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with every look that a worker takes."""
    taken: list[None] = []
    look = worker._dispatcher.look_ahead

    def noted(*names: Any) -> Any:
        taken.append(None)
        return look(*names)

    monkeypatch.setattr(worker._dispatcher, "look_ahead", noted)
    return taken


def test_a_commit_wakes_an_idle_worker(place: Place) -> None:
    outbox = place.outbox()
    with idle(outbox) as worker:
        for key in ("a", "b"):
            place.enqueue(outbox, key)
            came(place, key)
            eventually(lambda: not any(loop.running for loop in worker._loops))
    place.check()


@pytest.mark.parametrize("lane", ["normal", "large"])
@pytest.mark.parametrize("ordering", [{}, {"ordering_key": "pump"}, {"ordering_key": "fan", "ordered": False}], ids=str)
def test_it_is_woken_for_every_lane_and_order(place: Place, lane: str, ordering: dict[str, Any]) -> None:
    outbox = place.outbox()
    with idle(outbox):
        place.enqueue(outbox, "a", lane=lane, **ordering)
        came(place, "a")
    place.check()


def test_a_commit_of_another_process_wakes_it(place: Place) -> None:
    with idle(place.outbox()):
        enqueuing = place.run("enqueue", key="a")
        enqueuing.until("enqueued")
        stdin = enqueuing._popen.stdin
        assert stdin is not None
        stdin.write(b"\n")
        stdin.flush()
        place.acknowledge("a", {"photo": b"bytes"})
        came(place, "a")
    place.check()


def test_what_is_rolled_back_wakes_nobody_for_long(place: Place) -> None:
    outbox = place.outbox()
    with idle(outbox):
        with place.engine.connect() as connection:
            outbox.enqueue(connection, "enos", event("never"), key="never")
            connection.rollback()
        place.enqueue(outbox, "a")
        came(place, "a")
    place.check()


def test_a_nudge_that_comes_while_every_sender_is_busy_is_not_lost(place: Place) -> None:
    outbox = place.outbox(Policy(senders=1, large_senders=1))
    place.receiver.misbehave(Hold())
    with idle(outbox):
        place.enqueue(outbox, "a")
        place.receiver.wait_for(lambda each: each.held == 1, SOON)
        place.enqueue(outbox, "b")
        place.receiver.release()
        came(place, "a", "b")
    place.check()


def test_of_a_backlog_every_sender_has_its_part_soon(place: Place) -> None:
    outbox = place.outbox(Policy(batch_messages=1, senders=4))
    place.receiver.misbehave(*(Hold() for _ in range(4)))
    with idle(outbox):
        with place.engine.begin() as connection:
            for number in range(8):
                outbox.enqueue(connection, "enos", event(f"m{number}"), key=f"m{number}")
        place.receiver.wait_for(lambda each: each.held == 4, SOON)
        place.receiver.release()
        came(place, *(f"m{number}" for number in range(8)))


def test_a_full_request_wakes_the_next_sender_before_it_is_answered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = place.outbox(Policy(batch_messages=2, senders=2))
    place.receiver.misbehave(Hold(), Hold())
    with idle(outbox) as worker:
        monkeypatch.setattr(worker._lookout.loop, "round", lambda: NEVER)  # no look wakes anybody
        with place.engine.begin() as connection:
            for number in range(4):
                outbox.enqueue(connection, "enos", event(f"m{number}"), key=f"m{number}")
        place.receiver.wait_for(lambda each: each.held == 2, SOON)
        place.receiver.release()
        came(place, *(f"m{number}" for number in range(4)))


def test_one_event_is_one_senders(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = place.outbox(Policy(senders=4))
    rounds: list[str] = []
    work = Dispatcher.work

    def noted(self: Dispatcher, *args: Any, **options: Any) -> Took:
        rounds.append(threading.current_thread().name)
        return work(self, *args, **options)

    with idle(outbox) as worker:
        monkeypatch.setattr(Dispatcher, "work", noted)
        place.enqueue(outbox, "a")
        came(place, "a")
        eventually(lambda: not any(loop.running for loop in worker._loops))
        woken = list(rounds)

    # Who delivers it finds, in the same transaction, that this was all; a look that falls between may wake one more, in vain.
    assert len(woken) in (1, 2)


def test_a_message_for_later_is_tried_in_time_without_asking_all_the_while(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = place.outbox()
    with idle(outbox) as worker:
        looks = looks_of(worker, monkeypatch)
        due_at = utc_now() + timedelta(seconds=1.5)
        place.enqueue(outbox, "a", due_at=due_at)
        came(place, "a")
        assert due_at <= utc_now()
        assert len(looks) <= 6
    place.check()


def test_a_failed_message_is_tried_again_in_time(place: Place) -> None:
    from outbox.testing import Status

    outbox = place.outbox(Policy(breaker_after=1, probe_first=0.3, probe_cap=0.3))
    place.receiver.misbehave(Status(503))
    # The sender that failed rests for as long as a poll; the others are woken when the breaker lets a probe pass.
    with idle(outbox, poll=30.0):
        place.enqueue(outbox, "a")
        came(place, "a")
    place.check()


def test_what_a_person_lets_go_on_goes_on_at_once(place: Place) -> None:
    outbox = place.outbox()
    with idle(outbox) as worker:
        outbox.pause("enos", "look first", "anna")
        place.enqueue(outbox, "a")
        eventually(lambda: not any(loop.running for loop in worker._loops))
        assert {"a": State.PENDING} == states(place.database)
        assert outbox.resume("enos", "anna")
        came(place, "a")
        eventually(lambda: states(place.database) == {"a": State.DELIVERED})
        assert 1 == outbox.replay(Selection(keys=("a",)), "anna")
        place.receiver.wait_for(lambda each: len(each.accepted) == 2, SOON)


def test_a_person_at_another_process_is_heard_too(place: Place) -> None:
    outbox, elsewhere = place.outbox(), place.outbox()
    with idle(outbox):
        elsewhere.pause("enos", "look first", "anna")
        place.enqueue(outbox, "a")
        elsewhere.resume("enos", "anna")
        came(place, "a")


def test_without_nudges_it_looks_by_itself(place: Place) -> None:
    outbox = place.outbox(nudge=False)
    with Worker(outbox, poll=0.05) as worker:
        eventually(lambda: not any(loop.running for loop in worker._loops))
        place.enqueue(outbox, "a")
        came(place, "a")
        assert not worker._lookout.hears
        assert not worker._lookout.listener.is_alive()
    place.check()


# Postgres


def listeners(engine: sa.Engine) -> list[int]:
    """The server's processes that listen to nudges."""
    with engine.connect() as connection:
        words = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        return list(connection.execute(sa.text(words)).scalars())


def heard_by(engine: sa.Engine) -> list[str]:
    """Every statement that notifies somebody, from now on."""
    heard: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "pg_notify" in statement:
            heard.append(statement)

    return heard


def test_a_transaction_notifies_once_and_again_after_what_a_savepoint_took_back(postgres_place: Place) -> None:
    place, outbox = postgres_place, postgres_place.outbox()
    heard = heard_by(place.engine)
    with place.engine.begin() as connection:
        for number in range(5):
            outbox.enqueue(connection, "enos", event(f"m{number}"), key=f"m{number}")
    once = len(heard)
    with idle(outbox):
        came(place, "m4")
        with place.engine.begin() as connection:
            with connection.begin_nested() as savepoint:
                outbox.enqueue(connection, "enos", event("never"), key="never")
                savepoint.rollback()
            outbox.enqueue(connection, "enos", event("a"), key="a")
        came(place, "a")

    assert (1, 3) == (once, len(heard))


@pytest.fixture
def two_phases() -> Iterator[Postgres]:
    try:
        server = Postgres(settings={"max_prepared_transactions": "5"})
    except NoBinariesError as error:
        missing(str(error))
    with server:
        yield server


@pytest.mark.parametrize("nudge", [True, False])
def test_a_commit_in_two_phases_needs_an_outbox_that_does_not_nudge(
    two_phases: Postgres, tmp_path: Path, receiver: Receiver, nudge: bool
) -> None:
    place = Place(create_database(two_phases.url), tmp_path, receiver, empty=True)
    outbox = place.outbox(nudge=nudge)
    with Worker(outbox, poll=0.05), place.engine.connect() as connection:
        outbox.enqueue(connection, "enos", event("a"), key="a")
        if nudge:
            with pytest.raises(sa.exc.DBAPIError, match="NOTIFY"):
                connection.exec_driver_sql("PREPARE TRANSACTION 'first phase'")
        else:
            connection.exec_driver_sql("PREPARE TRANSACTION 'first phase'")
            connection.rollback()
            assert {} == states(place.database)
            with place.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as second:
                second.exec_driver_sql("COMMIT PREPARED 'first phase'")
            place.acknowledge("a")
            came(place, "a")
    place.check()
    place.close()


def test_a_connection_that_is_lost_is_made_again_and_meanwhile_it_looks_by_itself(
    postgres_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, outbox = postgres_place, postgres_place.outbox()
    may, listen = threading.Event(), Database._listener

    def refused(self: Database, engine: sa.Engine) -> Any:
        if not may.is_set():
            raise sa.exc.OperationalError("LISTEN", None, Exception("the server is away"))
        return listen(self, engine)

    with idle(outbox, poll=1.5) as worker:
        monkeypatch.setattr(Database, "_listener", refused)
        (lost,) = listeners(place.engine)
        with place.engine.begin() as connection:
            connection.execute(sa.text("SELECT pg_terminate_backend(:lost)"), {"lost": lost})
        eventually(lambda: not worker._lookout.hears)
        place.enqueue(outbox, "in the gap")
        came(place, "in the gap")
        deaf = not worker._lookout.hears
        may.set()
        eventually(lambda: worker._lookout.hears)
        assert deaf
        assert 1 == len(listeners(place.engine))
    place.check()


def test_what_was_committed_before_it_listened_again_is_found(postgres_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place, outbox = postgres_place, postgres_place.outbox()
    may, listen = threading.Event(), Database._listener
    monkeypatch.setattr(Database, "_listener", lambda self, engine: may.wait(SOON) and listen(self, engine))
    with Worker(outbox, poll=NEVER) as worker:
        eventually(lambda: has_looked(worker))
        place.enqueue(outbox, "a")
        may.set()
        came(place, "a")
    place.check()


def test_after_a_message_that_no_nudge_has_told_of_it_looks_by_itself_for_a_while(
    postgres_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place, outbox, silent = postgres_place, postgres_place.outbox(), postgres_place.outbox(nudge=False)
    with caplog.at_level(logging.DEBUG, "outbox.lookout"), idle(outbox, poll=0.02) as worker:
        place.enqueue(silent, "a")
        came(place, "a")
        eventually(lambda: not worker._lookout.hears)
        place.enqueue(silent, "b")
        came(place, "b")
    assert "no nudge has told of" in caplog.text
    place.check()


def test_a_callers_engine_is_listened_on_too_and_keeps_its_pool(postgres_place: Place) -> None:
    place = postgres_place
    engine = sa.create_engine(place.url, pool_size=2, max_overflow=0)
    outbox = Outbox(engine, spool=place.spool, destinations=place.outbox().destinations.values(), durability="ignore")
    with idle(outbox):
        pool: Any = engine.pool
        assert pool.checkedout() == 0
        place.enqueue(outbox, "a")
        came(place, "a")
        eventually(lambda: states(place.database) == {"a": State.DELIVERED})
    assert [] == listeners(place.engine)
    engine.dispose()


# What it costs, and what is left of it


def statements_of(database: Database) -> list[str]:
    """What a database is asked from now on, but for the bounds of transactions."""
    heard: list[str] = []
    for engine in {database.engine, database._reader}:
        assert engine is not None

        @sa.event.listens_for(engine, "before_cursor_execute")
        def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if not statement.startswith(("BEGIN", "SELECT set_config")):
                heard.append(" ".join(statement.split()[:2]))

    return heard


def test_an_idle_minute_is_twelve_beats_and_one_look_around(place: Place) -> None:
    clock = Clock()
    worker = Worker(place.outbox(clock=clock))
    worker._arrive()
    for step in worker._steps():
        worker._attempt(step)
    asked = statements_of(worker.outbox.database)

    for _ in range(120):
        clock.move(0.5)
        for step in worker._steps():
            worker._attempt(step)

    assert {"UPDATE outbox_worker": 12, "SELECT outbox_worker.id,": 1} == Counter(asked)
    worker._presence.leave()


def test_a_look_at_any_number_of_destinations_is_one_statement(place: Place) -> None:
    worker = Worker(place.outbox())
    worker._arrive()
    asked = statements_of(worker.outbox.database)

    again = worker._lookout._look()

    assert ["SELECT outbox_destination.name,"] == asked
    assert worker._lookout._poll == again
    worker._presence.leave()


def test_housekeeping_rests_while_there_is_no_news(place: Place) -> None:
    outbox = place.outbox()
    with idle(outbox) as worker:
        chores = [
            loop for loop in worker._loops if loop.name in ("strays", "free", "transactions", "expire", "room", "checkpoint")
        ]
        for loop in chores:
            loop.round()
        asked = statements_of(outbox.database)
        for loop in chores:
            loop.round()
        at_rest = [each for each in asked if "outbox_worker" not in each]
        worker._lookout.news += 1
        for loop in chores:
            loop.round()
        with_news = [each for each in asked if "outbox_worker" not in each]

    assert [] == at_rest
    assert len(with_news) >= 2


def test_nothing_is_left_of_a_worker_that_has_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = place.outbox()
    made: list[nudging.Nudges] = []
    nudges = Database.nudges

    def noted(self: Database) -> nudging.Nudges | None:
        found = nudges(self)
        made.extend([found] if found else [])
        return found

    monkeypatch.setattr(Database, "nudges", noted)
    before = threading.active_count()
    open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (only how many)
    for _ in range(3):
        with idle(outbox) as worker:
            pass
        assert not worker._lookout.listener.is_alive()
    outbox.close()

    assert 3 == len(made)
    assert {} == nudging._listening
    eventually(lambda: threading.active_count() <= before)
    assert len(os.listdir("/proc/self/fd")) <= open_before  # noqa: PTH208
    if outbox.database.kind == "postgresql":
        eventually(lambda: listeners(place.engine) == [])


def test_in_a_forked_child_nobody_listens(sqlite_place: Place) -> None:
    """The threads that do are the parent's; what the child commits they see in the database, as what any other process does."""
    with idle(sqlite_place.outbox()):
        child = os.fork()
        if child == 0:
            os._exit(len(nudging._listening) + nudging._lock.locked())
        _, status = os.waitpid(child, 0)
        assert 1 == len(nudging._listening)
    assert 0 == os.waitstatus_to_exitcode(status)


def test_a_commit_costs_a_callers_engine_nothing_where_nobody_listens(place: Place) -> None:
    outbox = place.outbox()
    place.enqueue(outbox, "a")

    assert not [each for each in place.engine.dispatch.commit if each is nudging._committing]
