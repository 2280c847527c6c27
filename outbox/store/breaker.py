"""A destination's row: its breaker, its rate and the size it taught us, shared by every worker."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, and_, func, select, update

from outbox.dialects import insert_or_nothing
from outbox.limits import Bucket, Learned, Traffic
from outbox.model import Lane
from outbox.patience import Breaker, Stop
from outbox.statements import Ready, parameter
from outbox.tables import delivery, destination, read_instant


class Standing(NamedTuple):
    """Everything that a destination's row says about how it is to be treated now."""

    breaker: Breaker
    bucket: Bucket
    learned: Learned


def declare(connection: Connection, names: Iterable[str]) -> None:
    """Give each destination its row."""
    for name in sorted(names):
        connection.execute(insert_or_nothing(connection, destination).values(name=name))


def try_again(connection: Connection, names: Iterable[str], now: datetime) -> None:
    """Let destinations that refused our credentials, or every message, be probed now: a new worker may come with the remedy."""
    stopped = destination.c.stop.in_([Stop.CREDENTIALS, Stop.REJECT_STREAK])
    mended = update(destination).where(destination.c.name.in_(list(names)), stopped)
    connection.execute(mended.values(open_until=now))


def standing(connection: Connection, name: str, *, lock: bool = False) -> Standing:
    """A destination's row; with `lock`, nobody changes it before this transaction ends."""
    row = (_LOCKED if lock else _SEEN).run(connection, {"name": name}).one_or_none()
    return Standing(Breaker(), Bucket(), Learned()) if row is None else standing_of(row)


#: The columns that `standing_of` reads.
STANDING = tuple(
    destination.c[name]
    for name in (
        "failures",
        "open_until",
        "stop",
        "reject_streak",
        "ramp",
        "rate_tokens",
        "rate_at",
        "learned_bytes",
        "learned_at",
    )
)


def _standing(_: Connection) -> Select[Any]:
    return select(*STANDING).where(destination.c.name == parameter(destination.c.name))


_SEEN, _LOCKED = Ready(_standing), Ready(lambda connection: _standing(connection).with_for_update())


def standing_of(row: Row[Any]) -> Standing:
    """A destination's row as a driver has it; of one that has none, all that is in it is None."""
    if row.failures is None:
        return Standing(Breaker(), Bucket(), Learned())
    stop, instants = Stop(row.stop) if row.stop else None, map(read_instant, (row.open_until, row.rate_at, row.learned_at))
    open_until, rate_at, learned_at = instants
    breaker = Breaker(row.failures, open_until, stop, row.reject_streak, row.ramp)
    return Standing(breaker, Bucket(row.rate_tokens, rate_at), Learned(row.learned_bytes, learned_at))


def hold(connection: Connection, name: str) -> bool:
    """Lock a destination's row until this transaction ends, unless somebody else has; whether it is ours."""
    statement = select(destination.c.name).where(destination.c.name == name).with_for_update(skip_locked=True)
    return connection.execute(statement).one_or_none() is not None


def read(connection: Connection, name: str, *, lock: bool = False) -> Breaker:
    """A destination's persisted patience; with `lock`, nobody changes it before this transaction ends."""
    return standing(connection, name, lock=lock).breaker


def move(
    connection: Connection,
    name: str,
    seen: Breaker,
    new: Breaker,
    now: datetime,
    text: str | None = None,
) -> bool:
    """Change a destination's patience if it is still as it was seen: of several who try, one wins.

    `text` says why; it is kept with a stop, and the latest is.
    """
    same = and_(
        destination.c.name == name,
        destination.c.failures == seen.failures,
        destination.c.open_until.is_not_distinct_from(seen.open_until),
        destination.c.stop.is_not_distinct_from(seen.stop),
        destination.c.reject_streak == seen.reject_streak,
        destination.c.ramp.is_not_distinct_from(seen.ramp),
    )
    change: dict[str, Any] = {
        "failures": new.failures,
        "open_until": new.open_until,
        "stop": new.stop,
        "reject_streak": new.reject_streak,
        "ramp": new.ramp,
    }
    if new.stop is not seen.stop:
        change["stopped_at"] = now if new.stop else None
        change["stop_text"] = text if new.stop else None
        change["stopped_by"] = "outbox" if new.stop else None
    elif new.stop in (Stop.CREDENTIALS, Stop.REJECT_STREAK) and text is not None:
        change["stop_text"] = text  # what is wrong may be something else by now
    return connection.execute(update(destination).where(same).values(change)).rowcount == 1


def stop(connection: Connection, name: str, new: Breaker, now: datetime, text: str, by: str) -> None:
    """Stop a destination, locked here, for a person: also one that is stopped already, with the new words."""
    change = {"stop": new.stop, "stopped_at": now, "stop_text": text, "stopped_by": by}
    connection.execute(update(destination).where(destination.c.name == name).values(change))


def save_bucket(connection: Connection, name: str, bucket: Bucket) -> None:
    """Keep what the rate has left; the destination is locked here."""
    change = {"rate_tokens": bucket.tokens, "rate_at": bucket.at}
    connection.execute(update(destination).where(destination.c.name == name).values(change))


def save_learned(connection: Connection, name: str, learned: Learned) -> None:
    """Keep the size that a destination taught us; it is locked here."""
    change = {"learned_bytes": learned.size, "learned_at": learned.at}
    connection.execute(update(destination).where(destination.c.name == name).values(change))


def traffic(connection: Connection, name: str, *, probes: bool = False) -> Traffic:
    """Uploads to a destination, or only the probes of it, that are under way in the whole fleet.

    Those of a worker that died are until they are taken back.
    """
    # Not by its name as it is: SQLite would walk every delivery there ever was to the destination, along the index of those.
    of_it = delivery.c.destination.concat("") == name
    under_way = [delivery.c.finished_at.is_(None), of_it, *([delivery.c.probe] if probes else [])]
    counted = select(delivery.c.lane, func.count()).where(*under_way).group_by(delivery.c.lane)
    lanes = {lane: int(count) for lane, count in connection.execute(counted).all()}
    large = lanes.pop(Lane.LARGE, 0)
    return Traffic(sum(lanes.values()), large)
