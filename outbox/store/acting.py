"""What a person does: replay and cancel, and the audit of it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, case, exists, func, insert, select, update

from outbox.model import FINAL, Lane, Selection, State
from outbox.store import selecting
from outbox.tables import attachment, audit, file, head, message
from outbox.verdict import cleaned

Act: TypeAlias = Literal["replay", "cancel"]

#: The states that a message may be in for each act.
_FROM: dict[Act, frozenset[State]] = {"replay": FINAL, "cancel": frozenset({State.PENDING, State.DEAD})}


class Chosen(NamedTuple):
    """Messages of a selection, locked, and before them their streams; and what was passed over."""

    ids: list[int]
    last: int | None  #: the last one looked at, be it passed over; None when there was none
    held: set[int]  #: streams that somebody else holds at this moment, whose messages were passed over


def choose(
    connection: Connection, action: Act, selection: Selection, after: int, limit: int, stream_id: int | None = None
) -> Chosen:
    """The next messages of a selection, by id, that the act may be done to; with `stream_id`, those of one stream.

    One stream is waited for. Of several none is: a producer that wakes two may hold one and wait for the other.
    """
    conditions = [message.c.id > after, *selecting.conditions(selection, _FROM[action])]
    if stream_id is not None:
        connection.execute(select(head.c.stream_id).where(head.c.stream_id == stream_id).with_for_update())
        conditions.append(message.c.stream_id == stream_id)
    found = connection.execute(select(message.c.id, message.c.stream_id).where(*conditions).order_by(message.c.id).limit(limit))
    rows = found.all()
    wanted = {row.stream_id for row in rows if row.stream_id is not None}
    free = select(head.c.stream_id).where(head.c.stream_id.in_(wanted)).order_by(head.c.stream_id)
    ours = set(connection.execute(free.with_for_update(skip_locked=True)).scalars()) if wanted else set()
    ids = [row.id for row in rows if row.stream_id is None or row.stream_id in ours]
    still = select(message.c.id).where(message.c.id.in_(ids), *conditions).order_by(message.c.id)
    chosen = list(connection.execute(still.with_for_update(skip_locked=True)).scalars())
    return Chosen(chosen, max((row.id for row in rows), default=None), wanted - ours)


def count(connection: Connection, action: Act, selection: Selection) -> int:
    """How many messages of a selection the act may be done to."""
    return connection.execute(
        select(func.count(message.c.id)).where(*selecting.conditions(selection, _FROM[action]))
    ).scalar_one()


def replay(connection: Connection, ids: Collection[int], now: datetime) -> list[int]:
    """Give these final messages, locked here, a fresh start; those that have lost a file stay as they are."""
    mine = select(attachment.c.file).where(attachment.c.message_id.in_(ids))
    # Held until COMMIT, so that freeing, which asks whether a message still needs them, cannot come in between.
    kept = select(file.c.name).where(file.c.name.in_(mine), file.c.freed_at.is_(None)).order_by(file.c.name)
    names = list(connection.execute(kept.with_for_update(key_share=True)).scalars())
    lost = exists().where(
        attachment.c.message_id == message.c.id, attachment.c.file == file.c.name, file.c.freed_at.is_not(None)
    )
    afresh = {
        "state": State.PENDING,
        "reason": None,
        "reason_text": None,
        "failures": 0,
        "unknowns": 0,
        "faulted_in": None,
        "finished_at": None,
        "due_at": now,
        "scheduled": False,
        "expires_at": None,
        "suspect": False,
        "share_id": None,
        "replays": message.c.replays + 1,
        "lane": case((message.c.lane == Lane.LARGE, Lane.LARGE.value), else_=Lane.BULK.value),
    }
    statement = update(message).where(message.c.id.in_(ids), ~lost).values(afresh).returning(message.c.id)
    replayed = list(connection.execute(statement).scalars())
    needed = select(attachment.c.file).where(attachment.c.message_id.in_(replayed), attachment.c.file.in_(names))
    connection.execute(update(file).where(file.c.name.in_(needed)).values(free_at=None))
    return replayed


def cancel(connection: Connection, ids: Collection[int], now: datetime) -> list[int]:
    """Withdraw these messages, locked here."""
    withdrawn = {"state": State.CANCELLED, "reason": None, "finished_at": now}
    statement = update(message).where(message.c.id.in_(ids)).values(withdrawn).returning(message.c.id)
    return list(connection.execute(statement).scalars())


def streams_of(connection: Connection, ids: Collection[int], skipping: Collection[str], *, skip: bool) -> list[int]:
    """The streams of these messages whose destinations skip the dead, or those whose do not."""
    if not ids:
        return []
    kind = head.c.destination.in_(skipping) if skip else head.c.destination.not_in(skipping)
    mine = select(message.c.stream_id).where(message.c.id.in_(ids), message.c.stream_id.is_not(None))
    return list(connection.execute(select(head.c.stream_id).where(head.c.stream_id.in_(mine), kind)).scalars())


def note(connection: Connection, now: datetime, by: str, action: str, selection: str, messages: int) -> None:
    """Who did what, to how many messages."""
    words = {"actor": cleaned(by, 255), "selection": cleaned(selection, 10_000)}
    values = {"at": now, "action": action, "messages": messages, **words}
    connection.execute(insert(audit).values(values))
