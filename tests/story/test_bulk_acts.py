"""Acts on many messages: in steps, interrupted and gone on with, by several at once, and nothing is done twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, State
from outbox.acts import Act
from outbox.errors import ConfigurationError
from outbox.model import Reason, Selection
from outbox.store.acting import Action, Preview
from outbox.tables import attachment, attempt, audit, file, message
from tests.factories import COHERENT, NOW, column, count, event, message_values, row_of, spooled, states
from tests.story.conftest import Hand, Place

pytestmark = pytest.mark.long
DELIVERED, DEAD, PENDING, CANCELLED = State.DELIVERED, State.DEAD, State.PENDING, State.CANCELLED
ALL_DEAD = Selection(states=(DEAD,))


@pytest.fixture
def outbox_here(place: Place) -> Outbox:
    return place.outbox(clock=place.clock)


@pytest.fixture
def hand(place: Place, outbox_here: Outbox) -> Hand:
    return place.hand(outbox_here)


def add_many(place: Place, number: int, state: State = DEAD, **changes: Any) -> None:
    with place.database.begin() as connection:
        connection.execute(sa.insert(message), [message_values(state, key=f"{n:04}", **changes) for n in range(number)])


def set_all(place: Place, state: State, *, where: Any = None) -> None:
    """What became of messages meanwhile."""
    blank = dict.fromkeys(("finished_at", "reason", "claimed_by", "delivery_id"))
    values = blank | dict(COHERENT[state]) | {"state": state}
    if values["finished_at"] is not None:
        values["finished_at"] = place.clock.wall
    with place.database.begin() as connection:
        connection.execute(sa.update(message).where(where if where is not None else sa.true()).values(values))


def replays(place: Place) -> dict[int, int]:
    """How many messages were replayed how often."""
    with place.database.read() as connection:
        rows = connection.execute(sa.select(message.c.replays, sa.func.count()).group_by(message.c.replays)).all()
        return {row[0]: row[1] for row in rows}


def acts(place: Place) -> list[Any]:
    with place.database.read() as connection:
        return list(connection.execute(sa.select(audit).order_by(audit.c.id)))


def some_steps(act: Act, number: int = 1) -> int:
    for _ in range(number):
        assert act.step() is not None
    return act.messages


# Steps.


def test_an_act_is_taken_in_steps_and_one_row_tells_how_far_it_is(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 120)
    act = outbox_here.begin("replay", ALL_DEAD, "ann")
    assert 0 == count(place.database, audit)

    progress = act.step()

    assert progress is not None
    (row,) = acts(place)
    assert (row.id, 50, 50, None) == (progress.act, progress.messages, row.messages, row.finished_at)
    assert {0: 70, 1: 50} == replays(place)
    place.clock.move(60)
    assert 120 == act.run()
    (row,) = acts(place)
    assert ("ann", "replay", "state dead", 120) == (row.actor, row.action, row.selection, row.messages)
    assert (NOW, NOW + timedelta(seconds=60)) == (row.at, row.finished_at)
    assert ALL_DEAD == Selection.from_json(row.chosen)
    assert act.step() is None


def test_whoever_takes_the_steps_is_told_to_leave_the_database_to_others(place: Place) -> None:
    add_many(place, 300)
    waits: list[float] = []

    place.outbox().replay(ALL_DEAD, "ann", wait=waits.append)

    assert all(wait > 0 for wait in waits)
    assert len(waits) > 1


def test_a_rate_bounds_the_handfuls_and_says_how_long_to_wait(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 30)

    taken = list(outbox_here.begin("cancel", ALL_DEAD, "ann", rate=40).steps())

    assert [10, 20, 30] == [progress.messages for progress in taken]
    assert [0.25, 0.5, 0.75] == [progress.rest for progress in taken], "no time passes here, so it adds up"


def test_a_rate_of_less_than_one_a_second_is_one_at_a_time(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 2)

    progress = outbox_here.begin("cancel", ALL_DEAD, "ann", rate=0.1).step()

    assert progress is not None
    assert (1, 10) == (progress.messages, progress.rest)


@pytest.mark.parametrize("action", ["replay", "cancel", "purge"])
def test_the_oldest_are_taken_when_there_is_a_limit(place: Place, outbox_here: Outbox, action: Action) -> None:
    add_many(place, 130)

    did = outbox_here.begin(action, Selection(states=(DEAD,), limit=60), "ann").run()

    dead = sorted(key for key, state in states(place.database).items() if state == DEAD)
    assert (60, [f"{n:04}" for n in range(60, 130)]) == (did, dead)


def test_a_limit_counts_what_it_was_done_to(place: Place, outbox_here: Outbox) -> None:
    broken(place, outbox_here)
    add_many(place, 3)

    assert 2 == outbox_here.replay(Selection(destination="enos", limit=2), "ann")

    assert {"0000": PENDING, "0001": PENDING, "0002": DEAD, "broken": DELIVERED} == states(place.database)


def broken(place: Place, outbox_: Outbox) -> int:
    """A delivered message whose file has been freed."""
    message_id = place.enqueue(outbox_, "broken", {"photo": b"gone"})
    set_all(place, DELIVERED)
    with place.database.begin() as connection:
        connection.execute(sa.update(file).values(freed_at=NOW))
    return message_id


def test_many_names_are_taken_a_handful_at_a_time(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 1100)
    keys = tuple(f"{n:04}" for n in range(1090, -10, -1))

    assert 1091 == outbox_here.replay(Selection(keys=keys, ids=(1, 2)), "ann")

    assert {0: 9, 1: 1091} == replays(place)


def test_names_that_nobody_has_are_nobody(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 3)

    assert 0 == outbox_here.purge(Selection(keys=("nobody",)), "ann")
    assert 0 == outbox_here.preview("purge", Selection(keys=("nobody",))).messages

    assert 3 == count(place.database, message)


# Interrupted, and gone on with.


@pytest.mark.parametrize("seconds", [60, 0, -3600])
def test_an_interrupted_act_is_gone_on_with_and_takes_nothing_twice(place: Place, outbox_here: Outbox, seconds: int) -> None:
    add_many(place, 130)
    first = outbox_here.begin("replay", ALL_DEAD, "ann")
    done = some_steps(first)
    place.clock.wall += timedelta(seconds=seconds)
    set_all(place, DEAD, where=message.c.replays == 1)  # they were tried, and died again
    assert first.id is not None

    again = place.outbox(clock=place.clock).go_on(first.id, "replay")

    assert 50 == done
    assert 130 == again.run()
    assert {1: 130} == replays(place)
    (row,) = acts(place)
    assert (130, "ann", True) == (row.messages, row.actor, row.finished_at is not None)


def test_what_came_into_its_state_after_the_act_began_is_not_its_own(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 120)
    act = outbox_here.begin("replay", ALL_DEAD, "ann")
    some_steps(act)
    place.clock.move(60)
    set_all(place, PENDING, where=message.c.id > 100)
    set_all(place, DEAD, where=message.c.id > 110)

    assert 100 == act.run()

    assert {0: 20, 1: 100} == replays(place)


def test_what_ended_by_a_clock_that_was_wrong_is_taken_all_the_same(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 3, finished_at=NOW + timedelta(days=400))

    assert 3 == outbox_here.replay(ALL_DEAD, "ann")


def test_messages_that_are_enqueued_meanwhile_are_not_cancelled(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 60, PENDING)
    act = outbox_here.begin("cancel", Selection(destination="enos"), "ann")
    some_steps(act)
    place.clock.move(1)
    place.enqueue(outbox_here, "later")

    assert 60 == act.run()

    assert PENDING == column(place.database, "later", "state")


@pytest.mark.parametrize("seconds", [1, 0, -60])
def test_two_runs_of_one_act_share_the_work_and_repeat_nothing(place: Place, outbox_here: Outbox, seconds: int) -> None:
    add_many(place, 400)
    one = outbox_here.begin("replay", ALL_DEAD, "ann")
    some_steps(one)
    assert one.id is not None
    other = place.outbox(clock=place.clock).go_on(one.id)
    both = [other, one]
    while [act for act in both if act.step() is not None]:
        place.clock.wall += timedelta(seconds=seconds)
        set_all(place, DEAD, where=message.c.replays == 1)

    assert {1: 400} == replays(place)
    assert [400] == [row.messages for row in acts(place)]


def test_an_act_of_a_limit_is_gone_on_with_up_to_that_limit(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 100)
    first = outbox_here.begin("purge", Selection(states=(DEAD,), limit=70), "ann")
    some_steps(first)
    assert first.id is not None

    assert 70 == outbox_here.go_on(first.id).run()

    assert 30 == count(place.database, message)


def test_a_lost_connection_costs_an_act_nothing_but_its_step(postgres_place: Place) -> None:
    place = postgres_place
    outbox_ = place.outbox(clock=place.clock)
    add_many(place, 120)
    act = outbox_.begin("replay", ALL_DEAD, "ann")
    some_steps(act)
    place.clock.move(1)

    @sa.event.listens_for(outbox_.database.engine, "commit", once=True)
    def cut(connection: sa.Connection) -> None:
        with place.engine.begin() as other:
            pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
            other.execute(sa.text(f"SELECT pg_terminate_backend({pid}, 5000)"))

    with pytest.raises(sa.exc.OperationalError):
        act.step()

    assert 120 == act.run()
    assert {1: 120} == replays(place)
    assert [120] == [row.messages for row in acts(place)]


@pytest.mark.parametrize(
    ("act_id", "action", "words"),
    [
        (99, None, "there is no act 99 to go on with; outbox audit lists them"),
        (1, None, "there is no act 1 to go on with"),
        (2, "purge", "act 2 is a replay; go on with: outbox replay --continue 2"),
        (2, "replay", "act 2 is over; it was done to 1 message"),
    ],
)
def test_what_cannot_be_gone_on_with_is_told(
    place: Place, outbox_here: Outbox, act_id: int, action: Action | None, words: str
) -> None:
    outbox_here.pause("enos", "why not", "ann")
    add_many(place, 1)
    outbox_here.replay(ALL_DEAD, "ann")

    with pytest.raises(ConfigurationError, match=words):
        outbox_here.go_on(act_id, action)


def test_an_act_that_is_none_and_a_rate_that_is_none_are_refused(place: Place, outbox_here: Outbox) -> None:
    with pytest.raises(ConfigurationError, match="expected an act of replay, cancel, purge, got 'shred'"):
        outbox_here.begin("shred", ALL_DEAD, "ann")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="expected a rate of more than 0 messages a second, got 0"):
        outbox_here.begin("purge", ALL_DEAD, "ann", rate=0)


# Streams that somebody holds.


def test_streams_that_a_producer_holds_come_last_and_after_an_interruption_too(postgres_place: Place) -> None:
    place = postgres_place
    outbox_ = place.outbox(clock=place.clock)
    for key in ("p1", "p2"):
        place.enqueue(outbox_, key, ordering_key="pump")
    set_all(place, DEAD)
    add_many(place, 60)
    act = outbox_.begin("replay", ALL_DEAD, "ann")
    with place.engine.begin() as holder:
        holder.execute(sa.text("SELECT * FROM outbox_head FOR UPDATE"))
        done = some_steps(act, 2)
    assert act.id is not None

    again = outbox_.go_on(act.id)

    assert 60 == done
    assert 62 == again.run()
    assert 62 == act.run(), "the first finds nothing left of what it had put off"
    assert (0, 0) == (act.passed_over, again.passed_over)
    assert {1: 62} == replays(place)


# Purging.


def test_a_purged_message_is_gone_with_all_that_was_its_own(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    shared = outbox_here.spool(b"of both")
    for key in ("a", "b"):
        with place.engine.begin() as connection:
            files = {"mine": key.encode(), "ours": shared}
            outbox_here.enqueue(connection, "enos", event(key, *files), files=files, key=key)
    hand.turn()

    assert 1 == outbox_here.purge(Selection(keys=("a",)), "ann")

    assert {"b": DELIVERED} == states(place.database)
    assert (1, 2, 2) == tuple(count(place.database, table) for table in (attempt, attachment, file))
    assert 2 == len(place.spooled())
    assert [("ann", "purge", "keys a", 1)] == [(row.actor, row.action, row.selection, row.messages) for row in acts(place)]


def test_what_waits_is_not_purged(place: Place, outbox_here: Outbox) -> None:
    place.enqueue(outbox_here, "a", {"photo": b"of a"})

    assert 0 == outbox_here.purge(Selection(destination="enos"), "ann")

    assert {"a": PENDING} == states(place.database)
    assert 1 == len(place.spooled())
    assert [] == acts(place)


def test_a_key_goes_on_without_the_dead_message_that_is_purged(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    for key in ("p1", "p2"):
        place.enqueue(outbox_here, key, ordering_key="pump")
    place.receiver.refuse(lambda struct: struct["assetId"] == "p1")
    hand.turn_while_it_moves()
    assert {"p1": DEAD, "p2": PENDING} == states(place.database)

    outbox_here.purge(ALL_DEAD, "ann")
    hand.turn_while_it_moves()

    assert {"p2": DELIVERED} == states(place.database)


def test_a_key_whose_message_is_purged_names_another(place: Place, outbox_here: Outbox, hand: Hand) -> None:
    place.enqueue(outbox_here, "a")
    hand.turn()
    outbox_here.purge(Selection(keys=("a",)), "ann")

    with place.engine.begin() as connection:
        again = outbox_here.enqueue(connection, "enos", event("other"), key="a")

    assert again.new


# Previews.


def test_a_preview_tells_what_an_act_would_be_done_to(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 3, size=10, unknowns=1, attempt=1, finished_at=NOW - timedelta(hours=2))
    with place.database.begin() as connection:
        more = [
            message_values(DEAD, destination="hub", size=5, reason=Reason.EXPIRED),
            message_values(DELIVERED, size=7),
            message_values(PENDING),
            message_values(State.CLAIMED),
        ]
        for each in more:
            connection.execute(sa.insert(message).values(each))
    broken_id = add_with_file(place, DELIVERED, freed=True)
    add_with_file(place, DELIVERED, freed=False)

    told = outbox_here.preview("replay", Selection(until=NOW + timedelta(days=1)))
    of_dead = outbox_here.preview("replay", ALL_DEAD)
    one = outbox_here.preview("replay", Selection(ids=(broken_id, 1, 6, 7)))

    assert (
        Preview(
            messages=6,
            bytes=3 * 10 + 5 + 7 + 2,
            files=1,
            file_bytes=8,
            destinations={"enos": 5, "hub": 1},
            oldest=NOW - timedelta(hours=2),
            may_be_duplicates=5,
            lost_their_file=1,
            passed_over={"claimed": 1, "pending": 1},
        )
        == told
    )
    hours_ago = NOW - timedelta(hours=2)
    assert Preview(4, 35, 0, 0, {"enos": 3, "hub": 1}, hours_ago, 3) == of_dead
    assert (1, 1, {"claimed": 1, "pending": 1}) == (one.messages, one.lost_their_file, one.passed_over)
    assert told.messages == outbox_here.replay(Selection(until=NOW + timedelta(days=1)), "ann")


def add_with_file(place: Place, state: State, *, freed: bool) -> int:
    photo = spooled()
    with place.database.begin() as connection:
        digests = {"sha256": photo.sha256, "md5": photo.md5}
        values = {"name": photo.name, "size": 8, "created_at": NOW, "freed_at": NOW if freed else None, **digests}
        connection.execute(sa.insert(file).values(values))
        row = message_values(state, files=1, file_bytes=8)
        message_id = connection.execute(sa.insert(message).values(row).returning(message.c.id)).scalar_one()
        given = {"name": "photo", "file": photo.name, "filename": "photo.jpg", "content_type": "image/jpeg"}
        connection.execute(sa.insert(attachment).values(message_id=message_id, position=0, **given))
        assert row_of(connection, message_id).files == 1
    return int(message_id)


@pytest.mark.parametrize("names", [(), tuple(range(1, 8))])
def test_a_preview_minds_the_limit(place: Place, outbox_here: Outbox, names: tuple[int, ...]) -> None:
    first = add_with_file(place, DELIVERED, freed=True)
    for _ in range(3):
        add_with_file(place, DELIVERED, freed=False)
    limited = Selection(states=(DELIVERED,), ids=names, limit=2)

    told = outbox_here.preview("replay", limited)

    assert (2, 2, 1) == (told.messages, told.files, told.lost_their_file)
    assert 2 == outbox_here.replay(limited, "ann")
    with place.database.read() as connection:
        assert DELIVERED == row_of(connection, first).state


def test_a_preview_of_a_cancel_or_a_purge_speaks_of_no_duplicates(place: Place, outbox_here: Outbox) -> None:
    add_many(place, 2, unknowns=1, attempt=1)

    told = [outbox_here.preview(action, ALL_DEAD) for action in ("cancel", "purge")]

    assert [(2, 0), (2, 0)] == [(each.messages, each.may_be_duplicates) for each in told]


def test_a_preview_writes_nothing_and_wants_to_know_which(place: Place, outbox_here: Outbox) -> None:
    with pytest.raises(ConfigurationError, match="say which messages to purge"):
        outbox_here.preview("purge", Selection(limit=10))

    assert 0 == count(place.database, audit)
