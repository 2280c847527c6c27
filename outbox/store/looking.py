"""Status, list, show: what an operator sees."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, func, literal_column, or_, select

from outbox.limits import Learned, learned_limit
from outbox.model import Lane, State
from outbox.patience import Stop
from outbox.store import claiming
from outbox.tables import (
    attachment,
    attempt,
    claimed,
    dead,
    delivery,
    destination,
    file,
    head,
    in_share,
    in_stream,
    loose,
    message,
    pending,
    stream,
    worker,
)
from outbox.timekeeping import When


def alive(connection: Connection) -> int:
    """How many workers are not gone."""
    return connection.execute(select(func.count()).where(worker.c.gone.is_(False))).scalar_one()


#: What a destination's row tells an operator.
_OF_DESTINATION = ("stop", "stop_text", "stopped_by", "stopped_at", "open_until", "ramp", "learned_bytes")


def nothing() -> dict[str, Any]:
    """What is told of a destination that no message was ever for."""
    numbers = dict.fromkeys(
        ("due", "waiting", "claimed", "dead", "delivered_last_hour", "failures", "reject_streak", "blocked_keys"), 0
    )
    return numbers | dict.fromkeys(("oldest_due_at", *_OF_DESTINATION))


def counts(connection: Connection, now: datetime) -> dict[str, dict[str, Any]]:
    """Per destination: due, waiting, claimed, dead, delivered in the last hour, oldest, and why it is stopped.

    Delivered messages are counted from the deliveries: nobody counts the messages themselves.
    """
    found: dict[str, dict[str, Any]] = {}

    # SQLite groups by walking an index on the column, which here would be one over every message there is.
    by_destination = message.c.destination.concat("")

    def of(name: str) -> dict[str, Any]:
        return found.setdefault(name, nothing())

    for row in connection.execute(select(destination).order_by(destination.c.name)):
        of(row.name).update({name: getattr(row, name) for name in (*_OF_DESTINATION, "failures", "reject_streak")})
        of(row.name)["learned_bytes"] = learned_limit(Learned(row.learned_bytes, row.learned_at), now)
    held_up = select(head.c.destination, func.count()).where(head.c.blocked_by.is_not(None)).group_by(head.c.destination)
    for name, total in connection.execute(held_up).all():
        of(name)["blocked_keys"] = total
    # A condition for each partial index, so that the delivered ones are never walked.
    for condition in (and_(pending, loose), and_(pending, in_stream), in_share):
        columns = (
            by_destination.label("destination"),
            func.count().label("messages"),
            func.min(message.c.due_at).label("oldest"),
        )
        for due, when in (("due", message.c.due_at <= now), ("waiting", message.c.due_at > now)):
            for row in connection.execute(select(*columns).where(condition, when).group_by(by_destination)):
                of(row.destination)[due] += row.messages
                if due == "due":
                    known = of(row.destination)["oldest_due_at"]
                    of(row.destination)["oldest_due_at"] = min(filter(None, (known, row.oldest)))
    for state, condition in ((State.CLAIMED, claimed), (State.DEAD, dead)):
        totals = select(by_destination, func.count()).where(condition).group_by(by_destination)
        for name, total in connection.execute(totals).all():
            of(name)[state.value] = total
    return found


def delivered_since(connection: Connection, since: datetime) -> dict[str, int]:
    """Messages delivered after an instant, per destination."""
    total = func.sum(delivery.c.messages)
    statement = select(delivery.c.destination, total).where(delivery.c.outcome == "delivered", delivery.c.finished_at > since)
    rows = connection.execute(statement.group_by(delivery.c.destination)).all()
    return {name: int(count) for name, count in rows}


def blocked(connection: Connection, limit: int) -> Sequence[RowMapping]:
    """Ordering keys that a dead message holds up, with that message and what was said about it."""
    columns = (
        head.c.destination,
        stream.c.ordering_key,
        message.c.id.label("message"),
        message.c.reason,
        message.c.reason_text,
    )
    statement = select(*columns).join(stream, head.c.stream_id == stream.c.id).join(message, head.c.blocked_by == message.c.id)
    held_up = statement.where(head.c.blocked_by.is_not(None)).order_by(message.c.finished_at, message.c.id)
    return connection.execute(held_up.limit(limit)).mappings().all()


def spooled(connection: Connection) -> tuple[int, int]:
    """Files at rest in the spool and their bytes, by their rows."""
    statement = select(func.count(), func.coalesce(func.sum(file.c.size), 0)).where(file.c.freed_at.is_(None))
    files, size = connection.execute(statement).one()
    return int(files), int(size)


def messages(connection: Connection, names: Collection[str], states: Collection[State], limit: int) -> Sequence[RowMapping]:
    """Messages, newest first."""
    columns = [column for column in message.c if column.name not in ("payload", "digest")]
    statement = select(*columns, stream.c.ordering_key).outerjoin(stream, message.c.stream_id == stream.c.id)
    if names:
        statement = statement.where(message.c.destination.in_(names))
    if states:
        # Words, not parameters: a partial index is only used by who says its condition.
        statement = statement.where(message.c.state.in_([literal_column(f"'{State(state).value}'") for state in states]))
    return connection.execute(statement.order_by(message.c.id.desc()).limit(limit)).mappings().all()


def one(connection: Connection, id_or_key: str, name: str | None = None) -> RowMapping | None:
    """The message of an id, or else of a key."""
    statement = select(message, stream.c.ordering_key).outerjoin(stream, message.c.stream_id == stream.c.id)
    if name is not None:
        statement = statement.where(message.c.destination == name)
    conditions = [message.c.key == id_or_key]
    if id_or_key.isascii() and id_or_key.isdigit() and len(id_or_key) < 19:
        conditions.insert(0, message.c.id == int(id_or_key))
    for condition in conditions:
        row = connection.execute(statement.where(condition).order_by(message.c.id).limit(1)).mappings().one_or_none()
        if row is not None:
            return row
    return None


def files_of(connection: Connection, message_id: int) -> Sequence[RowMapping]:
    """A message's attachments with their spooled files, in the producer's order."""
    columns = (
        attachment.c.name,
        attachment.c.filename,
        attachment.c.content_type,
        file.c.size,
        file.c.sha256,
        file.c.md5,
    )
    statement = select(*columns, file.c.name.label("spooled"), file.c.freed_at).join(file, attachment.c.file == file.c.name)
    return (
        connection.execute(statement.where(attachment.c.message_id == message_id).order_by(attachment.c.position))
        .mappings()
        .all()
    )


def attempts_of(connection: Connection, message_id: int) -> Sequence[RowMapping]:
    """Every attempt of a message with what its delivery was answered, oldest first."""
    told = (delivery.c.started_at, delivery.c.messages, delivery.c.bytes, delivery.c.worker, delivery.c.status)
    more = (delivery.c.code, delivery.c.text, delivery.c.request_id)
    statement = select(attempt, *told, *more).outerjoin(delivery, attempt.c.delivery_id == delivery.c.id)
    return connection.execute(statement.where(attempt.c.message_id == message_id).order_by(attempt.c.number)).mappings().all()


def anything_left(connection: Connection, names: Collection[str], now: datetime) -> bool:
    """Whether a message is due or claimed. Blocked streams and destinations that are left alone for now do not count."""
    open_for_now = and_(destination.c.open_until.is_not(None), destination.c.open_until > now)
    paused = and_(destination.c.stop.is_not(None), destination.c.stop == Stop.PAUSE)
    willing = select(destination.c.name).where(destination.c.name.in_(names), ~or_(open_for_now, paused))
    open_ones = list(connection.execute(willing).scalars())
    if any(claiming.anything_due(connection, name, list(Lane), When.certain(now)) for name in open_ones):
        return True
    tried = select(message.c.id).where(message.c.destination.concat("").in_(names), claimed).limit(1)
    return connection.execute(tried).one_or_none() is not None


def put_off(connection: Connection, names: Collection[str]) -> dict[str, int]:
    """Per destination, messages that wait for another try after a failure of their own."""
    by_destination = message.c.destination.concat("")
    found: dict[str, int] = {}
    for condition in (and_(pending, loose), and_(pending, in_stream), in_share):
        failed = select(by_destination, func.count()).where(by_destination.in_(names), condition, message.c.failures > 0)
        for name, count in connection.execute(failed.group_by(by_destination)).all():
            found[name] = found.get(name, 0) + int(count)
    return found
