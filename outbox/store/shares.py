"""Shares: ordering keys whose order does not matter take fair turns, so that one's backlog does not starve another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import chain, zip_longest
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, bindparam, case, or_, select, union_all, update

from outbox.dialects import insert_or_nothing
from outbox.model import Lane
from outbox.store import pausing
from outbox.store.arriving import TAKE_WRITE_LOCK, NewMessage
from outbox.tables import has_come, in_share, message, share
from outbox.timekeeping import When

#: Subqueries in one statement.
_TOGETHER = 100


def due(name: str, lanes: Collection[Lane], when: When) -> ColumnElement[bool]:
    """The condition of a share that may have a message to claim."""
    come = has_come(share.c.due_at, share.c.scheduled, when)
    # By its key: asked which shares are paused, SQLite would look at all that there are.
    return and_(share.c.destination == name, share.c.lane.in_(lanes), come, share.c.ordering_key.not_in(pausing.keys_of(name)))


def join(connection: Connection, new: NewMessage, ordering_key: str) -> int:
    """The share that a message belongs to. It is not put to rest before the caller's transaction ends."""
    wanted = {"destination": new.destination, "ordering_key": ordering_key, "lane": new.lane}
    found = select(share.c.id).where(*(share.c[name] == value for name, value in wanted.items()))
    mine = found.with_for_update(read=True, key_share=True)
    # A transaction of SQLite's that reads first could not write any more, had anybody written meanwhile.
    connection.execute(TAKE_WRITE_LOCK)
    share_id = connection.execute(mine).scalar_one_or_none()
    if share_id is None:
        # Only now: an INSERT would wait for whoever is waking a share that is there.
        connection.execute(insert_or_nothing(connection, share).values(wanted))
        share_id = connection.execute(mine).scalar_one()
    return int(share_id)


def wake(connection: Connection, shares: Collection[int], due_at: datetime, *, scheduled: bool = False) -> None:
    """Shares at rest, and those that wait for something later, become due with a new message of theirs.

    One that somebody else is waking is passed over; should that one roll back, it is found as a stray.
    """
    later = or_(share.c.due_at.is_(None), share.c.due_at > due_at)
    mine = select(share.c.id).where(share.c.id.in_(shares), later).order_by(share.c.id)
    free = list(connection.execute(mine.with_for_update(skip_locked=True, key_share=True)).scalars())
    connection.execute(update(share).where(share.c.id.in_(free)).values(due_at=due_at, scheduled=scheduled))


#: Where a replayed message of a share takes its turns: in its key's share in the bulk lane, and a large one where it was.
_again = share.alias("again")
_of_same_key = and_(
    _again.c.destination == share.c.destination,
    _again.c.ordering_key == share.c.ordering_key,
    _again.c.lane == case((share.c.lane == Lane.LARGE, share.c.lane), else_=Lane.BULK.value),
)
REPLAYED_IN = (
    select(_again.c.id).select_from(share.join(_again, _of_same_key)).where(share.c.id == message.c.share_id).scalar_subquery()
)


def missing_for_replay(connection: Connection, shares: Collection[int]) -> list[dict[str, str]]:
    """The shares that replayed messages of these would need and that are not there yet, for `make`."""
    lacking = select(share.c.destination, share.c.ordering_key).select_from(share.outerjoin(_again, _of_same_key))
    these = lacking.where(share.c.id.in_(shares), _again.c.id.is_(None)).distinct().order_by(share.c.ordering_key)
    return [{"destination": name, "ordering_key": key, "lane": Lane.BULK} for name, key in connection.execute(these)]


def make(connection: Connection, rows: Sequence[dict[str, str]]) -> None:
    """Add these shares, unless they are there by now."""
    connection.execute(insert_or_nothing(connection, share), rows)


def hold_for_replay(connection: Connection, shares: Collection[int]) -> list[int]:
    """The shares that replayed messages of these are in; none is put to rest before this transaction ends."""
    found = select(_again.c.id).select_from(share.join(_again, _of_same_key)).where(share.c.id.in_(shares))
    mine = select(share.c.id).where(share.c.id.in_(found)).order_by(share.c.id)
    return list(connection.execute(mine.with_for_update(read=True, key_share=True)).scalars())


