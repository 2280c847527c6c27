"""Few statements: what a batch takes does not depend on how many messages are in it."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa

from outbox import Entry, Lane, Policy
from tests.counting import counted
from tests.factories import event
from tests.story.conftest import Place

#: The round trips of one upload, whatever it carries: speed is made of these, and whoever adds one should know.
OF_A_TURN = 8
#: And of each further one, when what is recorded of one and what the next one claims are one transaction.
OF_A_ROW = 6
LANES = [Lane.NORMAL, Lane.EXPRESS, Lane.BULK]


@pytest.mark.parametrize("messages", [1, 100, 500])
def test_a_delivered_batch_takes_eight_statements(place: Place, messages: int) -> None:
    outbox = place.outbox(Policy(batch_messages=messages))
    hand = place.hand(outbox)
    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", [Entry(event(), key=f"{number}") for number in range(2 * messages)])
    for number in range(2 * messages):
        place.acknowledge(f"{number}")
    hand.dispatcher.turn("enos", LANES, peek=False)

    with counted(outbox.database) as executed:
        assert hand.dispatcher.turn("enos", LANES, peek=False)

    assert OF_A_TURN == len(executed), executed


@pytest.mark.parametrize("messages", [1, 100])
def test_in_a_row_of_them_each_takes_six(place: Place, messages: int) -> None:
    outbox = place.outbox(Policy(batch_messages=messages))
    hand = place.hand(outbox)
    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", [Entry(event(f"{number}"), key=f"{number}") for number in range(5 * messages)])
    for number in range(5 * messages):
        place.acknowledge(f"{number}")
    before_claims: list[int] = []

    with counted(outbox.database) as executed:

        def lanes() -> list[Lane]:
            before_claims.append(len(executed))
            return LANES

        hand.dispatcher.work("enos", lanes, peek=False)

    assert 6 == len(before_claims), "one for each batch, and one that found nothing"
    assert [OF_A_ROW] * 4 == [then - before for before, then in itertools.pairwise(before_claims)][1:], executed
    place.check()


@pytest.mark.parametrize("messages", [2, 200])
def test_many_messages_are_enqueued_with_one_statement(place: Place, messages: int) -> None:
    outbox = place.outbox(nudge=False)
    executed: list[str] = []
    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event())  # what is asked once of a connection
        sa.event.listen(place.engine, "before_cursor_execute", lambda *given: executed.append(given[2]))
        outbox.enqueue_many(connection, "enos", [event() for _ in range(messages)])

    assert 1 == len(executed), executed
