"""Ordering keys whose order does not matter: each gets a part of the next request, and nothing of theirs is left behind."""

import json
import os
import random
import threading
import zlib
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, State
from outbox.model import Reason, Selection
from outbox.tables import message, share
from outbox.testing import Answer, HangUp, Hold, Receiver, Status
from tests.factories import column, event, in_full, message_values, reasons, states
from tests.story.conftest import Hand, Place, eventually
from tests.story.test_contention import together

DELIVERED, PENDING = State.DELIVERED, State.PENDING
UNORDERED = Policy(ordered=False)
BACKLOG = 5_000


def carried(receiver: Receiver) -> list[list[str]]:
    """The keys in each request."""
    return [[struct["assetId"] for struct in request.structs] for request in receiver.requests]


def drain(place: Place, hand: Hand) -> None:
    """What a worker does in the end: turns in every lane, and the steps of its pulse."""
    for _ in range(3):
        hand.dispatcher.free_streams()
        while hand.turn("express", "normal", "bulk", "large"):
            pass


def add_backlog(place: Place, outbox: Outbox, ordering_key: str, number: int) -> None:
    """Many messages of one unordered key: the first by the door, the rest as rows like it."""
    place.enqueue(outbox, f"{ordering_key}-0", ordering_key=ordering_key, ordered=False)
    share_id, due_at = (column(place.database, f"{ordering_key}-0", name) for name in ("share_id", "due_at"))
    keys = [f"{ordering_key}-{each}" for each in range(1, number)]
    with place.database.begin() as connection:
        connection.execute(sa.insert(message), [row_of(key, share_id, due_at) for key in keys])
    for key in keys:
        place.acknowledge(key)


def row_of(key: str, share_id: int, due_at: datetime) -> dict[str, Any]:
    """An unordered message as a row."""
    payload = json.dumps(event(key))
    times = {"due_at": due_at, "created_at": due_at}
    return message_values(key=key, payload=payload, size=len(payload) + 2, share_id=share_id, **times)


def resting(place: Place) -> bool:
    """Whether no share says that it has something to send."""
    with place.database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).where(share.c.due_at.is_not(None))).scalar_one() == 0


# Fair turns


@pytest.mark.long
@pytest.mark.parametrize("way", ["policy", "enqueue"])
def test_a_months_backlog_of_one_key_does_not_delay_another_keys_message(place: Place, way: str) -> None:
    outbox = place.outbox(UNORDERED if way == "policy" else Policy(), clock=place.clock)
    chosen: dict[str, Any] = {} if way == "policy" else {"ordered": False}
    hand = place.hand(outbox)
    add_backlog(place, outbox, "flood", BACKLOG)
    hand.turn()
    place.clock.move(days=30)

    place.enqueue(outbox, "fresh", ordering_key="pump", **chosen)
    hand.turn()
    first, second = carried(place.receiver)
    place.enqueue(outbox, "again", ordering_key="pump", **chosen)
    hand.turn()

    assert 100 == len(first)
    assert "fresh" in second
    assert len(second) > 50, "and the backlog goes on"
    assert "again" in carried(place.receiver)[2]


@pytest.mark.long
def test_a_backlog_drains_to_the_last_message(place: Place) -> None:
    outbox = place.outbox(UNORDERED, clock=place.clock)
    hand = place.hand(outbox)
    add_backlog(place, outbox, "flood", 1_000)
    place.enqueue(outbox, "fresh", ordering_key="pump")

    drain(place, hand)

    assert 11 == len(place.receiver.requests)
    assert resting(place)
    place.check()


@pytest.mark.long
def test_many_backlogs_take_turns(place: Place) -> None:
    outbox = place.outbox(Policy(ordered=False, batch_messages=4), clock=place.clock)
    hand = place.hand(outbox)
    names = [f"k{number}" for number in range(6)]
    for name in names:
        add_backlog(place, outbox, name, 20)

    for _ in range(3):
        hand.turn()
    found = [{key.split("-")[0] for key in keys} for keys in carried(place.receiver)]

    assert [4, 4, 4] == [len(each) for each in found], "four keys have a part of each request"
    assert set(names) == found[0] | found[1], "nobody comes a second time before everybody came once"
    drain(place, hand)
    place.check()


