"""Workers: beats, who is gone, and the deliveries they leave behind."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from outbox.model import Message
from outbox.statements import Ready, parameter
from outbox.tables import claimed, delivery, head, message, worker


class LeftBehind(NamedTuple):
    """A delivery that nobody holds any more, with the messages still claimed for it."""

    id: int
    destination: str
    worker: str
    size: int
    messages: tuple[Message, ...]


class Beat(NamedTuple):
    """What a worker sees with its beat; as a rule nothing is there, and nothing more need be asked."""

    stop_asked: bool  #: somebody asked it to end
    others: bool = True  #: there are other workers
    unfinished: bool = True  #: there are unfinished deliveries, anybody's
    stuck: bool = True  #: there are streams that may wait for somebody to let them go on


def register(
    connection: Connection,
    worker_id: str,
    host: str,
    pid: int,
    now: datetime,
    serves: Collection[str] = (),
    version: str | None = None,
    gone_after: float | None = None,
) -> None:
    """A worker's row; its identity is new at every start."""
    told = {"id": worker_id, "host": host[:255], "pid": pid, "serves": " ".join(serves) or None, "version": version}
    values = {"started_at": now, "beat": 0, "beat_at": now, "gone": False, "stop_asked": False, "gone_after": gone_after}
    connection.execute(insert(worker).values(told | values))


def beat(connection: Connection, worker_id: str, now: datetime, skipping: Collection[str] = ()) -> Beat | None:
    """Raise a worker's beat, and look around with the same statement; None when it was declared gone.

    `skipping` are destinations whose streams go on past the dead: one that stands there is stuck.
    """
    mine = {"worker": worker_id, "now": now}
    found = connection.execute(_raise_beat(skipping), mine) if skipping else _BEAT.run(connection, mine)
    row = found.one_or_none()
    return None if row is None else Beat(*(bool(each) for each in row))


def _raise_beat(skipping: Collection[str] = ()) -> Any:
    """Of `worker`, at `now`."""
    mine = bindparam("worker", type_=worker.c.id.type)
    other = worker.alias("other")
    claimed_by = select(head.c.stream_id).where(head.c.claimed_by.is_not(None))
    blocked = select(head.c.stream_id).where(head.c.blocked_by.is_not(None), head.c.destination.in_(skipping))
    looks = (
        select(other.c.id).where(other.c.gone.is_(False), other.c.id != mine).exists().label("others"),
        select(delivery.c.id).where(delivery.c.finished_at.is_(None)).exists().label("unfinished"),
        (or_(claimed_by.exists(), blocked.exists()) if skipping else claimed_by.exists()).label("stuck"),
    )
    values = {"beat": worker.c.beat + 1, "beat_at": parameter(worker.c.beat_at, "now")}
    raised = update(worker).where(worker.c.id == mine, worker.c.gone.is_(False)).values(values)
    return raised.returning(worker.c.stop_asked, *looks)


#: It is what an idle worker does.
_BEAT = Ready(lambda _: _raise_beat())


def ask_to_stop(connection: Connection, ids: Collection[str] | None = None) -> list[str]:
    """Ask these workers, or all, to end as on SIGTERM; returns those that were there to be asked."""
    here = [worker.c.gone.is_(False)] if ids is None else [worker.c.gone.is_(False), worker.c.id.in_(ids)]
    # Locked in one order first: workers that beat meanwhile are single rows, and wait for nothing else.
    mine = list(connection.execute(select(worker.c.id).where(*here).order_by(worker.c.id).with_for_update()).scalars())
    connection.execute(update(worker).where(worker.c.id.in_(mine)).values(stop_asked=True))
    return mine


def stop_asked(connection: Connection, worker_id: str) -> bool:
    """Whether somebody has asked a worker to end."""
    return bool(connection.execute(select(worker.c.stop_asked).where(worker.c.id == worker_id)).scalar_one_or_none())


def leave(connection: Connection, worker_id: str) -> None:
    """A worker that ends in order says so itself."""
    connection.execute(update(worker).where(worker.c.id == worker_id).values(gone=True))


def beats(connection: Connection) -> dict[str, int]:
    """The beat of every worker that is not gone."""
    rows = connection.execute(select(worker.c.id, worker.c.beat).where(worker.c.gone.is_(False)))
    return {row.id: row.beat for row in rows}


def declare_gone(connection: Connection, worker_id: str, seen: int) -> bool:
    """Declare a worker gone if its beat is still the one that was seen.

    One that has a transaction open at this moment is passed over: waiting for it, if it stands still, would stop our own beats.
    """
    still = (worker.c.id == worker_id, worker.c.beat == seen, worker.c.gone.is_(False))
    if connection.execute(select(worker.c.id).where(*still).with_for_update(skip_locked=True)).one_or_none() is None:
        return False
    return connection.execute(update(worker).where(*still).values(gone=True)).rowcount == 1


def deliveries_of_the_gone(connection: Connection, names: Collection[str], limit: int) -> list[int]:
    """Unfinished deliveries to these destinations whose worker is gone, or has no row at all."""
    alive = select(worker.c.id).where(worker.c.gone.is_(False))
    left = (delivery.c.finished_at.is_(None), delivery.c.worker.not_in(alive), delivery.c.destination.in_(names))
    statement = select(delivery.c.id).where(*left)
    # In the order of the small index of unfinished deliveries: in that of the ids, SQLite would walk all there ever were.
    return list(connection.execute(statement.order_by(delivery.c.worker, delivery.c.id).limit(limit)).scalars())


def deliveries_of(connection: Connection, worker_id: str) -> list[int]:
    """Unfinished deliveries of a worker."""
    mine = (delivery.c.finished_at.is_(None), delivery.c.worker == worker_id)
    return list(connection.execute(select(delivery.c.id).where(*mine).order_by(delivery.c.worker, delivery.c.id)).scalars())


def left_behind(connection: Connection, ids: Collection[int]) -> list[LeftBehind]:
    """Unfinished deliveries with the messages that are still claimed for them."""
    told = (delivery.c.id, delivery.c.destination, delivery.c.worker, delivery.c.messages)
    open_ones = connection.execute(select(*told).where(delivery.c.id.in_(ids), delivery.c.finished_at.is_(None)))
    found = []
    for row in open_ones.all():
        # claimed_by goes first: it is what the small index of claimed messages is on.
        held = (message.c.claimed_by == row.worker, claimed, message.c.delivery_id == row.id)
        columns = ("id", "key", "attempt", "failures", "unknowns", "batch_limit", "suspect", "traceparent")
        statement = select(*(message.c[name] for name in columns)).where(*held).order_by(message.c.id)
        messages = tuple(
            Message(text="", size=0, file_bytes=0, **each) for each in connection.execute(statement).mappings().all()
        )
        found.append(LeftBehind(row.id, row.destination, row.worker, row.messages, messages))
    return found
