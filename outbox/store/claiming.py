"""Claim: the oldest due messages become one worker's, for one delivery."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Row, exists, func, insert, or_, select, update

from outbox.model import Attachment, Lane, Message, Reason, SpooledFile, State
from outbox.store import shares, streams
from outbox.tables import attachment, claimed, delivery, expiring, file, has_come, head, loose, message, pending, share, worker
from outbox.timekeeping import When


class Waiting(NamedTuple):
    """A due message, before anything large about it is read."""

    id: int
    size: int
    file_bytes: int
    batch_limit: int | None
    suspect: bool
    attempt: int
    files: int
    stream_id: int | None
    share_id: int | None
    expires_at: datetime | None
    clock_plausible: bool


def still_here(connection: Connection, worker_id: str) -> bool:
    """Whether the worker has not been declared gone.

    Without a lock, which many claims at once would keep from the beat: one that slips in while the worker is being declared
    gone is rescued a moment later like the rest.
    """
    statement = select(worker.c.id).where(worker.c.id == worker_id, worker.c.gone.is_(False))
    return connection.execute(statement).one_or_none() is not None


def anything_due(connection: Connection, name: str, lanes: Collection[Lane], when: When) -> bool:
    """Whether a claim could find something; reads only."""
    # One look at the beginning of each lane's queue: asked for any message at all, Postgres may choose to read the whole table.
    firsts = [
        select(message.c.id).where(*_due(name, lane, when)).order_by(message.c.due_at, message.c.id).limit(1).exists()
        for lane in lanes
    ]
    ordered = exists().where(streams.due(name, lanes, when))
    unordered = exists().where(shares.due(name, lanes, when))
    return bool(connection.execute(select(or_(*firsts, ordered, unordered))).scalar())


def _due(name: str, lane: Lane, when: When) -> tuple[ColumnElement[bool], ...]:
    come = has_come(message.c.due_at, message.c.scheduled, when)
    return (message.c.destination == name, message.c.lane == lane, pending, loose, come)


_WAITING: tuple[Column[Any], ...] = tuple(message.c[name] for name in Waiting._fields)


def waiting(
    connection: Connection, name: str, lane: Lane, when: When, limit: int, *, skip: bool, lead: int = 0
) -> list[Waiting]:
    """Due messages of a lane, locked; without those that others lock.

    Three queues take turns, so that none waits for the end of another: messages without an ordering key, oldest first; the
    first of each stream; and the shares. `lead` rotates which of them is first: a message that may not travel with the first,
    since it was refused with others, becomes the first itself. `skip`: a stream goes on after a message of it has died.
    """
    statement = (
        select(*_WAITING)
        .where(*_due(name, lane, when))
        .order_by(message.c.due_at, message.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    queues = (
        connection.execute(statement).all(),
        streams.take_heads(connection, name, lane, when, limit, _WAITING, skip=skip),
        shares.take(connection, name, lane, when, limit, _WAITING),
    )
    first = lead % len(queues)
    turned = (*queues[first:], *queues[:first])
    return [Waiting(*row) for row in chain.from_iterable(zip_longest(*turned)) if row is not None]


def suspect_under_way(connection: Connection, name: str) -> bool:
    """Whether a message is being tried that a worker may have died of."""
    # claimed_by: so that the small index of claimed messages is used.
    tried = (claimed, message.c.claimed_by.is_not(None), message.c.destination.concat("") == name, message.c.suspect)
    return connection.execute(select(message.c.id).where(*tried).limit(1)).one_or_none() is not None


def furthest(connection: Connection, name: str) -> datetime | None:
    """The latest instant that a message waits for and that no producer chose: with clocks that are right it is never far."""
    found: list[datetime | None] = []
    for lane in Lane:
        mine = (message.c.destination == name, message.c.lane == lane, pending, loose, ~message.c.scheduled)
        last = select(message.c.due_at).where(*mine).order_by(message.c.due_at.desc(), message.c.id.desc()).limit(1)
        found.append(connection.execute(last).scalar_one_or_none())
    going = (head.c.claimed_by.is_(None), head.c.blocked_by.is_(None))
    for table, conditions in ((head, going), (share, ())):
        due = (table.c.destination == name, table.c.due_at.is_not(None), ~table.c.scheduled, *conditions)
        found.append(connection.execute(select(func.max(table.c.due_at)).where(*due)).scalar_one())
    return max((each for each in found if each is not None), default=None)


def expired(connection: Connection, names: Collection[str], when: When, limit: int) -> list[Waiting]:
    """Messages whose time is over, locked. One that was enqueued by a clock that was never set is not among them."""
    over = (expiring, message.c.expires_at <= when.chosen, message.c.clock_plausible, message.c.destination.in_(names))
    statement = select(*_WAITING).where(*over).order_by(message.c.expires_at, message.c.id).limit(limit)
    return [Waiting(*row) for row in connection.execute(statement.with_for_update(skip_locked=True))]


def expire(connection: Connection, ids: Collection[int], now: datetime) -> set[int]:
    """Give up messages whose time is over, locked here; returns the streams they were in."""
    words = "its expires_at passed before it could be delivered"
    died = {"state": State.DEAD, "reason": Reason.EXPIRED, "reason_text": words, "finished_at": now}
    statement = update(message).where(message.c.id.in_(ids), pending).values(died).returning(message.c.stream_id)
    return {stream_id for stream_id in connection.execute(statement).scalars() if stream_id is not None}


def start_delivery(
    connection: Connection, name: str, lane: Lane, worker_id: str, taken: Sequence[Waiting], probe: bool, now: datetime
) -> int:
    """The row of one upload request, committed before its first byte is sent."""
    values = {
        "destination": name,
        "lane": lane,
        "worker": worker_id,
        "messages": len(taken),
        "bytes": sum(each.size + each.file_bytes for each in taken),
        "probe": probe,
        "started_at": now,
    }
    return int(connection.execute(insert(delivery).values(values).returning(delivery.c.id)).scalar_one())


def mark_claimed(
    connection: Connection, taken: Sequence[Waiting], worker_id: str, delivery_id: int, when: When
) -> list[Message]:
    """Make the taken messages the worker's, number the attempt, and read what they carry; in the order they were taken."""
    ids = [each.id for each in taken]
    of_streams = [each.stream_id for each in taken if each.stream_id is not None]
    if of_streams:
        place = {"claimed_by": worker_id, "served": delivery_id}
        connection.execute(update(head).where(head.c.stream_id.in_(of_streams)).values(place))
    statement = (
        update(message)
        .where(message.c.id.in_(ids), pending)
        .values(state=State.CLAIMED, claimed_by=worker_id, delivery_id=delivery_id, attempt=message.c.attempt + 1)
        .returning(
            message.c.id,
            message.c.key,
            message.c.payload,
            message.c.attempt,
            message.c.failures,
            message.c.unknowns,
            message.c.batch_limit,
            message.c.suspect,
            message.c.size,
            message.c.file_bytes,
            message.c.files,
            message.c.traceparent,
        )
    )
    rows = {row.id: row for row in connection.execute(statement)}
    if of_shares := {each.share_id for each in taken if each.share_id is not None}:
        shares.served(connection, of_shares, delivery_id, when)
    with_files = [each.id for each in taken if each.files]
    attached = attachments(connection, with_files) if with_files else {}
    return [_message(rows[each], attached.get(each, [])) for each in ids if each in rows]


