"""A destination's breaker: its persisted patience, shared by every worker."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, select, update

from outbox.database import insert_or_nothing
from outbox.policy import Breaker, Stop
from outbox.tables import destination


def declare(connection: Connection, names: Iterable[str]) -> None:
    """Give each destination its row."""
    for name in sorted(names):
        connection.execute(insert_or_nothing(connection, destination).values(name=name))


def try_again(connection: Connection, names: Iterable[str], now: datetime) -> None:
    """Let destinations that refused our credentials be probed now: whoever starts a worker may have mended them."""
    refused = (destination.c.name.in_(list(names)), destination.c.stop == Stop.CREDENTIALS)
    connection.execute(update(destination).where(*refused).values(open_until=now))


def read(connection: Connection, name: str, *, lock: bool = False) -> Breaker:
    """A destination's persisted patience; with `lock`, nobody changes it before this transaction ends."""
    columns = (destination.c.failures, destination.c.open_until, destination.c.stop)
    statement = select(*columns).where(destination.c.name == name)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        return Breaker()
    return Breaker(row.failures, row.open_until, Stop(row.stop) if row.stop else None)


def move(connection: Connection, name: str, seen: Breaker, new: Breaker, now: datetime, text: str | None = None) -> bool:
    """Change a destination's patience if it is still as it was seen: of several who try, one wins."""
    same = and_(
        destination.c.name == name,
        destination.c.failures == seen.failures,
        destination.c.open_until.is_not_distinct_from(seen.open_until),
        destination.c.stop.is_not_distinct_from(seen.stop),
    )
    change: dict[str, Any] = {"failures": new.failures, "open_until": new.open_until, "stop": new.stop}
    if new.stop is not seen.stop:
        change["stopped_at"] = now if new.stop else None
        change["stop_text"] = text if new.stop else None
        change["stopped_by"] = "outbox" if new.stop else None
    return connection.execute(update(destination).where(same).values(change)).rowcount == 1
