"""What is over goes in time, with what belongs to it; the room comes back; and nothing that is still needed is touched."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import sqlalchemy as sa

import outbox.care
import outbox.database
from outbox import DatabaseDamaged, Outbox, OutOfRoom, Policy, Retention, State, Worker
from outbox.database import Database
from outbox.model import Outcome, Selection
from outbox.policy import ATTEMPTS_KEPT, HANDFUL
from outbox.store import living
from outbox.tables import attempt, delivery, file, message, worker
from outbox.testing import Status
from tests import warm
from tests.factories import NOW, add_row, count, deliveries, event, message_values, outcomes, states
from tests.story.conftest import Hand, Place, eventually

pytestmark = pytest.mark.long
DELIVERED, DEAD, PENDING, CANCELLED = State.DELIVERED, State.DEAD, State.PENDING, State.CANCELLED
DAY, WEEK = timedelta(days=1), timedelta(days=7)


@pytest.fixture
def outbox_here(place: Place) -> Outbox:
    return place.outbox(clock=place.clock)


@pytest.fixture
def hand(place: Place, outbox_here: Outbox) -> Hand:
    return place.hand(outbox_here)


def tidy(outbox_: Outbox) -> None:
    """As the worker's loop does, until nothing is left to do now."""
    for _ in range(1000):
        if outbox_.care.tidy() is None:
            return
    raise AssertionError("it never comes to an end")


def some_rows(place: Place, number: int, state: State, **changes: Any) -> None:
    """Messages that came, and ended, so long ago as `changes` say."""
    with place.database.begin() as connection:
        rows = [message_values(state, key=f"{state}-{each}", **changes) for each in range(number)]
        connection.execute(sa.insert(message), rows)


# What goes, and when


@pytest.mark.parametrize(("state", "days"), [(DELIVERED, 7), (CANCELLED, 7), (DEAD, 90)])
def test_what_is_over_goes_when_its_time_has_come(place: Place, outbox_here: Outbox, state: State, days: int) -> None:
    some_rows(place, HANDFUL + 3, state)

    place.clock.move(days=days, seconds=-1)
    tidy(outbox_here)
    before = count(place.database, message)
    place.clock.move(seconds=1)
    tidy(outbox_here)

    assert (HANDFUL + 3, 0) == (before, count(place.database, message))


@pytest.mark.parametrize("state", [DELIVERED, CANCELLED, DEAD])
def test_what_is_kept_for_ever_stays(place: Place, state: State) -> None:
    outbox_ = place.outbox(clock=place.clock, retention=Retention(delivered=None, cancelled=None, dead=None))
    some_rows(place, 3, state)

    place.clock.move(days=10_000)
    tidy(outbox_)

    assert 3 == count(place.database, message)


@pytest.mark.parametrize("state", [PENDING, State.CLAIMED])
def test_what_is_not_over_is_never_purged(place: Place, outbox_here: Outbox, state: State) -> None:
    some_rows(place, 3, state)

    place.clock.move(days=10_000)
    tidy(outbox_here)

    assert 3 == count(place.database, message)


