"""The ledger itself: what does not add up is noticed."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa

from outbox.tables import attempt, delivery, message
from outbox.testing import Received
from tests import ledger
from tests.story.conftest import Place

Requests = list[Received]


@pytest.fixture
def delivered(sqlite_place: Place) -> Place:
    """Two messages delivered, one of them with a photo."""
    outbox = sqlite_place.outbox(clock=sqlite_place.clock)
    sqlite_place.enqueue(outbox, "a", {"photo": b"bytes"})
    sqlite_place.enqueue(outbox, "b")
    sqlite_place.hand(outbox).turn_while_it_moves()
    return sqlite_place


def faults(place: Place, requests: Requests | None = None) -> str:
    found = ledger.faults(place.database, requests or place.receiver.requests, place.acknowledged)
    return "; ".join(found)


def test_what_adds_up_has_no_faults(delivered: Place) -> None:
    assert faults(delivered) == ""


ON_PAPER: dict[str, tuple[Callable[[Place], object], str]] = {
    "lost": (lambda place: place.acknowledge("c"), "c was committed and is lost"),
    "invented": (lambda place: place.acknowledged.pop("b"), "b is there and nobody committed it"),
    "other bytes": (lambda place: place.acknowledge("a", {"photo": b"other"}), "brought other bytes for a"),
}


@pytest.mark.parametrize("name", ON_PAPER)
def test_what_a_producer_was_told_is_held_against_the_rest(delivered: Place, name: str) -> None:
    change, words = ON_PAPER[name]

    change(delivered)

    assert words in faults(delivered)


IN_ROWS: dict[str, tuple[sa.Executable, str]] = {
    "an attempt is missing": (sa.delete(attempt), "a was tried 1 times, written down are []"),
    "a message still waits": (
        sa.update(message).where(message.c.key == "b").values(state="pending", finished_at=None),
        "b is still pending",
    ),
    "a delivery is open": (sa.update(delivery).values(finished_at=None, outcome=None), "delivery 1 never ended"),
    "the last word was another": (sa.update(attempt).values(outcome="retry"), "its last attempt ended as retry"),
}


@pytest.mark.parametrize("name", IN_ROWS)
def test_what_the_database_says_is_held_against_the_rest(delivered: Place, name: str) -> None:
    statement, words = IN_ROWS[name]
    with delivered.database.begin() as connection:
        connection.execute(statement)

    assert words in faults(delivered)


IN_REQUESTS: dict[str, tuple[Callable[[Requests], Requests], str]] = {
    "a copy too many": (lambda requests: requests * 2, "a arrived 2 times, 1 without an explanation"),
    "more copies than attempts": (lambda requests: requests * 2, "a arrived 2 times in 1 attempts"),
    "no confirmation": (
        lambda requests: [replace(each, answered=False) for each in requests],
        "a counts as delivered and no confirmation of it was ever sent",
    ),
    "a breach of the rules": (lambda requests: [replace(each, faults=("rude",)) for each in requests], "broke the rules: rude"),
}


@pytest.mark.parametrize("name", IN_REQUESTS)
def test_what_the_receiver_saw_is_held_against_the_rest(delivered: Place, name: str) -> None:
    change, words = IN_REQUESTS[name]

    assert words in faults(delivered, change(delivered.receiver.requests))
