"""Workers: who beats, who is gone, and what the gone leave behind."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from outbox.database import Database
from outbox.model import Outcome
from outbox.policy import GONE_AFTER
from outbox.presence import Presence
from outbox.store import living
from outbox.tables import delivery, worker
from outbox.verdict import Facts
from tests.factories import NOW, Clock, claim, dead, finish_delivery, join, put, record

Reopen = Callable[[], Database]


def alive(database: Database) -> set[str]:
    with database.read() as connection:
        return set(living.beats(connection))


def test_a_beat_is_raised_until_its_worker_is_gone(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "w1")

        assert all(living.beat(connection, "w1", NOW) for _ in range(2))
        assert {"w1": 2} == living.beats(connection)
        assert living.declare_gone(connection, "w1", 2)
        assert not living.beat(connection, "w1", NOW)
        assert {} == living.beats(connection)


def test_who_has_beaten_since_is_not_declared_gone(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "w1")
        living.beat(connection, "w1", NOW)

        assert not living.declare_gone(connection, "w1", 0)
        assert living.declare_gone(connection, "w1", 1)


def test_of_two_who_declare_a_worker_gone_one_does(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "w1")

        assert [True, False] == [living.declare_gone(connection, "w1", 0) for _ in range(2)]


def test_a_beat_sees_whether_there_is_a_reason_to_look_further(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "w1")
        alone = living.beat(connection, "w1", NOW)
        join(connection, "gone")
        living.leave(connection, "gone")
        put(connection, ordering_key="pump")
        after_one_that_left = living.beat(connection, "w1", NOW)
        join(connection, "w2")
        living.ask_to_stop(connection, ["w1"])
        taken = claim(connection, "w2")
        assert taken is not None
        busy = living.beat(connection, "w1", NOW)
        record(connection, taken.delivery, "w2", taken.settled(), NOW)
        finish_delivery(connection, taken.delivery, Outcome.DELIVERED, Facts(), NOW)
        done = living.beat(connection, "w1", NOW)

    assert living.Beat(stop_asked=False, others=False, unfinished=False, stuck=False) == alone == after_one_that_left
    assert living.Beat(stop_asked=True, others=True, unfinished=True, stuck=True) == busy
    assert living.Beat(stop_asked=True, others=True, unfinished=False, stuck=False) == done


@pytest.mark.parametrize(("skipping", "stuck"), [((), False), (("elsewhere",), False), (("enos",), True)])
def test_a_stream_that_a_dead_message_blocks_is_stuck_only_where_the_dead_are_skipped(
    database: Database, skipping: tuple[str, ...], stuck: bool
) -> None:
    with database.begin() as connection:
        join(connection, "w1")
        put(connection, ordering_key="pump")
        put(connection, ordering_key="pump")
        taken = claim(connection, "w1")
        assert taken is not None
        record(connection, taken.delivery, "w1", {each.id: dead() for each in taken.messages}, NOW)
        finish_delivery(connection, taken.delivery, Outcome.REJECT, Facts(), NOW)

        seen = living.beat(connection, "w1", NOW, skipping)

    assert seen is not None
    assert stuck is seen.stuck


def test_who_is_alone_and_holds_nothing_beats_less_often(database: Database, clock: Clock) -> None:
    presence = Presence(database, clock.ambient)
    presence.arrive()

    def beats(seconds: int, *, at_rest: bool) -> int:
        before = presence.beats
        for _ in range(2 * seconds):
            clock.move(0.5)
            assert presence.beat(at_rest=at_rest)
        return presence.beats - before

    beats(3, at_rest=True)
    alone, with_something_in_hand = beats(60, at_rest=True), beats(60, at_rest=False)
    with database.begin() as connection:
        join(connection, "w2")
    beats(5, at_rest=True)

    assert (12, 20, 20) == (alone, with_something_in_hand, beats(60, at_rest=True))


def test_a_worker_without_a_row_does_not_beat(database: Database) -> None:
    with database.begin() as connection:
        assert not living.beat(connection, "nobody", NOW)


def test_deliveries_of_the_gone_and_of_the_unheard_of_are_found(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "here", "gone", "left")
        living.declare_gone(connection, "gone", 0)
        living.leave(connection, "left")
        claims = {}
        for each in ("here", "gone", "left", "unheard of"):
            put(connection)
            claims[each] = claim(connection, each)
        assert all(claims.values())

        found = living.deliveries_of_the_gone(connection, ["enos"], 10)

    assert [claims[each].delivery for each in ("gone", "left", "unheard of")] == found  # type: ignore[union-attr]


def test_a_delivery_that_ended_is_nobodys(database: Database) -> None:
    with database.begin() as connection:
        put(connection)
        claimed = claim(connection, "w1")
        assert claimed is not None
        finish_delivery(connection, claimed.delivery, Outcome.UNKNOWN, Facts(), NOW)

        assert [] == living.deliveries_of_the_gone(connection, ["enos"], 10)
        assert [] == living.deliveries_of(connection, "w1")
        assert [] == living.left_behind(connection, [claimed.delivery])


def test_what_was_left_behind_is_the_delivery_with_its_claimed_messages(database: Database) -> None:
    with database.begin() as connection:
        ids = [put(connection) for _ in range(3)]
        claimed = claim(connection, "w1")
        assert claimed is not None
        done = {ids[0]: claimed.settled()[ids[0]]}
        record(connection, claimed.delivery, "w1", done, NOW)

        (found,) = living.left_behind(connection, [claimed.delivery])

    assert ("enos", "w1", 3, ids[1:]) == (found.destination, found.worker, found.size, [each.id for each in found.messages])
    assert [1, 1] == [each.attempt for each in found.messages]


def test_a_worker_that_stands_still_in_a_transaction_holds_up_nobody(
    postgres_database: Database, reopen_postgres: Reopen
) -> None:
    with postgres_database.begin() as connection:
        join(connection, "frozen")
    with reopen_postgres().engine.connect() as frozen:
        living.beat(frozen, "frozen", NOW)

        with postgres_database.begin() as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
            declared = [living.declare_gone(connection, "frozen", 0)]
        frozen.rollback()
    with postgres_database.begin() as connection:
        declared.append(living.declare_gone(connection, "frozen", 0))

    assert [False, True] == declared


def test_the_server_ends_a_transaction_that_stands_still(postgres_database: Database) -> None:
    """A frozen or unplugged worker would keep its locks for as long as it stays so."""
    with postgres_database.begin() as connection:
        assert "10s" == connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watcher(database: Database, clock: Clock) -> Iterator[Presence]:
    presence = Presence(database, clock.ambient, gone_after=15)
    presence.arrive()
    return presence


def watch(presence: Presence, clock: Clock, seconds: float, *, beating: bool = True) -> list[str]:
    """As a worker does, half a second at a time; who was declared gone meanwhile."""
    declared = []
    for _ in range(round(seconds / presence.look_every)):
        clock.move(presence.look_every)
        if beating:
            assert presence.beat()
        declared += presence.look()
    return declared


def test_a_silent_worker_is_declared_gone_after_its_time_and_not_before(
    database: Database, watcher: Presence, clock: Clock
) -> None:
    with database.begin() as connection:
        join(connection, "silent")

    early = watch(watcher, clock, 15)
    late = watch(watcher, clock, 1)

    assert ([], ["silent"]) == (early, late)
    assert {watcher.id} == alive(database)


def test_a_worker_that_beats_stays(database: Database, watcher: Presence, clock: Clock) -> None:
    with database.begin() as connection:
        join(connection, "slow")
    declared = []

    for _ in range(10):
        declared += watch(watcher, clock, 14)
        with database.begin() as connection:
            living.beat(connection, "slow", NOW)

    assert [] == declared


def test_a_worker_that_was_not_writing_its_own_beats_declares_nobody_gone(
    database: Database, watcher: Presence, clock: Clock
) -> None:
    with database.begin() as connection:
        join(connection, "silent")
    watch(watcher, clock, 5)

    declared = watch(watcher, clock, 60, beating=False)

    assert [] == declared
    assert "silent" in alive(database)


def test_a_worker_that_slept_has_not_watched(database: Database, watcher: Presence, clock: Clock) -> None:
    with database.begin() as connection:
        join(connection, "silent")
    watch(watcher, clock, 5)
    clock.move(days=1)

    declared = watch(watcher, clock, 8)

    assert [] == declared
    assert ["silent"] == watch(watcher, clock, 5)


def test_the_wall_clock_has_no_say_in_who_is_gone(database: Database, watcher: Presence, clock: Clock) -> None:
    with database.begin() as connection:
        join(connection, "silent")
    watch(watcher, clock, 1)
    clock.wall = clock.wall.replace(year=2036)

    assert [] == watch(watcher, clock, 5)


def test_a_worker_that_was_declared_gone_finds_out_with_its_next_beat(
    database: Database, watcher: Presence, clock: Clock
) -> None:
    with database.begin() as connection:
        living.leave(connection, watcher.id)
    clock.move(10)

    alive_still = watcher.beat()
    before = watcher.id
    watcher.arrive()

    assert not alive_still
    assert before != watcher.id
    assert watcher.id in alive(database)


def test_one_who_is_patient_with_others_beats_often_enough_for_the_impatient(database: Database, clock: Clock) -> None:
    patient = Presence(database, clock.ambient, gone_after=600)
    patient.arrive()
    with database.read() as connection:
        before, patience = connection.execute(sa.select(worker.c.beat, worker.c.gone_after)).one()

    clock.move(GONE_AFTER / 5)
    patient.beat()

    with database.read() as connection:
        assert before + 1 == connection.execute(sa.select(worker.c.beat)).scalar_one()
    assert 600 == patience


def test_every_start_is_a_new_identity(database: Database, clock: Clock) -> None:
    presences = [Presence(database, clock.ambient) for _ in range(2)]
    for each in presences:
        each.arrive()

    with database.read() as connection:
        found = set(connection.execute(sa.select(worker.c.id)).scalars())

    assert {each.id for each in presences} == found
    assert len(found) == 2


def test_a_worker_that_ends_in_order_is_gone_at_once(database: Database, watcher: Presence) -> None:
    watcher.leave()

    assert set() == alive(database)


def test_history_outlives_workers(database: Database) -> None:
    with database.begin() as connection:
        join(connection, "w1")
        put(connection)
        claim(connection, "w1")

        connection.execute(sa.delete(worker))

        assert ["w1"] == list(connection.execute(sa.select(delivery.c.worker)).scalars())
