"""Record: what the answer made of each message is written, if the claim still holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from enum import Enum, auto
from functools import partial
from itertools import chain, product
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    Boolean,
    Connection,
    CursorResult,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal_column,
    select,
    update,
)

from outbox.dialects import paired, pairs_of
from outbox.model import FINAL, Outcome, State
from outbox.statements import Ready, parameter
from outbox.store import shares, streams
from outbox.tables import attachment, attempt, delivery, file, message
from outbox.timekeeping import When
from outbox.verdict import Settlement


def recovered(connection: Connection, name: str, ids: Collection[int]) -> set[int]:
    """Of these messages, those after whose last failure the destination delivered something else.

    Compared by delivery number, so no clock takes part.
    """
    since = exists().where(
        delivery.c.destination == name, delivery.c.outcome == Outcome.DELIVERED, delivery.c.id > message.c.faulted_in
    )
    statement = select(message.c.id).where(message.c.id.in_(ids), message.c.faulted_in.is_not(None), since)
    return set(connection.execute(statement).scalars())


class Recorded(NamedTuple):
    """What a record wrote: messages by id, and whether any of them was in a stream; and shares that could not be told."""

    written: set[int]
    streams: bool
    shares: set[int]


class SomeAreLost(Exception):
    """Not every claim holds any more; which do is to be asked for in another transaction."""


#: The row that each message of a delivery becomes, by id.
Settled = Mapping[int, Settlement]


def record(
    connection: Connection,
    worker_id: str,
    deliveries: Mapping[int, Settled],
    when: When,
    *,
    keep_late: bool = True,
    skip: bool = False,
    whole: bool = False,
) -> Recorded:
    """Write what became of each message of a worker's deliveries, if the claim still holds.

    A delivery's id is new with every attempt, so asking for it is asking for the attempt number, for the whole set at once.
    For the others the outcome is kept, with `keep_late`, as the late one of an attempt that somebody else has ended. `skip`: a
    stream goes on after a message of it has died. `whole`, for messages of which none has an ordering key: none is read again,
    and it raises SomeAreLost if a claim does not hold; nothing of the transaction may stay then.
    """
    groups: dict[Settlement, dict[int, list[int]]] = defaultdict(dict)
    for delivery_id, settled in deliveries.items():
        last = None
        for message_id, settlement in settled.items():
            if settlement is not last:  # most are the very same
                last, ids = settlement, groups[settlement].setdefault(delivery_id, [])
            ids.append(message_id)
    written: set[int] = set()
    of_streams: set[int] = set()
    of_shares: set[int] = set()
    lost: list[tuple[int, int, Settlement]] = []
    for settlement, claims in groups.items():
        travelling = paired(connection, claims)
        tried = {"rows": travelling, "outcome": settlement.outcome.value, "finished_at": when.now}
        made = _settled(connection, worker_id, settlement, travelling, when, whole=whole)
        if whole:
            ids = list(chain.from_iterable(claims.values()))
            if made.rowcount != len(ids):
                raise SomeAreLost
            written.update(ids)
            _ADD_ATTEMPTS.run(connection, tried)
            continue
        rows: Sequence[Any] = made.all()
        written.update([row[0] for row in rows])
        of_streams.update([row[1] for row in rows if row[1] is not None])
        if settlement.state is State.PENDING:
            of_shares.update([row[2] for row in rows if row[2] is not None])
        if len(rows) < sum(map(len, claims.values())):
            lost += [(each, number, settlement) for number, ids in claims.items() for each in ids if each not in written]
            travelling = paired(
                connection, {number: [each for each in ids if each in written] for number, ids in claims.items()}
            )
        if rows:
            _ADD_ATTEMPTS.run(connection, tried | {"rows": travelling})
    if keep_late and lost:
        _keep_late(connection, lost)
    if of_streams:
        streams.release(connection, of_streams, when, skip=skip)
    held = shares.release(connection, of_shares, when) if of_shares else set()
    return Recorded(written, bool(of_streams), held)


def _settled(
    connection: Connection, worker_id: str, settlement: Settlement, claims: str, when: When, *, whole: bool
) -> CursorResult[Any]:
    """Messages that were claimed for deliveries, `paired`, become the same.

    Of each comes back its id, its stream and its share; nothing if it is `whole`.
    """
    if settlement.state is State.DELIVERED:
        kind = _Kind.DELIVERED
    else:
        kind = _Kind.AT_ONCE if settlement.due_at is None and not settlement.faulted else _Kind.LATER
    return _SETTLE[kind, whole].run(connection, {"worker": worker_id, "rows": claims} | _changes(settlement, when.now))


def _attempts(connection: Connection) -> Any:
    """The attempt of each of these messages, which still has its number."""
    tried = pairs_of(connection, "rows").c
    told = {"finished_at": parameter(attempt.c.finished_at), "outcome": parameter(attempt.c.outcome)}
    # Looked up for each: in a join a planner may begin with all messages there are.
    number = select(message.c.attempt).where(message.c.id == tried.id).scalar_subquery()
    found = select(tried.id, number, tried.delivery_id, *told.values())
    return insert(attempt).from_select(["message_id", "number", "delivery_id", *told], found)


_ADD_ATTEMPTS = Ready(_attempts)


def _keep_late(connection: Connection, tries: Sequence[tuple[int, int, Settlement]]) -> None:
    for message_id, delivery_id, made in sorted(tries, key=itemgetter(0)):
        connection.execute(
            update(attempt)
            .where(
                attempt.c.message_id == message_id,
                attempt.c.delivery_id == delivery_id,
                # The same outcome again is our own record, whose commit went through although we were told nothing.
                attempt.c.outcome != made.outcome,
            )
            .values(late_outcome=made.outcome)
        )


_CHANGED = ("state", "reason", "reason_text", "failures", "unknowns", "batch_limit", "suspect", "finished_at")


def _changes(settlement: Settlement, now: datetime) -> dict[str, Any]:
    return {
        "state": settlement.state.value,
        "reason": settlement.reason and settlement.reason.value,
        "reason_text": settlement.text,
        "failures": settlement.failures,
        "unknowns": settlement.unknowns,
        "batch_limit": settlement.batch_limit,
        "suspect": settlement.suspect,
        "finished_at": now if settlement.state in FINAL else None,
        "due_at": settlement.due_at,
        "faulted": settlement.faulted,
    }


class _Kind(Enum):
    """What there is to write of messages that become the same."""

    AT_ONCE = auto()
    LATER = auto()  #: they may get a new instant, or remember the delivery as a failure
    DELIVERED = auto()


def _settle(connection: Connection, *, kind: _Kind, whole: bool) -> Any:
    """Claimed messages become what was settled; if it is `whole`, nothing comes back but how many they are."""
    # What is delivered keeps its counters: to write them as they are has SQLite check them once more.
    changed = ("state", "reason_text", "suspect", "finished_at") if kind is _Kind.DELIVERED else _CHANGED
    claims = pairs_of(connection, "rows").c
    changes: dict[str, Any] = {name: parameter(message.c[name]) for name in changed} | {
        "claimed_by": None,
        "delivery_id": None,
    }
    if kind is _Kind.LATER:
        due_at = parameter(message.c.due_at)
        changes["due_at"] = func.coalesce(due_at, message.c.due_at)
        changes["scheduled"] = and_(message.c.scheduled, due_at.is_(None))
        faulted = bindparam("faulted", type_=Boolean)
        changes["faulted_in"] = case((faulted, message.c.delivery_id), else_=message.c.faulted_in)
    settled = (
        update(message)
        .where(
            message.c.id == claims.id,
            # Not as they are: a planner would take the index of what is claimed, which is small, but for what was in it once.
            message.c.state.concat("") == literal_column("'claimed'"),
            message.c.claimed_by.concat("") == parameter(message.c.claimed_by, "worker"),
            message.c.delivery_id == claims.delivery_id,
        )
        .values(changes)
    )
    return settled if whole else settled.returning(message.c.id, message.c.stream_id, message.c.share_id)


_SETTLE = {(kind, whole): Ready(partial(_settle, kind=kind, whole=whole)) for kind, whole in product(_Kind, (False, True))}


def ended_as(connection: Connection, delivery_id: int, outcome: Outcome) -> bool:
    """Whether a delivery has ended with this outcome."""
    ended = (delivery.c.id == delivery_id, delivery.c.finished_at.is_not(None), delivery.c.outcome == outcome)
    return connection.execute(select(delivery.c.id).where(*ended)).one_or_none() is not None


def free_later(connection: Connection, ids: Collection[int], when: datetime) -> None:
    """The files of these delivered messages may be freed at that instant, unless another message needs them then."""
    names = select(attachment.c.file).where(attachment.c.message_id.in_(ids))
    # Locked by name first: two deliveries that share files must not take them in opposite orders.
    locked = select(file.c.name).where(file.c.name.in_(names), file.c.freed_at.is_(None)).order_by(file.c.name)
    found = list(connection.execute(locked.with_for_update(key_share=True)).scalars())
    connection.execute(update(file).where(file.c.name.in_(found)).values(free_at=when))
