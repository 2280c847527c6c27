"""Claim: the oldest due messages become one worker's, for one delivery."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Row, and_, exists, insert, or_, select, update

from outbox.model import Attachment, Lane, Message, SpooledFile, State
from outbox.tables import attachment, delivery, file, in_stream, loose, message, pending, stream, unfinished, worker


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
    """Whether the worker has not been declared gone; nobody can declare it before this transaction ends."""
    statement = select(worker.c.id).where(worker.c.id == worker_id, worker.c.gone.is_(False)).with_for_update(read=True)
    return connection.execute(statement).one_or_none() is not None


def anything_due(connection: Connection, name: str, lanes: Collection[Lane], now: datetime) -> bool:
    """Whether a claim could find something; reads only."""
    free = exists().where(
        message.c.destination == name,
        message.c.lane.in_(lanes),
        pending,
        loose,
        message.c.due_at <= now,
    )
    ordered = exists().where(_due_streams(name, lanes, now))
    return bool(connection.execute(select(or_(free, ordered))).scalar())


def _due_streams(name: str, lanes: Collection[Lane], now: datetime) -> Any:
    return and_(
        stream.c.destination == name,
        stream.c.lane.in_(lanes),
        stream.c.due_at <= now,
        stream.c.claimed_by.is_(None),
        stream.c.blocked_by.is_(None),
    )


_WAITING: tuple[Column[Any], ...] = tuple(message.c[name] for name in Waiting._fields)


def waiting(connection: Connection, name: str, lane: Lane, now: datetime, limit: int) -> list[Waiting]:
    """The oldest due messages of a lane that belong to no stream, locked; those locked by another claim are passed over."""
    statement = (
        select(*_WAITING)
        .where(
            message.c.destination == name,
            message.c.lane == lane,
            pending,
            loose,
            message.c.due_at <= now,
        )
        .order_by(message.c.due_at, message.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [Waiting(*row) for row in connection.execute(statement)]


def heads(connection: Connection, name: str, lane: Lane, now: datetime, limit: int) -> list[Waiting]:
    """The first unfinished message of each due stream, least recently served first; streams and messages are locked.

    A stream that says it is due and has nothing to send (its message was a repeated key) is put to rest.
    """
    due = (
        select(stream.c.id)
        .where(_due_streams(name, [lane], now))
        .order_by(stream.c.served, stream.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    streams = list(connection.execute(due).scalars())
    if not streams:
        return []
    rows = connection.execute(
        select(*_WAITING, message.c.state).where(at_head_of(streams)).order_by(message.c.id).with_for_update(of=message)
    ).all()
    found = {row.stream_id: row for row in rows}
    empty = [each for each in streams if each not in found]
    if empty:
        connection.execute(update(stream).where(stream.c.id.in_(empty)).values(due_at=None))
    ready = [row for row in rows if row.state == State.PENDING and row.due_at <= now]
    ready.sort(key=lambda row: streams.index(row.stream_id))
    return [Waiting(*row[: len(_WAITING)]) for row in ready]


def at_head_of(streams: Collection[int]) -> ColumnElement[bool]:
    """The condition of a message that is the first in its stream that is not final."""
    first = select(message.c.id).where(message.c.stream_id == stream.c.id, in_stream, unfinished)
    heads_of = select(first.order_by(message.c.stream_number).limit(1).correlate(stream).scalar_subquery()).where(
        stream.c.id.in_(streams)
    )
    return message.c.id.in_(heads_of)


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
    streams = [each.stream_id for each in taken if each.stream_id is not None]
    if streams:
        connection.execute(update(stream).where(stream.c.id.in_(streams)).values(claimed_by=worker_id, served=delivery_id))
    statement = (
        update(message)
        .where(message.c.id.in_(ids))
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
        )
    )
    rows = {row.id: row for row in connection.execute(statement)}
    with_files = [each.id for each in taken if each.files]
    attached = attachments(connection, with_files) if with_files else {}
    return [_message(rows[each], attached.get(each, [])) for each in ids]


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
