"""Workers are killed, stopped and cut off from their database: nothing is lost, and every copy is explained."""

import hashlib
import os
import random
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import State
from outbox.policy import GONE_AFTER
from outbox.tables import attempt
from outbox.testing import Hold, Received, Receiver, Slow, SlowRead
from tests.factories import column, in_full, outcomes, states
from tests.postgres import Postgres
from tests.story.conftest import Place, eventually

#: For stories that need not wait for the default fifteen seconds.
SOON = 2.0
FAST = {"gone_after": SOON, "poll": 0.05}
#: Seconds that a machine which is busy with others may add.
BUSY = 5.0
#: More than the sockets between us and the receiver hold: a slow reader catches the upload in the middle.
BIG = 12_000_000


@pytest.mark.long
def test_the_upload_of_a_killed_worker_is_taken_over_in_time(place: Place) -> None:
    """In full with the timings that everybody gets: gone after 15 s."""
    gone_after = in_full(round(GONE_AFTER), 3)
    place.receiver.misbehave(SlowRead(1_000_000))
    place.enqueue(place.outbox(), "a", {"photo": os.urandom(BIG)})
    first = place.run("work", worker={"gone_after": gone_after})
    place.receiver.wait_for(lambda receiver: receiver.in_flight == 1, 20)
    second = place.run("work", worker={"gone_after": gone_after})
    second.until_logged("delivers to enos")

    first.kill()
    killed = time.monotonic()
    place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 1, 30)
    took = time.monotonic() - killed

    print(f"taken over and delivered {took:.1f} s after kill -9")
    assert took <= gone_after + BUSY
    eventually(lambda: states(place.database) == {"a": State.DELIVERED})
    assert [("unknown", None), ("delivered", None)] == outcomes(place.database, "a")
    place.check()


@pytest.mark.long
def test_a_lone_worker_that_is_killed_and_started_again_goes_on_in_time(place: Place) -> None:
    place.receiver.misbehave(Hold())
    place.enqueue(place.outbox(), "a", {"photo": b"bytes"})
    first = place.run("work", worker=FAST)
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 20)

    first.kill()
    place.receiver.release()
    second = place.run("work", worker=FAST)
    second.until_logged("delivers to enos")  # how long Python takes to start is no matter here
    started = time.monotonic()
    place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 1, 20)
    took = time.monotonic() - started

    assert took <= SOON + BUSY
    eventually(lambda: states(place.database) == {"a": State.DELIVERED})
    assert [("unknown", None), ("delivered", None)] == outcomes(place.database, "a")
    assert [True, True] == [request.stored for request in place.receiver.requests]
    place.check()


@pytest.mark.long
def test_a_worker_that_stood_still_for_too_long_changes_nothing(place: Place) -> None:
    place.receiver.misbehave(Hold())
    outbox = place.outbox()
    place.enqueue(outbox, "a", {"photo": b"bytes"})
    first = place.run("work", worker=FAST)
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 20)

    place.freeze(first)
    second = place.run("work", worker=FAST)
    place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 1, 20)
    eventually(lambda: states(place.database) == {"a": State.DELIVERED})
    delivered_at = column(place.database, "a", "finished_at")
    place.receiver.release()
    first.thaw()
    first.until_logged("kept as late")

    assert [("unknown", "delivered"), ("delivered", None)] == outcomes(place.database, "a")
    assert (State.DELIVERED, 2, delivered_at) == tuple(
        column(place.database, "a", name) for name in ("state", "attempt", "finished_at")
    )
    second.kill()
    place.enqueue(outbox, "b")
    place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 3, 20)
    eventually(lambda: column(place.database, "b", "state") == State.DELIVERED)
    assert "it goes on under a new name" in first.log
    place.check()


@pytest.mark.long
def test_a_worker_that_stood_still_and_woke_before_its_successor_knew_goes_on(place: Place) -> None:
    place.receiver.misbehave(Hold())
    place.enqueue(place.outbox(), "a")
    worker = place.run("work", worker=FAST)
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 20)

    place.freeze(worker)
    time.sleep(2 * SOON)  # nobody else is there to declare it gone
    worker.thaw()
    place.receiver.release()

    eventually(lambda: states(place.database) == {"a": State.DELIVERED})
    assert [("delivered", None)] == outcomes(place.database, "a")
    place.check()


@pytest.mark.parametrize("end", [pytest.param("restart", marks=pytest.mark.full), "kill"])
def test_an_outcome_survives_a_database_that_is_away(
    private_postgres: Postgres, private_place: Place, receiver: Receiver, end: str
) -> None:
    place = private_place
    outbox = place.outbox()
    place.enqueue(outbox, "a", {"photo": b"bytes"})
    receiver.misbehave(Hold())
    worker = place.run("work", worker=FAST)
    receiver.wait_for(lambda each: each.held == 1, 20)

    if end == "kill":
        private_postgres.kill()
    else:
        private_postgres.stop("fast")
    receiver.release()
    receiver.wait_for(lambda each: len(each.accepted) == 1)
    worker.until_logged("it goes on in")
    private_postgres.start_again()
    place.engine.dispose()
    place.database.close()
    eventually(lambda: states(place.database) == {"a": State.DELIVERED})
    place.enqueue(outbox, "b")
    eventually(lambda: states(place.database)["b"] == State.DELIVERED)

    assert [("delivered", None)] == outcomes(place.database, "a")
    assert 2 == len(receiver.requests)
    place.check()


