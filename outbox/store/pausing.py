"""Ordering keys that a person has paused: their messages wait, whether or not their order matters."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, and_, delete, func, select

from outbox.dialects import insert_or_update
from outbox.model import Pause
from outbox.tables import pause, stream

_COLUMNS = tuple(pause.c[name] for name in Pause.__dataclass_fields__)


def write(connection: Connection, name: str, new: Pause) -> None:
    """Hold back the messages of an ordering key, from the next claim on; of one that is paused already, with these words."""
    key = {"destination": name, "ordering_key": new.ordering_key}
    told = {"paused_at": new.paused_at, "paused_by": new.paused_by, "text": new.text}
    connection.execute(insert_or_update(connection, pause, list(key), told).values(key | told))


def lift(connection: Connection, name: str, ordering_key: str) -> bool:
    """Let the messages of an ordering key go on; False when it was not paused."""
    mine = (pause.c.destination == name, pause.c.ordering_key == ordering_key)
    return connection.execute(delete(pause).where(*mine)).rowcount > 0


def of_key(connection: Connection, name: str, ordering_key: str) -> Pause | None:
    """The pause of an ordering key."""
    mine = (pause.c.destination == name, pause.c.ordering_key == ordering_key)
    row = connection.execute(select(*_COLUMNS).where(*mine)).one_or_none()
    return Pause(*row) if row is not None else None


def of_destination(connection: Connection, name: str, limit: int) -> list[Pause]:
    """The pauses of a destination's ordering keys, the longest paused first."""
    mine = select(*_COLUMNS).where(pause.c.destination == name).order_by(pause.c.paused_at, pause.c.ordering_key)
    return [Pause(*row) for row in connection.execute(mine.limit(limit))]


def keys_of(name: str) -> Select[Any]:
    """A destination's ordering keys that are paused."""
    return select(pause.c.ordering_key).where(pause.c.destination == name)


def counted(connection: Connection) -> dict[str, int]:
    """How many ordering keys are paused, by destination."""
    counts = select(pause.c.destination, func.count()).group_by(pause.c.destination)
    return {name: count for name, count in connection.execute(counts).all()}  # noqa: C416 (rows are no pairs to mypy)


def streams_of(name: str) -> Select[Any]:
    """The streams of a destination that are paused: few, so that a claim asks for them once, and not for each it looks at."""
    same = and_(stream.c.destination == pause.c.destination, stream.c.ordering_key == pause.c.ordering_key)
    return select(stream.c.id).join(pause, same).where(pause.c.destination == name)
