"""The ledger itself, over real databases: what does not add up is noticed, and what adds up is left alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import Selection, Worker
from outbox.tables import attempt, delivery, message
from outbox.testing import HangUp, Received, Receiver
from tests import ledger
from tests.ledger import trail
from tests.ledger.history import Diary, History, lines, promises
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
    "lost": (lambda place: place.acknowledge("c"), "I1 c was committed and is lost"),
    "invented": (lambda place: place.acknowledged.pop("b"), "I2 b is there and nobody committed it"),
    "other bytes": (lambda place: place.acknowledge("a", {"photo": b"other"}), "brought other bytes for a"),
}


@pytest.mark.parametrize("name", ON_PAPER)
def test_what_a_producer_was_told_is_held_against_the_rest(delivered: Place, name: str) -> None:
    change, words = ON_PAPER[name]
    before = dict(delivered.acknowledged)

    change(delivered)
    found = faults(delivered)
    delivered.acknowledged = before

    assert words in found


IN_ROWS: dict[str, tuple[sa.Executable, str]] = {
    "an attempt is missing": (sa.delete(attempt), "I11 a was tried 1 times, written down are []"),
    "a message still waits": (
        sa.update(message).where(message.c.key == "b").values(state="pending", finished_at=None),
        "I15 b is still pending",
    ),
    "a delivery is open": (sa.update(delivery).values(finished_at=None, outcome=None), "I11 delivery 1 never ended"),
    "the last word was another": (sa.update(attempt).values(outcome="retry"), "its last attempt ended as retry"),
}


@pytest.mark.parametrize("name", IN_ROWS)
def test_what_the_database_says_is_held_against_the_rest(delivered: Place, name: str) -> None:
    statement, words = IN_ROWS[name]
    with delivered.database.begin() as connection:
        connection.execute(statement)

    assert words in faults(delivered)


IN_REQUESTS: dict[str, tuple[Callable[[Requests], Requests], str]] = {
    "a copy too many": (lambda requests: requests * 2, "I5 a arrived 2 times, 1 without an explanation"),
    "more copies than attempts": (lambda requests: requests * 2, "I11 a arrived 2 times in 1 attempts"),
    "no confirmation": (
        lambda requests: [replace(each, answered=False) for each in requests],
        "I8 a counts as delivered and no confirmation of it was ever sent",
    ),
    "a breach of the rules": (lambda requests: [replace(each, faults=("rude",)) for each in requests], "broke the rules: rude"),
}


@pytest.mark.parametrize("name", IN_REQUESTS)
def test_what_the_receiver_saw_is_held_against_the_rest(delivered: Place, name: str) -> None:
    change, words = IN_REQUESTS[name]

    assert words in faults(delivered, change(delivered.receiver.requests))


def test_histories_of_all_who_took_part_add_up_with_everything_else(place: Place, tmp_path: Path) -> None:
    """A producer, a worker and a receiver, each by what it wrote down itself; every invariant is looked at."""
    trail.install(place.url)
    place.receiver.misbehave(HangUp("after_body"))
    outbox = place.outbox()
    with History(tmp_path / "producer.jsonl") as producer:
        for key in ("a", "b", "c"):
            files = {"photo": key.encode()}
            with producer.enqueue(key, files=files, ordering_key="pump"):
                place.enqueue(outbox, key, files, ordering_key="pump")
    with History(tmp_path / "worker.jsonl") as worker:
        Worker(outbox, watcher=Diary(worker)).run(until_idle=True)
    outbox.sweep(timedelta(0))

    balance = ledger.examine(
        place.database,
        place.receiver.requests,
        promises([tmp_path / "producer.jsonl"]),
        spool=place.spool,
        swept=True,
        purged=None,
        work=lines([tmp_path / "worker.jsonl"]),
    )

    assert [] == balance.faults
    assert tuple(f"I{number}" for number in range(1, 16)) == balance.looked
    counts = balance.counts
    assert (3, 3, 4, 1, 1) == (
        counts.acknowledged,
        counts.delivered,
        counts.copies,
        counts.extra_copies,
        counts.unknown_attempts,
    )


def test_a_story_with_a_process_leaves_a_trail(sqlite_place: Place) -> None:
    sqlite_place.enqueue(sqlite_place.outbox(), "a", {"photo": b"bytes"})
    sqlite_place.run("work", until_idle=True).ended()

    balance = sqlite_place.check()

    assert {"I6", "I7", "I12", "I13", "I14"} < set(balance.looked)


# What a story leaves is looked at although it does not ask.


@pytest.fixture
def careless(sqlite_url: str, tmp_path: Path, receiver: Receiver) -> Place:
    """Closed by the story itself."""
    return Place(sqlite_url, tmp_path, receiver)


def break_a_check(place: Place) -> None:
    place.enqueue(place.outbox(), "a")
    with closing(sqlite3.connect(str(place.database.path), isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE outbox_message SET state = 'dead'")


def test_a_story_that_lost_a_message_is_told(careless: Place) -> None:
    careless.acknowledge("a")

    with pytest.raises(AssertionError, match="a was committed and is lost"):
        careless.close()


def test_a_story_that_harmed_its_database_is_told(careless: Place) -> None:
    break_a_check(careless)

    with pytest.raises(AssertionError, match="break ck_outbox_message_dead_has_reason"):
        careless.close()


def test_a_story_that_means_harm_says_so(careless: Place) -> None:
    careless.damaged = True
    break_a_check(careless)

    careless.close()


def test_what_a_person_has_purged_is_not_missed(careless: Place) -> None:
    outbox = careless.outbox()
    careless.enqueue(outbox, "a")
    careless.hand(outbox).turn_while_it_moves()
    outbox.purge(Selection(keys=("a",)), by="test")

    careless.close()
