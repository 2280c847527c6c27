"""Record: what the answer made of each message is written, if the claim still holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, exists, insert, select, update

from outbox.model import FINAL, Outcome, State
from outbox.store import shares, streams
from outbox.tables import attachment, attempt, claimed, delivery, file, message
from outbox.timekeeping import When
from outbox.verdict import Facts, Settlement


def recovered(connection: Connection, name: str, ids: Collection[int]) -> set[int]:
    """Of these messages, those after whose last failure the destination delivered something else.

    Compared by delivery number, so no clock takes part.
    """
    since = exists().where(
        delivery.c.destination == name, delivery.c.outcome == Outcome.DELIVERED, delivery.c.id > message.c.faulted_in
    )
    statement = select(message.c.id).where(message.c.id.in_(ids), message.c.faulted_in.is_not(None), since)
    return set(connection.execute(statement).scalars())


class Recorded(NamedTuple):
    """What a record wrote: messages by id; and shares that could not be told, because somebody held them."""

    written: set[int]
    shares: set[int]


def record(
    connection: Connection,
    delivery_id: int,
    worker_id: str,
    settled: Mapping[int, tuple[int, Settlement]],
    when: When,
    *,
    keep_late: bool = True,
    skip: bool = False,
) -> Recorded:
    """Write what became of each message (id: attempt number and settlement), if the claim still holds.

    `delivery_id` is new with every attempt, so asking for it is asking for the attempt number, for the whole set at once.
    For the others the outcome is kept, with `keep_late`, as the late one of an attempt that somebody else has ended. `skip`: a
    stream goes on after a message of it has died.
    """
    now = when.now
    groups: dict[Settlement, list[int]] = defaultdict(list)
    for message_id, (_, settlement) in settled.items():
        groups[settlement].append(message_id)
    written: set[int] = set()
    of_streams: set[int] = set()
    of_shares: set[int] = set()
    for settlement, ids in groups.items():
        statement = (
            update(message)
            .where(
                message.c.id.in_(sorted(ids)),
                claimed,
                message.c.claimed_by == worker_id,
                message.c.delivery_id == delivery_id,
            )
            .values(_changes(settlement, delivery_id, now))
            .returning(message.c.id, message.c.stream_id, message.c.share_id)
        )
        for row in connection.execute(statement):
            written.add(row.id)
            if row.stream_id is not None:
                of_streams.add(row.stream_id)
            if row.share_id is not None and settlement.state is State.PENDING:
                of_shares.add(row.share_id)
    if written:
        rows = [
            {
                "message_id": message_id,
                "number": settled[message_id][0],
                "delivery_id": delivery_id,
                "finished_at": now,
                "outcome": settled[message_id][1].outcome,
            }
            for message_id in sorted(written)
        ]
        connection.execute(insert(attempt), rows)
    late = settled.keys() - written if keep_late else set()
    for message_id in sorted(late):
        connection.execute(
            update(attempt)
            .where(
                attempt.c.message_id == message_id,
                attempt.c.delivery_id == delivery_id,
                # The same outcome again is our own record, whose commit went through although we were told nothing.
                attempt.c.outcome != settled[message_id][1].outcome,
            )
            .values(late_outcome=settled[message_id][1].outcome)
        )
    if of_streams:
        streams.release(connection, of_streams, when, skip=skip)
    held = shares.release(connection, of_shares, when) if of_shares else set()
    return Recorded(written, held)


def _changes(settlement: Settlement, delivery_id: int, now: datetime) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "state": settlement.state,
        "reason": settlement.reason,
        "reason_text": settlement.text,
        "failures": settlement.failures,
        "unknowns": settlement.unknowns,
        "batch_limit": settlement.batch_limit,
        "suspect": settlement.suspect,
        "claimed_by": None,
        "delivery_id": None,
        "finished_at": now if settlement.state in FINAL else None,
    }
    if settlement.due_at is not None:
        changes |= {"due_at": settlement.due_at, "scheduled": False}
    if settlement.faulted:
        changes["faulted_in"] = delivery_id
    return changes


def finish_delivery(connection: Connection, delivery_id: int, outcome: Outcome, facts: Facts, now: datetime) -> bool:
    """End a delivery, once; False when somebody else has."""
    statement = (
        update(delivery)
        .where(delivery.c.id == delivery_id, delivery.c.finished_at.is_(None))
        .values(
            finished_at=now,
            outcome=outcome,
            status=facts.status,
            code=facts.code,
            text=facts.text,
            request_id=facts.request_id,
            answer=facts.answer,
        )
    )
    return connection.execute(statement).rowcount == 1


def ended_as(connection: Connection, delivery_id: int, outcome: Outcome) -> bool:
    """Whether a delivery has ended with this outcome."""
    ended = (delivery.c.id == delivery_id, delivery.c.finished_at.is_not(None), delivery.c.outcome == outcome)
    return connection.execute(select(delivery.c.id).where(*ended)).one_or_none() is not None


def free_later(connection: Connection, ids: Collection[int], when: datetime) -> None:
    """The files of these delivered messages may be freed at that instant, unless another message needs them then."""
    names = select(attachment.c.file).where(attachment.c.message_id.in_(ids))
    # Locked by name first: two deliveries that share files must not take them in opposite orders.
    locked = select(file.c.name).where(file.c.name.in_(names), file.c.freed_at.is_(None)).order_by(file.c.name)
    found = list(connection.execute(locked.with_for_update(key_share=True)).scalars())
    connection.execute(update(file).where(file.c.name.in_(found)).values(free_at=when))