@pytest.mark.long
@pytest.mark.parametrize("batch", [pytest.param(3, marks=pytest.mark.full), 10, pytest.param(100, marks=pytest.mark.full)])
def test_each_kind_of_message_has_a_part_of_the_next_request(place: Place, batch: int) -> None:
    outbox = place.outbox(Policy(batch_messages=batch), clock=place.clock)
    for number in range(40):
        place.enqueue(outbox, f"loose-{number}")
        place.enqueue(outbox, f"stream-{number}", ordering_key=f"s{number}")
        place.enqueue(outbox, f"share-{number}", ordering_key=f"u{number % 3}", ordered=False)
    hand = place.hand(outbox)

    hand.turn()

    (first,) = carried(place.receiver)
    kinds = [key.split("-")[0] for key in first]
    assert min(batch, 120) == len(first)
    assert {"loose", "stream", "share"} == set(kinds)
    assert all(kinds.count(kind) >= batch // 3 for kind in ("loose", "stream", "share"))
    drain(place, hand)
    place.check()


@pytest.mark.long
def test_more_keys_than_a_database_can_ask_for_at_once(place: Place) -> None:
    """SQLite refuses a SELECT of more than 500 parts."""
    outbox = place.outbox(Policy(ordered=False, batch_messages=1_000), clock=place.clock)
    hand = place.hand(outbox)
    keys = [f"m{number}" for number in range(600)]
    now = place.clock.wall
    with place.database.begin() as connection:
        shares = [{"destination": "enos", "lane": "normal", "ordering_key": key, "due_at": now} for key in keys]
        connection.execute(sa.insert(share), shares)
        ids = {each.ordering_key: each.id for each in connection.execute(sa.select(share))}
        connection.execute(sa.insert(message), [row_of(key, ids[key], now) for key in keys])
    for key in keys:
        place.acknowledge(key)

    drain(place, hand)

    place.check()


# No order


def test_a_message_that_fails_does_not_hold_up_the_others_of_its_key(place: Place) -> None:
    outbox = place.outbox(Policy(batch_messages=1, backoff_first=600.0), clock=place.clock)
    hand = place.hand(outbox)
    place.receiver.refuse(lambda struct: struct["assetId"] == "bad", code=99500)
    place.enqueue(outbox, "bad", ordering_key="pump", ordered=False)
    hand.turn()
    place.enqueue(outbox, "early", ordering_key="pump", ordered=False, due_at=place.clock.wall - timedelta(hours=1))
    drain(place, hand)  # since then it is the message's own fault

    place.enqueue(outbox, "next", ordering_key="pump", ordered=False)
    put_off = column(place.database, "bad", "due_at") > place.clock.wall
    drain(place, hand)

    assert put_off
    assert {"bad": PENDING, "early": DELIVERED, "next": DELIVERED} == states(place.database)
    place.receiver.stop_refusing()
    place.clock.move(seconds=601)
    drain(place, hand)
    assert resting(place)
    place.check()


def test_a_key_whose_order_is_kept_waits_for_the_same_failure(place: Place) -> None:
    """The contrast: both by what the producer said, whatever the destination's rule is."""
    outbox = place.outbox(UNORDERED, clock=place.clock)
    hand = place.hand(outbox)
    place.receiver.refuse(lambda struct: struct["assetId"] == "bad")
    for key in ("bad", "behind"):
        place.enqueue(outbox, key, ordering_key="pump", ordered=True)
    for key in ("unordered", "unordered too"):
        place.enqueue(outbox, key, ordering_key="pump")

    drain(place, hand)

    assert {"bad": State.DEAD, "behind": PENDING, "unordered": DELIVERED, "unordered too": DELIVERED} == states(place.database)


@pytest.mark.long
def test_a_refused_message_is_found_among_those_of_its_key(place: Place) -> None:
    outbox = place.outbox(UNORDERED, clock=place.clock)
    hand = place.hand(outbox)
    for number in range(30):
        place.enqueue(outbox, f"m{number}", ordering_key=f"k{number % 2}")
    place.receiver.refuse(lambda struct: struct["assetId"] in ("m7", "m20"))

    drain(place, hand)

    assert {"m7": Reason.REJECTED, "m20": Reason.REJECTED} == reasons(place.database)
    assert 28 == list(states(place.database).values()).count(DELIVERED)
    assert resting(place)
    place.check()


def test_a_message_that_is_not_due_yet_does_not_hold_up_its_key(place: Place) -> None:
    outbox = place.outbox(UNORDERED, clock=place.clock)
    hand = place.hand(outbox)
    place.enqueue(outbox, "later", ordering_key="pump", due_at=place.clock.wall + timedelta(hours=1))
    place.enqueue(outbox, "now", ordering_key="pump")

    drain(place, hand)
    early = states(place.database)
    place.clock.move(hours=1)
    drain(place, hand)

    assert {"later": PENDING, "now": DELIVERED} == early
    place.check()


def test_many_workers_serve_one_key_at_the_same_time(place: Place) -> None:
    outbox = place.outbox(Policy(ordered=False, batch_messages=1), clock=place.clock)
    hands = [place.hand(outbox) for _ in range(4)]
    for number in range(4):
        place.enqueue(outbox, f"m{number}", ordering_key="pump")
    place.receiver.always(Hold())
    # One claims after the other: two at the same instant may pass each other by, and come again.
    turns = [threading.Thread(target=hand.turn) for hand in hands]
    for number, turn in enumerate(turns):
        turn.start()
        place.receiver.wait_for(lambda receiver, number=number: receiver.held == number + 1)

    place.receiver.release()
    for turn in turns:
        turn.join(10)

    assert 4 == place.receiver.concurrent_peak
    assert {DELIVERED} == set(states(place.database).values())
    drain(place, hands[0])
    assert resting(place)
    place.check()


@pytest.mark.long
@pytest.mark.parametrize("verb", ["cancel", "replay"])
def test_a_person_may_choose_by_ordering_key_whether_its_order_is_kept_or_not(place: Place, verb: str) -> None:
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    for key, ordered in (("kept", True), ("dropped", False)):
        place.enqueue(outbox, key, ordering_key="pump", ordered=ordered)
    if verb == "replay":
        drain(place, hand)

    touched = getattr(outbox, verb)(Selection(ordering_key="pump"), "a person")
    drain(place, hand)

    assert 2 == touched
    assert {State.CANCELLED if verb == "cancel" else DELIVERED} == set(states(place.database).values())
    assert resting(place)
    place.check()


# Producers and workers that are in the middle of something (Postgres: SQLite has one writer at a time)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_producer_with_an_open_transaction_does_not_hold_up_a_claim(postgres_place: Place, end: str) -> None:
    place = postgres_place
    outbox = place.outbox(UNORDERED, clock=place.clock)
    hand = place.hand(outbox)
    for number in range(3):
        place.enqueue(outbox, f"m{number}", ordering_key="pump")

    with place.engine.connect() as connection:
        outbox.enqueue(connection, "enos", event("open"), key="open", ordering_key="pump")
        hand.turn_while_it_moves()
        meanwhile = states(place.database)
        getattr(connection, end)()
    drain(place, hand)

    assert {"m0": DELIVERED, "m1": DELIVERED, "m2": DELIVERED} == meanwhile
    if end == "commit":
        place.acknowledge("open")
    assert resting(place)
    place.check()


def test_a_message_committed_while_its_share_was_put_off_is_due_at_once(postgres_place: Place) -> None:
    """The claim sees only what waits for later; what is due now commits a moment after."""
    place = postgres_place
    outbox = place.outbox(UNORDERED, clock=place.clock)
    hand = place.hand(outbox)
    place.enqueue(outbox, "later", ordering_key="pump", due_at=place.clock.wall + timedelta(hours=1))
    place.enqueue(outbox, "first", ordering_key="pump")

    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event("fresh"), key="fresh", ordering_key="pump")
        hand.turn_while_it_moves()
    place.acknowledge("fresh")
    drain(place, hand)

    assert {"later": PENDING, "first": DELIVERED, "fresh": DELIVERED} == states(place.database)


