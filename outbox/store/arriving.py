"""Enqueue: a message and what belongs to it become rows of the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import partial
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Update, delete, false, func, insert, select, true, update

from outbox.database import nudging_column
from outbox.dialects import insert_or_nothing, insert_or_update, listed
from outbox.model import Attachment, Lane, SpooledFile, State
from outbox.statements import Ready, can_fill_in, document, filled_in, lists, parameter, unlisted
from outbox.tables import attachment, file, head, message, share, stream

#: A statement that writes nothing and yet takes SQLite's write lock.
TAKE_WRITE_LOCK: Update = update(stream).where(false()).values(last_number=stream.c.last_number)


class NewMessage(NamedTuple):
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
    stream_id: int | None = None
    stream_number: int | None = None
    share_id: int | None = None


class Known(NamedTuple):
    """The message that a key names already."""

    id: int
    digest: str
    state: State


def next_in_stream(connection: Connection, new: NewMessage, ordering_key: str, count: int = 1) -> tuple[int, int]:
    """The stream of an ordering key and the last of the next `count` numbers in it.

    The row stays locked until the caller's COMMIT, so numbers are given in commit order.
    """
    change = {"last_number": stream.c.last_number + count}
    upsert = insert_or_update(connection, stream, ["destination", "ordering_key"], change)
    values = {"destination": new.destination, "ordering_key": ordering_key, "last_number": count}
    stream_id, number = connection.execute(upsert.values(values).returning(stream.c.id, stream.c.last_number)).one()
    if number == count:
        connection.execute(insert(head).values(stream_id=stream_id, destination=new.destination, lane=new.lane))
    return stream_id, number


def wake_stream(connection: Connection, stream_id: int, new: NewMessage) -> None:
    """A stream at rest becomes due with its new message; one that is under way finds it by itself."""
    at_rest = (head.c.stream_id == stream_id, head.c.due_at.is_(None))
    connection.execute(update(head).where(*at_rest).values(due_at=new.due_at, scheduled=new.scheduled, lane=new.lane))


#: What is the same for all messages that are enqueued together, what mostly is, and what each has for itself.
_COMMON = (message.c.destination, message.c.state, message.c.created_at, message.c.clock_plausible)
_OWN = tuple(message.c[name] for name in ("key", "payload", "digest", "size"))
_ALIKE = tuple(message.c[name] for name in NewMessage._fields if name not in {each.name for each in (*_COMMON, *_OWN)})
#: What names a message. Postgres looks up each unique index of which it is not told that it does not matter.
_NAME = ["destination", "key"]
_own = attrgetter(*(each.name for each in _OWN))
_alike = attrgetter(*(each.name for each in _ALIKE))
_all = attrgetter(*(each.name for each in (*_ALIKE, *_OWN)))


def _is_server(connection: Connection) -> bool:
    """Whether rows come back from a statement at no cost, and lists are taken apart at little: on Postgres, not in SQLite."""
    dialect: Any = connection.dialect
    return not dialect.postfetch_lastrowid


def _insert(connection: Connection, *, chosen: bool) -> Any:
    """An INSERT of messages; of keys that a producer has `chosen` some may be taken.

    Those that we make are random. To be prepared for what cannot happen costs a server a sixth of the INSERT: it looks up each
    of them first, and has two entries in its log for each row.
    """
    if chosen or not _is_server(connection):
        return insert_or_nothing(connection, message, _NAME)
    return insert(message)


def _add_one(connection: Connection, *, nudge: bool, chosen: bool) -> Any:
    columns = (*_COMMON, *_ALIKE, *_OWN)
    insertion = _insert(connection, chosen=chosen)
    if not _is_server(connection):  # then a row that comes back would cost more than all the rest
        # As a SELECT: what is full in the midst of it takes back the statement alone, and the transaction goes on.
        values = select(*(parameter(each) for each in columns)).where(true())
        return insertion.from_select([each.name for each in columns], values)
    given = {each.name: parameter(each) for each in columns}
    nudging = (nudging_column(message.c.destination.name),) if nudge else ()
    return insertion.values(given).returning(message.c.id, *nudging)


class _Travel(Enum):
    """How many messages get into a statement."""

    DOCUMENT = "document"  #: with all that may differ between them
    LISTS = "lists"  #: with what each has for itself, and so below
    PARAMETERS = "parameters"


def _travel(connection: Connection, *, alike: bool) -> _Travel:
    if not alike:
        return _Travel.DOCUMENT
    if _is_server(connection):
        return _Travel.LISTS
    return _Travel.PARAMETERS if can_fill_in(connection) else _Travel.DOCUMENT


def _add_many(connection: Connection, *, travel: _Travel, nudge: bool, chosen: bool) -> Any:
    given, own = (_COMMON, (*_ALIKE, *_OWN)) if travel is _Travel.DOCUMENT else ((*_COMMON, *_ALIKE), _OWN)
    # A condition there must be: without one, SQLite takes ON CONFLICT for a part of a join.
    there: ColumnElement[bool] = true()
    if travel is _Travel.DOCUMENT:
        rows = listed(connection, "rows", own)
    elif travel is _Travel.LISTS:
        rows = unlisted("rows", own)
    else:
        rows = filled_in(own)
        there = rows.c.column1.is_not(None)
    found = select(*(parameter(each) for each in given), *rows.c).where(there)
    insertion = _insert(connection, chosen=chosen).from_select([each.name for each in (*given, *own)], found)
    nudging = (nudging_column(message.c.destination.name),) if nudge else ()
    return insertion.returning(message.c.key, message.c.id, *nudging)


_EITHER = (False, True)
_ADD_ONE = {
    (nudge, chosen): Ready(partial(_add_one, nudge=nudge, chosen=chosen)) for nudge, chosen in product(_EITHER, repeat=2)
}
_ADD_MANY = {
    (travel, nudge, chosen): Ready(partial(_add_many, travel=travel, nudge=nudge, chosen=chosen))
    for travel, nudge, chosen in product(_Travel, _EITHER, _EITHER)
}


def _values(new: NewMessage) -> dict[str, Any]:
    values = new._asdict()
    values["state"], values["lane"] = State.PENDING.value, new.lane.value
    return values


def add_message(connection: Connection, new: NewMessage, *, nudge: bool = False, chosen: bool = True) -> int | None:
    """Insert a message; None when its key names one already. `nudge` where `nudging_column` is a help, and one is due.

    A key that was not `chosen` by anybody is one of `Ambient.new_id`, which names nothing else.
    """
    values = _values(new)
    made = _ADD_ONE[nudge, chosen].run(connection, values)
    if not made.returns_rows:
        return made.lastrowid if made.rowcount else None
    found = made.one_or_none()
    return None if found is None else int(found[0])


def add_messages(
    connection: Connection, new: Sequence[NewMessage], *, nudge: bool = False, chosen: bool = True
) -> dict[str, int]:
    """Insert messages of one destination, enqueued at one moment; ids by key, without those whose key names one already.

    `nudge` and `chosen` as with `add_message`; the latter if any of the keys was.
    """
    values = _values(new[0])
    shared = [*map(_alike, new)]
    travel = _travel(connection, alike=shared.count(shared[0]) == len(shared))
    statement = _ADD_MANY[travel, nudge, chosen]
    if travel is _Travel.PARAMETERS:
        made = statement.run_with(connection, values, [*map(_own, new)])
    elif travel is _Travel.LISTS:
        made = statement.run(connection, values | lists(_OWN, map(_own, new)))
    else:
        made = statement.run(connection, values | {"rows": document((*_ALIKE, *_OWN), map(_all, new))})
    rows: Sequence[Any] = made.all()
    return {row[0]: row[1] for row in rows}


def named(connection: Connection, destination: str, key: str) -> Known | None:
    """The message of that key."""
    wanted = (message.c.destination == destination) & (message.c.key == key)
    row = connection.execute(select(message.c.id, message.c.digest, message.c.state).where(wanted)).one_or_none()
    return Known(row.id, row.digest, State(row.state)) if row else None


def content(connection: Connection, message_id: int) -> tuple[str, tuple[()], str | None]:
    """Of a message without attachments, what its digest would be of: its payload, no file, and its ordering key."""
    of_stream = select(stream.c.ordering_key).where(stream.c.id == message.c.stream_id).scalar_subquery()
    of_share = select(share.c.ordering_key).where(share.c.id == message.c.share_id).scalar_subquery()
    found = select(message.c.payload, func.coalesce(of_stream, of_share)).where(message.c.id == message_id)
    payload, ordering_key = connection.execute(found).one()
    return payload, (), ordering_key


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


def withdraw(connection: Connection, ids: Collection[int], now: datetime) -> None:
    """Undo the adding of messages in the same transaction, for a caller who goes on after an error.

    The files that were copied for them may be freed from now on, unless another message needs them.
    """
    values = {"rows": document((message.c.id,), ([each] for each in ids)), "free_at": now}
    _LET_GO.run(connection, values)
    _WITHDRAW.run(connection, values)


def _let_go(connection: Connection) -> Any:
    mine = attachment.c.message_id.in_(select(*listed(connection, "rows", (message.c.id,)).c))
    # One that was spooled ahead says already until when it is kept.
    copied = (file.c.name.in_(select(attachment.c.file).where(mine)), file.c.free_at.is_(None))
    return update(file).where(*copied).values(free_at=parameter(file.c.free_at))


def _withdraw(connection: Connection) -> Any:
    return delete(message).where(message.c.id.in_(select(*listed(connection, "rows", (message.c.id,)).c)))


_LET_GO, _WITHDRAW = Ready(_let_go), Ready(_withdraw)


def attach(connection: Connection, attachments: Mapping[int, Sequence[Attachment]]) -> None:
    """Bind spooled files to messages, by id, in the producer's order."""
    rows: list[dict[str, Any]] = [
        {
            "message_id": message_id,
            "position": position,
            "name": each.name,
            "file": each.file.name,
            "filename": each.filename,
            "content_type": each.content_type,
        }
        for message_id, mine in attachments.items()
        for position, each in enumerate(mine)
    ]
    if rows:
        connection.execute(insert(attachment), rows)
