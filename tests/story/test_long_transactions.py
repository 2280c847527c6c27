"""Transactions that take long, clocks that differ, one connection for all: nothing is passed over, held up or taken twice."""

from __future__ import annotations

import logging
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Ambient, Outbox, Policy, Selection, State, Worker
from outbox.database import connect
from outbox.tables import message
from outbox.testing import HangUp, Hold, Status
from tests.factories import an_outbox, caller_engine, count, enos, event, in_full, states
from tests.ledger import trail
from tests.story.conftest import Place, eventually

QUICK = {"backoff_first": 0.01, "backoff_cap": 0.05, "probe_first": 0.03, "probe_cap": 0.06}


# Transactions


@pytest.mark.merge
def test_messages_that_are_committed_late_are_delivered_although_many_after_them_went_before(postgres_place: Place) -> None:
    """Their ids are the lowest: whoever looked only beyond the last id it saw would never find them."""
    place, outbox = postgres_place, postgres_place.outbox()
    hand, late = place.hand(outbox), {"a": {}, "b": {"ordering_key": "pump"}, "c": {"ordering_key": "valve", "ordered": False}}
    later = in_full(1000, 60)
    # Whoever makes a share or a stream is waited for: this one is there.
    place.enqueue(outbox, "first", ordering_key="valve", ordered=False)
    engine = caller_engine(place.url)
    with engine.connect() as slow:
        for key, where in late.items():
            outbox.enqueue(slow, "enos", event(key), key=key, **where)
        for number in range(later):
            where = {"ordering_key": "valve", "ordered": False} if number % 5 == 0 else {}
            place.enqueue(outbox, f"m{number}", **where)
        hand.turn_while_it_moves(2000)
        assert later + 1 == len(place.receiver.accepted)
        slow.commit()
    engine.dispose()
    for key in late:
        place.acknowledge(key)
    place.enqueue(outbox, "d", ordering_key="pump")

    for _ in range(2):
        hand.dispatcher.find_strays()
        hand.dispatcher.free_streams()
        hand.turn_while_it_moves()

    arrived = [struct["assetId"] for request in place.receiver.requests for struct in request.structs]
    assert {"a", "b", "c", "d"} == set(arrived[later + 1 :])
    assert arrived.index("b") < arrived.index("d")
    place.check()


@pytest.mark.merge
def test_somebody_who_keeps_an_old_snapshot_holds_up_nobody(postgres_place: Place) -> None:
    place, outbox = postgres_place, postgres_place.outbox()
    hand = place.hand(outbox)
    place.enqueue(outbox, "before")
    with place.engine.connect().execution_options(isolation_level="REPEATABLE READ") as old:
        seen = old.execute(sa.select(message.c.key)).scalars().all()
        for number in range(10):
            place.enqueue(outbox, f"m{number}", {"photo": b"bytes"}, ordering_key="pump" if number % 2 else None)
        hand.turn_while_it_moves()
        place.check()
        assert 5 == outbox.replay(Selection(keys=("before", "m0", "m2", "m4", "m6")), "anna")
        hand.turn_while_it_moves()
        hand.turn("bulk")
        place.purged |= place.acknowledged.keys()
        assert 11 == outbox.purge(Selection(states=(State.DELIVERED,)), "anna")
        assert seen == old.execute(sa.select(message.c.key)).scalars().all()

    assert 0 == count(place.database, message)


# Connections


@pytest.fixture
def one_connection(place: Place) -> Outbox:
    """An outbox that has one connection to its database, and waits for it at most a few seconds."""
    policy = Policy(senders=8, batch_messages=1, **QUICK)
    if place.database.kind == "sqlite":  # there it has never more than one to write with
        return place.outbox(policy)
    engine = sa.create_engine(place.url, pool_size=1, max_overflow=0, pool_timeout=10)
    outbox = an_outbox(engine, place.spool, enos(place.receiver.url, policy=policy))
    place._outboxes.append(outbox)
    return outbox


