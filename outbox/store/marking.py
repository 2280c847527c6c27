"""The mark that a database shares with the spool that has its files."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, inspect, select

from outbox.dialects import insert_or_nothing
from outbox.tables import file, spool


def mark(connection: Connection) -> str | None:
    """The mark of this database; None as long as it has none, or not the table for it."""
    if not can_be_marked(connection):
        return None
    return connection.execute(select(spool.c.mark).where(spool.c.id == 1)).scalar_one_or_none()


def can_be_marked(connection: Connection) -> bool:
    """Whether the schema has a place for a mark."""
    return inspect(connection).has_table(spool.name)


def is_of_before(connection: Connection) -> bool:
    """Whether the schema is ours, of a time when there were no marks."""
    return inspect(connection).has_table(file.name) and not can_be_marked(connection)


def give(connection: Connection, mark: str, now: datetime) -> str:
    """Give this database a mark, unless it has one; returns the one it has now."""
    connection.execute(insert_or_nothing(connection, spool).values(id=1, mark=mark, created_at=now))
    given: str = connection.execute(select(spool.c.mark).where(spool.c.id == 1)).scalar_one()
    return given
