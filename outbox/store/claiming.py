"""Claim: the oldest due messages become one worker's, for one delivery."""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, zip_longest
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    or_,
    outerjoin,
    select,
    update,
)

from outbox.dialects import paired, pairs_of
from outbox.model import Attachment, Lane, Message, Reason, SpooledFile, State
from outbox.statements import Ready, parameter
from outbox.store import breaker, shares, streams
from outbox.store.breaker import Standing
from outbox.tables import (
    attachment,
    claimed,
    destination,
    expiring,
    file,
    has_come,
    head,
    loose,
    message,
    pending,
    read_instant,
    share,
    worker,
)
from outbox.timekeeping import When

#: Before anything that is due.
THE_BEGINNING = datetime(1, 1, 2, tzinfo=UTC)


class Waiting(NamedTuple):
    """A due message; where it is long, without its payload."""

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
    due_at: datetime
    key: str
    failures: int
    unknowns: int
    traceparent: str | None
    payload: str | None


class Outlook(NamedTuple):
    """What a claim knows before it looks for messages: whether to go on at all, and where some may be found."""

    standing: Standing
    lanes: frozenset[Lane]  #: in which messages without an ordering key wait, due or not
    streams: bool  #: some wait for their turn
    shares: bool


def outlook(connection: Connection, worker_id: str, name: str, marks: Mapping[Lane, datetime]) -> Outlook | None:
    """What a claim must know first, in one look; None for a worker that has been declared gone.

    Without a lock, which many claims at once would keep from the beat: one that slips in while the worker is being declared
    gone is rescued a moment later like the rest. `marks` is from where on each lane is looked at.
    """
    low = {f"low_{lane}": marks.get(lane, THE_BEGINNING) for lane in Lane}
    row = _OUTLOOK.run(connection, {"worker": worker_id, "destination": name, **low}).one_or_none()
    if row is None:
        return None
    lanes = frozenset(lane for lane in Lane if getattr(row, f"any_{lane}"))
    return Outlook(breaker.standing_of(row), lanes, bool(row.any_streams), bool(row.any_shares))


def _outlook(_: Connection) -> Select[Any]:
    name, instant = parameter(destination.c.name, "destination"), message.c.due_at
    # The first entry of a small index each: whether it is due does not matter yet. In its order: asked whether there is any at
    # all, Postgres may read the table from its beginning, where what was delivered is.
    lanes = [
        select(message.c.id)
        .where(*_queue(name, lane.value), instant >= parameter(instant, f"low_{lane}"))
        .order_by(instant, message.c.id)
        .limit(literal_column("1"))
        .scalar_subquery()
        .is_not(None)
        .label(f"any_{lane}")
        for lane in Lane
    ]
    going = (head.c.due_at.is_not(None), head.c.claimed_by.is_(None), head.c.blocked_by.is_(None))
    any_streams = exists(select(head.c.stream_id).where(head.c.destination == name, *going)).label("any_streams")
    waiting = (share.c.destination == name, share.c.due_at.is_not(None))
    any_shares = exists(select(share.c.id).where(*waiting)).label("any_shares")
    known = outerjoin(worker, destination, destination.c.name == name)
    return (
        select(*breaker.STANDING, *lanes, any_streams, any_shares)
        .select_from(known)
        .where(worker.c.id == parameter(worker.c.id, "worker"), worker.c.gone.is_(False))
    )


_OUTLOOK = Ready(_outlook)


def anything_due(connection: Connection, name: str, lanes: Collection[Lane], when: When) -> bool:
    """Whether a claim could find something; reads only."""
    # The first of each lane's queue: asked whether there is any message at all, Postgres may choose to read the whole table.
    queues = (select(message.c.id).where(*_due(name, lane, when)).order_by(message.c.due_at, message.c.id) for lane in lanes)
    firsts = [queue.limit(1).scalar_subquery().is_not(None) for queue in queues]
    ordered = exists().where(streams.due(name, lanes, when))
    unordered = exists().where(shares.due(name, lanes, when))
    return bool(connection.execute(select(or_(*firsts, ordered, unordered))).scalar())


