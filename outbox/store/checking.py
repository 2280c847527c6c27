"""What a checkup reads: the database's own settings, the backlog, who delivers, and every row as it lies there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    RowMapping,
    Table,
    and_,
    exists,
    func,
    or_,
    select,
    text,
    tuple_,
    type_coerce,
)
from sqlalchemy.types import NullType

from outbox.model import State
from outbox.tables import (
    attachment,
    claimed,
    dead,
    delivery,
    destination,
    file,
    in_share,
    in_stream,
    loose,
    message,
    pending,
    share,
    stream,
    worker,
)


@dataclass
class Backlog:
    """What is there of a destination."""

    due: int = 0
    waiting: int = 0
    claimed: int = 0
    dead: int = 0
    oldest_due_at: datetime | None = None


def backlog(connection: Connection, now: datetime, names: Collection[str] = ()) -> dict[str, Backlog]:
    """Per destination what is due, waits, is being tried and is dead; only these destinations, if any are named."""
    found: dict[str, Backlog] = defaultdict(Backlog)
    # SQLite groups by walking an index on the column, which here would be one over every message there is.
    by_destination = message.c.destination.concat("")
    mine = [by_destination.in_(names)] if names else []
    # A condition for each partial index, so that the delivered ones are never walked.
    for condition in (and_(pending, loose), and_(pending, in_stream), in_share):
        for due, when in ((True, message.c.due_at <= now), (False, message.c.due_at > now)):
            counted = select(by_destination, func.count(), func.min(message.c.due_at)).where(condition, when, *mine)
            for name, number, oldest in connection.execute(counted.group_by(by_destination)).all():
                each = found[name]
                if due:
                    each.due += number
                    each.oldest_due_at = min(filter(None, (each.oldest_due_at, oldest)))
                else:
                    each.waiting += number
    for state, condition in ((State.CLAIMED, claimed), (State.DEAD, dead)):
        totals = select(by_destination, func.count()).where(condition, *mine).group_by(by_destination)
        for name, total in connection.execute(totals).all():
            setattr(found[name], state.value, total)
    return dict(found)


def spooled(connection: Connection) -> tuple[int, int]:
    """Files at rest in the spool and their bytes, by their rows."""
    statement = select(func.count(), func.coalesce(func.sum(file.c.size), 0)).where(file.c.freed_at.is_(None))
    files, size = connection.execute(statement).one()
    return int(files), int(size)


def standings(connection: Connection) -> Sequence[RowMapping]:
    """Every destination's row: whether it is stopped, by whom and why."""
    columns = ("name", "stop", "stop_text", "stopped_by", "stopped_at", "open_until", "failures")
    return connection.execute(select(*(destination.c[name] for name in columns))).mappings().all()


class Beating(NamedTuple):
    """A worker that nobody has declared gone."""

    id: str
    host: str
    pid: int
    beat_at: datetime
    serves: frozenset[str] | None  #: None for one that does not say: of an older version
    version: str | None

    def serving(self, name: str) -> bool:
        """Whether it delivers to a destination."""
        return self.serves is None or name in self.serves


def workers(connection: Connection) -> list[Beating]:
    """Every worker that nobody has declared gone."""
    columns = (worker.c.id, worker.c.host, worker.c.pid, worker.c.beat_at, worker.c.serves, worker.c.version)
    rows = connection.execute(select(*columns).where(worker.c.gone.is_(False)).order_by(worker.c.started_at, worker.c.id))
    return [
        Beating(row.id, row.host, row.pid, row.beat_at, frozenset(row.serves.split()) if row.serves else None, row.version)
        for row in rows
    ]


def left_behind(connection: Connection) -> int:
    """Unfinished deliveries whose worker is gone, or has no row at all."""
    living = select(worker.c.id).where(worker.c.gone.is_(False))
    left = (delivery.c.finished_at.is_(None), delivery.c.worker.not_in(living))
    return int(connection.execute(select(func.count()).where(*left)).scalar_one())


