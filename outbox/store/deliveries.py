"""Deliveries: each upload request has a row, from before its first byte until it is known how it ended."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, case, exists, func, or_, select

from outbox.dialects import fresh_id, insert_or_overwrite, listed
from outbox.model import Lane, Outcome
from outbox.statements import Ready, document, parameter
from outbox.store.claiming import Waiting
from outbox.tables import delivery
from outbox.verdict import Facts

_SIZE, _FILE_BYTES = operator.attrgetter("size"), operator.attrgetter("file_bytes")


class Start(NamedTuple):
    """One upload request that is about to begin."""

    lane: Lane
    taken: Sequence[Waiting]
    probe: bool = False

    @property
    def bytes(self) -> int:
        return int(sum(map(_SIZE, self.taken)) + sum(map(_FILE_BYTES, self.taken)))


class Ended(NamedTuple):
    """A delivery that is over."""

    id: int
    outcome: Outcome
    facts: Facts


def start(connection: Connection, name: str, worker_id: str, starts: Sequence[Start], now: datetime) -> dict[int, Start]:
    """The rows of upload requests, committed before their first bytes are sent; by id."""
    return end_and_start(connection, name, worker_id, (), starts, now)


def end(connection: Connection, name: str, worker_id: str, ended: Sequence[Ended], now: datetime) -> set[int]:
    """End deliveries, each once; the ids of those that nobody else has ended."""
    return {row.id for row in _write(connection, name, worker_id, ended, (), now)}


def end_and_start(
    connection: Connection, name: str, worker_id: str, ended: Sequence[Ended], starts: Sequence[Start], now: datetime
) -> dict[int, Start]:
    """Both in one statement: end deliveries, each once, and begin others; those that begin, by id."""
    # Nobody promises that what comes back is in the order of what was given.
    left = [((each.lane, len(each.taken), each.bytes), each) for each in starts]
    begun = {}
    for row in _write(connection, name, worker_id, ended, starts, now):
        if row.finished_at is None:
            mine = next(each for each in left if each[0] == (row.lane, row.messages, row.bytes))
            left.remove(mine)
            begun[int(row.id)] = mine[1]
    return begun


_BEGINS = tuple(delivery.c[name] for name in ("lane", "messages", "bytes", "probe"))
_ENDS = tuple(delivery.c[name] for name in ("outcome", "status", "code", "text", "request_id", "answer"))
#: A row that is there already has all of this: an INSERT wants it nevertheless, before it finds that out.
_BEGUN_LONG_AGO = (Lane.NORMAL.value, 0, 0, False)
_GOING_ON = (None,) * len(_ENDS)


def _write(
    connection: Connection, name: str, worker_id: str, ended: Sequence[Ended], starts: Sequence[Start], now: datetime
) -> list[Row[Any]]:
    rows: list[tuple[Any, ...]] = [
        (each.id, *_BEGUN_LONG_AGO, each.outcome.value, facts.status, facts.code, facts.text, facts.request_id, facts.answer)
        for each in sorted(ended, key=lambda each: each.id)
        for facts in (each.facts,)
    ]
    rows += [(None, each.lane.value, len(each.taken), each.bytes, each.probe, *_GOING_ON) for each in starts]
    values = {"destination": name, "worker": worker_id, "now": now, "rows": document((delivery.c.id, *_BEGINS, *_ENDS), rows)}
    return sorted(_WRITE.run(connection, values).all(), key=lambda row: int(row.id))


def _upsert(connection: Connection) -> Any:
    """Rows without an id begin; of the others those end that have not. An open one is never purged, so it is still there."""
    given = listed(connection, "rows", (delivery.c.id, *_BEGINS, *_ENDS)).c
    now = parameter(delivery.c.started_at, "now")
    still_open = exists().where(delivery.c.id == given.id, delivery.c.finished_at.is_(None))
    values = {
        "id": func.coalesce(given.id, fresh_id(connection, delivery.c.id)),
        **{each.name: parameter(each) for each in (delivery.c.destination, delivery.c.worker)},
        "started_at": now,
        **{each.name: given[each.name] for each in (*_BEGINS, *_ENDS)},
        "finished_at": case((given.outcome.is_not(None), now)),
    }
    found = select(*values.values()).where(or_(given.id.is_(None), still_open))
    ends = [each.name for each in (*_ENDS, delivery.c.finished_at)]
    upsert = insert_or_overwrite(connection, delivery, ["id"], ends, where=delivery.c.finished_at.is_(None))
    columns = (delivery.c.id, delivery.c.lane, delivery.c.messages, delivery.c.bytes, delivery.c.finished_at)
    return upsert.from_select(list(values), found).returning(*columns)


_WRITE = Ready(_upsert)