def test_an_outcome_survives_a_lock_that_outlasts_all_patience(sqlite_place: Place, tmp_path: Path, receiver: Receiver) -> None:
    place = sqlite_place
    outbox = place.outbox()
    place.enqueue(outbox, "a", {"photo": b"bytes"})
    receiver.misbehave(Hold())
    worker = place.run("work", worker=FAST, busy_timeout=1)
    receiver.wait_for(lambda each: each.held == 1, 20)

    rival = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    receiver.release()
    receiver.wait_for(lambda each: len(each.accepted) == 1)
    worker.until_logged("database is locked; it goes on in")
    rival.execute("ROLLBACK")
    rival.close()
    eventually(lambda: states(place.database) == {"a": State.DELIVERED})
    place.enqueue(outbox, "b")
    eventually(lambda: states(place.database)["b"] == State.DELIVERED)

    assert [("delivered", None)] == outcomes(place.database, "a")
    place.check()


def test_a_claim_that_was_cut_off_from_its_database_is_not_stranded(
    private_postgres: Postgres, private_place: Place, receiver: Receiver
) -> None:
    """Every few messages the server drops all connections, so that claims and records fail at any point."""
    place = private_place
    outbox = place.outbox()
    for number in range(60):
        place.enqueue(outbox, f"m{number}", ordering_key="pump" if number % 3 == 0 else None)
    place.run("work", worker=FAST, policy={"batch_messages": 2})

    for wanted in in_full((5, 15, 25, 35), (5, 25)):
        receiver.wait_for(lambda each, wanted=wanted: len(each.accepted) >= wanted, 20)
        private_postgres.stop("immediate")
        private_postgres.start_again()

    eventually(lambda: set(states_of(place).values()) == {State.DELIVERED}, 40)
    place.check()


def states_of(place: Place) -> dict[str, str]:
    """The states, or none while the database has just come back."""
    try:
        return states(place.database)
    except sa.exc.OperationalError:
        return {}


@pytest.mark.long
def test_workers_are_killed_again_and_again(place: Place) -> None:
    dice = random.Random(7)
    story = {"worker": {"gone_after": 1.0, "poll": 0.05}, "policy": {"batch_messages": 3, "senders": 2, "max_unknown": 1000}}
    place.receiver.always(Slow(0.2))
    outbox = place.outbox()
    for number in range(in_full(240, 120)):
        files = {"photo": os.urandom(2000)} if number % 4 == 0 else {}
        place.enqueue(outbox, f"m{number:03}", files, ordering_key=f"s{number % 5}" if number % 3 == 0 else None)
    workers = [place.run("work", **story) for _ in range(2)]

    for _ in range(in_full(8, 4)):
        known = len(place.receiver.requests)
        place.receiver.wait_for(lambda receiver, known=known: len(receiver.requests) > known and receiver.in_flight > 0, 20)
        victim = dice.randrange(2)
        workers[victim].kill()
        workers[victim] = place.run("work", **story)
    place.receiver.never()
    eventually(lambda: set(states(place.database).values()) == {State.DELIVERED}, 60)

    requests = place.begun()
    with place.database.read() as connection:
        unknown = connection.execute(sa.select(sa.func.count()).where(attempt.c.outcome == "unknown")).scalar_one()
    copies = sum(len(each.structs) for each in requests if each.stored)
    print(f"{unknown} unknown attempts, {copies - 240} more copies than messages")
    assert unknown >= 4, "hardly a kill struck an upload"
    place.check()
    arrived = list(dict.fromkeys(key for request in requests if request.stored for key in keys_of(request)))
    for stream in range(5):
        mine = [key for key in arrived if int(key[1:]) % 3 == 0 and int(key[1:]) % 5 == stream]
        assert sorted(mine) == mine


def keys_of(request: Received) -> list[str]:
    return [struct["assetId"] for struct in request.structs]


@pytest.mark.long
def test_producers_are_killed_again_and_again(place: Place) -> None:
    """What a killed producer had been told is kept; of what it had not, nothing or all."""
    with place.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE host (id INTEGER PRIMARY KEY, done INTEGER NOT NULL)"))
        connection.execute(sa.text("INSERT INTO host VALUES (1, 0)"))
    told: set[str] = set()
    for number in range(4):
        producer = place.run("produce", name=f"p{number}", messages=1000, together=4, row=1)
        eventually(lambda producer=producer: len(producer.lines) >= 8)
        producer.kill()
        told |= set(producer.lines)

    there = states(place.database).keys()
    with place.database.read() as connection:
        done = connection.execute(sa.text("SELECT done FROM host")).scalar_one()

    assert set() == told - there
    assert len(there - told) <= 4 * 4
    assert len(there) == done, "a message without its caller's row, or a row without its message"
    place.acknowledged.update({key: {} for key in there})
    place.run("work", worker=FAST, until_idle=True).ended()
    place.check()


@pytest.mark.long
def test_a_file_that_reached_the_receiver_is_the_file_that_was_given(place: Place) -> None:
    photo = os.urandom(BIG)
    place.receiver.misbehave(SlowRead(1_000_000))
    place.enqueue(place.outbox(), "a", {"photo": photo})
    first = place.run("work", worker=FAST)
    place.receiver.wait_for(lambda receiver: receiver.in_flight == 1, 20)
    first.kill()

    place.run("work", worker=FAST, until_idle=True).ended()

    (accepted,) = place.receiver.accepted
    assert hashlib.sha256(photo).hexdigest() == accepted.files_by_path["events/crack/photo"].sha256
    assert [False, True] == [request.complete for request in place.begun()]
    place.check()
