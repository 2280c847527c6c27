"""Same transaction: what the caller commits is due, and of what it does not commit nothing stays."""

import contextlib
import io
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox import (
    ConfigurationError,
    DurabilityWarning,
    KeyConflict,
    Lane,
    NotDurable,
    Outbox,
    OutboxError,
    Refused,
    SpoolError,
    State,
    prepare,
)
from outbox.errors import SchemaError
from outbox.store import arriving
from outbox.tables import attachment, file, message, stream
from tests.factories import an_outbox, caller_engine, careless_engine, column, count, event, real_clock, states
from tests.story.conftest import Place

Statements = Callable[[sa.Engine], list[str]]

PHOTO = {"photo": b"bytes of a photo"}
HOST = sa.Table("host", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))


@pytest.fixture
def outbox(place: Place) -> Outbox:
    with place.engine.begin() as connection:
        HOST.create(connection)
    return place.outbox()


def enqueue(outbox: Outbox, session: Session | sa.Connection, key: str = "a") -> None:
    outbox.enqueue(session, "enos", event(key, "photo"), files=PHOTO, key=key)


def host_names(place: Place) -> list[str]:
    with place.database.read() as connection:
        return list(connection.execute(sa.select(HOST.c.name).order_by(HOST.c.id)).scalars())


def nothing_stayed(place: Place, outbox: Outbox) -> None:
    """No message; and no file after one sweep."""
    assert {} == states(place.database)
    assert [0, 0, 0] == [count(place.database, each) for each in (attachment, file, stream)]
    outbox.sweep(timedelta(0))
    assert [] == place.spooled()


# What is committed stays


def test_a_commit_keeps_the_message_and_its_file(place: Place, outbox: Outbox) -> None:
    with Session(place.engine) as session, session.begin():
        enqueue(outbox, session)

    assert {"a": State.PENDING} == states(place.database)
    assert len(place.spooled()) == 1
    assert outbox.sweep(timedelta(0)) == 0
    assert len(place.spooled()) == 1


def test_a_message_is_enqueued_on_a_connection_too(place: Place, outbox: Outbox) -> None:
    with place.engine.begin() as connection:
        enqueue(outbox, connection)

    assert {"a": State.PENDING} == states(place.database)


def test_a_message_is_enqueued_on_a_scoped_session_too(place: Place, outbox: Outbox) -> None:
    session = scoped_session(sessionmaker(place.engine))
    enqueue(outbox, session)  # type: ignore[arg-type]
    session.commit()
    session.remove()

    assert {"a": State.PENDING} == states(place.database)


def test_a_message_commits_together_with_the_callers_own_rows(place: Place, outbox: Outbox) -> None:
    with Session(place.engine) as session, session.begin():
        session.execute(sa.insert(HOST).values(id=1, name="inspection"))
        enqueue(outbox, session)

    assert ({"a": State.PENDING}, ["inspection"]) == (states(place.database), host_names(place))


def test_a_message_is_not_seen_before_its_commit(place: Place, outbox: Outbox) -> None:
    with Session(place.engine) as session:
        enqueue(outbox, session)
        before = states(place.database)
        session.commit()

    assert ({}, {"a": State.PENDING}) == (before, states(place.database))


# What is not committed never was


def test_a_rollback_leaves_nothing(place: Place, outbox: Outbox) -> None:
    with Session(place.engine) as session:
        outbox.enqueue(session, "enos", event("a", "photo"), files=PHOTO, key="a", ordering_key="pump")
        session.rollback()

    nothing_stayed(place, outbox)


def test_an_exception_in_the_caller_leaves_nothing(place: Place, outbox: Outbox) -> None:
    def inspect() -> None:
        with Session(place.engine) as session, session.begin():
            enqueue(outbox, session)
            raise RuntimeError("the caller failed")

    with pytest.raises(RuntimeError, match="the caller failed"):
        inspect()

    nothing_stayed(place, outbox)


