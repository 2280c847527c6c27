"""What `explain` is told from: the facts that can hold a message up, read and never written."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, func, select, tuple_

from outbox.explaining.facts import (
    Answered,
    AttachedFile,
    DestinationFacts,
    MessageFacts,
    Neighbour,
    StreamFacts,
    Upload,
    WorkerSeen,
)
from outbox.explaining.words import COUNTED
from outbox.model import FINAL, Lane, Outcome, Pause, State
from outbox.policy import Policy
from outbox.store import breaker, claiming, looking, pausing, streams
from outbox.tables import (
    attempt,
    claimed,
    delivery,
    destination,
    head,
    in_share,
    in_stream,
    loose,
    message,
    pending,
    share,
    stream,
    unfinished,
    worker,
)
from outbox.timekeeping import When


class Named(NamedTuple):
    """A message that a word may mean."""

    id: int
    key: str
    destination: str
    state: str


def names(connection: Connection) -> list[str]:
    """Every destination that has a row or a message."""
    with_row = connection.execute(select(destination.c.name)).scalars()
    return sorted({*with_row, *looking.destinations_of_messages(connection)})


def named(connection: Connection, word: str, among: Collection[str]) -> list[Named]:
    """The messages that a word may mean: by id, and by key in these destinations."""
    columns = [message.c[name] for name in Named._fields]
    found: dict[int, Named] = {}
    if word.isascii() and word.isdigit() and len(word) < 19:
        by_id = select(*columns).where(message.c.id == int(word), message.c.destination.in_(among))
        found |= {row.id: Named(*row) for row in connection.execute(by_id)}
    for name in among:  # one by one: it is the pair that the index is on
        by_key = select(*columns).where(message.c.destination == name, message.c.key == word)
        found |= {row.id: Named(*row) for row in connection.execute(by_key)}
    return list(found.values())


def destination_facts(
    connection: Connection, name: str, policy: Policy, when: When, *, declared: bool, locked: bool = False
) -> DestinationFacts:
    """Everything about a destination that can hold a message up."""
    standing = breaker.standing(connection, name)
    words = (destination.c.stop_text, destination.c.stopped_by, destination.c.stopped_at)
    row = connection.execute(select(*words).where(destination.c.name == name)).one_or_none()
    due = claiming.anything_due(connection, name, list(Lane), when)
    smaller = [lane for lane in Lane if lane is not Lane.LARGE]
    return DestinationFacts(
        name=name,
        declared=declared,
        policy=policy,
        when=when,
        breaker=standing.breaker,
        bucket=standing.bucket,
        learned=standing.learned,
        stop_text=row.stop_text if row else None,
        stopped_by=row.stopped_by if row else None,
        stopped_at=row.stopped_at if row else None,
        last_failure=last_failure(connection, name),
        traffic=breaker.traffic(connection, name),
        probe=_probe(connection, name),
        workers=tuple(_workers(connection, worker.c.gone.is_(False))),
        suspect_under_way=claiming.suspect_under_way(connection, name),
        due=due,
        smaller_due=due and claiming.anything_due(connection, name, smaller, when),
        next_due=None if due else _next_due(connection, name),
        blocked_keys=_bounded(connection, select(head.c.stream_id).where(*_held_up(name))),
        paused_keys=_bounded(connection, pausing.keys_of(name)),
        paused=tuple(pausing.of_destination(connection, name, _NAMED)),
        locked=locked,
    )


def message_facts(connection: Connection, message_id: int, when: When) -> MessageFacts | None:
    """Everything about one message that can hold it up, apart from its destination; None when it is not there any more."""
    row = connection.execute(select(message).where(message.c.id == message_id)).one_or_none()
    if row is None:
        return None
    told = {name: getattr(row, name) for name in _TOLD}
    before, before_it = _before(connection, row, when) if row.state == State.PENDING else (0, "message")
    return MessageFacts(
        **told,
        last=_last_answer(connection, message_id),
        last_with_others=_last_answer(connection, message_id, delivery.c.messages > 1),
        upload=None if row.delivery_id is None else _upload(connection, delivery.c.id == row.delivery_id),
        stream=None if row.stream_id is None else _stream(connection, row),
        attached=tuple(
            AttachedFile(each["name"], each["spooled"], each["size"], each["freed_at"])
            for each in looking.files_of(connection, message_id)
        ),
        before=before,
        before_it=before_it,
        pause=_pause(connection, row),
    )


#: So many ordering keys of a destination are named, of those that are paused.
_NAMED = 3
#: Columns of a message that are facts as they are.
_TOLD = tuple(name for name in MessageFacts.__dataclass_fields__ if name in message.c)


def last_failure(connection: Connection, name: str) -> Answered | None:
    """What became of the last upload that the destination may have been charged for."""
    last: list[int] = []
    for outcome in (Outcome.RETRY, Outcome.UNKNOWN, Outcome.NOT_SENT):  # one by one: the index has them apart
        mine = (delivery.c.destination == name, delivery.c.outcome == outcome)
        last += connection.execute(select(delivery.c.id).where(*mine).order_by(delivery.c.id.desc()).limit(1)).scalars()
    if not last:
        return None
    row = connection.execute(select(delivery).where(delivery.c.id == max(last))).one()
    return Answered(row.outcome, row.status, row.code, row.text, row.messages)


def _last_answer(connection: Connection, message_id: int, *conditions: ColumnElement[bool]) -> Answered | None:
    """What became of the last attempt of a message; its delivery may have been purged."""
    told = (attempt.c.outcome, delivery.c.status, delivery.c.code, delivery.c.text, delivery.c.messages)
    statement = select(*told).outerjoin(delivery, attempt.c.delivery_id == delivery.c.id)
    mine = statement.where(attempt.c.message_id == message_id, *conditions).order_by(attempt.c.number.desc()).limit(1)
    row = connection.execute(mine).one_or_none()
    return Answered(*row) if row else None


def _workers(connection: Connection, condition: ColumnElement[bool]) -> Iterator[WorkerSeen]:
    columns = [worker.c[name] for name in WorkerSeen.__dataclass_fields__]
    for row in connection.execute(select(*columns).where(condition).order_by(worker.c.id)):
        yield WorkerSeen(*row)


def _upload(connection: Connection, *conditions: ColumnElement[bool]) -> Upload | None:
    # In the order of the small index of unfinished deliveries: in that of the ids, SQLite would walk all there ever were.
    in_order = (delivery.c.worker, delivery.c.id)
    row = connection.execute(select(delivery).where(*conditions).order_by(*in_order).limit(1)).one_or_none()
    if row is None:
        return None
    sender = next(_workers(connection, worker.c.id == row.worker), None)
    return Upload(row.id, row.worker, sender, row.started_at, row.messages, row.bytes, row.lane)


def _probe(connection: Connection, name: str) -> Upload | None:
    """The probe that others wait for."""
    # Not by its name as it is, see breaker.traffic.
    under_way = and_(delivery.c.finished_at.is_(None), delivery.c.destination.concat("") == name, delivery.c.probe)
    return _upload(connection, under_way, delivery.c.lane != Lane.LARGE)


def _next_due(connection: Connection, name: str) -> datetime | None:
    """When the next of what waits is due."""
    found: list[datetime | None] = []
    for lane in Lane:
        mine = (message.c.destination == name, message.c.lane == lane, pending, loose)
        first = select(message.c.due_at).where(*mine).order_by(message.c.due_at, message.c.id).limit(1)
        found.append(connection.execute(first).scalar_one_or_none())
    going = (head.c.claimed_by.is_(None), head.c.blocked_by.is_(None), head.c.stream_id.not_in(pausing.streams_of(name)))
    for table, conditions in ((head, going), (share, (share.c.ordering_key.not_in(pausing.keys_of(name)),))):
        waits = (table.c.destination == name, table.c.due_at.is_not(None), *conditions)
        found.append(connection.execute(select(func.min(table.c.due_at)).where(*waits)).scalar_one())
    return min((each for each in found if each is not None), default=None)


def _before(connection: Connection, row: Any, when: When) -> tuple[int, str]:
    """What goes before a message in its lane, counted up to a bound, and what that is."""
    if row.stream_id is not None:
        mine = connection.execute(select(head).where(head.c.stream_id == row.stream_id)).one_or_none()
        if mine is None:
            return 0, "message"
        sooner = tuple_(head.c.served, head.c.stream_id) < tuple_(mine.served, mine.stream_id)
        waiting = select(head.c.stream_id).where(streams.due(row.destination, [Lane(row.lane)], when), sooner)
        return _bounded(connection, waiting), "ordering key"
    sooner = tuple_(message.c.due_at, message.c.id) < tuple_(row.due_at, row.id)
    if row.share_id is not None:
        queue = select(message.c.id).where(message.c.share_id == row.share_id, in_share, sooner)
    else:
        lane = (message.c.destination == row.destination, message.c.lane == row.lane)
        queue = select(message.c.id).where(*lane, pending, loose, sooner)
    return _bounded(connection, queue), "message"


def _stream(connection: Connection, row: Any) -> StreamFacts:
    """Where the stream of a message stands."""
    key = connection.execute(select(stream.c.ordering_key).where(stream.c.id == row.stream_id)).scalar_one()
    place = connection.execute(select(head).where(head.c.stream_id == row.stream_id)).one()
    left = (message.c.stream_id == row.stream_id, in_stream, unfinished)
    first = select(message.c.id).where(*left).order_by(message.c.stream_number).limit(1)
    # claimed_by: so that the small index of claimed messages is used.
    tried = select(message.c.id).where(message.c.stream_id == row.stream_id, claimed, message.c.claimed_by.is_not(None))
    others = select(message.c.id).where(*left)
    final = row.state in FINAL
    return StreamFacts(
        ordering_key=key,
        claimed_by=place.claimed_by,
        blocked_by=_neighbour(connection, place.blocked_by),
        first=_neighbour(connection, connection.execute(first).scalar_one_or_none()),
        tried=_neighbour(connection, connection.execute(tried.limit(1)).scalar_one_or_none()),
        before=0 if final else _bounded(connection, others.where(message.c.stream_number < row.stream_number)),
        behind=_bounded(connection, others.where(message.c.stream_number > row.stream_number)) if final else 0,
    )


def _pause(connection: Connection, row: Any) -> Pause | None:
    """The pause of the ordering key of a message."""
    mine, its = (stream, row.stream_id) if row.stream_id is not None else (share, row.share_id)
    key = connection.execute(select(mine.c.ordering_key).where(mine.c.id == its)).scalar_one_or_none()
    return pausing.of_key(connection, row.destination, key) if key is not None else None


def _neighbour(connection: Connection, message_id: int | None) -> Neighbour | None:
    columns = [message.c[name] for name in Neighbour.__dataclass_fields__]
    row = connection.execute(select(*columns).where(message.c.id == message_id)).one_or_none() if message_id else None
    return Neighbour(*row) if row else None


def _held_up(name: str) -> tuple[ColumnElement[bool], ...]:
    return (head.c.destination == name, head.c.blocked_by.is_not(None))


def _bounded(connection: Connection, statement: Select[Any]) -> int:
    """How many rows there are, up to one more than are counted."""
    return connection.execute(select(func.count()).select_from(statement.limit(COUNTED + 1).subquery())).scalar_one()
