"""Few statements: what a batch takes does not depend on how many messages are in it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from outbox import Entry, Lane, Policy
from tests.counting import counted
from tests.factories import event
from tests.story.conftest import Place

#: The round trips of one upload, whatever it carries: speed is made of these, and whoever adds one should know.
OF_A_TURN = 8


@pytest.mark.parametrize("messages", [1, 100, 500])
def test_a_delivered_batch_takes_eight_statements(place: Place, messages: int) -> None:
    outbox = place.outbox(Policy(batch_messages=messages))
    hand = place.hand(outbox)
    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", [Entry(event(), key=f"{number}") for number in range(2 * messages)])
    for number in range(2 * messages):
        place.acknowledge(f"{number}")
    lanes = [Lane.NORMAL, Lane.EXPRESS, Lane.BULK]
    hand.dispatcher.turn("enos", lanes, peek=False)

    with counted(outbox.database) as executed:
        assert hand.dispatcher.turn("enos", lanes, peek=False)

    assert OF_A_TURN == len(executed), executed


@pytest.mark.parametrize("messages", [2, 200])
def test_many_messages_are_enqueued_with_one_statement(place: Place, messages: int) -> None:
    outbox = place.outbox(nudge=False)
    executed: list[str] = []
    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event())  # what is asked once of a connection
        sa.event.listen(place.engine, "before_cursor_execute", lambda *given: executed.append(given[2]))
        outbox.enqueue_many(connection, "enos", [event() for _ in range(messages)])

    assert 1 == len(executed), executed
