"""The trail: what becomes of messages is written down in database order, and nobody stumbles over that."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import Selection, State, migrate
from outbox.checkup import Doctor, Verification
from outbox.model import Outcome
from outbox.tables import attempt, message
from outbox.testing import HangUp
from tests import ledger
from tests.factories import claim, join, message_values, put, record, settlement, wipe
from tests.ledger import trail
from tests.ledger.trail import Trail
from tests.story.conftest import Place


def trail_of(place: Place) -> Trail:
    found = trail.read(place.database)
    assert found is not None
    return found


def against(place: Place) -> list[str]:
    """What the trail itself tells."""
    balance = ledger.examine(place.database, place.receiver.requests, place.acknowledged, drained=False, purged=None)
    return [f"{number} {each}" for number in ("I1", "I6", "I7", "I9", "I13") for each in balance.found.get(number, ())]


@pytest.fixture
def trailed(place: Place) -> Place:
    trail.install(place.url)
    return place


def test_a_story_with_everything_in_it_has_nothing_against_it(trailed: Place) -> None:
    place = trailed
    outbox = place.outbox(clock=place.clock)
    place.receiver.misbehave(HangUp("after_body"))
    place.receiver.refuse(lambda struct: struct["assetId"] == "bad")
    for key in ("a", "b", "c", "bad", "old"):
        place.enqueue(outbox, key, ordering_key="pump" if key in "abc" else None)
    outbox.cancel(Selection(keys=("old",)), by="test")
    hand = place.hand(outbox)
    for _ in range(8):
        hand.turn_while_it_moves()
        place.clock.move(minutes=30)
    outbox.replay(Selection(keys=("b",)), by="test")
    hand.turn("bulk")
    outbox.purge(Selection(keys=("a", "old")), by="test")

    balance = ledger.examine(place.database, place.receiver.requests, place.acknowledged, purged=None)

    assert [] == balance.faults
    assert {"I6", "I7", "I13"} < set(balance.looked)
    counts = balance.counts
    assert (2, 1, 2, 1) == (counts.delivered, counts.dead, counts.purged, counts.replays)


def test_every_step_of_a_message_is_there_in_order(trailed: Place) -> None:
    outbox = trailed.outbox(clock=trailed.clock)
    trailed.enqueue(outbox, "a")
    trailed.hand(outbox).turn_while_it_moves()

    steps = [(each.about, each.old_state, each.new_state, each.new_attempt) for each in trail_of(trailed).changes]

    assert [
        ("message", None, "pending", 0),
        ("worker", None, "here", None),
        ("message", "pending", "claimed", 1),
        ("message", "claimed", "delivered", 1),
        ("attempt", None, "delivered", 1),
    ] == steps


def test_what_is_rolled_back_leaves_no_trail(trailed: Place) -> None:
    with trailed.engine.connect() as connection:
        put(connection, "a")
        connection.rollback()

    assert [] == trail_of(trailed).changes


def execute(place: Place, statement: sa.Executable) -> None:
    with place.database.begin() as connection:
        connection.execute(statement)


def claimed_by_two(place: Place) -> None:
    execute(place, sa.update(message).values(claimed_by="w2", delivery_id=7, attempt=2))


def a_late_record_without_its_fence(place: Place) -> None:
    """Another has the message by now; the record looks at its id alone."""
    with place.database.begin() as connection:
        record(connection, 1, "w1", {1: settlement(State.PENDING, Outcome.RETRY)})
        claim(connection, "w2")
        connection.execute(
            sa.update(message).values(state="delivered", claimed_by=None, delivery_id=None, finished_at=place.clock.wall)
        )
        connection.execute(sa.update(attempt).values(outcome="delivered"))


def undone(place: Place) -> None:
    with place.database.begin() as connection:
        record(connection, 1, "w1", {1: settlement()})
        connection.execute(sa.update(message).values(state="pending", finished_at=None))


def forgotten(place: Place) -> None:
    execute(place, sa.delete(message))


def given_up_without_a_word(place: Place) -> None:
    """Given back without an attempt, and claimed again."""
    with place.database.begin() as connection:
        connection.execute(sa.update(message).values(state="pending", claimed_by=None, delivery_id=None))
        claim(connection, "w2")


SPOILT = {
    "claimed by two": (claimed_by_two, "I6 a was claimed by w2 (attempt 2) while w1 held it (attempt 1)"),
    "recorded late without a fence": (
        a_late_record_without_its_fence,
        "I7 attempt 1 of message 1 was written again: retry became delivered",
    ),
    "final and not any more": (undone, "I13 a was delivered and became pending without a replay"),
    "gone without being final": (forgotten, "I1 a was deleted while it was claimed"),
    "claimed again before it was recorded": (
        given_up_without_a_word,
        "I6 a was claimed again before its attempt 1 was recorded or rescued",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_must_not_become_of_a_message_is_seen(trailed: Place, name: str) -> None:
    spoil, sentence = SPOILT[name]
    with trailed.database.begin() as connection:
        join(connection, "w1", "w2")
        put(connection, "a")
        claim(connection, "w1")

    spoil(trailed)

    assert sentence in against(trailed)


def test_a_trail_that_begins_in_the_middle_knows_what_was_there(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    for key in ("a", "b"):
        place.enqueue(outbox, key, ordering_key="pump")
    hand = place.hand(outbox)
    hand.turn()

    trail.install(place.url)
    hand.turn_while_it_moves()
    place.enqueue(outbox, "c", ordering_key="pump")
    hand.turn_while_it_moves()

    assert {"a", "b", "c"} == trail_of(place).lives().keys()
    assert [] == against(place)
    place.check()


def test_it_gives_up_when_somebody_holds_the_table(place: Place) -> None:
    with place.engine.begin() as connection:
        put(connection, "a")

        assert not trail.install(place.url, patience=0.1)

    assert trail.install(place.url)


def test_it_makes_no_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(sa.exc.OperationalError):
        trail.install(f"sqlite:///{tmp_path / 'outbox.db'}")

    assert [] == list(tmp_path.iterdir())


def schema(place: Place) -> set[str]:
    """Names of everything in the schema that has one."""
    kinds = {
        "sqlite": "SELECT name FROM sqlite_master",
        "postgresql": "SELECT tgname FROM pg_trigger UNION SELECT relname FROM pg_class UNION SELECT proname FROM pg_proc",
    }
    with place.database.read() as connection:
        rows = connection.exec_driver_sql(kinds[connection.dialect.name]).scalars()
        # The names of Postgres's own triggers and of large rows have numbers in them.
        return {name for name in rows if not name.startswith(("pg_", "RI_", "sqlite_"))}


def test_it_comes_again_and_goes_without_a_trace(place: Place) -> None:
    trail.remove(place.url)
    before = schema(place)

    trail.install(place.url)
    trail.install(place.url)
    between = schema(place)
    trail.remove(place.url)
    trail.remove(place.url)

    assert trail.TABLE in between
    assert before == schema(place)
    assert trail.read(place.database) is None


def test_nobody_stumbles_over_it(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    place.enqueue(outbox, "a", {"photo": b"bytes"})
    place.hand(outbox).turn_while_it_moves()
    before = {(each.check, each.level) for each in Doctor(outbox, offline=True).run()}

    trail.install(place.url)
    after = {(each.check, each.level) for each in Doctor(outbox, offline=True).run()}
    damaged = list(Verification(outbox).run())
    migrated = migrate.upgrade(place.database)

    assert before == after
    assert [] == damaged
    assert migrated[0] == migrated[1]


@pytest.mark.merge
def test_whoever_may_write_messages_needs_no_right_to_write_the_trail(postgres_place: Place) -> None:
    trail.install(postgres_place.url)

    with postgres_place.engine.connect() as connection:
        connection.exec_driver_sql("CREATE ROLE ledger_modest")
        connection.exec_driver_sql("GRANT ALL ON outbox_message TO ledger_modest")
        connection.exec_driver_sql("GRANT USAGE ON SEQUENCE outbox_message_id_seq TO ledger_modest")
        connection.exec_driver_sql("SET LOCAL ROLE ledger_modest")
        connection.execute(sa.insert(message), message_values(key="a"))
        connection.exec_driver_sql("RESET ROLE")
        written = trail.read_on(connection)
        connection.rollback()

    assert written is not None
    assert ["a"] == [each.key for each in written.changes]


@pytest.mark.merge
def test_whoever_wipes_its_table_away_wipes_its_triggers_too(postgres_place: Place) -> None:
    trail.install(postgres_place.url)
    postgres_place.engine.dispose()
    postgres_place.database.close()

    wipe(postgres_place.url)

    with postgres_place.database.read() as connection:
        triggers = connection.exec_driver_sql("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal").scalars().all()
    assert [] == triggers
    outbox = postgres_place.outbox(clock=postgres_place.clock)
    postgres_place.enqueue(outbox, "a")
    postgres_place.hand(outbox).turn_while_it_moves()
    postgres_place.check()