def clock(connection: Connection) -> datetime:
    """Postgres: what time the server has."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


_PRAGMAS = ("journal_mode", "synchronous", "auto_vacuum", "page_size", "page_count", "freelist_count")


def pragmas(connection: Connection) -> dict[str, Any]:
    """SQLite: how it is set, as our connections see it; and its version."""
    said = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in _PRAGMAS}
    return said | {"version": connection.exec_driver_sql("SELECT sqlite_version()").scalar_one()}


def unsound(connection: Connection, *, quick: bool = False) -> list[str]:
    """SQLite: what its own check finds wrong, a hundred faults at most; `quick` does not compare indexes with tables."""
    pragma = "quick_check" if quick else "integrity_check"
    return [str(row[0]) for row in connection.exec_driver_sql(f"PRAGMA {pragma}") if row[0] != "ok"]


def dangling(connection: Connection) -> dict[tuple[str, str], int]:
    """SQLite: how many rows of a table refer to a row of another that is not there."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        found[(str(row[0]), str(row[2]))] += 1
    return dict(found)


#: Every table and index that SQLite knows of, and how it was defined.
DEFINITIONS = "SELECT name, type, tbl_name, sql FROM sqlite_schema"


def definitions(connection: Connection) -> dict[str, str]:
    """SQLite: how the tables and indexes of this database are defined, by name."""
    return defined(connection.exec_driver_sql(DEFINITIONS))


def defined(rows: Iterable[Any]) -> dict[str, str]:
    """Definitions by name, whatever the blanks in them."""
    return {str(row[0]): " ".join(" ".join(map(str, row[1:])).split()) for row in rows}


def checksums(connection: Connection) -> bool:
    """Postgres: whether it would notice a page that changed on the disk."""
    return bool(connection.execute(text("SHOW data_checksums")).scalar_one() == "on")


class Users(NamedTuple):
    """A message that a file belongs to."""

    id: int
    key: str
    destination: str
    state: str


def users_of(connection: Connection, name: str, limit: int) -> list[Users]:
    """Messages that a spooled file belongs to, those that may yet be sent first."""
    columns: list[Any] = [type_coerce(message.c[each], NullType()) for each in Users._fields]
    statement = select(*columns).join(attachment, attachment.c.message_id == message.c.id).where(attachment.c.file == name)
    last = message.c.state.in_([State.DELIVERED, State.CANCELLED])
    return [Users(*tuple(row)) for row in connection.execute(statement.order_by(last, message.c.id).limit(limit))]


def messages_of(connection: Connection, name: str, limit: int) -> list[int]:
    """The ids of messages that a spooled file belongs to, without a look at themselves."""
    statement = select(attachment.c.message_id).where(attachment.c.file == name).order_by(attachment.c.message_id)
    return list(connection.execute(statement.limit(limit)).scalars())


def vouched(connection: Connection, names: Collection[str]) -> set[str]:
    """Of these names, those whose bytes a row says are in the spool."""
    statement = select(file.c.name).where(file.c.name.in_(names), file.c.freed_at.is_(None))
    return set(connection.execute(statement).scalars())


def some_files(connection: Connection, limit: int) -> dict[str, int]:
    """Spooled files that are in the spool by their rows, with their sizes: the oldest and the newest."""
    found: dict[str, int] = {}
    for order in (file.c.name, file.c.name.desc()):  # names begin with the time
        statement = select(file.c.name, file.c.size).where(file.c.freed_at.is_(None)).order_by(order).limit(limit)
        found |= {row.name: row.size for row in connection.execute(statement)}
    return found


def count(connection: Connection, table: Table) -> int:
    """How many rows a table has."""
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


#: A row as it lies there, its columns by name: no type has looked at it, for it may be damaged.
Raw = dict[str, Any]


