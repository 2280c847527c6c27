"""What a person does to messages: which are chosen, what becomes of them, and what is noted of it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Lane, State, migrate
from outbox.database import Database
from outbox.model import FINAL, Outcome, Reason, Selection
from outbox.store import acting, arriving, keeping, shares, streams
from outbox.store.acting import Action, Page, Window
from outbox.tables import audit, file, head, share
from outbox.timekeeping import When
from tests.factories import NOW, add_row, attempts_of, claim, put, record, row_of, spooled, waiting

Reopen = Callable[[], Database]
LATER = NOW + timedelta(hours=1)
ENOS = Selection(destination="enos")
CERTAIN = Window(NOW, NOW)
STATES: list[tuple[Action, set[State]]] = [
    ("replay", set(FINAL)),
    ("cancel", {State.PENDING, State.DEAD}),
    ("purge", set(FINAL)),
]


def chosen(
    connection: sa.Connection, action: Action, selection: Selection = ENOS, after: int = 0, limit: int = 500
) -> list[int]:
    found = acting.candidates(connection, action, selection, CERTAIN, Page(after, 10_000, limit))
    return acting.choose(connection, acting.choice(action, selection), CERTAIN, found).ids


def replay(connection: sa.Connection, ids: list[int], now: datetime = NOW) -> list[int]:
    rows = [row_of(connection, each) for each in ids]
    of_shares = {each.share_id for each in rows if each.share_id is not None}
    if missing := shares.missing_for_replay(connection, of_shares):
        shares.make(connection, missing)
    return acting.replay(connection, ids, now, [each.id for each in rows if each.files], of_shares)


def one_of_each(connection: sa.Connection) -> dict[State, int]:
    return {state: add_row(connection, state) for state in State}


def in_stream(connection: sa.Connection, number: int = 2) -> list[int]:
    return [put(connection, ordering_key="pump") for _ in range(number)]


def finish(connection: sa.Connection, **how: Any) -> list[int]:
    """Claim what is due and settle it; the ids."""
    claimed = claim(connection)
    assert claimed is not None
    record(connection, claimed.delivery, "w1", claimed.settled(**how))
    return claimed.ids


DEAD: dict[str, Any] = {
    "state": State.DEAD,
    "outcome": Outcome.REJECT,
    "reason": Reason.REJECTED,
    "text": "no such asset",
    "batch_limit": 1,
}

# Choosing.


@pytest.mark.parametrize(("action", "states"), STATES)
def test_an_act_is_for_certain_states(database: Database, action: Action, states: set[State]) -> None:
    with database.begin() as connection:
        rows = one_of_each(connection)

        assert sorted(rows[state] for state in states) == chosen(connection, action)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(("action", "states"), STATES)
def test_asking_for_a_state_narrows_and_never_widens(
    database: Database, state: State, action: Action, states: set[State]
) -> None:
    with database.begin() as connection:
        rows = one_of_each(connection)

        assert ([rows[state]] if state in states else []) == chosen(connection, action, Selection(states=(state,)))


def test_a_selection_narrows_by_everything_given(database: Database) -> None:
    with database.begin() as connection:
        a = add_row(connection, State.DEAD, key="a")
        b = add_row(connection, State.DEAD, key="b", reason=Reason.EXPIRED)
        c = add_row(connection, State.DEAD, key="c", destination="elsewhere")
        d = add_row(connection, State.DELIVERED, key="d")
        expected = {
            Selection(ids=(a, d)): [a, d],
            Selection(keys=("a", "c", "nobody")): [a, c],
            Selection(ids=(a,), keys=("b",)): [a, b],
            Selection(ids=(a, b, c), destination="enos"): [a, b],
            Selection(destination="elsewhere"): [c],
            Selection(reasons=(Reason.EXPIRED,)): [b],
            Selection(reasons=(Reason.EXPIRED, Reason.REJECTED), keys=("a", "b")): [a, b],
            Selection(states=(State.DELIVERED,)): [d],
            Selection(states=(State.DELIVERED,), reasons=(Reason.EXPIRED,)): [],
            Selection(ids=(a,), keys=("b",), destination="elsewhere"): [],
            Selection(destination="nobody"): [],
        }

        assert expected == {selection: chosen(connection, "replay", selection) for selection in expected}


def test_a_selection_by_ordering_key_is_of_that_keys_stream(database: Database) -> None:
    with database.begin() as connection:
        mine = in_stream(connection)
        put(connection, ordering_key="fan")
        elsewhere = put(connection, ordering_key="pump", destination="elsewhere")
        put(connection)

        assert [*mine, elsewhere] == chosen(connection, "cancel", Selection(ordering_key="pump"))
        assert mine == chosen(connection, "cancel", Selection(ordering_key="pump", destination="enos"))


def test_messages_are_chosen_a_handful_at_a_time_by_id(database: Database) -> None:
    with database.begin() as connection:
        ids = [add_row(connection, State.DEAD) for _ in range(5)]

        assert ids[:2] == chosen(connection, "replay", limit=2)
        assert ids[2:4] == chosen(connection, "replay", after=ids[1], limit=2)
        assert ids[4:] == chosen(connection, "replay", after=ids[3], limit=2)


def test_what_another_is_changing_is_passed_over(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        _, second, third = (put(connection) for _ in range(3))
    with reopen_postgres().begin() as other:
        claim(other, limit=1)

        with postgres_database.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
            assert [second, third] == chosen(connection, "cancel")


def test_candidates_come_from_one_page(database: Database) -> None:
    with database.begin() as connection:
        ids = [add_row(connection, State.DEAD) for _ in range(5)]

        found = [
            acting.candidates(connection, "replay", ENOS, CERTAIN, page)
            for page in (Page(ids[0], ids[3], 10), Page(0, ids[3], 2), Page(0, ids[4], 10, (ids[4], ids[1])))
        ]

    assert [ids[1:4], ids[:2], [ids[1], ids[4]]] == [[each.id for each in page] for page in found]


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        (State.DEAD, {"finished_at": NOW}, True),
        (State.DEAD, {"finished_at": NOW + timedelta(seconds=1)}, False),
        (State.DEAD, {"finished_at": NOW + timedelta(days=400)}, True),
        (State.PENDING, {"created_at": NOW}, True),
        (State.PENDING, {"created_at": NOW + timedelta(seconds=1)}, False),
    ],
)
def test_an_act_is_for_what_came_into_its_state_before_it_began(
    database: Database, state: State, changes: dict[str, Any], expected: bool
) -> None:
    window = Window(NOW, LATER)
    with database.begin() as connection:
        message_id = add_row(connection, state, **changes)

        found = acting.candidates(connection, "cancel", ENOS, window, Page(0, message_id, 10))
        everything = acting.candidates(connection, "cancel", ENOS, CERTAIN, Page(0, message_id, 10))
        chosen = acting.choose(connection, acting.choice("cancel", ENOS), window, everything)

    assert [expected, expected] == [bool(found), bool(chosen.ids)]


def test_names_are_looked_up_whatever_their_destinations(database: Database) -> None:
    with database.begin() as connection:
        first = add_row(connection, key="a")
        other = add_row(connection, key="a", destination="hub")

        assert [first, other, 99] == acting.named(connection, Selection(keys=("a", "nobody"), ids=(99, other)))
        assert [other] == acting.named(connection, Selection(keys=("a",), destination="hub"))
        assert [] == acting.named(connection, Selection(keys=("nobody",)))
        assert None is acting.named(connection, ENOS)


@pytest.mark.parametrize("selection", [Selection(states=(State.DEAD,)), Selection(states=(State.DEAD,), destination="enos")])
def test_the_dead_are_found_and_counted_among_millions_of_others(sqlite_url: str, selection: Selection) -> None:
    database = Database(sqlite_url)
    migrate.upgrade(database)
    plans: list[str] = []
    with database.read() as connection:

        @sa.event.listens_for(connection, "before_cursor_execute")
        def explain(_: Any, cursor: Any, statement: str, parameters: Any, *more: Any) -> None:
            plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())

        acting.candidates(connection, "replay", selection, CERTAIN, Page(0, 100, 10))
        acting.preview(connection, "replay", selection)
        acting.choose(connection, acting.choice("replay", selection), CERTAIN, [acting.Candidate(1, None)])
    database.close()

    walked, counted, chosen = (plan for plan in plans if "outbox_message" in plan)
    assert "USING INDEX ix_outbox_message_dead_id (id>? AND id<?)" in walked
    assert "USING COVERING INDEX ix_outbox_message_dead" in counted
    assert "(rowid=?)" in chosen or "ix_outbox_message_dead_id (id=?)" in chosen


# Replaying.


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_replayed_message_starts_afresh_and_its_tries_are_kept(database: Database, state: State) -> None:
    before: dict[str, Any] = {"attempt": 7, "failures": 3, "unknowns": 2, "batch_limit": 1, "suspect": True, "faulted_in": 9}
    before |= {"expires_at": NOW, "scheduled": True, "reason_text": "no such asset"}
    with database.begin() as connection:
        message_id = add_row(connection, state, **before)

        assert [message_id] == replay(connection, [message_id], LATER)

        row = row_of(connection, message_id)
    assert (State.PENDING, None, None, None) == (row.state, row.reason, row.reason_text, row.finished_at)
    assert (7, 0, 0, 1, 1) == (row.attempt, row.failures, row.unknowns, row.replays, row.batch_limit)
    assert (LATER, False, None, False, None) == (row.due_at, row.scheduled, row.expires_at, row.suspect, row.faulted_in)


def test_a_replayed_message_is_numbered_on_and_keeps_its_attempts(database: Database) -> None:
    with database.begin() as connection:
        message_id = put(connection)
        finish(connection, **DEAD)
        replay(connection, [message_id])

        again = claim(connection, lane=Lane.BULK)

        assert again is not None
        assert [2] == [each.attempt for each in again.messages]
        assert [1] == [each.batch_limit for each in again.messages], "refused alone once, it goes alone"
        record(connection, again.delivery, "w1", again.settled())
        assert [(1, "reject", None), (2, "delivered", None)] == attempts_of(connection, message_id)


@pytest.mark.parametrize(
    ("lane", "expected"),
    [(Lane.NORMAL, Lane.BULK), (Lane.EXPRESS, Lane.BULK), (Lane.BULK, Lane.BULK), (Lane.LARGE, Lane.LARGE)],
)
def test_replays_wait_in_the_bulk_lane_but_large_ones_in_theirs(database: Database, lane: Lane, expected: Lane) -> None:
    with database.begin() as connection:
        message_id = add_row(connection, State.DEAD, lane=lane)

        replay(connection, [message_id])

        assert expected == row_of(connection, message_id).lane
        assert [message_id] == [each.id for each in waiting(connection, expected)]


def test_a_message_is_replayed_as_often_as_a_person_likes(database: Database) -> None:
    with database.begin() as connection:
        message_id = add_row(connection, State.CANCELLED)
        for _ in range(3):
            replay(connection, [message_id])
            acting.cancel(connection, [message_id], NOW)

        assert 3 == row_of(connection, message_id).replays


def test_a_message_that_has_lost_a_file_is_not_replayed(database: Database) -> None:
    kept, lost = spooled(), spooled()
    with database.begin() as connection:
        for each in (kept, lost):
            arriving.add_file(connection, each, NOW)
        whole, broken = put(connection, files=[kept]), put(connection, files=[kept, lost])
        finish(connection)
        keeping.mark_freed(connection, [lost.name], NOW)

        assert [whole] == replay(connection, [whole, broken])

        assert [State.PENDING, State.DELIVERED] == [row_of(connection, each).state for each in (whole, broken)]


def test_the_files_of_a_replayed_message_stay(database: Database) -> None:
    mine, others = spooled(), spooled()
    with database.begin() as connection:
        for each in (mine, others):
            arriving.add_file(connection, each, NOW)
        message_id = put(connection, files=[mine])
        put(connection, files=[others])
        finish(connection)
        connection.execute(sa.update(file).values(free_at=LATER))

        replay(connection, [message_id])

        assert [others.name] == keeping.files_to_free(connection, LATER, 10)
        assert {mine.name} == keeping.still_needed(connection, [mine.name])


def test_freeing_waits_for_a_replay_and_then_leaves_the_file(postgres_database: Database, reopen_postgres: Reopen) -> None:
    photo = spooled()
    with postgres_database.begin() as connection:
        arriving.add_file(connection, photo, NOW, free_at=NOW)
        message_id = put(connection, files=[photo])
        finish(connection)
    with reopen_postgres().begin() as person, postgres_database.begin() as connection:
        replay(person, chosen(person, "replay"))

        assert [] == keeping.files_to_free(connection, LATER, 10)
    with postgres_database.begin() as connection:
        assert [] == keeping.files_to_free(connection, LATER, 10)
        assert State.PENDING == row_of(connection, message_id).state


@pytest.mark.parametrize(("lane", "again"), [(Lane.NORMAL, Lane.BULK), (Lane.BULK, Lane.BULK), (Lane.LARGE, Lane.LARGE)])
def test_a_replayed_message_of_a_share_keeps_its_key_and_takes_its_turns(database: Database, lane: Lane, again: Lane) -> None:
    with database.begin() as connection:
        ids = [put(connection, ordering_key=key, ordered=False, lane=lane) for key in ("pump", "fan")]
        claimed = claim(connection, lane=lane)
        assert claimed is not None
        record(connection, claimed.delivery, "w1", claimed.settled())

        replay(connection, ids)

        assert ids == sorted(each.id for each in waiting(connection, again))
        of_pump = sa.select(share.c.id).where(share.c.ordering_key == "pump", share.c.lane == again)
        row = row_of(connection, ids[0])
        assert (again, connection.execute(of_pump).scalar_one()) == (row.lane, row.share_id)


def test_a_replayed_message_goes_before_those_behind_it_in_its_stream(database: Database) -> None:
    with database.begin() as connection:
        first, second = in_stream(connection)
        finish(connection, **DEAD)
        assert [] == waiting(connection)
        release(connection, replay(connection, [first]))

        replayed = claim(connection, lane=Lane.BULK)
        assert replayed is not None
        assert [first] == replayed.ids
        assert [] == waiting(connection)
        record(connection, replayed.delivery, "w1", replayed.settled())
        assert [second] == [each.id for each in waiting(connection)]


def release(connection: sa.Connection, ids: list[int]) -> None:
    mine = {row_of(connection, each).stream_id for each in ids}
    streams.release(connection, mine, When.certain(NOW), skip=False)


# Cancelling.


@pytest.mark.parametrize("state", [State.PENDING, State.DEAD])
def test_a_cancelled_message_is_final_and_keeps_its_numbers(database: Database, state: State) -> None:
    with database.begin() as connection:
        message_id = add_row(connection, state, attempt=4, failures=2)

        assert [message_id] == acting.cancel(connection, [message_id], LATER)

        row = row_of(connection, message_id)
        assert (State.CANCELLED, None, LATER, 4, 2) == (row.state, row.reason, row.finished_at, row.attempt, row.failures)
        assert [] == waiting(connection)


def test_a_stream_goes_on_without_its_cancelled_head(database: Database) -> None:
    with database.begin() as connection:
        first, second = in_stream(connection)

        release(connection, acting.cancel(connection, [first], NOW))

        assert [second] == [each.id for each in waiting(connection)]


def test_a_stream_goes_on_when_the_dead_message_that_held_it_up_is_cancelled(database: Database) -> None:
    with database.begin() as connection:
        first, second = in_stream(connection)
        finish(connection, **DEAD)

        release(connection, acting.cancel(connection, [first], NOW))

        assert [second] == [each.id for each in waiting(connection)]
        assert connection.execute(sa.select(head.c.blocked_by)).scalar_one() is None


def test_a_stream_all_of_which_is_cancelled_rests_and_wakes(database: Database) -> None:
    with database.begin() as connection:
        release(connection, acting.cancel(connection, in_stream(connection), NOW))
        assert connection.execute(sa.select(head.c.due_at)).scalar_one() is None

        assert in_stream(connection)[:1] == [each.id for each in waiting(connection)]


def test_streams_are_told_apart_by_whether_their_destination_skips_the_dead(database: Database) -> None:
    with database.begin() as connection:
        mine = in_stream(connection)
        elsewhere = put(connection, ordering_key="pump", destination="elsewhere")
        numbers = [row_of(connection, each).stream_id for each in (mine[0], elsewhere)]

        assert [numbers[0]] == acting.streams_of(connection, numbers, ["enos"], skip=True)
        assert [numbers[1]] == acting.streams_of(connection, numbers, ["enos"], skip=False)
        assert numbers == sorted(acting.streams_of(connection, numbers, [], skip=False))
        assert [] == acting.streams_of(connection, [], [], skip=False)


# Noting.


def test_what_is_done_to_no_message_is_noted_and_over(database: Database) -> None:
    with database.begin() as connection:
        acting.note(connection, NOW, "ann", "pause", "destination enos")

        row = connection.execute(sa.select(audit)).one()

    assert (NOW, "ann", "pause", "destination enos", 0) == (row.at, row.actor, row.action, row.selection, row.messages)
    assert NOW == row.finished_at


def test_a_note_of_endless_words_is_cut(database: Database) -> None:
    everyone = Selection(ids=tuple(range(10_000)))
    with database.begin() as connection:
        acting.open_act(connection, NOW, "a" * 1000, "cancel", everyone)

        row = connection.execute(sa.select(audit)).one()

    assert (255, 10_000) == (len(row.actor), len(row.selection))
    assert everyone == Selection.from_json(row.chosen), "what it goes on with is whole"


def test_an_act_has_one_row_from_its_beginning_to_its_end(database: Database) -> None:
    with database.begin() as connection:
        act = acting.open_act(connection, NOW, "ann", "replay", ENOS)
        acting.advance(connection, act, 3, 17)
        acting.advance(connection, act, 2, 40)
        under_way = connection.execute(sa.select(audit)).one()
        acting.finish(connection, act, LATER)
        acting.finish(connection, act, LATER + timedelta(days=1))

        row = connection.execute(sa.select(audit)).one()

    assert (5, 40, None) == (under_way.messages, under_way.position, under_way.finished_at)
    assert (5, 40, LATER) == (row.messages, row.position, row.finished_at)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), "everything"),
        (Selection(ids=(1, 2)), "ids 1, 2"),
        (Selection(destination="enos", states=(State.DEAD, State.CANCELLED)), "destination enos; state dead or cancelled"),
        (Selection(keys=("a",), reasons=(Reason.EXPIRED,), ordering_key="pump"), "keys a; reason expired; ordering key pump"),
    ],
)
def test_a_selection_reads_as_a_sentence(selection: Selection, expected: str) -> None:
    assert expected == str(selection)
