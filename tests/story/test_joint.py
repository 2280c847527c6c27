"""What a turn records and what the next one claims are one transaction, wherever that is allowed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Lane, Policy, State
from outbox.claims import WorkerGone
from outbox.dispatcher import Took, _Asked, _result
from outbox.tables import delivery, destination, worker
from outbox.testing import Answer, Hold
from outbox.together import Together
from outbox.verdict import Delivered
from tests.factories import count, outcomes, states
from tests.story.conftest import Hand, Place, eventually

ALONE = Policy(batch_messages=1)
LANES = [Lane.NORMAL]


@pytest.fixture
def hand(place: Place) -> Hand:
    return place.hand(place.outbox(ALONE, clock=place.clock))


def work(hand: Hand) -> Took:
    return hand.dispatcher.work("enos", lambda: LANES)


class Writes:
    """What the transactions of a database claim and record, one after the other."""

    def __init__(self) -> None:
        self.transactions: list[str] = []
        self.refuses_claims_after: int | None = None
        self._now = ""

    def hear(self, _c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("INSERT INTO outbox_attempt"):
            self._now += "record "
        elif statement.startswith("UPDATE outbox_message SET state='claimed'"):
            if self.refuses_claims_after is not None and len(self.transactions) >= self.refuses_claims_after:
                self._now = ""
                raise sa.exc.OperationalError(statement, None, RuntimeError("the disk says no"))
            self._now += "claim "

    def committed(self, _c: Any) -> None:
        if self._now:
            self.transactions.append(self._now.strip())
        self._now = ""


@contextmanager
def writes(hand: Hand) -> Iterator[Writes]:
    it, engine = Writes(), hand.outbox.database.engine
    sa.event.listen(engine, "before_cursor_execute", it.hear)
    sa.event.listen(engine, "commit", it.committed)
    try:
        yield it
    finally:
        sa.event.remove(engine, "before_cursor_execute", it.hear)
        sa.event.remove(engine, "commit", it.committed)


def test_a_backlog_is_worked_off_with_one_transaction_for_each_request_and_one_more(place: Place, hand: Hand) -> None:
    for key in "abc":
        place.enqueue(hand.outbox, key)

    with writes(hand) as heard:
        took = work(hand)

    assert Took.NOTHING is took
    assert ["claim", "record claim", "record claim", "record"] == heard.transactions
    assert dict.fromkeys("abc", State.DELIVERED) == states(place.database)
    assert 0 == hand.dispatcher.holds
    place.check()


def test_the_next_of_a_stream_is_claimed_with_the_record_of_the_one_before(place: Place, hand: Hand) -> None:
    for key in "abc":
        place.enqueue(hand.outbox, key, ordering_key="one")

    with writes(hand) as heard:
        work(hand)

    assert ["claim", "record claim", "record claim", "record"] == heard.transactions
    assert ["a", "b", "c"] == [key for request in place.receiver.requests for key in _keys(request)]
    place.check()


def _keys(request: Any) -> list[str]:
    return [struct["assetId"] for struct in request.structs]


def test_when_the_claim_of_the_next_fails_the_outcome_is_kept_and_recorded_by_itself(place: Place, hand: Hand) -> None:
    for key in "ab":
        place.enqueue(hand.outbox, key)

    with writes(hand) as heard:
        heard.refuses_claims_after = 1
        with pytest.raises(sa.exc.OperationalError):
            work(hand)
        meanwhile = states(place.database), hand.dispatcher.holds
        hand.dispatcher.record_leftovers()

    assert ({"a": State.CLAIMED, "b": State.PENDING}, 1) == meanwhile
    assert ["claim", "record"] == heard.transactions
    assert {"a": State.DELIVERED, "b": State.PENDING} == states(place.database)
    assert [("delivered", None)] == outcomes(place.database, "a")
    assert 0 == hand.dispatcher.holds
    assert 1 == len(place.receiver.requests)
    place.check(drained=False)


def test_a_worker_that_stops_claims_nothing_with_its_last_record(place: Place, hand: Hand) -> None:
    for key in "ab":
        place.enqueue(hand.outbox, key)
    place.receiver.misbehave(Hold())

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(work, hand)
        place.receiver.wait_for(lambda receiver: receiver.held == 1)
        hand.stopping = True
        place.receiver.release()
        took = job.result(20)

    assert Took.NOTHING is took
    assert {"a": State.DELIVERED, "b": State.PENDING} == states(place.database)
    assert 1 == count(place.database, delivery)
    place.check(drained=False)


def test_one_who_was_declared_gone_meanwhile_records_and_then_hears_of_it(place: Place, hand: Hand) -> None:
    for key in "ab":
        place.enqueue(hand.outbox, key)
    place.receiver.misbehave(Hold())

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(work, hand)
        place.receiver.wait_for(lambda receiver: receiver.held == 1)
        with place.database.begin() as connection:
            connection.execute(sa.update(worker).values(gone=True))
        place.receiver.release()
        with pytest.raises(WorkerGone):
            job.result(20)

    assert {"a": State.DELIVERED, "b": State.PENDING} == states(place.database)
    assert 0 == hand.dispatcher.holds
    place.check(drained=False)


@pytest.mark.parametrize("limit", ["rate", "in_flight", "ramp"])
def test_where_uploads_are_counted_a_claim_waits_for_the_record_to_be_committed(place: Place, limit: str) -> None:
    policies = {"rate": Policy(batch_messages=1, rate=1000), "in_flight": Policy(batch_messages=1, in_flight=3)}
    hand = place.hand(place.outbox(policies.get(limit, ALONE)))
    for key in "ab":
        place.enqueue(hand.outbox, key)
    if limit == "ramp":
        with place.database.begin() as connection:
            connection.execute(sa.update(destination).values(ramp=1))

    with writes(hand) as heard:
        work(hand)

    assert ["claim", "record", "claim", "record"] == heard.transactions
    place.check()


def test_what_came_of_no_delivery_is_recorded_before_the_next_is_claimed(place: Place, hand: Hand) -> None:
    for key in "ab":
        place.enqueue(hand.outbox, key)
    place.receiver.misbehave(Answer(500))

    with writes(hand) as heard:
        took = work(hand)

    assert Took.IN_VAIN is took
    assert ["claim", "record"] == heard.transactions
    place.check(drained=False)


def test_after_a_refusal_the_next_is_claimed_when_that_is_committed(place: Place, hand: Hand) -> None:
    for key in "ab":
        place.enqueue(hand.outbox, key)
    place.receiver.misbehave(Answer(1220))

    with writes(hand) as heard:
        work(hand)

    assert ["claim", "record", "claim", "record"] == heard.transactions
    assert {"a": State.DEAD, "b": State.DELIVERED} == states(place.database)
    place.check()


def test_each_of_several_who_record_together_gets_a_batch_of_its_own(place: Place, hand: Hand) -> None:
    for key in "abcde":
        place.enqueue(hand.outbox, key)
    dispatcher = hand.dispatcher
    first = [batch for batch in dispatcher._claim("enos", [LANES] * 3) if batch is not None]
    results = [_result(batch, Delivered(), None) for batch in first]

    with writes(hand) as heard:
        wanted = [LANES, None, LANES]
        done = dispatcher._record([_Asked(result, lanes) for result, lanes in zip(results, wanted, strict=True)])

    assert ["record claim"] == heard.transactions
    assert [True, False, True] == [each.looked for each in done]
    assert [{batch.messages[0].id} for batch in first] == [set(each.written) for each in done]
    assert ["d", None, "e"] == [each.batch and each.batch.messages[0].key for each in done]


def test_whoever_asks_while_others_are_served_is_served_with_those_who_came_meanwhile() -> None:
    served: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def serve(asks: Any) -> list[int]:
        served.append(list(asks))
        begun.set()
        assert go_on.wait(20)
        return [10 * each for each in asks[:2]]

    together: Together[int, int] = Together(serve)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(together.ask, 0)]
        assert begun.wait(20)
        for each in (1, 2, 3):
            jobs.append(pool.submit(together.ask, each))
            eventually(lambda each=each: len(together._queue) == each)
        go_on.set()
        answers = [job.result(20) for job in jobs]

    assert [0, 10, 20, 30] == answers
    assert [[0], [1, 2, 3], [3]] == served, "one who was left out is served by itself"


def test_where_two_may_serve_at_once_the_second_does_not_wait_and_the_third_does() -> None:
    both, go_on = threading.Barrier(3), threading.Event()
    served: list[list[int]] = []

    def serve(asks: Any) -> list[int]:
        served.append(list(asks))
        if len(served) <= 2:
            both.wait(20)
        assert go_on.wait(20)
        return list(asks)

    together: Together[int, int] = Together(serve, at_once=2)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(together.ask, each) for each in (1, 2)]
        both.wait(20)
        jobs += [pool.submit(together.ask, each) for each in (3, 4)]
        eventually(lambda: len(together._queue) == 2)
        go_on.set()
        answers = [job.result(20) for job in jobs]

    assert [1, 2, 3, 4] == answers
    assert [[1], [2]] == sorted(served[:2])
    assert [3, 4] == sorted(each for asks in served[2:] for each in asks)


def test_what_serving_raises_is_raised_for_all_and_those_who_come_later_are_served() -> None:
    answers: Iterator[Any] = iter([RuntimeError("no"), [7]])

    def serve(_: Any) -> list[int]:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return list(found)

    together: Together[int, int] = Together(serve)

    with pytest.raises(RuntimeError, match="no"):
        together.ask(1)
    assert 7 == together.ask(2)
