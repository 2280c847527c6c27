"""What a person does: replay and cancel, and the audit of it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Literal, TypeAlias

from sqlalchemy import ColumnElement, Connection, case, exists, func, insert, literal_column, or_, select, update

from outbox.model import FINAL, Lane, Selection, State
from outbox.tables import attachment, audit, file, head, message, stream

Act: TypeAlias = Literal["replay", "cancel"]

#: The states that a message may be in for each act.
_FROM: dict[Act, frozenset[State]] = {"replay": FINAL, "cancel": frozenset({State.PENDING, State.DEAD})}


def choose(connection: Connection, action: Act, selection: Selection, after: int, limit: int) -> list[int]:
    """The next messages of a selection, by id, that the act may be done to; locked, and before them their streams.

    Waits for whoever holds one of the streams: a person shall not have to ask twice.
    """
    conditions = (message.c.id > after, *_conditions(action, selection))
    found = connection.execute(select(message.c.id, message.c.stream_id).where(*conditions).order_by(message.c.id).limit(limit))
    rows = found.all()
    of_streams = {row.stream_id for row in rows if row.stream_id is not None}
    held = select(head.c.stream_id).where(head.c.stream_id.in_(of_streams)).order_by(head.c.stream_id)
    connection.execute(held.with_for_update())
    still = select(message.c.id).where(message.c.id.in_([row.id for row in rows]), *conditions).order_by(message.c.id)
    return list(connection.execute(still.with_for_update(skip_locked=True)).scalars())


def count(connection: Connection, action: Act, selection: Selection) -> int:
    """How many messages of a selection the act may be done to."""
    return connection.execute(select(func.count(message.c.id)).where(*_conditions(action, selection))).scalar_one()


def _conditions(action: Act, selection: Selection) -> list[ColumnElement[bool]]:
    states = sorted(_FROM[action] & set(selection.states or _FROM[action]))
    # Words, not parameters: a partial index is only used by who says its condition.
    words: list[ColumnElement[str]] = [literal_column(f"'{state.value}'") for state in states]
    conditions: list[ColumnElement[bool]] = [message.c.state.in_(words)]
    if selection.ids or selection.keys:
        conditions.append(or_(message.c.id.in_(selection.ids), message.c.key.in_(selection.keys)))
    if selection.destination is not None:
        conditions.append(message.c.destination == selection.destination)
    if selection.reasons:
        conditions.append(message.c.reason.in_(selection.reasons))
    if selection.ordering_key is not None:
        conditions.append(exists().where(stream.c.id == message.c.stream_id, stream.c.ordering_key == selection.ordering_key))
    return conditions


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
    connection.execute(update(file).where(file.c.name.in_(names)).values(free_at=None))
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
    values = {"at": now, "actor": by[:255], "action": action, "selection": selection[:10_000], "messages": messages}
    connection.execute(insert(audit).values(values))