def test_the_files_of_a_dead_message_go_with_it(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.receiver.refuse(lambda struct: True)
    place.enqueue(outbox_here, "a", {"photo": b"bytes"})
    hand.turn_while_it_moves()
    assert {"a": DEAD} == states(place.database)

    place.clock.move(days=89)
    tidy(outbox_here)
    kept = (outbox_here.free_files(), len(place.spooled()))
    place.clock.move(days=1)
    tidy(outbox_here)
    outbox_here.free_files()

    assert (0, 1) == kept
    assert [] == place.spooled()
    assert [0, 0, 0] == [count(place.database, each) for each in (message, attempt, file)]


def test_a_key_is_remembered_as_long_as_its_message(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a")
    hand.turn()
    with place.engine.begin() as connection:
        assert not outbox_here.enqueue(connection, "enos", event("a"), key="a").new

    place.clock.move(days=7)
    tidy(outbox_here)

    with place.engine.begin() as connection:
        assert outbox_here.enqueue(connection, "enos", event("a"), key="a").new


def test_a_dead_message_keeps_its_attempts(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    place.receiver.refuse(lambda struct: struct["assetId"] == "bad")
    place.enqueue(outbox_here, "bad")
    place.enqueue(outbox_here, "good")
    hand.turn_while_it_moves()

    place.clock.move(days=60)
    tidy(outbox_here)

    assert {"bad": DEAD} == states(place.database)
    tried = [outcome for outcome, _ in outcomes(place.database, "bad")]
    assert ["reject", "reject"] == tried
    del place.acknowledged["good"]
    assert 2 == len([each for each in deliveries(place.database) if each.outcome == "reject"]), "and what was answered"


# What stays although it is old


def blocked_stream(place: Place, outbox_: Outbox, hand: Hand) -> set[str]:
    """The first of two is dead; returns what is refused."""
    bad = {"first"}
    place.receiver.refuse(lambda struct: struct["assetId"] in bad)
    for key in ("first", "second"):
        place.enqueue(outbox_, key, ordering_key="pump")
    hand.turn_while_it_moves()
    assert {"first": DEAD, "second": PENDING} == states(place.database)
    return bad


def test_a_dead_message_that_holds_up_its_ordering_key_stays_until_a_person_acts(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    blocked_stream(place, outbox_here, hand)

    place.clock.move(days=1000)
    tidy(outbox_here)
    before = states(place.database)
    outbox_here.resume("enos", "ada", ordering_key="pump")
    hand.turn_while_it_moves()
    place.clock.move(days=2)
    tidy(outbox_here)

    assert {"first": DEAD, "second": PENDING} == before
    assert {"second": DELIVERED} == states(place.database)


def test_one_that_will_hold_it_up_stays_too(place: Place, hand: Hand, outbox_here: Outbox) -> None:
    bad = blocked_stream(place, outbox_here, hand)
    place.enqueue(outbox_here, "third", ordering_key="pump", expires_at=place.clock.wall + DAY)
    place.clock.move(days=1)
    hand.dispatcher.expire()
    bad.clear()
    outbox_here.replay(Selection(keys=("first",)), "ada")
    assert {"first": PENDING, "second": PENDING, "third": DEAD} == states(place.database)

    place.clock.move(days=1000)
    tidy(outbox_here)
    hand.turn("bulk")
    hand.turn_while_it_moves()

    assert {"first": DELIVERED, "second": DELIVERED, "third": DEAD} == states(place.database)


def test_where_a_stream_goes_on_after_a_death_the_dead_hold_up_nothing(place: Place) -> None:
    outbox_ = place.outbox(Policy(on_dead="skip"), clock=place.clock)
    hand = place.hand(outbox_)
    place.receiver.refuse(lambda struct: struct["assetId"] == "first")
    place.enqueue(outbox_, "first", ordering_key="pump")
    hand.turn_while_it_moves()

    place.clock.move(days=90)
    tidy(outbox_)

    assert {} == states(place.database)


def test_the_last_upload_that_arrived_is_kept_so_that_failures_still_tell_whose_they_are(
    place: Place, hand: Hand, outbox_here: Outbox
) -> None:
    place.enqueue(outbox_here, "a")
    place.receiver.always(Status(503))
    hand.turn()
    place.receiver.never()
    place.enqueue(outbox_here, "later", due_at=place.clock.wall)
    hand.turn_while_it_moves()
    place.clock.move(days=400)
    for key in ("b", "c"):
        place.enqueue(outbox_here, key)
        hand.turn_while_it_moves()

    place.clock.move(days=400)
    tidy(outbox_here)

    assert [("delivered", 1)] == [(each.outcome, each.messages) for each in deliveries(place.database)]
    assert max(each.id for each in deliveries(place.database)) == 4


def test_uploads_that_are_under_way_stay(place: Place, outbox_here: Outbox) -> None:
    values = {"destination": "enos", "lane": "normal", "worker": "w", "messages": 1, "bytes": 1, "probe": False}
    ended = {"outcome": Outcome.RETRY, "finished_at": NOW, "started_at": NOW}
    with place.database.begin() as connection:
        connection.execute(sa.insert(delivery).values(values | {"started_at": NOW}))
        connection.execute(sa.insert(delivery), [values | ended for _ in range(HANDFUL)])

    place.clock.move(days=1000)
    tidy(outbox_here)

    assert [None] == [each.outcome for each in deliveries(place.database)]


def test_of_a_message_that_is_tried_for_ever_the_last_attempts_are_kept(place: Place, outbox_here: Outbox) -> None:
    with place.database.begin() as connection:
        tired = add_row(connection, PENDING, attempt=ATTEMPTS_KEPT + 500)
        tries = [{"message_id": tired, "number": number, "delivery_id": number} for number in range(1, ATTEMPTS_KEPT + 501)]
        connection.execute(sa.insert(attempt), [each | {"finished_at": NOW, "outcome": "retry"} for each in tries])

    place.clock.move(days=8)
    tidy(outbox_here)

    with place.database.read() as connection:
        found = connection.execute(sa.select(sa.func.count(), sa.func.min(attempt.c.number), sa.func.max(attempt.c.number)))
        assert (ATTEMPTS_KEPT, 501, ATTEMPTS_KEPT + 500) == tuple(found.one())


def test_workers_that_are_long_gone_and_hold_nothing_are_forgotten(place: Place, outbox_here: Outbox) -> None:
    with place.database.begin() as connection:
        for name in ("gone", "holds", "alive", "just-gone"):
            at = NOW + 6 * DAY if name == "just-gone" else NOW
            living.register(connection, name, "host", 1, at)
            if name != "alive":
                living.leave(connection, name)
        add_row(connection, State.CLAIMED, claimed_by="holds")

    place.clock.move(days=8)
    tidy(outbox_here)

    with place.database.read() as connection:
        assert {"holds", "alive", "just-gone"} == set(connection.execute(sa.select(worker.c.id)).scalars())


# Clocks


def test_a_clock_that_jumps_ahead_purges_nothing(place: Place, outbox_here: Outbox) -> None:
    some_rows(place, 3, DELIVERED)
    tidy(outbox_here)

    place.clock.wall += 365 * DAY
    tidy(outbox_here)

    assert 3 == count(place.database, message)


@pytest.mark.parametrize("years", [-50, 5])
def test_the_time_of_what_ended_by_a_wrong_clock_counts_from_now(place: Place, outbox_here: Outbox, years: int) -> None:
    some_rows(place, 1, DEAD, finished_at=NOW + years * 365 * DAY, created_at=NOW - 100 * DAY)

    tidy(outbox_here)
    place.clock.move(days=89)
    tidy(outbox_here)
    before = count(place.database, message)
    place.clock.move(days=2)
    tidy(outbox_here)

    assert (1, 0) == (before, count(place.database, message))


# What it costs


def test_an_idle_look_writes_nothing(place: Place, outbox_here: Outbox, statements: Callable[[sa.Engine], list[str]]) -> None:
    some_rows(place, 2 * HANDFUL, DEAD)
    place.clock.move(days=8)
    tidy(outbox_here)
    heard = statements(outbox_here.database.engine)

    place.clock.move(seconds=60)
    tidy(outbox_here)

    assert [] == [each for each in heard if not each.lstrip().upper().startswith("SELECT")]


def test_what_is_kept_is_not_walked_again(sqlite_place: Place, statements: Callable[[sa.Engine], list[str]]) -> None:
    outbox_ = sqlite_place.outbox(clock=sqlite_place.clock)
    some_rows(sqlite_place, 6 * HANDFUL, DEAD)
    sqlite_place.clock.move(days=8)
    tidy(outbox_)
    reader = outbox_.database._reader
    assert reader is not None
    heard = statements(reader)

    for _ in range(60):
        sqlite_place.clock.move(seconds=60)
        tidy(outbox_)

    assert len(heard) < 10, "one look for workers an hour, and not one for messages"


@pytest.mark.slow
def test_a_day_of_churn_leaves_the_size_flat(place: Place) -> None:
    keep = Retention(delivered=timedelta(hours=6), cancelled=timedelta(hours=6), dead=timedelta(hours=6))
    outbox_ = place.outbox(clock=place.clock, retention=keep)
    hand = place.hand(outbox_)
    hand.dispatcher.free_after = keep.free_after
    sizes = []
    for hour in range(24):
        with place.engine.begin() as connection:
            for number in range(40):
                files = {"photo": b"x" * 2000} if number % 10 == 0 else {}
                key = f"{hour}-{number}"
                outbox_.enqueue(connection, "enos", event(key, *files, text="x" * 3000), files=files, key=key)
        hand.turn_while_it_moves()
        place.clock.move(hours=1)
        tidy(outbox_)
        outbox_.free_files()
        pages = outbox_.database.pages()
        rows = sum(count(place.database, table) for table in (message, attempt, delivery, file))
        sizes.append((rows, pages.used if pages else 0, len(place.spooled())))

    assert sizes[8][0] == sizes[23][0]
    assert sizes[23][1] <= 1.05 * sizes[8][1], "and on SQLite the file does not grow either"
    assert [0, 0] == [sizes[hour][2] for hour in (8, 23)], "bytes are kept for an hour"


def test_a_running_worker_tidies_up(place: Place) -> None:
    nothing = timedelta(0)
    outbox_ = place.outbox(retention=Retention(delivered=nothing, free_after=nothing))
    some_rows(place, HANDFUL * 2, DELIVERED)
    place.enqueue(outbox_, "a", {"photo": b"bytes"})
    place.purged.add("a")  # it may be, before the worker ends

    with Worker(outbox_, poll=0.05):
        eventually(lambda: states(place.database) in ({}, {"a": DELIVERED}))

    assert count(place.database, message) <= 1


# Room that comes back


def fill_and_purge(place: Place, outbox_: Outbox) -> int:
    """A database of some 20 MB of which hardly anything is left; its size before."""
    with place.database.begin() as connection:
        connection.execute(
            sa.insert(message), [message_values(DELIVERED, payload="x" * 20_000, key=str(each)) for each in range(1000)]
        )
    place.database.checkpoint()
    size = Path(str(place.database.path)).stat().st_size
    place.clock.move(days=8)
    tidy(outbox_)
    return size


def test_a_purge_gives_the_room_back_to_the_disk(sqlite_place: Place) -> None:
    outbox_ = sqlite_place.outbox(clock=sqlite_place.clock)
    before = fill_and_purge(sqlite_place, outbox_)

    steps = 0
    while outbox_.care.keep_room() is not None:
        steps += 1
        assert steps < 1000
    outbox_.database.checkpoint()

    assert before > 20_000_000
    assert Path(str(sqlite_place.database.path)).stat().st_size < 6_000_000, "a little is kept, to grow into"
    assert steps > 5, "in small steps: others write in between"


def test_a_wal_that_somebody_read_all_the_time_is_emptied(sqlite_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox.database, "_WAL_KEPT", 1_000_000)
    wal = sqlite_place.folder / "outbox.db-wal"
    with sqlite3.connect(sqlite_place.folder / "outbox.db", isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM outbox_message").fetchall()
        some_rows(sqlite_place, 100, DEAD, payload="x" * 20_000)
        sqlite_place.database.checkpoint()
        held = wal.stat().st_size
        reader.execute("COMMIT")
    reader.close()

    sqlite_place.database.checkpoint()

    assert (True, 0) == (held > 2_000_000, wal.stat().st_size)


def test_a_transaction_that_stays_open_is_warned_of_once(
    postgres_place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox.care, "LONG_TRANSACTION", 0.0)
    outbox_ = postgres_place.outbox()
    engine = sa.create_engine(postgres_place.url, connect_args={"application_name": "a-forgotten-report"})
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TEMP TABLE scratch (id int)"))
        with caplog.at_level(logging.INFO, "outbox.care"):
            for _ in range(3):
                outbox_.care.look_for_old_transactions()
        assert outbox_.database.oldest_transaction() is not None
    with caplog.at_level(logging.INFO, "outbox.care"):
        outbox_.care.look_for_old_transactions()
    engine.dispose()

    said = [record.getMessage() for record in caplog.records if record.name == "outbox.care"]
    assert 2 == len(said)
    assert "a-forgotten-report" in said[0]
    assert "has been open for" in said[0]
    assert said[1].endswith("is over")


def test_sqlite_has_no_such_transactions(sqlite_place: Place) -> None:
    assert sqlite_place.database.oldest_transaction() is None


# Damage


def scribble(path: Path) -> None:
    """Bytes in the middle of every page but the first are overwritten."""
    with path.open("r+b") as damaged:
        for at in range(4096, path.stat().st_size, 4096):
            damaged.seek(at)
            damaged.write(os.urandom(2048))


def delete_it(path: Path) -> None:
    path.unlink()


def replace_it(path: Path) -> None:
    with sqlite3.connect(path.with_name("other.db")) as other:
        other.execute("CREATE TABLE x (y)")
    other.close()
    path.with_name("other.db").replace(path)


@pytest.mark.parametrize(
    ("harm", "words"), [(delete_it, "deleted or replaced"), (replace_it, "deleted or replaced"), (scribble, "is damaged")]
)
def test_a_database_that_is_lost_ends_the_worker_loudly_and_is_not_replaced(
    sqlite_place: Place, harm: Callable[[Path], None], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = sqlite_place.folder / "outbox.db"
    some_rows(sqlite_place, 200, DEAD)
    working = Worker(sqlite_place.outbox(), poll=0.05)
    sqlite_place.database.checkpoint(shrink=True)
    sqlite_place.database.close()
    harmed: list[bytes | None] = []

    def harm_it() -> None:
        harm(path)
        harmed.append(path.read_bytes()[:4096] if path.exists() else None)

    Timer(0.3, harm_it).start()
    with caplog.at_level(logging.CRITICAL), pytest.raises(DatabaseDamaged, match=words) as ended:
        working.run()

    assert "nothing was" in str(ended.value)
    assert [str(ended.value) in record.getMessage() for record in caplog.records] == [True]
    if harm is not scribble:
        assert harmed == [path.read_bytes()[:4096] if path.exists() else None], "nothing was put in its place"


def test_one_that_is_no_database_is_refused_and_left_as_it_is(sqlite_place: Place) -> None:
    path = sqlite_place.folder / "other.db"
    path.write_bytes(b"Dear diary, " * 1000)

    ran = warm.run(
        [sys.executable, "-m", "outbox", "status"],
        cwd=sqlite_place.folder,
        env=os.environ | {"OUTBOX_DATABASE": f"sqlite:///{path}", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == ran.returncode
    assert "is damaged (file is not a database)" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert b"Dear diary, " * 1000 == path.read_bytes()


@pytest.mark.parametrize(("state", "error"), [("XX001", DatabaseDamaged), ("XX002", DatabaseDamaged), ("53100", OutOfRoom)])
def test_what_postgres_says_of_its_disk_is_understood(postgres_place: Place, state: str, error: type[Exception]) -> None:
    failing = f"DO $$ BEGIN RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = '{state}'; END $$"

    with pytest.raises(error, match="invalid page in block 7"), postgres_place.database.begin() as connection:
        connection.execute(sa.text(failing))


def test_a_connection_never_makes_a_database_anew(sqlite_place: Place) -> None:
    path = sqlite_place.folder / "outbox.db"
    database = Database(sqlite_place.url)
    with database.read() as connection:
        connection.execute(sa.select(message.c.id))
    database.engine.dispose()
    for left in sqlite_place.folder.glob("outbox.db*"):
        left.unlink()

    with pytest.raises(DatabaseDamaged, match="was deleted or replaced"), database.begin():
        pass

    assert not path.exists()
    database.close()
