"""Shares: ordering keys whose order does not matter take fair turns."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from outbox import Lane, State
from outbox.database import Database
from outbox.model import Outcome
from outbox.store import arriving, claiming, shares
from outbox.tables import message, share
from outbox.timekeeping import When
from tests.factories import NOW, Claimed, claim, dead, new_message, put, record, row_of, settlement, waiting

Reopen = Callable[[], Database]
SECOND = timedelta(seconds=1)
LATER = NOW + timedelta(minutes=1)


def add(connection: sa.Connection, ordering_key: str, number: int = 1, **changes: object) -> list[int]:
    """Messages of an ordering key whose order does not matter."""
    return [put(connection, ordering_key=ordering_key, ordered=False, **changes) for _ in range(number)]  # type: ignore[arg-type]


def ids(connection: sa.Connection, limit: int = 100, now: datetime = NOW) -> list[int]:
    return [each.id for each in waiting(connection, now=now, limit=limit)]


def due_at(connection: sa.Connection, ordering_key: str) -> datetime | None:
    found = connection.execute(sa.select(share.c.due_at).where(share.c.ordering_key == ordering_key)).scalar_one()
    assert found is None or isinstance(found, datetime)
    return found


def claimed_all(connection: sa.Connection, worker: str = "w1", limit: int = 100, now: datetime = NOW) -> Claimed:
    claimed = claim(connection, worker, limit=limit, now=now)
    assert claimed is not None
    return claimed


def anything_due(connection: sa.Connection, now: datetime = NOW) -> bool:
    return claiming.anything_due(connection, "enos", [Lane.NORMAL], When.certain(now))


# Fair turns.


def test_a_backlog_of_one_key_does_not_delay_another_keys_fresh_message(database: Database) -> None:
    with database.begin() as connection:
        backlog = add(connection, "pump", 50, due_at=NOW - SECOND)
        (fresh,) = add(connection, "fan")

        assert [backlog[0], fresh, *backlog[1:9]] == ids(connection, limit=10)


def test_messages_of_one_key_travel_together(database: Database) -> None:
    with database.begin() as connection:
        all_of_it = add(connection, "pump", 7)

        assert all_of_it[:5] == ids(connection, limit=5)
        assert all_of_it == claimed_all(connection).ids


def test_keys_get_as_many_each_and_the_first_of_each_goes_before_the_second_of_any(database: Database) -> None:
    with database.begin() as connection:
        pump, fan, valve = (add(connection, name, 5) for name in ("pump", "fan", "valve"))

        assert [pump[0], fan[0], valve[0], pump[1], fan[1], valve[1]] == ids(connection, limit=6)


def test_with_more_keys_than_fit_those_served_longest_ago_go_first(database: Database) -> None:
    names = ["pump", "fan", "valve", "belt", "lamp", "door"]
    with database.begin() as connection:
        owner = {each: name for name in names for each in add(connection, name, 4)}
    served = Counter(dict.fromkeys(names, 0))
    for _ in range(12):
        with database.begin() as connection:
            served.update(owner[each] for each in claimed_all(connection, limit=2).ids)
        assert max(served.values()) - min(served.values()) <= 1

    assert dict.fromkeys(names, 4) == served


def test_of_one_key_the_oldest_goes_first(database: Database) -> None:
    with database.begin() as connection:
        (young,), (old,) = add(connection, "pump"), add(connection, "pump", due_at=NOW - SECOND)

        assert [old, young] == ids(connection)


def test_no_kind_of_message_waits_for_the_end_of_another(database: Database) -> None:
    with database.begin() as connection:
        loose = [put(connection) for _ in range(3)]
        ordered = [put(connection, ordering_key=f"stream-{number}") for number in range(3)]
        shared = add(connection, "pump", 3)

        expected = [each for three in zip(loose, ordered, shared, strict=True) for each in three]
        assert expected == ids(connection)


def test_an_ordering_key_may_have_messages_with_and_without_order(database: Database) -> None:
    with database.begin() as connection:
        first, _ = (put(connection, ordering_key="pump") for _ in range(2))
        unordered = add(connection, "pump", 2)

        assert {first, *unordered} == set(claimed_all(connection).ids)


def test_each_lane_of_a_key_has_a_share_of_its_own(database: Database) -> None:
    with database.begin() as connection:
        (normal,), (express,) = add(connection, "pump"), add(connection, "pump", lane=Lane.EXPRESS)

        assert [normal] == ids(connection)
        assert [express] == [each.id for each in waiting(connection, Lane.EXPRESS)]


def test_destinations_do_not_share(database: Database) -> None:
    with database.begin() as connection:
        (mine,) = add(connection, "pump")
        add(connection, "pump", destination="elsewhere")

        assert [mine] == ids(connection)


# When a share is due.


def test_a_share_without_messages_rests_and_wakes_with_the_next(database: Database) -> None:
    with database.begin() as connection:
        add(connection, "pump", 2)
        claimed_all(connection)
        assert due_at(connection, "pump") is None
        assert not anything_due(connection)

        (following,) = add(connection, "pump", due_at=LATER)

        assert due_at(connection, "pump") == LATER
        assert not anything_due(connection)
        assert anything_due(connection, LATER)
        assert [following] == ids(connection, now=LATER)


def test_a_share_of_which_some_were_taken_is_due_for_the_next(database: Database) -> None:
    with database.begin() as connection:
        add(connection, "pump", 2)
        add(connection, "pump", due_at=LATER)

        claimed_all(connection)

        assert due_at(connection, "pump") == LATER


def test_a_share_that_waits_is_due_at_once_for_a_fresh_message(database: Database) -> None:
    with database.begin() as connection:
        (later,), (fresh,) = add(connection, "pump", due_at=LATER), add(connection, "pump")

        assert [fresh] == claimed_all(connection).ids
        assert due_at(connection, "pump") == LATER
        assert [later] == ids(connection, now=LATER)


def test_a_retried_message_comes_back_when_its_wait_is_over(database: Database) -> None:
    with database.begin() as connection:
        (retried,) = add(connection, "pump")
        claimed = claimed_all(connection)

        back = settlement(State.PENDING, Outcome.RETRY, failures=1, due_at=LATER)
        record(connection, claimed.delivery, "w1", {retried: back})

        assert due_at(connection, "pump") == LATER
        assert [] == ids(connection)
        assert [retried] == ids(connection, now=LATER)


def test_a_message_that_was_given_back_is_there_at_once(database: Database) -> None:
    with database.begin() as connection:
        returned = add(connection, "pump", 3)
        claimed = claimed_all(connection)
        record(connection, claimed.delivery, "w1", claimed.settled(state=State.PENDING, outcome=Outcome.NOT_SENT))

        assert returned == ids(connection)


@pytest.mark.parametrize("final", [settlement(), dead()], ids=["delivered", "dead"])
def test_a_message_that_is_done_holds_up_nobody(database: Database, final: object) -> None:
    with database.begin() as connection:
        first, second = add(connection, "pump", 2)
        claimed = claimed_all(connection, limit=1)
        assert [first] == claimed.ids

        record(connection, claimed.delivery, "w1", {first: final})  # type: ignore[dict-item]

        assert [second] == claimed_all(connection).ids
        assert due_at(connection, "pump") is None


def test_a_share_whose_messages_went_otherwise_is_put_to_rest_by_the_next_look(database: Database) -> None:
    with database.begin() as connection:
        (withdrawn,) = add(connection, "pump")
        connection.execute(sa.update(message).where(message.c.id == withdrawn).values(state="cancelled", finished_at=NOW))
        assert anything_due(connection)

        assert claim(connection) is None
        assert not anything_due(connection)


def test_a_look_that_finds_something_else_still_puts_an_empty_share_to_rest(database: Database) -> None:
    with database.begin() as connection:
        (withdrawn,), (other,) = add(connection, "pump"), add(connection, "fan")
        connection.execute(sa.update(message).where(message.c.id == withdrawn).values(state="cancelled", finished_at=NOW))

        assert [other] == ids(connection)
        assert due_at(connection, "pump") is None


def test_a_repeated_key_does_not_wake_its_share(database: Database) -> None:
    with database.begin() as connection:
        put(connection, "a", ordering_key="pump", ordered=False)
        claimed = claimed_all(connection)
        record(connection, claimed.delivery, "w1", claimed.settled())

        new = new_message("a")
        assert arriving.add_message(connection, new._replace(share_id=shares.join(connection, new, "pump"))) is None

        assert not anything_due(connection)


def test_a_message_that_a_producer_scheduled_waits_for_the_later_of_two_clocks(database: Database) -> None:
    ahead = When(LATER, chosen=NOW, invented=LATER)
    with database.begin() as connection:
        add(connection, "scheduled", due_at=LATER, scheduled=True)
        (put_off,) = add(connection, "put off", due_at=LATER)

        found = claiming.waiting(connection, "enos", Lane.NORMAL, ahead, 10, skip=False)[0]

        assert [put_off] == [each.id for each in found]
        assert 2 == len(waiting(connection, now=LATER))


def test_of_one_share_those_that_have_come_are_taken_and_those_scheduled_for_later_are_not(database: Database) -> None:
    with database.begin() as connection:
        (now_due,) = add(connection, "pump")
        (scheduled,) = add(connection, "pump", due_at=LATER, scheduled=True)

        assert [now_due] == claimed_all(connection).ids
        assert (LATER, True) == tuple(connection.execute(sa.select(share.c.due_at, share.c.scheduled)).one())
        assert [scheduled] == claimed_all(connection, now=LATER).ids


# Several at work.


@pytest.mark.long
def test_nothing_of_a_share_is_claimed_twice_by_those_who_claim_at_the_same_time(database: Database, reopen: Reopen) -> None:
    with database.begin() as connection:
        expected = sorted(each for name in ("pump", "fan", "valve") for each in add(connection, name, 20))
    taken: list[int] = []
    ready = threading.Barrier(4)

    def worker(name: str) -> None:
        mine = reopen()
        ready.wait(10)
        for _ in range(200):
            with mine.begin() as connection:
                claimed = claim(connection, name, limit=4)
            taken.extend(claimed.ids if claimed else [])
            if len(taken) >= len(expected):
                return

    threads = [threading.Thread(target=worker, args=(f"w{number}",)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)

    assert expected == sorted(taken)


def test_a_share_that_another_is_claiming_from_is_passed_over_and_not_forgotten(
    postgres_database: Database, reopen_postgres: Reopen
) -> None:
    with postgres_database.begin() as connection:
        pump, fan = add(connection, "pump", 4), add(connection, "fan", 2)
    with postgres_database.begin() as connection, reopen_postgres().begin() as other:
        first = claimed_all(connection, "w1", limit=1)

        second = claimed_all(other, "w2")
    with postgres_database.begin() as connection:
        third = claimed_all(connection, "w3")

    assert [[pump[0]], fan, pump[1:]] == [first.ids, second.ids, third.ids]


@pytest.mark.parametrize("commits", [True, False])
def test_a_producer_at_work_on_a_share_does_not_hold_up_a_claim_and_its_message_is_not_stranded(
    postgres_database: Database, reopen_postgres: Reopen, commits: bool
) -> None:
    with postgres_database.begin() as connection:
        add(connection, "pump")
    producer = reopen_postgres().engine.connect()
    (following,) = add(producer, "pump")
    with postgres_database.begin() as connection:
        connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
        claimed_all(connection, "w1")
        assert due_at(connection, "pump") is not None, "it will be looked at again"
    with postgres_database.begin() as connection:
        assert claim(connection, "w1") is None

    producer.commit() if commits else producer.rollback()
    producer.close()

    with postgres_database.begin() as connection:
        assert ([following] if commits else []) == ids(connection)
        if commits:
            claimed_all(connection)
        assert due_at(connection, "pump") is None


def test_a_producer_that_has_only_looked_up_its_share_is_not_forgotten_either(
    postgres_database: Database, reopen_postgres: Reopen
) -> None:
    with postgres_database.begin() as connection:
        add(connection, "pump")
    new = new_message()
    with reopen_postgres().begin() as producer:
        share_id = shares.join(producer, new, "pump")
        with postgres_database.begin() as connection:
            claimed_all(connection, "w1")
        following = arriving.add_message(producer, new._replace(share_id=share_id))
        shares.wake(producer, [share_id], new.due_at)

    with postgres_database.begin() as connection:
        assert [following] == ids(connection)


def test_producers_of_one_share_do_not_wait_for_each_other(postgres_database: Database, reopen_postgres: Reopen) -> None:
    with postgres_database.begin() as connection:
        add(connection, "pump")
    with reopen_postgres().begin() as one, reopen_postgres().begin() as other:
        add(one, "pump")
        other.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
        add(other, "pump")

    with postgres_database.begin() as connection:
        assert 3 == len(ids(connection))


def test_a_record_says_which_shares_it_could_not_tell_and_they_can_be_told_later(
    postgres_database: Database, reopen_postgres: Reopen
) -> None:
    when = When.certain(NOW)
    with postgres_database.begin() as connection:
        (returned,) = add(connection, "pump")
        claimed_all(connection, "w1")
        share_id = row_of(connection, returned).share_id
        connection.execute(
            sa.update(message).values(state="pending", claimed_by=None, delivery_id=None).where(message.c.id == returned)
        )
    with reopen_postgres().begin() as holder:
        holder.execute(sa.select(share.c.id).with_for_update(key_share=True))
        with postgres_database.begin() as connection:
            assert {share_id} == shares.release(connection, {share_id}, when)

    with postgres_database.begin() as connection:
        assert [] == ids(connection)
        assert set() == shares.release(connection, {share_id}, when)
        assert [returned] == ids(connection)


def test_a_share_at_rest_although_a_message_waits_has_strayed(database: Database) -> None:
    with database.begin() as connection:
        (lost,), _ = add(connection, "pump"), add(connection, "fan")
        add(connection, "pump", destination="elsewhere")
        add(connection, "empty")
        claimed = [each for each in claimed_all(connection).messages if each.id != lost]
        share_id = row_of(connection, lost).share_id
        assert claimed
        connection.execute(
            sa.update(message).values(state="pending", claimed_by=None, delivery_id=None).where(message.c.id == lost)
        )

        assert [share_id] == shares.strayed(connection, "enos")
        shares.release(connection, [share_id], When.certain(NOW))
        assert [] == shares.strayed(connection, "enos")
        assert [lost] == ids(connection)
