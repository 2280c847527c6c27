"""What comes next: whether anything is due to a destination, and when the first thing will be, in one statement for all."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, bindparam, case, exists, func, select, true, union_all

from outbox.limits import Bucket, Learned
from outbox.model import Lane
from outbox.patience import Breaker, Stop
from outbox.store import shares, streams
from outbox.store.breaker import Standing
from outbox.tables import Instant, destination, expiring, has_come, head, loose, message, pending, share
from outbox.timekeeping import When

#: The lanes that the ordinary senders of a destination serve, and those of its large ones.
ORDINARY: tuple[Lane, ...] = (Lane.EXPRESS, Lane.NORMAL, Lane.BULK)
LARGE: tuple[Lane, ...] = (Lane.LARGE,)


class Next(NamedTuple):
    """What is next for a destination in some of its lanes: something now, or at that instant; None when nothing is there."""

    due: bool
    comes_at: datetime | None


class Ahead(NamedTuple):
    """How a destination stands, and what is next for it."""

    standing: Standing
    ordinary: Next
    large: Next
    expires_at: datetime | None  #: when the time of the first message is over that waits anywhere, if its clock was plausible


def look(connection: Connection, whens: Mapping[str, When]) -> dict[str, Ahead]:
    """What is next for each of these destinations; one that has no row is not among them."""
    given: dict[str, Any] = {}
    for number, (name, when) in enumerate(whens.items()):
        asked = {"name": name, "chosen": when.chosen, "invented": when.invented, "beyond": when.beyond}
        given |= {f"{each}_{number}": value for each, value in asked.items() if value is not None}
    rows = connection.execute(_statement(tuple(when.beyond is not None for when in whens.values())), given)
    return {row.name: _ahead(row) for row in rows}


@functools.cache
def _statement(beyond: tuple[bool, ...]) -> Any:
    """Made once: to make it takes longer than to ask it."""
    each = [_of_one(number, far) for number, far in enumerate(beyond)]
    return each[0] if len(each) == 1 else union_all(*each)


def _of_one(number: int, far: bool) -> Select[Any]:
    def asked(name: str) -> Any:
        return bindparam(f"{name}_{number}", type_=None if name == "name" else Instant())

    name = asked("name")
    invented = asked("invented")
    when = When(invented, asked("chosen"), invented, asked("beyond") if far else None)
    columns: list[ColumnElement[Any]] = []
    for kind, lanes in (("ordinary", ORDINARY), ("large", LARGE)):
        for lane in lanes:
            # The first of each lane's queue, and not whether there is any: then Postgres may choose to read the whole table.
            come = _of_lane(name, lane).where(has_come(message.c.due_at, message.c.scheduled, when))
            comes = _of_lane(name, lane).where(message.c.due_at > invented)
            columns += [come.scalar_subquery().label(f"{lane}_come"), comes.scalar_subquery().label(f"{lane}_comes")]
        ordered = exists().where(streams.due(name, lanes, when))
        unordered = exists().where(shares.due(name, lanes, when))
        going = and_(head.c.claimed_by.is_(None), head.c.blocked_by.is_(None))
        for table, mine, known in ((head, going, ordered), (share, true(), unordered)):
            waits = (table.c.destination == name, table.c.lane.in_(lanes), table.c.due_at > invented, mine)
            first = select(func.min(table.c.due_at)).where(*waits).scalar_subquery()
            # Where one is due the others are not asked: there may be many.
            columns += [known.label(f"{kind}_{table.name}_come"), case((~known, first)).label(f"{kind}_{table.name}_comes")]
    # Of any destination: in the order of their ends, the first of one may be behind a million others.
    ends = (expiring, message.c.clock_plausible)
    over = select(message.c.expires_at).where(*ends).order_by(message.c.expires_at).limit(1).scalar_subquery()
    return select(destination, *columns, over.label("expires_at")).where(destination.c.name == name)


def _of_lane(name: Any, lane: Lane) -> Select[Any]:
    mine = (message.c.destination == name, message.c.lane == lane, pending, loose)
    return select(message.c.due_at).where(*mine).order_by(message.c.due_at, message.c.id).limit(1)


def _ahead(row: Row[Any]) -> Ahead:
    breaker = Breaker(row.failures, row.open_until, Stop(row.stop) if row.stop else None, row.reject_streak, row.ramp)
    standing = Standing(breaker, Bucket(row.rate_tokens, row.rate_at), Learned(row.learned_bytes, row.learned_at))
    found = row._asdict()
    return Ahead(standing, _next(found, "ordinary", ORDINARY), _next(found, "large", LARGE), row.expires_at)


def _next(found: Mapping[str, Any], kind: str, lanes: Sequence[Lane]) -> Next:
    queues = (*lanes, f"{kind}_{head.name}", f"{kind}_{share.name}")
    instants = [found[f"{each}_comes"] for each in queues]
    due = any(found[f"{each}_come"] for each in queues)
    return Next(due, min((each for each in instants if each is not None), default=None))
