"""The messages of an outbox as a test looks at them: with payload and files, also in a transaction that is not committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from outbox.app import Outbox
from outbox.model import Reason, Selection, State
from outbox.spool.base import Spool
from outbox.store import listing, looking
from outbox.tables import destination, head, message, pause, unfinished

#: More than any test enqueues.
_ALL = 1_000_000


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file of a message, at rest in the spool."""

    name: str
    filename: str
    content_type: str
    size: int
    sha256: str
    spool: Spool
    spooled: str

    @property
    def content(self) -> bytes:
        """Its bytes; FileMissing once they are freed, which is an hour after the delivery."""
        with self.spool.open(self.spooled) as source:
            return source.read()

    def __repr__(self) -> str:
        return f"{self.filename} ({self.size} bytes)"


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """One message, as it is now."""

    id: int
    destination: str
    key: str
    payload: Any
    files: Mapping[str, KeptFile]
    ordering_key: str | None
    state: State
    reason: Reason | None  #: why it is dead
    words: str | None  #: and what was said of that
    attempt: int
    failures: int
    lane: str
    due_at: datetime
    expires_at: datetime | None


def messages(outbox: Outbox, connection: Connection, selection: Selection, after: int = 0) -> list[KeptMessage]:
    """The messages of a selection with ids above `after`, oldest first."""
    rows = [row for row in listing.messages(connection, selection, _ALL) if row["id"] > after]
    found = []
    for row in reversed(rows):
        text = connection.execute(select(message.c.payload).where(message.c.id == row["id"])).scalar_one()
        files = looking.files_of(connection, row["id"]) if row["files"] else ()
        found.append(
            KeptMessage(
                row["id"],
                row["destination"],
                row["key"],
                json.loads(text),
                {
                    each["name"]: KeptFile(
                        each["name"],
                        each["filename"],
                        each["content_type"],
                        each["size"],
                        each["sha256"],
                        outbox.spool_store,
                        each["spooled"],
                    )
                    for each in files
                },
                row["ordering_key"],
                State(row["state"]),
                None if row["reason"] is None else Reason(row["reason"]),
                row["reason_text"],
                row["attempt"],
                row["failures"],
                row["lane"],
                row["due_at"],
                row["expires_at"],
            )
        )
    return found


def newest(connection: Connection) -> int:
    """The id of the newest message; 0 when there is none."""
    return int(connection.execute(select(func.max(message.c.id))).scalar_one() or 0)


#: What is known of destinations: breakers, what stops them, limits; and their ordering keys that are paused.
_STANDINGS = (destination, pause)


def standings(connection: Connection) -> list[list[dict[str, Any]]]:
    """What is known of destinations, for `restore`."""
    return [[dict(row) for row in connection.execute(select(table)).mappings()] for table in _STANDINGS]


def restore(connection: Connection, before: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Let destinations be as they were, and those that are new as if nothing had been sent to them yet."""
    for table, rows in zip(_STANDINGS, before, strict=True):
        connection.execute(delete(table))
        if rows:
            connection.execute(insert(table), rows)


def to_be_forgotten(connection: Connection, after: int) -> Sequence[int]:
    """Messages with ids above `after`, but for those whose ordering key somebody's open transaction holds: it may be ours."""
    free = select(head.c.stream_id).order_by(head.c.stream_id).with_for_update(skip_locked=True)
    streams = set(connection.execute(free).scalars())
    found = connection.execute(select(message.c.id, message.c.stream_id).where(message.c.id > after)).all()
    return [row.id for row in found if row.stream_id is None or row.stream_id in streams]


def left_over(connection: Connection, after: int = 0) -> Sequence[int]:
    """Messages with ids above `after` that are not finished."""
    return connection.execute(select(message.c.id).where(unfinished, message.c.id > after)).scalars().all()
