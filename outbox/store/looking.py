"""Status and one message: what an operator sees."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, RowMapping, and_, case, func, or_, select

from outbox.limits import Learned, learned_limit
from outbox.model import Lane
from outbox.patience import Stop
from outbox.policy import SILENT_AFTER
from outbox.store import claiming, pausing
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
    share,
    stream,
    worker,
)
from outbox.timekeeping import When

#: A message's own columns, and the name that orders it, be it by a stream or by a share.
WITH_ORDERING_KEY = func.coalesce(stream.c.ordering_key, share.c.ordering_key).label("ordering_key")
ORDERED_BY = message.outerjoin(stream, message.c.stream_id == stream.c.id).outerjoin(share, message.c.share_id == share.c.id)


def alive(connection: Connection, now: datetime) -> int:
    """How many workers beat: one that was killed is declared gone only when another one runs."""
    beating = (worker.c.gone.is_(False), worker.c.beat_at >= now - timedelta(seconds=SILENT_AFTER))
    return connection.execute(select(func.count()).where(*beating)).scalar_one()


#: What is counted of a destination.
_COUNTED = ("due", "waiting", "claimed", "dead", "delivered_last_hour", "blocked_keys", "paused_keys")
#: What a destination's row tells an operator.
_OF_DESTINATION = ("stop", "stop_text", "stopped_by", "stopped_at", "open_until", "ramp", "learned_bytes")


def nothing() -> dict[str, Any]:
    """What is told of a destination that no message was ever for."""
    numbers = dict.fromkeys((*_COUNTED, "failures", "reject_streak"), 0)
    return numbers | dict.fromkeys(("oldest_due_at", *_OF_DESTINATION)) | {"dead_by_reason": {}}


def counts(connection: Connection, now: datetime) -> dict[str, dict[str, Any]]:
    """Per destination: due, waiting, claimed, dead and why, the oldest, and why it is stopped.

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
    for name, total in pausing.counted(connection).items():
        of(name)["paused_keys"] = total
    # A condition for each partial index, so that the delivered ones are never walked.
    due = func.sum(case((message.c.due_at <= now, 1), else_=0)).label("due")
    columns = (
        by_destination.label("destination"),
        func.count().label("messages"),
        due,
        func.min(message.c.due_at).label("oldest"),
    )
    for condition in (and_(pending, loose), and_(pending, in_stream), in_share):
        for row in connection.execute(select(*columns).where(condition).group_by(by_destination)):
            mine = of(row.destination)
            mine["due"] += int(row.due)
            mine["waiting"] += row.messages - int(row.due)
            if row.due:
                mine["oldest_due_at"] = min(filter(None, (mine["oldest_due_at"], row.oldest)))
    for name, total in connection.execute(select(by_destination, func.count()).where(claimed).group_by(by_destination)).all():
        of(name)["claimed"] = total
    # In the order of the index over the dead, which has all that is asked here: there may be a million of them.
    died = select(message.c.destination, message.c.reason, func.count()).where(dead)
    for name, reason, total in connection.execute(died.group_by(message.c.destination, message.c.reason)).all():
        of(name)["dead"] += total
        of(name)["dead_by_reason"][reason] = total
    return found


class Amount(NamedTuple):
    """Messages, and their bytes of text and files."""

    messages: int
    bytes: int


def delivered_since(connection: Connection, since: datetime) -> dict[str, Amount]:
    """What was delivered after an instant, per destination."""
    # As above, or SQLite reads every delivery there was, to have them in order.
    by_destination = delivery.c.destination.concat("")
    totals = (func.sum(delivery.c.messages), func.sum(delivery.c.bytes))
    recent = (delivery.c.outcome == "delivered", delivery.c.finished_at > since)
    rows = connection.execute(select(by_destination, *totals).where(*recent).group_by(by_destination)).all()
    return {name: Amount(int(messages), int(size)) for name, messages, size in rows}


#: Of what arrived, so many messages are weighed; of more, the newest stand for all.
_WEIGHED = 5000


def arrived_since(connection: Connection, since: datetime) -> Amount:
    """What was enqueued at an instant or after it. There is no index on that: ids are given in the order of time."""
    first = first_since(connection, message.c.id, message.c.created_at, since)
    if first is None:
        return Amount(0, 0)
    newest = select(message.c.id, (message.c.size + message.c.file_bytes).label("bytes")).where(message.c.id >= first)
    weighed = newest.order_by(message.c.id.desc()).limit(_WEIGHED).subquery()
    totals = select(func.count(), func.sum(weighed.c.bytes), func.min(weighed.c.id), func.max(weighed.c.id))
    count, size, lowest, highest = connection.execute(totals).one()
    if not count:
        return Amount(0, 0)
    share_of_all = (highest - lowest + 1) / (highest - first + 1) if count == _WEIGHED else 1.0
    return Amount(round(count / share_of_all), round(int(size) / share_of_all))


