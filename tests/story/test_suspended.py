"""A worker is suspended past its time: its late answer changes nothing but its attempt, and it goes on under a new name."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, State
from outbox.model import Reason, Selection
from outbox.store import living
from outbox.tables import delivery, head, message, worker
from outbox.testing import Hold, SlowRead
from tests.factories import column, outcomes, reasons, states
from tests.story.conftest import Hand, Place, Process, eventually

DELIVERED, DEAD, PENDING, CANCELLED = State.DELIVERED, State.DEAD, State.PENDING, State.CANCELLED
#: For stories that need not wait for the default fifteen seconds.
FAST = {"gone_after": 2.0, "poll": 0.05}
#: More than the sockets between us and the receiver hold: a slow reader catches the upload in the middle.
BIG = 12_000_000


def row(place: Place, key: str) -> dict[str, Any]:
    """Everything that is written about a message."""
    with place.database.read() as connection:
        return dict(connection.execute(sa.select(message).where(message.c.key == key)).one()._mapping)


def deliveries_and_streams(place: Place) -> list[Any]:
    """What ended deliveries say, and where each stream stands."""
    with place.database.read() as connection:
        ended = sa.select(delivery).where(delivery.c.finished_at.is_not(None)).order_by(delivery.c.id)
        return [*connection.execute(ended), *connection.execute(sa.select(head).order_by(head.c.stream_id))]


def suspended(place: Place, **story: Any) -> Process:
    """A worker that stands still while the receiver has all of its upload and keeps the answer."""
    place.receiver.misbehave(Hold())
    process = place.run("work", **({"worker": FAST} | story))
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 20)
    place.freeze(process)
    return process


def identity(place: Place) -> str:
    """The worker's that is alive."""
    with place.database.read() as connection:
        return str(connection.execute(sa.select(worker.c.id).where(worker.c.gone.is_(False))).scalar_one())


def taken_over(place: Place, outbox: Outbox) -> Hand:
    """Somebody else, who has declared the suspended one gone and settled what it left behind."""
    gone = identity(place)
    hand = place.hand(outbox)
    with place.database.begin() as connection:
        assert living.declare_gone(connection, gone, living.beats(connection)[gone])
    assert 1 == hand.dispatcher.rescue()
    return hand


def drain(hand: Hand) -> None:
    hand.dispatcher.free_streams()
    while hand.turn("express", "normal", "bulk", "large"):
        pass


def wake(place: Place, process: Process, *, goes_on: str = "afterwards", outbox: Outbox) -> None:
    """Let it go on and hear its answer, and give it something new to do under its new name."""
    place.receiver.release()
    process.thaw()
    process.until_logged("kept as late")
    eventually(lambda: "it goes on under a new name" in process.log)
    place.enqueue(outbox, goes_on)
    eventually(lambda: column(place.database, goes_on, "state") == DELIVERED)
    with place.database.read() as connection:
        by = connection.execute(sa.select(delivery.c.worker).order_by(delivery.c.id.desc()).limit(1)).scalar_one()
        names = connection.execute(sa.select(worker.c.id).where(worker.c.pid == process._popen.pid)).scalars().all()
    assert 2 == len(names)
    assert by in names


# What became of its message in the meantime


def delivered(place: Place, outbox: Outbox, hand: Hand) -> list[tuple[str, str | None]]:
    drain(hand)
    return [("unknown", "delivered"), ("delivered", None)]


def died(place: Place, outbox: Outbox, hand: Hand) -> list[tuple[str, str | None]]:
    place.receiver.refuse(lambda struct: struct["assetId"] == "a")
    drain(hand)
    place.receiver.stop_refusing()
    assert {"a": Reason.REJECTED} == reasons(place.database)
    return [("unknown", "delivered"), ("reject", None)]


def was_cancelled(place: Place, outbox: Outbox, hand: Hand) -> list[tuple[str, str | None]]:
    assert 1 == outbox.cancel(Selection(keys=("a",)), "a person")
    return [("unknown", "delivered")]


