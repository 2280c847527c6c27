"""A worker that is asked to stop finishes what it has in hand, begins nothing, and leaves nothing to guess."""

import signal
import threading
import time

import pytest

from outbox import ConfigurationError, State, Worker
from outbox.store import living
from outbox.testing import Hold, SlowRead
from tests.factories import column, outcomes, states
from tests.story.conftest import Place, eventually

ONE_AT_A_TIME = {"batch_messages": 1, "senders": 1}
SIGNALS = [signal.SIGTERM, signal.SIGINT]
BIG = 12_000_000


def counters(place: Place, key: str) -> tuple[str, int, int, int]:
    state, *numbers = (column(place.database, key, name) for name in ("state", "attempt", "failures", "unknowns"))
    return (state, *numbers)  # type: ignore[return-value]


def nobody_is_there(place: Place) -> bool:
    with place.database.read() as connection:
        return living.beats(connection) == {}


@pytest.mark.long
@pytest.mark.parametrize("number", SIGNALS)
def test_an_upload_in_hand_is_finished_and_none_begun(place: Place, number: signal.Signals) -> None:
    place.receiver.misbehave(Hold())
    outbox = place.outbox()
    for key in ("in hand", "waiting", "waiting too"):
        place.enqueue(outbox, key, {"photo": b"bytes"})
    worker = place.run("work", policy=ONE_AT_A_TIME, worker={"poll": 0.05})
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 20)

    worker.send(number)
    with pytest.raises(TimeoutError):
        place.receiver.wait_for(lambda receiver: len(receiver.requests) > 0, 0.5)
    place.receiver.release()
    code = worker.ended(10)

    assert code == 0, worker.log
    assert {"in hand": State.DELIVERED, "waiting": State.PENDING, "waiting too": State.PENDING} == states(place.database)
    assert (State.PENDING, 0, 0, 0) == counters(place, "waiting")
    assert 1 == len(place.receiver.requests)
    assert nobody_is_there(place)
    place.run("work", until_idle=True).ended()
    place.check()


@pytest.mark.long
@pytest.mark.parametrize("number", SIGNALS)
def test_an_upload_that_outlasts_the_grace_is_cut_and_costs_nothing(place: Place, number: signal.Signals) -> None:
    place.receiver.misbehave(SlowRead(1_000_000))
    place.enqueue(place.outbox(), "a", {"photo": bytes(BIG)})
    worker = place.run("work", worker={"stop_grace": 0.5})
    place.receiver.wait_for(lambda receiver: receiver.in_flight == 1, 20)

    worker.send(number)
    asked = time.monotonic()
    code = worker.ended(10)
    took = time.monotonic() - asked

    assert code == 0, worker.log
    assert took < 4
    assert (State.PENDING, 1, 0, 0) == counters(place, "a")
    assert [("not_sent", None)] == outcomes(place.database, "a")
    with place.database.read() as connection:
        from outbox.store import breaker

        assert 0 == breaker.read(connection, "enos").failures
    place.run("work", until_idle=True).ended()
    assert [False, True] == [request.complete for request in place.begun()]
    place.check()


@pytest.mark.long
def test_an_upload_that_is_cut_while_it_waits_for_its_answer_is_unknown(place: Place) -> None:
    place.receiver.misbehave(Hold())
    place.enqueue(place.outbox(), "a")
    worker = place.run("work", worker={"stop_grace": 0.3})
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 20)

    worker.send(signal.SIGTERM)
    code = worker.ended(10)
    place.receiver.release()

    assert code == 0, worker.log
    assert (State.PENDING, 1, 0, 0) == counters(place, "a")
    assert [("unknown", None)] == outcomes(place.database, "a")
    place.run("work", until_idle=True).ended()
    eventually(lambda: place.receiver.in_flight == 0)
    place.check()


@pytest.mark.long
def test_a_worker_with_nothing_to_do_stops_at_once(place: Place) -> None:
    worker = place.run("work")
    worker.until_logged("delivers to enos")

    worker.send(signal.SIGTERM)
    asked = time.monotonic()
    code = worker.ended(10)

    assert code == 0, worker.log
    assert time.monotonic() - asked < 3
    assert nobody_is_there(place)


def test_a_worker_stops_when_its_program_says_so(place: Place) -> None:
    outbox = place.outbox()
    worker = Worker(outbox, poll=0.05)
    running = threading.Thread(target=worker.run)
    place.enqueue(outbox, "a")
    running.start()
    place.receiver.wait_for(lambda receiver: len(receiver.accepted) == 1)

    worker.stop()
    running.join(10)

    assert not running.is_alive()
    assert nobody_is_there(place)
    place.check()


def test_a_worker_may_be_ended_twice_and_works_once(place: Place) -> None:
    worker = Worker(place.outbox(), poll=0.05)
    with worker:
        worker.join()

    with pytest.raises(ConfigurationError, match="a worker works once"):
        worker.start()

    worker.join()
    assert nobody_is_there(place)


def test_a_worker_that_never_began_can_be_ended(place: Place) -> None:
    Worker(place.outbox()).join()

    assert nobody_is_there(place)


def test_what_was_claimed_when_the_stop_came_goes_back_uncharged(place: Place) -> None:
    outbox = place.outbox(clock=place.clock)
    place.enqueue(outbox, "a")
    hand = place.hand(outbox)
    hand.stopping = True

    hand.turn()

    assert (State.PENDING, 1, 0, 0) == counters(place, "a")
    assert [("not_sent", None)] == outcomes(place.database, "a")
    assert [] == place.receiver.requests
    assert 0 == hand.breaker().failures


def test_what_a_stopped_worker_left_is_nobodys_to_rescue(place: Place) -> None:
    outbox = place.outbox()
    for number in range(20):
        place.enqueue(outbox, f"m{number}")
    with Worker(outbox, poll=0.05):
        place.receiver.wait_for(lambda receiver: len(receiver.requests) >= 1)

    successor = place.hand(place.outbox())

    assert 0 == successor.dispatcher.rescue()
    successor.turn_while_it_moves()
    assert {State.DELIVERED} == set(states(place.database).values())
    place.check()