def _message(row: Row[Any], attached: Sequence[Attachment]) -> Message:
    return Message(
        id=row.id,
        key=row.key,
        text=row.payload,
        attempt=row.attempt,
        failures=row.failures,
        unknowns=row.unknowns,
        batch_limit=row.batch_limit,
        suspect=row.suspect,
        size=row.size,
        file_bytes=row.file_bytes,
        files=row.files,
        attachments=tuple(attached),
        traceparent=row.traceparent,
    )


def attachments(connection: Connection, ids: Collection[int]) -> dict[int, list[Attachment]]:
    """The attachments of messages, each message's in the producer's order."""
    statement = (
        select(
            attachment.c.message_id,
            attachment.c.name,
            attachment.c.filename,
            attachment.c.content_type,
            file.c.name.label("file"),
            file.c.size,
            file.c.sha256,
            file.c.md5,
        )
        .join(file, attachment.c.file == file.c.name)
        .where(attachment.c.message_id.in_(ids))
        .order_by(attachment.c.message_id, attachment.c.position)
    )
    found: dict[int, list[Attachment]] = defaultdict(list)
    for row in connection.execute(statement):
        spooled = SpooledFile(row.file, row.size, row.sha256, row.md5)
        found[row.message_id].append(Attachment(row.name, spooled, row.filename, row.content_type))
    return found
