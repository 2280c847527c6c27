"""Enqueue: a message and what belongs to it become rows of the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Update, delete, false, insert, select, update

from outbox.database import insert_or_nothing, insert_or_update
from outbox.model import Attachment, Lane, SpooledFile, State
from outbox.tables import attachment, file, head, message, stream

#: A statement that writes nothing and yet takes SQLite's write lock.
TAKE_WRITE_LOCK: Update = update(stream).where(false()).values(last_number=stream.c.last_number)


@dataclass(frozen=True, slots=True)
class NewMessage:
    """The row of a message that is being enqueued."""

    destination: str
    lane: Lane
    key: str
    payload: str
    digest: str
    size: int
    file_bytes: int
    files: int
    created_at: datetime
    due_at: datetime
    clock_plausible: bool
    scheduled: bool = False  #: due_at was chosen by the producer
    expires_at: datetime | None = None
    traceparent: str | None = None


class Known(NamedTuple):
    """The message that a key names already."""

    id: int
    digest: str
    state: State


def next_in_stream(connection: Connection, new: NewMessage, ordering_key: str) -> tuple[int, int]:
    """The stream of an ordering key and the next number in it.

    The row stays locked until the caller's COMMIT, so numbers are given in commit order.
    """
    change = {"last_number": stream.c.last_number + 1}
    upsert = insert_or_update(connection, stream, ["destination", "ordering_key"], change)
    values = {"destination": new.destination, "ordering_key": ordering_key, "last_number": 1}
    stream_id, number = connection.execute(upsert.values(values).returning(stream.c.id, stream.c.last_number)).one()
    if number == 1:
        connection.execute(insert(head).values(stream_id=stream_id, destination=new.destination, lane=new.lane))
    return stream_id, number


def wake_stream(connection: Connection, stream_id: int, new: NewMessage) -> None:
    """A stream at rest becomes due with its new message; one that is under way finds it by itself."""
    at_rest = (head.c.stream_id == stream_id, head.c.due_at.is_(None))
    connection.execute(update(head).where(*at_rest).values(due_at=new.due_at, scheduled=new.scheduled, lane=new.lane))


def add_message(
    connection: Connection, new: NewMessage, place: tuple[int, int] | None, share_id: int | None = None
) -> int | None:
    """Insert the message, at its place in a stream or into a share; None when its key names one already."""
    stream_id, number = place or (None, None)
    statement = insert_or_nothing(connection, message).returning(message.c.id)
    return connection.execute(
        statement,
        {
            "destination": new.destination,
            "lane": new.lane,
            "key": new.key,
            "payload": new.payload,
            "digest": new.digest,
            "size": new.size,
            "file_bytes": new.file_bytes,
            "files": new.files,
            "state": State.PENDING,
            "stream_id": stream_id,
            "stream_number": number,
            "share_id": share_id,
            "created_at": new.created_at,
            "due_at": new.due_at,
            "scheduled": new.scheduled,
            "expires_at": new.expires_at,
            "clock_plausible": new.clock_plausible,
            "traceparent": new.traceparent,
        },
    ).scalar_one_or_none()


def named(connection: Connection, destination: str, key: str) -> Known | None:
    """The message of that key."""
    wanted = (message.c.destination == destination) & (message.c.key == key)
    row = connection.execute(select(message.c.id, message.c.digest, message.c.state).where(wanted)).one_or_none()
    return Known(row.id, row.digest, State(row.state)) if row else None


def add_file(connection: Connection, spooled: SpooledFile, now: datetime, free_at: datetime | None = None) -> None:
    """The row of a freshly spooled file; `free_at` for one that no message has been given yet."""
    connection.execute(
        insert(file),
        {
            "name": spooled.name,
            "size": spooled.size,
            "sha256": spooled.sha256,
            "md5": spooled.md5,
            "created_at": now,
            "free_at": free_at,
        },
    )


def freed(connection: Connection, names: Collection[str]) -> set[str]:
    """Of these spooled files, those whose bytes have been freed; the others are kept until the caller's COMMIT.

    The lock is the one that a reference to a row takes anyway: only freeing respects it, so nobody else waits.
    """
    connection.execute(TAKE_WRITE_LOCK)
    statement = select(file.c.name).where(file.c.name.in_(names), file.c.freed_at.is_(None)).order_by(file.c.name)
    kept = connection.execute(statement.with_for_update(read=True, key_share=True)).scalars()
    return set(names) - set(kept)


def withdraw(connection: Connection, message_id: int) -> None:
    """Undo `add_message` in the same transaction, for a caller who goes on after an error."""
    connection.execute(delete(message).where(message.c.id == message_id))


def attach(connection: Connection, message_id: int, attachments: Sequence[Attachment]) -> None:
    """Bind spooled files to a message, in the producer's order."""
    rows: list[dict[str, Any]] = [
        {
            "message_id": message_id,
            "position": position,
            "name": each.name,
            "file": each.file.name,
            "filename": each.filename,
            "content_type": each.content_type,
        }
        for position, each in enumerate(attachments)
    ]
    if rows:
        connection.execute(insert(attachment), rows)