def _queue(name: str | ColumnElement[Any], lane: str | ColumnElement[Any]) -> tuple[ColumnElement[bool], ...]:
    """Messages of a lane that wait without an ordering key: what the index of due messages has, in the order of `due_at`."""
    return (message.c.destination == name, message.c.lane == lane, pending, loose)


def _due(name: str | ColumnElement[Any], lane: str | ColumnElement[Any], when: When) -> tuple[ColumnElement[bool], ...]:
    return (*_queue(name, lane), has_come(message.c.due_at, message.c.scheduled, when))


#: Bytes of a payload that are read with the first look; what is longer may not fit into the request, and is read when it does.
_SHORT = 4096
_WAITING: tuple[ColumnElement[Any], ...] = (
    *(message.c[name] for name in Waiting._fields if name != "payload"),
    case((message.c.size <= literal_column(str(_SHORT)), message.c.payload)).label("payload"),
)


def waiting(
    connection: Connection,
    name: str,
    lane: Lane,
    when: When,
    limit: int,
    *,
    skip: bool,
    lead: int = 0,
    seen: Outlook | None = None,
    mark: datetime = THE_BEGINNING,
) -> tuple[list[Waiting], list[Waiting]]:
    """Due messages of a lane, locked, without those that others lock; and by themselves those of the first queue.

    Three queues take turns, so that none waits for the end of another: messages without an ordering key, oldest first; the
    first of each stream; and the shares. `lead` rotates which of them is first: a message that may not travel with the first,
    since it was refused with others, becomes the first itself. `skip`: a stream goes on after a message of it has died.
    Queues that are empty by what was `seen` are not asked, and of the first, what was due before `mark`.
    """
    found: Sequence[Sequence[Any]] = []
    if seen is None or lane in seen.lanes:
        statement = _LOOSE if when.beyond is None else _LOOSE_BEYOND
        values = {"destination": name, "lane": lane.value, "limit": limit, "mark": mark, "chosen": when.chosen}
        found = statement.rows(connection, {**values, "invented": when.invented, "beyond": when.beyond})
    oldest = _plain(found)
    heads = seen is None or seen.streams
    of_streams = streams.take_heads(connection, name, lane, when, limit, _WAITING, skip=skip) if heads else []
    of_shares = shares.take(connection, name, lane, when, limit, _WAITING) if seen is None or seen.shares else []
    if not (of_streams or of_shares):
        return oldest, oldest
    queues = (oldest, [Waiting._make(row) for row in of_streams], [Waiting._make(row) for row in of_shares])
    first = lead % len(queues)
    turned = (*queues[first:], *queues[:first])
    return [each for each in chain.from_iterable(zip_longest(*turned)) if each is not None], oldest


#: For many rows, without a step of Python's for each.
_as_waiting = functools.partial(tuple.__new__, Waiting)
_as_message = functools.partial(tuple.__new__, Message)
_EXPIRES_AT = operator.attrgetter("expires_at")


def _plain(rows: Sequence[Sequence[Any]]) -> list[Waiting]:
    """Rows as the driver has them; their `due_at` too."""
    found: list[Waiting] = list(map(_as_waiting, rows))
    if any(map(_EXPIRES_AT, found)):
        found = [each._replace(expires_at=read_instant(each.expires_at)) for each in found]
    return found


def _loose(*, beyond: bool) -> Select[Any]:
    """The oldest due messages of a lane that have no ordering key."""
    instant = message.c.due_at
    when = When(*(cast(datetime, parameter(instant, each)) for each in ("now", "chosen", "invented", "beyond")))
    mine = _due(parameter(message.c.destination), parameter(message.c.lane), when if beyond else when._replace(beyond=None))
    return (
        select(*_WAITING)
        .where(*mine, instant >= parameter(instant, "mark"))
        .order_by(instant, message.c.id)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
    )