def first_since(connection: Connection, ids: Column[Any], instants: Column[Any], since: datetime) -> int | None:
    """The first id whose row is not older than an instant, found by halving; None when every row is older.

    About right only: a clock that was set, and transactions that took long, put some rows out of order.
    """
    # Two statements: asked for both at once, SQLite reads the whole table.
    lowest, highest = (connection.execute(select(end(ids))).scalar_one() for end in (func.min, func.max))
    if lowest is None:
        return None
    beyond = highest + 1
    while lowest < beyond:
        middle = (lowest + beyond) // 2
        at = connection.execute(select(instants).where(ids >= middle).order_by(ids).limit(1)).scalar_one_or_none()
        if at is None or at >= since:
            beyond = middle
        else:
            lowest = middle + 1
    return int(lowest) if lowest <= highest else None


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


def spool_grew(connection: Connection, since: datetime) -> int:
    """By how many bytes the spool grew after an instant: what came and is still there, less what was there and went."""
    total = func.coalesce(func.sum(file.c.size), 0)
    came = select(total).where(file.c.freed_at.is_(None), file.c.created_at > since)
    went = select(total).where(file.c.freed_at > since, file.c.created_at <= since)
    return int(connection.execute(came).scalar_one()) - int(connection.execute(went).scalar_one())


def destinations_of_messages(connection: Connection) -> list[str]:
    """Every destination that a message is for, declared or not: one step each along the index of keys."""
    found: list[str] = []
    last = select(func.min(message.c.destination))
    name = connection.execute(last).scalar_one()
    while name is not None:
        found.append(name)
        name = connection.execute(last.where(message.c.destination > name)).scalar_one()
    return found


def one(connection: Connection, id_or_key: str, name: str | None = None) -> RowMapping | None:
    """The message of an id, or else of a key."""
    statement = select(message, WITH_ORDERING_KEY).select_from(ORDERED_BY)
    if name is not None:
        statement = statement.where(message.c.destination == name)
    # The destination goes with the key: without it, SQLite would read every message.
    conditions = [
        message.c.destination.in_([name] if name else destinations_of_messages(connection)),
        message.c.key == id_or_key,
    ]
    lookups = [and_(*conditions)]
    if id_or_key.isascii() and id_or_key.isdigit() and len(id_or_key) < 19:
        lookups.insert(0, message.c.id == int(id_or_key))
    for lookup in lookups:
        row = connection.execute(statement.where(lookup).order_by(message.c.id).limit(1)).mappings().one_or_none()
        if row is not None:
            return row
    return None


def meant(connection: Connection, words: Collection[str], name: str | None) -> tuple[set[int], dict[str, set[int]]]:
    """Of words of digits, those that are ids, and by those that are keys the messages of that key."""
    ids = select(message.c.id).where(message.c.id.in_([int(word) for word in words]))
    names = [name] if name else destinations_of_messages(connection)
    keyed = select(message.c.key, message.c.id).where(message.c.destination.in_(names), message.c.key.in_(list(words)))
    by_key: dict[str, set[int]] = {}
    for key, message_id in connection.execute(keyed):
        by_key.setdefault(key, set()).add(message_id)
    return set(connection.execute(ids).scalars()), by_key


class HeldUp(NamedTuple):
    """What else a message waits for than its own time."""

    stop: str | None
    open_until: datetime | None
    blocked: bool  #: a dead message is in front of it
    paused: bool  #: its ordering key is


def held_up(connection: Connection, row: RowMapping) -> HeldUp:
    """What holds up a message besides its own time: its destination, its stream, and a person."""
    of_destination = select(destination.c.stop, destination.c.open_until).where(destination.c.name == row["destination"])
    stop, open_until = connection.execute(of_destination).one_or_none() or (None, None)
    in_front = select(head.c.blocked_by).where(head.c.stream_id == row["stream_id"], head.c.blocked_by.is_not(None))
    blocked = row["stream_id"] is not None and connection.execute(in_front).one_or_none() is not None
    key = row["ordering_key"]
    paused = key is not None and pausing.of_key(connection, row["destination"], key) is not None
    return HeldUp(stop, open_until, blocked, paused)


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
    more = (delivery.c.code, delivery.c.text, delivery.c.request_id, delivery.c.answer)
    statement = select(attempt, *told, *more).outerjoin(delivery, attempt.c.delivery_id == delivery.c.id)
    return connection.execute(statement.where(attempt.c.message_id == message_id).order_by(attempt.c.number)).mappings().all()


def anything_left(connection: Connection, names: Collection[str], now: datetime) -> bool:
    """Whether a message is due or claimed.

    What is blocked or paused, and destinations that are left alone for now, do not count.
    """
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
