"""An outcome that the database did not take is kept, and so are those of its neighbours, until it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Policy, State
from outbox.database import Database
from outbox.testing import Hold
from tests.factories import outcomes, states
from tests.story.conftest import Hand, Place

ALONE = Policy(batch_messages=1)


class Unwilling:
    """A database that takes no record for a while: of some deliveries, or of any."""

    def __init__(self) -> None:
        self.refuses: set[int] | None = set()  #: None for any

    def hear(self, _c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if not statement.startswith("INSERT INTO outbox_delivery"):
            return
        told = parameters.values() if isinstance(parameters, dict) else parameters
        ended = {row["id"] for each in told if str(each).startswith("[{") for row in json.loads(each)} - {None}
        if not ended:
            return  # some begin
        if self.refuses is None or self.refuses & ended:
            raise sa.exc.OperationalError(statement, None, RuntimeError("the disk says no"))


@contextmanager
def unwilling(database: Database) -> Iterator[Unwilling]:
    it = Unwilling()
    sa.event.listen(database.engine, "before_cursor_execute", it.hear)
    try:
        yield it
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", it.hear)


@pytest.fixture
def hand(place: Place) -> Hand:
    return place.hand(place.outbox(ALONE, clock=place.clock))


def answered_in_vain(place: Place, hand: Hand, database: Unwilling, keys: list[str]) -> list[int]:
    """Uploads that arrive, one by one, while the database takes no record of them; their deliveries."""
    for key in keys:
        place.enqueue(hand.outbox, key)
    place.receiver.misbehave(*(Hold() for _ in keys))
    with ThreadPoolExecutor(len(keys)) as pool:
        turns = [pool.submit(hand.turn) for _ in keys]
        place.receiver.wait_for(lambda receiver: receiver.held == len(keys))
        database.refuses = None
        place.receiver.release()
        for turn in turns:
            with pytest.raises(sa.exc.OperationalError):
                turn.result(20)
    return [result.delivery for result in hand.dispatcher._unrecorded]


def test_an_outcome_that_was_not_recorded_is_recorded_before_anything_else_is_sent(place: Place, hand: Hand) -> None:
    with unwilling(hand.outbox.database) as database:
        answered_in_vain(place, hand, database, ["a"])
        place.enqueue(hand.outbox, "b")
        with pytest.raises(sa.exc.OperationalError):
            hand.turn()
        meanwhile = states(place.database), len(place.receiver.requests)

        database.refuses = set()
        hand.turn()

    assert ({"a": State.CLAIMED, "b": State.PENDING}, 1) == meanwhile
    assert {"a": State.DELIVERED, "b": State.DELIVERED} == states(place.database)
    assert [("delivered", None)] == outcomes(place.database, "a")
    assert 0 == hand.dispatcher.holds
    place.check()


def test_of_several_outcomes_that_wait_one_that_cannot_be_recorded_holds_up_no_other(place: Place, hand: Hand) -> None:
    with unwilling(hand.outbox.database) as database:
        guilty, *_ = answered_in_vain(place, hand, database, ["a", "b", "c"])
        database.refuses = {guilty}
        with pytest.raises(sa.exc.OperationalError):
            hand.dispatcher.record_leftovers()
        meanwhile = sorted(states(place.database).values())
        held = hand.dispatcher.holds

        database.refuses = set()
        hand.dispatcher.record_leftovers()

    assert [State.CLAIMED, State.DELIVERED, State.DELIVERED] == meanwhile
    assert 1 == held
    assert {State.DELIVERED} == set(states(place.database).values())
    assert 3 == len(place.receiver.requests)
    place.check()


def test_what_waits_to_be_recorded_is_not_given_back(place: Place, hand: Hand) -> None:
    with unwilling(hand.outbox.database) as database:
        answered_in_vain(place, hand, database, ["a"])
        database.refuses = set()

        released = hand.dispatcher.release_unheld()
        hand.dispatcher.record_leftovers()

    assert 0 == released
    assert {"a": State.DELIVERED} == states(place.database)
    place.check()
