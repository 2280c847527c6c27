"""What is kept and for how long: rows of what is over, bytes in the spool, and files there that no row refers to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    inspect,
    select,
    update,
)

from outbox.model import FINAL, Outcome, State
from outbox.tables import attachment, attempt, claimed, delivery, file, head, message, reserve, worker


def files_to_free(connection: Connection, now: datetime, limit: int) -> list[str]:
    """Spooled files whose time to go has come, locked; those that an open transaction of a producer refers to are not."""
    statement = (
        select(file.c.name)
        .where(file.c.free_at <= now, file.c.freed_at.is_(None))
        .order_by(file.c.free_at, file.c.name)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return list(connection.execute(statement).scalars())


def any_kept(connection: Connection) -> bool:
    """Whether a file should be in the spool; not in a database without our tables."""
    if not inspect(connection).has_table(file.name):
        return False
    return connection.execute(select(file.c.name).where(file.c.freed_at.is_(None)).limit(1)).one_or_none() is not None


def still_needed(connection: Connection, names: Collection[str]) -> set[str]:
    """Of these files, those that a message which may yet be sent refers to.

    A statement of its own, after the rows are locked: it sees what was committed while the lock was waited for.
    """
    statement = (
        select(attachment.c.file)
        .join(message, attachment.c.message_id == message.c.id)
        .where(attachment.c.file.in_(names), message.c.state.in_([State.PENDING, State.CLAIMED, State.DEAD]))
    )
    return set(connection.execute(statement).scalars())


def mark_freed(connection: Connection, names: Collection[str], now: datetime) -> None:
    """Say that the bytes are going; they go after this is committed. Of a file that no message was given, the row goes too."""
    given = exists().where(attachment.c.file == file.c.name)
    connection.execute(delete(file).where(file.c.name.in_(names), ~given))
    connection.execute(update(file).where(file.c.name.in_(names)).values(freed_at=now))


def keep(connection: Connection, names: Collection[str]) -> None:
    """Not to be freed yet: the delivery of the message that needs them will ask again."""
    connection.execute(update(file).where(file.c.name.in_(names)).values(free_at=None))


def without_row(connection: Connection, names: Collection[str]) -> set[str]:
    """Of these names in the spool, those that no row vouches for."""
    vouched = select(file.c.name).where(file.c.name.in_(names), file.c.freed_at.is_(None))
    return set(names) - set(connection.execute(vouched).scalars())


def kept_bytes(connection: Connection) -> int:
    """Bytes in the spool, by their rows."""
    return int(
        connection.execute(select(func.coalesce(func.sum(file.c.size), 0)).where(file.c.freed_at.is_(None))).scalar_one()
    )


class Kept(NamedTuple):
    """A message, as far as it matters how long it is kept."""

    id: int
    state: State
    created_at: datetime
    finished_at: datetime | None
    attempt: int
    holds_up: bool  #: dead, and nobody has said that its stream may go on


def messages_from(connection: Connection, first: int, limit: int, skipping: Collection[str]) -> list[Kept]:
    """Messages by id, whatever their state. `skipping`: destinations whose streams go on after a death."""
    return _kept(
        connection, select(*_KEPT, _holds_up(skipping)).where(message.c.id >= first).order_by(message.c.id).limit(limit)
    )


def messages_locked(connection: Connection, ids: Collection[int], skipping: Collection[str]) -> list[Kept]:
    """Those of these messages that are final, locked; what somebody else locks is passed over."""
    mine = select(message.c.id).where(message.c.id.in_(ids), message.c.state.in_(FINAL)).order_by(message.c.id)
    locked = list(connection.execute(mine.with_for_update(skip_locked=True)).scalars())
    return _kept(connection, select(*_KEPT, _holds_up(skipping)).where(message.c.id.in_(locked)).order_by(message.c.id))


_KEPT = tuple(message.c[name] for name in Kept._fields[:-1])


def _holds_up(skipping: Collection[str]) -> ColumnElement[bool]:
    unforgiven = exists().where(head.c.stream_id == message.c.stream_id, message.c.stream_number > head.c.forgiven)
    may = and_(message.c.state == State.DEAD, message.c.stream_id.is_not(None), message.c.destination.not_in(skipping))
    return case((may, unforgiven), else_=false())


def _kept(connection: Connection, statement: Select[Any]) -> list[Kept]:
    rows = connection.execute(statement).all()
    return [Kept(row[0], State(row[1]), row[2], row[3], row[4], bool(row[5])) for row in rows]


def count_from(connection: Connection, ids: Collection[int], now: datetime) -> None:
    """Let the time of these final messages, whose clock was wrong when they ended, count from now."""
    statement = update(message).where(message.c.id.in_(ids), message.c.state.in_(FINAL))
    connection.execute(statement.values(finished_at=now))


def forget_attempts(connection: Connection, ids: Collection[int], keep: int) -> None:
    """Of the attempts of these messages, keep the last ones only."""
    last = select(message.c.attempt).where(message.c.id == attempt.c.message_id).scalar_subquery()
    connection.execute(delete(attempt).where(attempt.c.message_id.in_(ids), attempt.c.number <= last - keep))


class Upload(NamedTuple):
    """A delivery, as far as it matters how long it is kept."""

    id: int
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    last: bool  #: nothing was delivered to its destination after it: failures are compared with it


def deliveries_from(connection: Connection, first: int, limit: int) -> list[Upload]:
    """Deliveries by id."""
    later = delivery.alias()
    after = (later.c.destination == delivery.c.destination, later.c.outcome == Outcome.DELIVERED, later.c.id > delivery.c.id)
    last = case((delivery.c.outcome == Outcome.DELIVERED, ~exists().where(*after)), else_=false())
    columns = [delivery.c[name] for name in Upload._fields[:-1]]
    statement = select(*columns, last).where(delivery.c.id >= first).order_by(delivery.c.id).limit(limit)
    return [Upload(row[0], row[1], row[2], row[3], bool(row[4])) for row in connection.execute(statement).all()]


def forget_deliveries(connection: Connection, ids: Sequence[int]) -> None:
    """Delete these deliveries, unless they are under way. The attempts that were parts of them stay with their messages."""
    connection.execute(delete(delivery).where(delivery.c.id.in_(ids), delivery.c.finished_at.is_not(None)))


def workers_to_forget(connection: Connection, before: datetime, limit: int) -> list[str]:
    """Workers that were gone before that instant and hold nothing any more."""
    sends = exists().where(delivery.c.worker == worker.c.id, delivery.c.finished_at.is_(None))
    tries = exists().where(message.c.claimed_by == worker.c.id, claimed)
    serves = exists().where(head.c.claimed_by == worker.c.id)
    over = (worker.c.gone.is_(True), worker.c.beat_at < before, ~sends, ~tries, ~serves)
    return list(connection.execute(select(worker.c.id).where(*over).order_by(worker.c.id).limit(limit)).scalars())


def forget_workers(connection: Connection, ids: Collection[str]) -> None:
    """Delete the rows of these workers. Should one of them hold something all the same, it is rescued like any other."""
    connection.execute(delete(worker).where(worker.c.id.in_(ids), worker.c.gone.is_(True)))


def take_reserve(connection: Connection, size: int) -> None:
    """Take room inside the database, to be given back when it may grow no more."""
    if not has_reserve(connection):
        connection.execute(insert(reserve).values(id=1, filler=bytes(size)))


def has_reserve(connection: Connection) -> bool:
    """Whether room inside the database is taken."""
    return connection.execute(select(reserve.c.id).limit(1)).one_or_none() is not None


def give_reserve(connection: Connection) -> None:
    """Give the room inside the database back."""
    connection.execute(delete(reserve))
