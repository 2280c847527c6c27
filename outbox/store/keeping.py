"""The spool's rows: which bytes may be freed, and which files in the spool no row refers to."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, delete, exists, select, update

from outbox.model import State
from outbox.tables import attachment, file, message


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
