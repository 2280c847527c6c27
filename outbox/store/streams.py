"""Streams: where each one stands, and whose turn it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, and_, exists, func, select, update

from outbox.model import Lane, State
from outbox.tables import claimed, dead_in_stream, head, in_stream, message, pending, stream, unfinished


def due(name: str, lanes: Collection[Lane], now: datetime) -> ColumnElement[bool]:
    """The condition of a stream whose first message may be claimed."""
    return and_(
        head.c.destination == name,
        head.c.lane.in_(lanes),
        head.c.due_at <= now,
        head.c.claimed_by.is_(None),
        head.c.blocked_by.is_(None),
    )


def take_heads(
    connection: Connection, name: str, lane: Lane, now: datetime, limit: int, columns: Sequence[Column[Any]]
) -> list[Row[Any]]:
    """The first unfinished message of each due stream of a lane, least recently served first; locked."""
    waiting = select(head.c.stream_id).where(due(name, [lane], now)).order_by(head.c.served, head.c.stream_id).limit(limit)
    streams = list(connection.execute(waiting.with_for_update(skip_locked=True)).scalars())
    firsts = stand(connection, streams, now)
    ready = [firsts[each].id for each in streams if each in firsts and _is_ready(firsts[each], lane, now)]
    statement = select(*columns).where(message.c.id.in_(ready), pending).order_by(message.c.id).with_for_update()
    rows = {row.id: row for row in connection.execute(statement)} if ready else {}
    return [rows[each] for each in ready if each in rows]


def release(connection: Connection, streams: Collection[int], now: datetime) -> None:
    """Let the next message of each stream be claimed."""
    locked = select(head.c.stream_id).where(head.c.stream_id.in_(streams)).order_by(head.c.stream_id)
    stand(connection, list(connection.execute(locked.with_for_update(skip_locked=True)).scalars()), now)


def idle(connection: Connection) -> list[int]:
    """Streams that say they are claimed although no message of theirs is."""
    tried = exists().where(message.c.stream_id == head.c.stream_id, in_stream, claimed)
    return list(connection.execute(select(head.c.stream_id).where(head.c.claimed_by.is_not(None), ~tried)).scalars())


def stand(connection: Connection, streams: Sequence[int], now: datetime) -> dict[int, Any]:
    """Write where streams stand whose heads are locked here; returns the first unfinished message of each that may go on.

    A stream in which a message has died stays blocked until a person acts. One with nothing unfinished is put to rest, unless a
    producer is writing to it at this moment: it will be looked at again.
    """
    if not streams:
        return {}
    first = select(message.c.id).where(message.c.stream_id == head.c.stream_id, in_stream, unfinished)
    at_head = first.order_by(message.c.stream_number).limit(1).correlate(head).scalar_subquery()
    columns = (message.c.id, message.c.stream_id, message.c.state, message.c.due_at, message.c.lane)
    firsts = {
        row.stream_id: row
        for row in connection.execute(
            select(*columns).where(message.c.id.in_(select(at_head).where(head.c.stream_id.in_(streams))))
        )
    }
    deaths = (
        select(message.c.stream_id, func.min(message.c.id).label("first"))
        .join(head, message.c.stream_id == head.c.stream_id)
        .where(head.c.stream_id.in_(streams), dead_in_stream, message.c.stream_number > head.c.forgiven)
        .group_by(message.c.stream_id)
    )
    died = {row.stream_id: row.first for row in connection.execute(deaths)}
    stood = {row.stream_id: row for row in connection.execute(select(head).where(head.c.stream_id.in_(streams)))}
    without = [each for each in streams if each not in firsts]
    resting = _unwritten(connection, without) if without else set()
    for each in streams:
        row, was = firsts.get(each), stood[each]
        if row is not None and row.state == State.CLAIMED:
            continue  # its delivery goes on, and will come here when it ends
        due_at = row.due_at if row is not None else None if each in resting else now
        place = {
            "claimed_by": None,
            "blocked_by": died.get(each),
            "due_at": due_at,
            "lane": row.lane if row is not None else was.lane,
        }
        if place != {name: getattr(was, name) for name in place}:
            connection.execute(update(head).where(head.c.stream_id == each).values(place))
    return {each: row for each, row in firsts.items() if each not in died}


def _unwritten(connection: Connection, streams: Collection[int]) -> set[int]:
    """Of these streams, those that no producer has an open transaction on; none can begin one before ours ends.

    Their rows are written, not only locked: a producer at REPEATABLE READ that saw the stream under way must not go on
    believing it.
    """
    free = select(stream.c.id).where(stream.c.id.in_(streams)).order_by(stream.c.id).with_for_update(skip_locked=True)
    ids = set(connection.execute(free).scalars())
    # What was committed while we took the lock is seen only by a statement that begins now.
    busy = select(message.c.stream_id).where(message.c.stream_id.in_(ids), in_stream, unfinished).distinct()
    ids -= set(connection.execute(busy).scalars()) if ids else set()
    if ids:
        connection.execute(update(stream).where(stream.c.id.in_(ids)).values(last_number=stream.c.last_number))
    return ids


def _is_ready(first: Any, lane: Lane, now: datetime) -> bool:
    return bool(first.state == State.PENDING and first.due_at <= now and first.lane == lane)