def test_producers_of_one_unordered_key_do_not_wait_for_each_other(postgres_place: Place) -> None:
    place = postgres_place
    outbox = place.outbox(UNORDERED, clock=place.clock)
    hand = place.hand(outbox)
    place.enqueue(outbox, "a", ordering_key="pump")
    drain(place, hand)

    with place.engine.connect() as first, place.engine.connect() as second:
        outbox.enqueue(first, "enos", event("b"), key="b", ordering_key="pump")
        second.execute(sa.text("SET lock_timeout = '2s'"))
        outbox.enqueue(second, "enos", event("c"), key="c", ordering_key="pump")
        second.commit()
        first.rollback()
    place.acknowledge("c")
    hand.dispatcher.find_strays()
    drain(place, hand)

    place.check()


def fail_while_a_producer_writes(place: Place, outbox: Outbox, hand: Hand) -> None:
    """`a` comes back unsent at the moment in which a producer, who then rolls back, has woken its share."""
    place.enqueue(outbox, "a", ordering_key="pump")
    place.receiver.misbehave(Hold())
    place.receiver.refuse(lambda struct: struct["assetId"] == "a", code=99500)
    turn = threading.Thread(target=hand.turn)
    turn.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)
    with place.engine.connect() as connection:
        outbox.enqueue(connection, "enos", event("b"), key="b", ordering_key="pump")
        place.receiver.release()
        turn.join(10)
        connection.rollback()
    place.receiver.stop_refusing()
    assert PENDING == column(place.database, "a", "state")