def take(
    connection: Connection, name: str, lane: Lane, when: When, limit: int, columns: Sequence[ColumnElement[Any]]
) -> list[Row[Any]]:
    """Due messages of the shares of a lane, locked: the first of each before the second of any."""
    waiting = select(share.c.id).where(due(name, [lane], when)).order_by(share.c.served, share.c.id).limit(limit)
    # Not FOR UPDATE, which would pass over every share that a producer is writing to.
    shares = list(connection.execute(waiting.with_for_update(skip_locked=True, key_share=True)).scalars())
    if not shares:
        return []
    # More than its part, so that a request is full although others have little.
    each_gets = max(1, min(limit, 4 * limit // len(shares)))
    heads = [select(_firsts(each, when, each_gets).subquery()) for each in shares]
    ids: list[int] = []
    while heads:  # a few at a time: SQLite takes 500 at most
        some, heads = heads[:_TOGETHER], heads[_TOGETHER:]
        ids += connection.execute(union_all(*some)).scalars()
    statement = select(*columns).where(message.c.id.in_(ids), in_share).order_by(message.c.due_at, message.c.id)
    rows = connection.execute(statement.with_for_update(skip_locked=True)).all()
    by_share = [[row for row in rows if row.share_id == each] for each in shares]
    if empty := [each for each, found in zip(shares, by_share, strict=True) if not found]:
        stand(connection, empty, when)
    return [row for row in chain.from_iterable(zip_longest(*by_share)) if row is not None][:limit]


def served(connection: Connection, shares: Collection[int], delivery_id: int, when: When) -> None:
    """These shares, locked here, had a part of a delivery: the others go first next time."""
    connection.execute(update(share).where(share.c.id.in_(shares)).values(served=delivery_id))
    stand(connection, shares, when)


def release(connection: Connection, shares: Collection[int], when: When) -> set[int]:
    """Let messages that came back be claimed again; returns the shares that somebody else holds at this moment."""
    mine = select(share.c.id).where(share.c.id.in_(shares)).order_by(share.c.id)
    locked = set(connection.execute(mine.with_for_update(skip_locked=True, key_share=True)).scalars())
    stand(connection, locked, when)
    return set(shares) - locked


def strayed(connection: Connection, name: str) -> list[int]:
    """Shares of a destination that wait although a message of theirs does not, or not for as long."""
    first = select(message.c.due_at).where(message.c.share_id == share.c.id, in_share)
    waits_for = first.order_by(message.c.due_at, message.c.id).limit(1).scalar_subquery()
    told = select(share.c.id, share.c.due_at, waits_for.label("waits_for")).where(share.c.destination == name).subquery()
    late = and_(told.c.waits_for.is_not(None), or_(told.c.due_at.is_(None), told.c.due_at > told.c.waits_for))
    return list(connection.execute(select(told.c.id).where(late)).scalars())


def stand(connection: Connection, shares: Collection[int], when: When) -> None:
    """Write when each of these shares, locked here, is due next; one that a producer may be writing to is not put to rest."""
    if not shares:
        return
    stood = connection.execute(_next_due(shares)).all()
    # What a producer commits while we look must not wait for what we found, which may be due much later.
    later = [row.id for row in stood if row.next_due_at is None or row.next_due_at > when.now]
    free = _unwritten(connection, later)
    # What was committed while we took the lock is seen only by a statement that begins now.
    again = {row.id: row for row in connection.execute(_next_due(free))} if free else {}
    moved = []
    for row in (again.get(row.id, row) for row in stood):
        busy = row.id in later and row.id not in free
        due_at, scheduled = (when.now, False) if busy else (row.next_due_at, bool(row.next_scheduled))
        if (due_at, scheduled) != (row.due_at, row.scheduled):
            moved.append({"of": row.id, "due_at": due_at, "scheduled": scheduled})
    if moved:
        place: dict[str, Any] = {"due_at": bindparam("due_at"), "scheduled": bindparam("scheduled")}
        connection.execute(update(share).where(share.c.id == bindparam("of")).values(place), moved)


def _next_due(shares: Collection[int]) -> Select[Any]:
    """Of each share: when it says it is due, and when its first waiting message is."""
    mine = (message.c.share_id == share.c.id, in_share)
    due_at = select(message.c.due_at).where(*mine).order_by(message.c.due_at, message.c.id).limit(1)
    scheduled = select(message.c.scheduled).where(*mine).order_by(message.c.due_at, message.c.id).limit(1)
    columns = (due_at.scalar_subquery().label("next_due_at"), scheduled.scalar_subquery().label("next_scheduled"))
    return select(share.c.id, share.c.due_at, share.c.scheduled, *columns).where(share.c.id.in_(shares)).order_by(share.c.id)


def _unwritten(connection: Connection, shares: Collection[int]) -> set[int]:
    """Of these shares, those that no producer has an open transaction on; none can begin one before ours ends."""
    if not shares:
        return set()
    free = select(share.c.id).where(share.c.id.in_(shares)).order_by(share.c.id).with_for_update(skip_locked=True)
    return set(connection.execute(free).scalars())


def _firsts(share_id: int, when: When, limit: int) -> Any:
    come = has_come(message.c.due_at, message.c.scheduled, when)
    mine = select(message.c.id).where(message.c.share_id == share_id, in_share, come)
    return mine.order_by(message.c.due_at, message.c.id).limit(limit)