def test_the_rollback_of_a_savepoint_leaves_nothing_of_what_was_in_it(place: Place, outbox: Outbox) -> None:
    with Session(place.engine) as session, session.begin():
        session.execute(sa.insert(HOST).values(id=1, name="inspection"))
        savepoint = session.begin_nested()
        enqueue(outbox, session)
        savepoint.rollback()

    assert ["inspection"] == host_names(place)
    nothing_stayed(place, outbox)


def test_a_savepoint_as_the_callers_first_act_is_rolled_back_with_its_transaction(place: Place, outbox: Outbox) -> None:
    """SQLite's driver begins no transaction for a savepoint, so that releasing the first one would commit it."""

    def inspect() -> None:
        with Session(place.engine) as session, session.begin():
            with session.begin_nested():
                session.execute(sa.insert(HOST).values(id=1, name="inspection"))
                enqueue(outbox, session)
            raise RuntimeError("the caller failed")

    with pytest.raises(RuntimeError, match="the caller failed"):
        inspect()

    assert [] == host_names(place)
    nothing_stayed(place, outbox)


def test_a_producer_that_is_killed_before_its_commit_leaves_nothing(place: Place, outbox: Outbox) -> None:
    producer = place.run("enqueue", key="a")
    producer.until("enqueued")
    assert len(place.spooled()) == 1

    producer.kill()

    nothing_stayed(place, outbox)


def test_a_producer_that_is_killed_while_it_copies_leaves_nothing(place: Place, outbox: Outbox) -> None:
    producer = place.run("spool_slowly")
    producer.until("copying")
    assert [Path(".unfinished")] == [Path(each).parent for each in place.spooled()]

    producer.kill()

    nothing_stayed(place, outbox)


def test_a_refusal_leaves_nothing_and_the_transaction_usable(place: Place, outbox: Outbox) -> None:
    with Session(place.engine) as session, session.begin():
        with pytest.raises(Refused):
            outbox.enqueue(session, "enos", {"assetId": "a"}, files=PHOTO, key="a")
        enqueue(outbox, session, "b")

    assert {"b": State.PENDING} == states(place.database)
    assert len(place.spooled()) == 1