def was_replayed(place: Place, outbox: Outbox, hand: Hand) -> list[tuple[str, str | None]]:
    drain(hand)
    assert 1 == outbox.replay(Selection(keys=("a",)), "a person")
    drain(hand)
    return [("unknown", "delivered"), ("delivered", None), ("delivered", None)]


def died_and_was_replayed(place: Place, outbox: Outbox, hand: Hand) -> list[tuple[str, str | None]]:
    died(place, outbox, hand)
    assert 1 == outbox.replay(Selection(keys=("a",)), "a person")
    drain(hand)
    return [("unknown", "delivered"), ("reject", None), ("delivered", None)]


Meanwhile = Callable[[Place, Outbox, Hand], list[tuple[str, str | None]]]


@pytest.mark.long
@pytest.mark.parametrize(
    ("meanwhile", "ordering_key"),
    [
        (delivered, "pump"),
        (died, "pump"),
        (was_cancelled, None),
        (was_cancelled, "pump"),
        (was_replayed, None),
        (died_and_was_replayed, "pump"),
    ],
)
def test_a_late_answer_changes_nothing_whatever_became_of_the_message(
    place: Place, meanwhile: Meanwhile, ordering_key: str | None
) -> None:
    outbox = place.outbox()
    place.enqueue(outbox, "a", {"photo": b"bytes"}, ordering_key=ordering_key)
    process = suspended(place)
    hand = taken_over(place, outbox)

    expected = meanwhile(place, outbox, hand)
    known = (row(place, "a"), deliveries_and_streams(place))
    wake(place, process, outbox=outbox)

    assert expected == outcomes(place.database, "a")
    assert known[0] == row(place, "a")
    assert known[1] == [each for each in deliveries_and_streams(place) if each in known[1]]
    place.check()


@pytest.mark.long
def test_a_late_answer_is_no_answer_for_a_message_that_still_waits(place: Place) -> None:
    outbox = place.outbox()
    place.enqueue(outbox, "a")
    process = suspended(place)
    taken_over(place, outbox)
    outbox.pause("enos", "to look at it", "a person")
    expected = [("unknown", "delivered")]
    known = row(place, "a")

    place.receiver.release()
    process.thaw()
    process.until_logged("kept as late")

    assert (known, expected) == (row(place, "a"), outcomes(place.database, "a"))
    assert (PENDING, 1, 1) == (known["state"], known["attempt"], known["unknowns"])
    outbox.resume("enos", "a person")
    eventually(lambda: states(place.database) == {"a": DELIVERED})
    assert [*expected, ("delivered", None)] == outcomes(place.database, "a")
    place.check()


@pytest.mark.long
def test_a_late_answer_does_not_touch_the_try_that_is_under_way(place: Place) -> None:
    """Both have the message in hand at the same time; the first one's answer comes in between."""
    outbox = place.outbox()
    place.enqueue(outbox, "a", ordering_key="pump")
    place.enqueue(outbox, "b", ordering_key="pump")
    process = suspended(place)
    hand = taken_over(place, outbox)
    place.receiver.release()
    place.receiver.wait_for(lambda receiver: receiver.held == 0)
    place.receiver.misbehave(Hold())
    turn = threading.Thread(target=hand.turn)
    turn.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)
    known = row(place, "a")

    process.thaw()
    process.until_logged("kept as late")
    between = row(place, "a")
    waiting = column(place.database, "b", "state")
    place.receiver.release()
    turn.join(10)

    assert known == between
    assert (State.CLAIMED, 2) == (between["state"], between["attempt"])
    assert PENDING == waiting, "the stream is still the other one's"
    eventually(lambda: states(place.database) == {"a": DELIVERED, "b": DELIVERED})
    assert [("unknown", "delivered"), ("delivered", None)] == outcomes(place.database, "a")
    assert [("delivered", None)] == outcomes(place.database, "b")
    place.check()


