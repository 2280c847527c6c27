"""Streams: where each one stands, and whose turn it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, exists, func, select, update

from outbox.model import Lane, State
from outbox.store import pausing
from outbox.tables import claimed, dead_in_stream, has_come, head, in_stream, message, pending, stream, unfinished
from outbox.timekeeping import When


def due(name: str, lanes: Collection[Lane], when: When) -> ColumnElement[bool]:
    """The condition of a stream whose first message may be claimed."""
    return and_(
        head.c.destination == name,
        head.c.lane.in_(lanes),
        has_come(head.c.due_at, head.c.scheduled, when),
        head.c.claimed_by.is_(None),
        head.c.blocked_by.is_(None),
        head.c.stream_id.not_in(pausing.streams_of(name)),
    )


def take_heads(
    connection: Connection, name: str, lane: Lane, when: When, limit: int, columns: Sequence[ColumnElement[Any]], *, skip: bool
) -> list[Row[Any]]:
    """The first unfinished message of each due stream of a lane, least recently served first; locked.

    With `skip`, a stream goes on after a message of it has died.
    """
    waiting = select(head.c.stream_id).where(due(name, [lane], when)).order_by(head.c.served, head.c.stream_id).limit(limit)
    streams = list(connection.execute(waiting.with_for_update(skip_locked=True)).scalars())
    firsts = stand(connection, streams, when, skip=skip)
    ready = [firsts[each].id for each in streams if each in firsts and _is_ready(firsts[each], lane, when)]
    statement = select(*columns).where(message.c.id.in_(ready), pending).order_by(message.c.id).with_for_update()
    rows = {row.id: row for row in connection.execute(statement)} if ready else {}
    return [rows[each] for each in ready if each in rows]


def release(connection: Connection, streams: Collection[int], when: When, *, skip: bool) -> None:
    """Let the next message of each stream be claimed."""
    locked = select(head.c.stream_id).where(head.c.stream_id.in_(streams)).order_by(head.c.stream_id)
    stand(connection, list(connection.execute(locked.with_for_update(skip_locked=True)).scalars()), when, skip=skip)


def idle(connection: Connection, name: str) -> list[int]:
    """Streams of a destination that say they are claimed although no message of theirs is."""
    tried = exists().where(message.c.stream_id == head.c.stream_id, in_stream, claimed)
    stuck = (head.c.claimed_by.is_not(None), head.c.destination == name, ~tried)
    return list(connection.execute(select(head.c.stream_id).where(*stuck)).scalars())


def of(connection: Connection, streams: Collection[int], name: str) -> list[int]:
    """Those of these streams that are a destination's."""
    if not streams:
        return []
    mine = select(head.c.stream_id).where(head.c.stream_id.in_(streams), head.c.destination == name)
    return list(connection.execute(mine).scalars())


def blocked(connection: Connection, name: str) -> list[int]:
    """Streams of a destination that a dead message holds up."""
    held_up = (head.c.blocked_by.is_not(None), head.c.destination == name)
    return list(connection.execute(select(head.c.stream_id).where(*held_up)).scalars())


def forgive(connection: Connection, name: str, ordering_key: str, when: When) -> bool:
    """Let a stream go on past the messages of it that are dead by now; False when no such stream is held up.

    Waits for whoever holds its place at this moment: a person shall not have to ask twice.
    """
    wanted = (stream.c.destination == name, stream.c.ordering_key == ordering_key, head.c.blocked_by.is_not(None))
    place = select(head.c.stream_id).join(stream, head.c.stream_id == stream.c.id).where(*wanted)
    stream_id = connection.execute(place.with_for_update(of=head)).scalar_one_or_none()
    if stream_id is None:
        return False
    died = select(func.max(message.c.stream_number)).where(message.c.stream_id == stream_id, dead_in_stream)
    last = connection.execute(died).scalar_one() or 0
    connection.execute(update(head).where(head.c.stream_id == stream_id).values(forgiven=last))
    stand(connection, [stream_id], when, skip=False)
    return True


def stand(connection: Connection, streams: Sequence[int], when: When, *, skip: bool) -> dict[int, Any]:
    """Write where streams stand whose heads are locked here; returns the first unfinished message of each that may go on.

    A stream in which a message has died stays blocked until a person acts, unless its destination says `skip`. One with
    nothing unfinished is put to rest, unless a producer is writing to it at this moment: it will be looked at again.
    """
    if not streams:
        return {}
    first = select(message.c.id).where(message.c.stream_id == head.c.stream_id, in_stream, unfinished)
    at_head = first.order_by(message.c.stream_number).limit(1).correlate(head).scalar_subquery()
    wanted = ("id", "stream_id", "stream_number", "state", "due_at", "scheduled", "lane")
    columns = [message.c[name] for name in wanted]
    firsts = {
        row.stream_id: row
        for row in connection.execute(
            select(*columns).where(message.c.id.in_(select(at_head).where(head.c.stream_id.in_(streams))))
        )
    }
    # One that stands before the first death goes on: it was forgiven and replayed.
    died = {
        each: death.id
        for each, death in ({} if skip else _deaths(connection, streams)).items()
        if each not in firsts or death.stream_number < firsts[each].stream_number
    }
    stood = {row.stream_id: row for row in connection.execute(select(head).where(head.c.stream_id.in_(streams)))}
    without = [each for each in streams if each not in firsts]
    resting = _unwritten(connection, without) if without else set()
    tried = _tried(connection, streams)
    moved: list[dict[str, Any]] = []
    for each in streams:
        row, was = firsts.get(each), stood[each]
        if each in tried:
            continue  # its delivery goes on, and will come here when it ends
        place = {
            "claimed_by": None,
            "blocked_by": died.get(each),
            "due_at": row.due_at if row is not None else None if each in resting else when.now,
            "scheduled": row is not None and row.scheduled,
            "lane": row.lane if row is not None else was.lane,
        }
        if place != {name: getattr(was, name) for name in place}:
            moved.append({"of": each, **place})
    if moved:
        places: dict[str, Any] = {name: bindparam(name) for name in moved[0] if name != "of"}
        connection.execute(update(head).where(head.c.stream_id == bindparam("of")).values(places), moved)
    return {each: row for each, row in firsts.items() if each not in died and each not in tried}


def _tried(connection: Connection, streams: Collection[int]) -> set[int]:
    """Of these streams, those of which a message is under way: not always the first, one before it may have been replayed."""
    # claimed_by: so that the small index of claimed messages is used.
    under_way = (claimed, message.c.claimed_by.is_not(None), message.c.stream_id.in_(streams))
    return set(connection.execute(select(message.c.stream_id).where(*under_way)).scalars())


def _deaths(connection: Connection, streams: Sequence[int]) -> dict[int, Any]:
    """The first message of each of these streams that died and was not forgiven."""
    mine = (message.c.stream_id == head.c.stream_id, dead_in_stream, message.c.stream_number > head.c.forgiven)
    first = select(message.c.id).where(*mine).order_by(message.c.stream_number).limit(1).correlate(head).scalar_subquery()
    found = select(first).where(head.c.stream_id.in_(streams))
    columns = (message.c.id, message.c.stream_id, message.c.stream_number)
    return {row.stream_id: row for row in connection.execute(select(*columns).where(message.c.id.in_(found)))}


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


def _is_ready(first: Any, lane: Lane, when: When) -> bool:
    come = when.has_come(first.due_at, chosen=first.scheduled)
    return bool(first.state == State.PENDING and come and first.lane == lane)