def test_a_source_that_fails_leaves_nothing_and_the_transaction_usable(place: Place, outbox: Outbox) -> None:
    class Broken(io.RawIOBase):
        def read(self, _size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with Session(place.engine) as session, session.begin():
        with pytest.raises(SpoolError):
            outbox.enqueue(session, "enos", event("a", "photo", "log"), files={**PHOTO, "log": Broken()}, key="a")
        enqueue(outbox, session, "b")

    assert {"b": State.PENDING} == states(place.database)
    assert len(place.spooled()) == 1


# Keys


def test_the_same_again_is_the_same_message_and_its_fresh_copy_goes(place: Place, outbox: Outbox) -> None:
    with Session(place.engine) as session, session.begin():
        first = outbox.enqueue(session, "enos", event("a", "photo"), files=PHOTO, key="a")
    with Session(place.engine) as session, session.begin():
        again = outbox.enqueue(session, "enos", event("a", "photo"), files=PHOTO, key="a")

    assert (first.id, True, State.PENDING) == (first.id, first.new, first.state)
    assert (first.id, False, State.PENDING) == (again.id, again.new, again.state)
    assert len(place.spooled()) == 1


def test_the_same_again_tells_what_became_of_it(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a")
    place.hand(outbox).turn_while_it_moves()

    with place.engine.begin() as connection:
        again = outbox.enqueue(connection, "enos", event("a"), key="a")

    assert (False, State.DELIVERED) == (again.new, again.state)


@pytest.mark.parametrize("other", ["payload", "file", "file name"])
def test_a_key_with_other_content_is_a_conflict(place: Place, outbox: Outbox, other: str) -> None:
    contents = {
        "payload": (event("a", "photo", severity=4), PHOTO),
        "file": (event("a", "photo"), {"photo": b"another"}),
        "file name": (event("a", "image"), {"image": PHOTO["photo"]}),
    }
    payload, files = contents[other]
    with Session(place.engine) as session, session.begin():
        first = outbox.enqueue(session, "enos", event("a", "photo"), files=PHOTO, key="a")

    with Session(place.engine) as session, session.begin():
        with pytest.raises(KeyConflict) as conflict:
            outbox.enqueue(session, "enos", payload, files=files, key="a")
        enqueue(outbox, session, "b")

    assert ("enos", "a", first.id) == (conflict.value.destination, conflict.value.key, conflict.value.message_id)
    assert {"a": State.PENDING, "b": State.PENDING} == states(place.database)
    assert len(place.spooled()) == 2


def test_a_key_whose_message_is_purged_at_that_moment_is_to_be_enqueued_again(
    postgres_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, add = postgres_place.outbox(), arriving.add_message
    first = postgres_place.enqueue(outbox, "a")
    postgres_place.purged.add("a")

    def add_then_purge(*given: Any, **how: Any) -> int | None:
        known = add(*given, **how)
        with postgres_place.database.begin() as connection:
            connection.execute(sa.delete(message).where(message.c.id == first))
        return known

    with monkeypatch.context() as between:
        between.setattr(arriving, "add_message", add_then_purge)
        with postgres_place.engine.begin() as connection:
            with pytest.raises(OutboxError, match="'a' was that of a message that has been purged just now; try again"):
                outbox.enqueue(connection, "enos", event("a"), key="a")
            between.undo()
            again = outbox.enqueue(connection, "enos", event("a"), key="a")

    assert again.new
    assert {"a": State.PENDING} == states(postgres_place.database)


def test_a_conflict_does_not_commit_the_callers_work(database_url: str, place: Place, outbox: Outbox) -> None:
    """On a plain SQLite session the end of a savepoint would."""
    place.enqueue(outbox, "a")
    plain = sa.create_engine(database_url)

    with Session(plain) as session:
        session.execute(sa.insert(HOST).values(id=1, name="inspection"))
        with pytest.raises(KeyConflict):
            outbox.enqueue(session, "enos", event("a", severity=4), key="a")
        session.rollback()

    plain.dispose()
    assert [] == host_names(place)


def test_an_enqueue_into_another_database_than_the_outboxs_is_refused(sqlite_place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.write_bytes(sqlite_place.database.path.read_bytes() if sqlite_place.database.path else b"")
    outbox, elsewhere = sqlite_place.outbox(), caller_engine(f"sqlite:///{other}")

    with (
        elsewhere.begin() as connection,
        pytest.raises(ConfigurationError, match=r"on the database .*other\.db, and"),
    ):
        outbox.enqueue(connection, "enos", event())

    elsewhere.dispose()
    assert {} == states(sqlite_place.database)


def test_an_enqueue_by_another_name_of_the_same_database_is_none_into_another(sqlite_place: Place, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(str(sqlite_place.database.path))
    outbox, linked = sqlite_place.outbox(), caller_engine(f"sqlite:///{tmp_path / 'link.db'}")

    with linked.begin() as connection:
        outbox.enqueue(connection, "enos", event("a"), key="a")

    linked.dispose()
    assert {"a": State.PENDING} == states(sqlite_place.database)


@pytest.mark.parametrize("make", [sa.create_engine, lambda url: prepare(sa.create_engine(url))], ids=["as it is", "prepared"])
def test_a_savepoint_that_might_outlive_its_transaction_is_refused_where_that_is_asked_for(
    sqlite_place: Place, make: Callable[[str], sa.Engine]
) -> None:
    outbox, engine = sqlite_place.outbox(durability="strict"), make(sqlite_place.url)
    refused: list[NotDurable] = []

    with Session(engine) as session, contextlib.suppress(RuntimeError), session.begin(), session.begin_nested():
        try:
            enqueue(outbox, session)
        except NotDurable as error:
            refused.append(error)
        raise RuntimeError("the caller failed")

    engine.dispose()
    assert ["savepoint" in str(each) for each in refused] == ([True] if make is sa.create_engine else [])
    assert {} == states(sqlite_place.database)


def test_no_savepoint_and_no_commit_is_ever_ours(place: Place, outbox: Outbox, statements: Statements) -> None:
    place.enqueue(outbox, "a")
    heard = statements(place.engine)

    with place.engine.connect() as connection:
        outbox.enqueue(connection, "enos", event("a"), key="a")
        with pytest.raises(KeyConflict):
            outbox.enqueue(connection, "enos", event("a", severity=4), key="a", ordering_key="pump")
        enqueue(outbox, connection, "b")
        connection.rollback()

    assert heard
    assert [] == [each for each in heard if each.split()[0].upper() in {"SAVEPOINT", "RELEASE", "ROLLBACK", "COMMIT"}]
    assert {"a": State.PENDING} == states(place.database)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("ordering_key", [None, "pump"])
def test_the_first_statement_takes_the_write_lock(sqlite_place: Place, known: bool, ordering_key: str | None) -> None:
    """A SQLite transaction that reads first would fail at its first write, had anybody written meanwhile."""
    place = sqlite_place
    outbox = place.outbox(durability="warn")
    deferred = prepare(sa.create_engine(place.url, connect_args={"isolation_level": None}))
    sa.event.listen(deferred, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    rival = sa.create_engine(place.url, connect_args={"timeout": 0})
    HOST.create(rival)
    locked: list[bool] = []
    if known:  # what the connection promises is looked up once
        with deferred.begin() as connection:
            outbox.enqueue(connection, "enos", event("before"), key="before")

    def intrude(*_: object) -> None:
        if locked:
            return
        try:
            with rival.begin() as connection:
                connection.execute(sa.insert(HOST).values(id=1, name="rival"))
            locked.append(False)
        except sa.exc.OperationalError:
            locked.append(True)

    with deferred.connect() as connection:
        connection.execute(sa.text("SELECT 1"))  # begins
        sa.event.listen(deferred, "after_cursor_execute", intrude)
        outbox.enqueue(connection, "enos", event("a"), key="a", ordering_key=ordering_key)
        connection.commit()

    assert [True] == locked
    assert "a" in states(place.database)
    rival.dispose()
    deferred.dispose()


# Streams, lanes and times


def test_an_enqueue_that_waits_for_its_stream_gets_the_next_number(place: Place, outbox: Outbox) -> None:
    for key in ("a", "b", "c"):
        place.enqueue(outbox, key, ordering_key="pump")

    assert [1, 2, 3] == [column(place.database, key, "stream_number") for key in ("a", "b", "c")]


def test_big_files_travel_in_a_lane_of_their_own(place: Place) -> None:
    from outbox import Policy

    outbox = place.outbox(Policy(large_over=1000))
    place.enqueue(outbox, "small", {"photo": b"x" * 100})
    place.enqueue(outbox, "large", {"photo": b"x" * 1001})
    place.enqueue(outbox, "urgent", {"photo": b"x" * 1001}, lane=Lane.EXPRESS)

    lanes = [column(place.database, key, "lane") for key in ("small", "large", "urgent")]

    assert [Lane.NORMAL, Lane.LARGE, Lane.EXPRESS] == lanes


# Durability of the caller's connection


def test_a_connection_that_would_lose_a_commit_is_told_of_once(place: Place, database_url: str) -> None:
    outbox = place.outbox(durability="warn")
    careless = careless_engine(database_url)

    with careless.begin() as connection:
        with pytest.warns(DurabilityWarning, match="power cut"):
            outbox.enqueue(connection, "enos", event("a"), key="a")
        with warnings.catch_warnings(record=True) as more:
            warnings.simplefilter("always")
            outbox.enqueue(connection, "enos", event("b"), key="b")

    careless.dispose()
    assert [] == more
    assert {"a", "b"} == states(place.database).keys()


def test_where_durability_is_strict_such_a_connection_is_refused_and_nothing_written(
    place: Place, outbox: Outbox, database_url: str
) -> None:
    strict = place.outbox(durability="strict")
    careless = careless_engine(database_url)

    with careless.begin() as connection:
        connection.execute(sa.insert(HOST).values(id=1, name="inspection"))
        for _ in range(2):
            with pytest.raises(NotDurable, match="power cut"):
                enqueue(strict, connection)

    careless.dispose()
    assert ({}, ["inspection"]) == (states(place.database), host_names(place))
    assert [] == place.spooled()


def test_a_prepared_sqlite_engine_is_power_safe(sqlite_place: Place) -> None:
    place = sqlite_place

    place.enqueue(place.outbox(durability="strict"), "a")

    assert {"a": State.PENDING} == states(place.database)


def test_an_engine_that_was_used_before_is_prepared_too(sqlite_place: Place) -> None:
    place = sqlite_place
    engine = sa.create_engine(place.url)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))

    prepare(engine)
    with engine.begin() as connection:
        place.outbox(durability="strict").enqueue(connection, "enos", event("a"), key="a")

    engine.dispose()
    assert {"a": State.PENDING} == states(place.database)


def test_postgres_as_it_comes_is_power_safe(private_place: Place) -> None:
    place = private_place

    place.enqueue(place.outbox(durability="strict"), "a")

    assert {"a": State.PENDING} == states(place.database)


# Files at rest


def test_a_spooled_file_may_be_shared(place: Place, outbox: Outbox) -> None:
    photo = outbox.spool(PHOTO["photo"])
    for key in ("a", "b"):
        with place.engine.begin() as connection:
            outbox.enqueue(connection, "enos", event(key, "photo"), files={"photo": photo}, key=key)
        place.acknowledge(key, PHOTO)
    assert len(place.spooled()) == 1

    place.hand(outbox).turn_while_it_moves()

    assert {"a": State.DELIVERED, "b": State.DELIVERED} == states(place.database)
    place.check()


def test_a_file_goes_an_hour_after_its_message_was_delivered(place: Place) -> None:
    clock = real_clock()
    outbox = place.outbox(clock=clock)
    place.enqueue(outbox, "a", PHOTO)
    place.hand(outbox).turn_while_it_moves()

    clock.move(minutes=59)
    early = outbox.free_files()
    clock.move(minutes=2)
    late = outbox.free_files()

    assert (0, 1) == (early, late)
    assert [] == place.spooled()


def test_a_file_stays_while_another_message_needs_it(place: Place) -> None:
    clock = real_clock()
    outbox = place.outbox(clock=clock)
    hand = place.hand(outbox)
    photo = outbox.spool(PHOTO["photo"])
    for key, due in (("a", clock.wall), ("b", clock.wall + timedelta(hours=5))):
        with place.engine.begin() as connection:
            outbox.enqueue(connection, "enos", event(key, "photo"), files={"photo": photo}, key=key, due_at=due)
        place.acknowledge(key, PHOTO)
    hand.turn_while_it_moves()

    clock.move(hours=2)
    freed = [outbox.free_files()]
    clock.move(hours=4)
    hand.turn_while_it_moves()
    clock.move(hours=2)
    freed.append(outbox.free_files())

    assert [0, 1] == freed
    assert {"a": State.DELIVERED, "b": State.DELIVERED} == states(place.database)
    place.check()


def test_a_file_that_no_message_was_given_goes_after_a_day(place: Place) -> None:
    clock = real_clock()
    outbox = place.outbox(clock=clock)
    outbox.spool(PHOTO["photo"])

    clock.move(hours=23)
    early = outbox.free_files()
    clock.move(hours=2)
    late = outbox.free_files()

    assert (0, 1, []) == (early, late, place.spooled())


def test_a_freed_file_must_be_spooled_again(place: Place) -> None:
    clock = real_clock()
    outbox = place.outbox(clock=clock)
    photo = outbox.spool(PHOTO["photo"])
    clock.move(hours=25)
    outbox.free_files()

    with place.engine.begin() as connection, pytest.raises(SpoolError, match="spool it again"):
        outbox.enqueue(connection, "enos", event("a", "photo"), files={"photo": photo}, key="a")

    assert {} == states(place.database)


def test_a_file_freed_with_its_message_must_be_spooled_again_too(place: Place) -> None:
    clock = real_clock()
    outbox = place.outbox(clock=clock)
    photo = outbox.spool(PHOTO["photo"])
    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event("a", "photo"), files={"photo": photo}, key="a")
    place.hand(outbox).turn_while_it_moves()
    clock.move(hours=2)
    assert outbox.free_files() == 1

    with place.engine.begin() as connection, pytest.raises(SpoolError, match="spool it again"):
        outbox.enqueue(connection, "enos", event("b", "photo"), files={"photo": photo}, key="b")

    assert {"a": State.DELIVERED} == states(place.database)


def test_rubbish_is_set_aside_kept_for_a_while_and_then_deleted(place: Place) -> None:
    clock = real_clock()
    outbox = place.outbox(clock=clock)
    with place.engine.connect() as connection:
        outbox.enqueue(connection, "enos", event("a", "photo"), files=PHOTO)
        connection.rollback()

    swept = [outbox.sweep()]
    clock.move(hours=25)
    swept.append(outbox.sweep())
    parked = place.spooled()
    clock.move(days=5)  # the file was parked by the true clock, a day before this one
    swept.append(outbox.sweep())
    still = place.spooled()
    clock.move(days=2)
    swept.append(outbox.sweep())

    assert [0, 1, 0, 0] == swept
    assert [".swept"] == [Path(each).parent.name for each in parked]
    assert parked == still
    assert [] == place.spooled()


def test_a_transaction_that_outlasts_the_grace_gets_its_file_back(place: Place, outbox: Outbox) -> None:
    impatient = place.outbox(clock=(clock := real_clock()))
    outbox.spool_store.prepare()
    outbox.mark_spool()
    with place.engine.connect() as connection:
        enqueue(outbox, connection)
        place.acknowledge("a", PHOTO)

        clock.move(hours=25)
        assert impatient.sweep() == 1
        connection.commit()
    parked = place.spooled()
    place.hand(outbox).turn_while_it_moves()

    assert [".swept"] == [Path(each).parent.name for each in parked]
    assert {"a": State.DELIVERED} == states(place.database)
    place.check()


def test_a_sweep_leaves_alone_what_is_not_ours(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)
    foreign = place.spool / "00" / "notes.txt"
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("not ours")

    assert outbox.sweep(timedelta(0)) == 0
    assert foreign.read_text() == "not ours"


def test_a_message_counts_what_it_weighs(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "a", PHOTO)

    with place.database.read() as connection:
        row = connection.execute(sa.select(message)).one()
    assert (1, len(PHOTO["photo"])) == (row.files, row.file_bytes)
    assert row.size >= len(row.payload)


def test_a_database_without_a_schema_says_so_and_keeps_no_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    engine, outbox = caller_engine(url), an_outbox(url, tmp_path / "spool")

    for files in ({}, PHOTO):
        with engine.begin() as connection, pytest.raises(SchemaError, match="run: outbox db upgrade"):
            outbox.enqueue(connection, "enos", event("a", *files), files=files)

    assert [] == [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    outbox.close()
    engine.dispose()


def test_a_spool_that_is_gone_is_not_made_anew_under_files_that_wait(place: Place) -> None:
    """Its disk may not be mounted yet: a new spool in its place would make the files look lost, and their messages die."""
    place.enqueue(place.outbox(), "before", {"photo": b"bytes"})
    away = place.spool.rename(place.folder / "unmounted")

    later = place.outbox()
    for mount_point in (False, True):
        if mount_point:
            place.spool.mkdir()
        with pytest.raises(SpoolError, match="is the disk mounted"), place.engine.begin() as connection:
            later.enqueue(connection, "enos", event("after", "photo"), files={"photo": b"bytes"}, key="after")
    place.spool.rmdir()
    away.rename(place.spool)

    place.enqueue(later, "after", {"photo": b"bytes"})
    assert place.hand(later).turn()
    place.check()