def page(
    connection: Connection, table: Table, after: tuple[Any, ...] | None, limit: int, destination_name: str | None = None
) -> list[Raw]:
    """The next rows of a table in the order of its primary key; of one destination's, where a table can tell."""
    columns = [each for each in table.c if not isinstance(each.type, LargeBinary)]
    key = list(table.primary_key.columns)
    statement = select(*(type_coerce(each, NullType()).label(each.name) for each in columns)).select_from(table)
    if after is not None:
        statement = statement.where(_beyond(key, after))
    if destination_name is not None:
        statement = statement.where(_of_destination(table, destination_name))
    rows = connection.execute(statement.order_by(*key).limit(limit)).mappings()
    return [dict(row) for row in rows]


def raw_row(connection: Connection, table: Table, key: tuple[Any, ...]) -> Raw | None:
    """One row as it lies there."""
    columns = [each for each in table.c if not isinstance(each.type, LargeBinary)]
    same = [each == value for each, value in zip(table.primary_key.columns, key, strict=True)]
    statement = select(*(type_coerce(each, NullType()).label(each.name) for each in columns)).where(*same)
    row = connection.execute(statement).mappings().one_or_none()
    return dict(row) if row is not None else None


def _beyond(key: Sequence[Column[Any]], after: tuple[Any, ...]) -> ColumnElement[bool]:
    if len(key) == 1:
        condition: ColumnElement[bool] = key[0] > after[0]
        return condition
    return tuple_(*key) > tuple_(*after)


def _of_destination(table: Table, name: str) -> ColumnElement[bool]:
    if table is file:
        mine = (attachment.c.file == file.c.name, attachment.c.message_id == message.c.id, message.c.destination == name)
        return exists().where(*mine)
    condition: ColumnElement[bool] = table.c["name" if table is destination else "destination"] == name
    return condition


def attached(connection: Connection, ids: Collection[int]) -> dict[int, list[Raw]]:
    """The attachments of messages with what their files' rows say, as they lie there."""
    of_attachment = ("message_id", "name", "filename", "content_type", "file")
    columns = [type_coerce(attachment.c[each], NullType()).label(each) for each in of_attachment]
    columns += [type_coerce(file.c[each], NullType()).label(each) for each in ("size", "sha256", "freed_at")]
    joined = select(*columns).outerjoin(file, attachment.c.file == file.c.name)
    found: dict[int, list[Raw]] = defaultdict(list)
    rows = connection.execute(joined.where(attachment.c.message_id.in_(ids)).order_by(attachment.c.message_id))
    for row in rows.mappings():
        found[row["message_id"]].append(dict(row))
    return found


def contradicting(connection: Connection, table: Table, limit: int) -> list[tuple[Any, ...]]:
    """The keys of rows that break a CHECK of their table. SQLite itself does not look at CHECKs where it may only read."""
    checks = [f"NOT ({each.sqltext})" for each in table.constraints if isinstance(each, CheckConstraint)]
    if not checks:
        return []
    broken = text(" OR ".join(checks))
    key = [type_coerce(each, NullType()) for each in table.primary_key.columns]
    return [tuple(row) for row in connection.execute(select(*key).where(broken).limit(limit))]


def ordering_keys(connection: Connection, table: Table, ids: Collection[int]) -> dict[int, str]:
    """The ordering key of each of these streams, or shares."""
    if not ids:
        return {}
    statement = select(table.c.id, table.c.ordering_key).where(table.c.id.in_(ids))
    return {row.id: row.ordering_key for row in connection.execute(statement)}


def misplaced(connection: Connection, limit: int) -> list[int]:
    """Unfinished messages whose stream or share is another destination's, or whose stream ends before them."""
    wrong = or_(stream.c.destination != message.c.destination, stream.c.last_number < message.c.stream_number)
    other = select(message.c.id).join(stream, message.c.stream_id == stream.c.id).where(in_stream, wrong)
    shared = select(message.c.id).join(share, message.c.share_id == share.c.id)
    found: list[int] = []
    for statement in (other, shared.where(in_share, share.c.destination != message.c.destination)):
        found += connection.execute(statement.limit(limit)).scalars()
    return found