def test_a_message_that_comes_back_while_a_producer_writes_is_not_stranded(postgres_place: Place) -> None:
    place = postgres_place
    outbox = place.outbox(UNORDERED, clock=place.clock)
    hand = place.hand(outbox)
    fail_while_a_producer_writes(place, outbox, hand)

    drain(place, hand)

    place.check()


@pytest.mark.slow
def test_nor_when_the_worker_that_would_have_told_is_killed(postgres_place: Place) -> None:
    """Its colleague has been working for long: nobody starts any more."""
    place = postgres_place
    outbox = place.outbox(UNORDERED)
    colleague = place.run("work", policy={"ordered": False}, worker={"gone_after": 1.5, "poll": 0.05})
    place.enqueue(outbox, "before")
    eventually(lambda: states(place.database) == {"before": DELIVERED})
    place.freeze(colleague)
    hand = place.hand(outbox)
    fail_while_a_producer_writes(place, outbox, hand)
    hand.presence.leave()

    colleague.thaw()

    eventually(lambda: column(place.database, "a", "state") == DELIVERED, 15)
    place.check()


# By chance


@pytest.mark.slow
@pytest.mark.long
def test_nothing_is_stranded_by_rollbacks_kills_and_retries(place: Place) -> None:
    seed = int(os.environ.get("OUTBOX_FAIR_SEED") or random.randrange(2**32))
    print(f"OUTBOX_FAIR_SEED={seed}")
    dice = random.Random(seed)
    policy = {"ordered": False, "batch_messages": 5, "senders": 2, "max_unknown": 1000, "max_failures": 1000}
    waits = {"probe_first": 0.02, "probe_cap": 0.1, "backoff_first": 0.05, "backoff_cap": 0.2}
    story = {"worker": {"gone_after": 1.0, "poll": 0.05}, "policy": policy | waits}
    outbox = place.outbox(Policy(ordered=False))
    for number, trouble in enumerate([Status(503), HangUp("after_body"), HangUp("in_body"), Answer(99500)]):
        place.receiver.sometimes(trouble, 0.08, seed + number)
    workers = [place.run("work", **story) for _ in range(2)]

    def produce(name: str, luck: random.Random) -> None:
        for number in range(in_full(15, 8)):
            keys = [f"{name}-{number}-{each}" for each in range(luck.randint(1, 5))]
            with place.engine.connect() as connection:
                for key in sorted(keys, key=lambda key: f"k{hash_of(key) % 7}"):
                    ordering_key = f"k{hash_of(key) % 7}"
                    outbox.enqueue(connection, "enos", event(key), key=key, ordering_key=ordering_key)
                if luck.random() < 0.3:
                    connection.rollback()
                    continue
                connection.commit()
            for key in keys:
                place.acknowledge(key)

    producers = [partial(produce, f"p{number}", random.Random(seed + number)) for number in range(4)]
    busy = threading.Thread(target=together, args=[producers])
    busy.start()
    for _ in range(2):
        known = len(place.receiver.requests)
        place.receiver.wait_for(lambda receiver, known=known: len(receiver.requests) > known, 20)
        victim = dice.randrange(2)
        workers[victim].kill()
        workers[victim] = place.run("work", **story)
    busy.join(60)

    eventually(lambda: not busy.is_alive() and set(states(place.database).values()) == {DELIVERED}, 40)
    place.check()


def hash_of(key: str) -> int:
    """The same in every process and run."""
    return zlib.crc32(key.encode())
