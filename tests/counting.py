"""Counting the statements of an outbox: everything that its own engines execute, but what begins and ends transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import sqlalchemy as sa

from outbox.database import Database

_TRANSACTION = ("BEGIN", "COMMIT", "ROLLBACK")


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """The statements that are executed while it is entered."""
    executed: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(_TRANSACTION):
            executed.append(statement)

    with ExitStack() as stack:
        with database.read() as connection:
            reader = connection.engine
        for engine in {database.engine, reader}:
            sa.event.listen(engine, "before_cursor_execute", note)
            stack.callback(sa.event.remove, engine, "before_cursor_execute", note)
        yield executed