def test_no_connection_is_held_while_an_upload_is_under_way(
    place: Place, one_connection: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    outbox, engine = one_connection, one_connection.database.engine
    pools: list[Any] = [each.pool for each in (engine, one_connection.database._reader) if each is not None]
    place.receiver.always(Hold())
    for number in range(12):
        place.enqueue(outbox, f"m{number}", {"photo": b"bytes"} if number % 3 == 0 else None)

    with caplog.at_level(logging.WARNING, "outbox"), Worker(outbox, poll=0.05):
        place.receiver.wait_for(lambda receiver: receiver.held == 8)
        eventually(lambda: [0] * len(pools) == [pool.checkedout() for pool in pools])
        place.receiver.never()
        place.receiver.release()
        eventually(lambda: set(states(place.database).values()) == {State.DELIVERED}, 60)

    assert [] == [each.getMessage() for each in caplog.records]
    engine.dispose()
    place.check()


@pytest.mark.merge
def test_a_server_that_has_vanished_without_a_word_is_noticed(postgres_url: str) -> None:
    """Of a machine that lost its power, or a firewall that forgot us, no answer comes, ever."""
    engine = connect(postgres_url)
    with engine.connect() as connection:
        driver = connection.connection.dbapi_connection
        with socket.socket(fileno=socket.dup(driver.fileno())) as ours:  # type: ignore[union-attr]
            unanswered = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
            idle = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    engine.dispose()

    assert 0 < unanswered <= 60
    assert 0 < idle <= 60


@pytest.mark.merge
@pytest.mark.parametrize("text", ["x" * 500_000, "\N{GRINNING FACE}" * 2000, "\\\"'%s:x $1"], ids=["large", "emoji", "signs"])
def test_a_payload_arrives_as_it_was_whatever_is_in_it(postgres_place: Place, text: str) -> None:
    outbox = postgres_place.outbox()
    with postgres_place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event("a", words=text), key="a")
    postgres_place.acknowledge("a")

    postgres_place.hand(outbox).turn()

    (accepted,) = postgres_place.receiver.accepted
    assert text == accepted.struct["events"]["crack"]["words"]
    postgres_place.check()


# Clocks


def shifted(hours: float) -> Ambient:
    """A machine whose wall clock is wrong, and whose monotonic one goes on as everywhere."""
    return Ambient(now=lambda: datetime.now(UTC) + timedelta(hours=hours))


@pytest.mark.merge
def test_two_workers_whose_clocks_are_two_hours_apart_never_have_the_same_message(postgres_place: Place) -> None:
    place, policy = postgres_place, Policy(batch_messages=3, senders=2, max_unknown=1000, **QUICK)
    place.receiver.sometimes(Status(503), 0.1, 1)
    place.receiver.sometimes(HangUp("after_body"), 0.05, 2)
    outboxes = [place.outbox(policy, ambient=shifted(hours)) for hours in (-1, 1)]
    producer, long_due = place.outbox(policy), datetime.now(UTC) - timedelta(hours=2)  # by every clock
    assert trail.install(place.url)
    try:
        for number in range(in_full(1000, 90)):
            where = {"ordering_key": f"s{number % 4}", "ordered": number % 2 == 0} if number % 3 == 0 else {}
            place.enqueue(producer, f"m{number}", due_at=long_due, **where)
        with Worker(outboxes[0], poll=0.02, gone_after=2), Worker(outboxes[1], poll=0.02, gone_after=2):
            eventually(lambda: set(states(place.database).values()) == {State.DELIVERED}, 90)

        balance = place.check()
        took_part = {each.new_worker for each in trail.read(place.database).changes if each.new_state == "claimed"}  # type: ignore[union-attr]
    finally:
        assert trail.remove(place.url)
    assert {"I6", "I7", "I13"} <= set(balance.looked)
    assert 2 == len(took_part)