_LOOSE, _LOOSE_BEYOND = Ready(lambda _: _loose(beyond=False)), Ready(lambda _: _loose(beyond=True))


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


class Expired(NamedTuple):
    """A message that was given up because its time was over."""

    id: int
    key: str
    destination: str
    attempt: int
    stream_id: int | None


def expire(connection: Connection, ids: Collection[int], now: datetime) -> list[Expired]:
    """Give up messages whose time is over, locked here; returns those that still waited."""
    words = "its expires_at passed before it could be delivered"
    died = {"state": State.DEAD, "reason": Reason.EXPIRED, "reason_text": words, "finished_at": now}
    statement = update(message).where(message.c.id.in_(ids), pending).values(died)
    told = statement.returning(*(message.c[name] for name in Expired._fields))
    return [Expired(*row) for row in connection.execute(told)]


def mark_claimed(
    connection: Connection, worker_id: str, begun: Mapping[int, Sequence[Waiting]], when: When
) -> dict[int, list[Message]]:
    """Make the messages taken for each delivery the worker's, number the attempts, and read what they carry, in their order."""
    for number, messages in begun.items():
        if of_streams := [each.stream_id for each in messages if each.stream_id is not None]:
            place = {"claimed_by": worker_id, "served": number}
            connection.execute(update(head).where(head.c.stream_id.in_(of_streams)).values(place))
    ids = {number: [each.id for each in messages] for number, messages in begun.items()}
    marked = _MARK.run(connection, {"worker": worker_id, "rows": paired(connection, ids)}).rowcount
    mine = None if marked == sum(map(len, ids.values())) else _claimed_for(connection, worker_id, begun)
    for number, messages in begun.items():
        if of_shares := {each.share_id for each in messages if each.share_id is not None}:
            shares.served(connection, of_shares, number, when)
    taken = list(chain.from_iterable(begun.values()))
    with_files = [each.id for each in taken if each.files]
    attached = attachments(connection, with_files) if with_files else {}
    long = [each.id for each in taken if each.payload is None]
    payloads = _payloads(connection, long) if long else {}
    return {
        number: [_message(each, payloads, attached.get(each.id, ())) for each in messages if mine is None or each.id in mine]
        for number, messages in begun.items()
    }


def _mark(connection: Connection) -> Any:
    taken = pairs_of(connection, "rows").c
    changes = {"state": literal_column("'claimed'"), "claimed_by": parameter(message.c.claimed_by, "worker")}
    return (
        update(message)
        # Not as it is: a planner would take one of the indexes of what waits, with all that was in it once.
        .where(message.c.id == taken.id, message.c.state.concat("") == literal_column("'pending'"))
        .values(**changes, delivery_id=taken.delivery_id, attempt=message.c.attempt + 1)
    )


_MARK = Ready(_mark)


def _claimed_for(connection: Connection, worker_id: str, deliveries: Collection[int]) -> set[int]:
    """The messages that are a worker's now, for these deliveries: of what was seen, some did not wait any more."""
    mine = (claimed, message.c.claimed_by == worker_id, message.c.delivery_id.in_(deliveries))
    return set(connection.execute(select(message.c.id).where(*mine)).scalars())


def _payloads(connection: Connection, ids: Collection[int]) -> dict[int, str]:
    found = connection.execute(select(message.c.id, message.c.payload).where(message.c.id.in_(ids)))
    return {row.id: row.payload for row in found}


def _message(seen: Waiting, payloads: Mapping[int, str], attached: Sequence[Attachment]) -> Message:
    text = payloads[seen.id] if seen.payload is None else seen.payload
    counters = (seen.attempt + 1, seen.failures, seen.unknowns, seen.batch_limit, seen.size, seen.file_bytes, seen.files)
    has_key = seen.stream_id is not None or seen.share_id is not None
    return _as_message((seen.id, seen.key, text, *counters, tuple(attached), bool(seen.suspect), seen.traceparent, has_key))


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
