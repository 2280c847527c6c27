"""Purge: final messages go with all that belongs to them, and the files that nobody refers to any more."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, exists, literal_column, select, update

from outbox.model import FINAL
from outbox.tables import attachment, attempt, file, message

_final = message.c.state.in_([literal_column(f"'{state.value}'") for state in sorted(FINAL)])


class Purged(NamedTuple):
    """What was deleted."""

    messages: int = 0
    files: int = 0  #: spooled files that nobody refers to any more and whose bytes were still there
    bytes: int = 0  #: their bytes; `free_files` deletes them once this is committed
    streams: frozenset[int] = frozenset()  #: of the messages; one that was held up by them is for the caller to release


def purge(connection: Connection, ids: Collection[int], now: datetime) -> Purged:
    """Delete these messages with their attempts and attachments; those that are not final stay, and those that others lock.

    A file that nobody refers to any more may be freed from now on; the row of one that has been freed goes.
    """
    mine = select(message.c.id, message.c.stream_id).where(message.c.id.in_(ids), _final).order_by(message.c.id)
    rows = connection.execute(mine.with_for_update(skip_locked=True)).all()
    going = [row.id for row in rows]
    if not going:
        return Purged()
    attached = select(attachment.c.file).where(attachment.c.message_id.in_(going)).distinct()
    names = list(connection.execute(attached).scalars())
    if names:
        # Locked by name, and looked at again by the statements below: of two that purge the last messages of a file at the
        # same time, each would otherwise leave it to the other. Producers that use the file are not waited for.
        locked = select(file.c.name).where(file.c.name.in_(names)).order_by(file.c.name)
        names = list(connection.execute(locked.with_for_update(key_share=True)).scalars())
        connection.execute(delete(attachment).where(attachment.c.message_id.in_(going)))
    connection.execute(delete(attempt).where(attempt.c.message_id.in_(going)))
    connection.execute(delete(message).where(message.c.id.in_(going)))
    sizes = _let_go(connection, names, now) if names else []
    streams = frozenset(row.stream_id for row in rows if row.stream_id is not None)
    return Purged(len(going), len(sizes), sum(sizes), streams)


def _let_go(connection: Connection, names: Collection[str], now: datetime) -> list[int]:
    """Of these files, locked here, those that no message refers to: let their bytes be freed, or forget them if they were.

    Returns the sizes of the former. A producer may be about to refer to one of them: freeing looks for that once more.
    """
    orphaned = (file.c.name.in_(names), ~exists().where(attachment.c.file == file.c.name))
    connection.execute(delete(file).where(*orphaned, file.c.freed_at.is_not(None)))
    freed = update(file).where(*orphaned, file.c.freed_at.is_(None)).values(free_at=now).returning(file.c.size)
    return [int(size) for size in connection.execute(freed).scalars()]
