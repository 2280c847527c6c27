"""Claim: the oldest due messages become one worker's, for one delivery."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Row, exists, insert, or_, select, update

from outbox.model import Attachment, Lane, Message, SpooledFile, State
from outbox.store import streams
from outbox.tables import attachment, delivery, file, head, loose, message, pending, worker


class Waiting(NamedTuple):
    """A due message, before anything large about it is read."""

    id: int
    size: int
    file_bytes: int
    batch_limit: int | None
    attempt: int
    files: int
    stream_id: int | None
    due_at: datetime


def still_here(connection: Connection, worker_id: str) -> bool:
    """Whether the worker has not been declared gone.

    Without a lock, which many claims at once would keep from the beat: one that slips in while the worker is being declared
    gone is rescued a moment later like the rest.
    """
    statement = select(worker.c.id).where(worker.c.id == worker_id, worker.c.gone.is_(False))
    return connection.execute(statement).one_or_none() is not None


def anything_due(connection: Connection, name: str, lanes: Collection[Lane], now: datetime) -> bool:
    """Whether a claim could find something; reads only."""
    # One look at the beginning of each lane's queue: asked for any message at all, Postgres may choose to read the whole table.
    firsts = [
        select(message.c.id).where(*_due(name, lane, now)).order_by(message.c.due_at, message.c.id).limit(1).exists()
        for lane in lanes
    ]
    ordered = exists().where(streams.due(name, lanes, now))
    return bool(connection.execute(select(or_(*firsts, ordered))).scalar())


def _due(name: str, lane: Lane, now: datetime) -> tuple[ColumnElement[bool], ...]:
    return (message.c.destination == name, message.c.lane == lane, pending, loose, message.c.due_at <= now)


_WAITING: tuple[Column[Any], ...] = tuple(message.c[name] for name in Waiting._fields)


def waiting(connection: Connection, name: str, lane: Lane, now: datetime, limit: int) -> list[Waiting]:
    """The oldest due messages of a lane and the first ones of its due streams, locked; without those that others lock."""
    statement = (
        select(*_WAITING)
        .where(*_due(name, lane, now))
        .order_by(message.c.due_at, message.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = [*connection.execute(statement), *streams.take_heads(connection, name, lane, now, limit, _WAITING)]
    return sorted((Waiting(*row) for row in rows), key=lambda each: (each.due_at, each.id))


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


def mark_claimed(connection: Connection, taken: Sequence[Waiting], worker_id: str, delivery_id: int) -> list[Message]:
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
            message.c.size,
            message.c.file_bytes,
            message.c.files,
        )
    )
    rows = {row.id: row for row in connection.execute(statement)}
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
        size=row.size,
        file_bytes=row.file_bytes,
        files=row.files,
        attachments=tuple(attached),
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