@pytest.mark.long
def test_a_late_refusal_kills_nobody(place: Place) -> None:
    """The destination has changed its mind since."""
    outbox = place.outbox()
    place.enqueue(outbox, "a")
    place.receiver.refuse(lambda struct: struct["assetId"] == "a")
    process = suspended(place)
    place.receiver.stop_refusing()
    hand = taken_over(place, outbox)
    drain(hand)
    known = row(place, "a")

    wake(place, process, outbox=outbox)

    assert known == row(place, "a")
    assert DELIVERED == known["state"]
    assert [("unknown", "reject"), ("delivered", None)] == outcomes(place.database, "a")
    assert {} == reasons(place.database)
    place.check()


@pytest.mark.slow
@pytest.mark.parametrize("late", ["delivered", "not_sent"])
@pytest.mark.long
def test_a_batch_that_was_suspended_with_every_kind_of_message_in_it(place: Place, late: str) -> None:
    """By the clocks of two real workers. Not sent: in the middle of the body, and then it is stopped and cuts its upload."""
    policy = {"batch_bytes": 2 * BIG, "large_over": 2 * BIG, "breaker_after": 1000, "senders": 1}
    outbox = place.outbox(Policy(**policy))
    place.receiver.misbehave(Hold() if late == "delivered" else SlowRead(1_000_000))
    outbox.pause("enos", "until all are there", "a test")
    place.enqueue(outbox, "loose", {"photo": os.urandom(BIG)})
    for number in range(3):
        place.enqueue(outbox, f"pump-{number}", ordering_key="pump")
        place.enqueue(outbox, f"fan-{number}", ordering_key="fan", ordered=False)
    first = place.run("work", worker=FAST | {"stop_grace": 0.1}, policy=policy)
    first.until_logged("delivers to enos")
    outbox.resume("enos", "a test")
    place.receiver.wait_for(lambda receiver: receiver.held == 1 or (late == "not_sent" and receiver.in_flight == 1), 20)
    place.freeze(first)
    batch = [key for key, state in states(place.database).items() if state == State.CLAIMED]

    second = place.run("work", worker=FAST, policy=policy)
    eventually(lambda: set(states(place.database).values()) == {DELIVERED}, 30)
    known = {key: row(place, key) for key in states(place.database)}
    second.kill()
    place.receiver.release()
    first.thaw()
    first.until_logged("it goes on under a new name")
    if late == "not_sent":
        first.send(signal.SIGTERM)
        assert 0 == first.ended()
    first.until_logged("kept as late")

    assert {"loose", "pump-0", "fan-0"} <= set(batch)
    assert known == {key: row(place, key) for key in known}
    assert [[("unknown", late), ("delivered", None)]] * len(batch) == [outcomes(place.database, key) for key in batch]
    first_copies = dict.fromkeys(each.struct["assetId"] for each in place.receiver.accepted)
    assert ["pump-0", "pump-1", "pump-2"] == [key for key in first_copies if key.startswith("pump")]
    place.check()


@pytest.mark.long
def test_a_worker_that_is_suspended_twice_goes_on_under_a_third_name(place: Place) -> None:
    outbox = place.outbox()
    place.enqueue(outbox, "a")
    process = suspended(place)
    hand = taken_over(place, outbox)
    drain(hand)
    hand.presence.leave()
    wake(place, process, outbox=outbox, goes_on="b")

    place.receiver.misbehave(Hold())
    place.enqueue(outbox, "c")
    place.receiver.wait_for(lambda receiver: receiver.held == 1)
    place.freeze(process)
    again = taken_over(place, outbox)
    drain(again)
    place.receiver.release()
    process.thaw()
    eventually(lambda: process.log.count("it goes on under a new name") == 2)
    eventually(lambda: outcomes(place.database, "c") == [("unknown", "delivered"), ("delivered", None)])
    place.enqueue(outbox, "d")
    eventually(lambda: column(place.database, "d", "state") == DELIVERED)

    with place.database.read() as connection:
        names = connection.execute(sa.select(worker.c.id).where(worker.c.pid == process._popen.pid)).scalars().all()
    assert 3 == len(names)
    place.check()
