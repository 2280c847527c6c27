"""Several workers and a caller on one database: each message is claimed once at a time and delivered once."""

import threading
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from outbox import State
from outbox.tables import attempt, delivery
from tests.factories import count, in_full, states
from tests.story.conftest import Place, eventually

MESSAGES = in_full(10_000, 2_000)


@pytest.mark.full
def test_thousands_of_messages_four_workers_and_a_caller_that_reads_first(place: Place) -> None:
    with place.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE host (id INTEGER PRIMARY KEY, done INTEGER NOT NULL)"))
        connection.execute(sa.text("INSERT INTO host VALUES (1, 0)"))
    policy = {"batch_messages": 25, "senders": 2}
    workers = [place.run("work", policy=policy, worker={"poll": 0.1}) for _ in range(4)]
    for each in workers:
        each.until_logged("delivers to", 60)  # else one that starts late may find nothing left
    began = time.monotonic()
    caller = place.run("produce", name="m", messages=MESSAGES, together=10, row=1)

    place.receiver.wait_for(lambda receiver: len(receiver.accepted) >= MESSAGES or not caller_is_well(caller), 120)
    took = time.monotonic() - began
    assert caller.ended() == 0, caller.log
    eventually(lambda: set(states(place.database).values()) == {State.DELIVERED})

    print(f"{MESSAGES} messages in {took:.1f} s, {len(place.receiver.requests)} requests")
    place.stop_processes()
    assert [] == [line for each in (*workers, caller) for line in each.log.splitlines() if "locked" in line.lower()]
    assert MESSAGES == count(place.database, attempt) == len(place.receiver.accepted)
    with place.database.read() as connection:
        busy = connection.execute(sa.select(delivery.c.worker).distinct()).all()
    assert 4 == len(busy), "all four took part"
    for line in caller.lines:
        place.acknowledge(line)
    assert MESSAGES == len(place.acknowledged)
    place.check()


def caller_is_well(caller: object) -> bool:
    return getattr(caller, "running", False) or getattr(caller, "ended", lambda: 1)() == 0


@pytest.mark.long
def test_workers_in_one_process_do_not_get_in_each_others_way(place: Place) -> None:
    outbox = place.outbox()
    for number in range(40):
        place.enqueue(outbox, f"m{number}", ordering_key=f"s{number % 7}" if number % 2 else None)
    hands = [place.hand(place.outbox()) for _ in range(4)]

    together([lambda hand=hand: drain(place, hand) for hand in hands])

    assert {State.DELIVERED} == set(states(place.database).values())
    assert 40 == count(place.database, attempt)
    place.check()


def drain(place: Place, hand: object) -> None:
    ends = time.monotonic() + 20
    while set(states(place.database).values()) != {State.DELIVERED} and time.monotonic() < ends:
        hand.turn_while_it_moves()  # type: ignore[attr-defined]


def together(jobs: list[Callable[[], object]]) -> None:
    """Run all at once; the first error of any is raised."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[job]) for job in jobs]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    for error in errors:
        raise error


def test_many_callers_enqueue_the_same_key_and_one_message_comes_of_it(place: Place) -> None:
    outbox = place.outbox()
    found = []

    def enqueue() -> None:
        from tests.factories import caller_engine, event

        engine = caller_engine(place.url)
        with engine.begin() as connection:
            found.append(outbox.enqueue(connection, "enos", event("a"), key="a"))
        engine.dispose()

    together([enqueue] * 6)

    assert 1 == len({each.id for each in found})
    assert 1 == sum(each.new for each in found)
    assert {"a": State.PENDING} == states(place.database)
