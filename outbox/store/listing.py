"""Lists, newest first: messages of a selection, deliveries, workers; quick among millions, where an index can help."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, func, or_, select

from outbox.model import Outcome, Reason, Selection, State
from outbox.store import looking, selecting
from outbox.tables import claimed, dead, delivery, in_share, in_stream, loose, message, pending, share, stream, worker

#: Up to so many candidates that an index names are sorted; of more, the newest are soon found by walking back.
_FEW = 10_000
#: By so much the clocks that wrote the rows may have been put back since.
_LEEWAY = timedelta(days=1)
#: Beyond every id.
_NEVER = 2**62


def messages(connection: Connection, selection: Selection, limit: int) -> Sequence[RowMapping]:
    """Messages of a selection, newest first; its own limit is not minded."""
    wanted = _by_ids(connection, _about_the_dead(selection))
    if wanted is None:
        return []
    conditions = _walking(connection, wanted)
    few = _few(connection, wanted)
    if few is not None:
        conditions.append(message.c.id.in_(few))
    columns = [column for column in message.c if column.name not in ("payload", "digest")]
    statement = select(*columns, looking.WITH_ORDERING_KEY).select_from(looking.ORDERED_BY).where(*conditions)
    return connection.execute(statement.order_by(message.c.id.desc()).limit(limit)).mappings().all()


class Deliveries(NamedTuple):
    """Which deliveries are meant: all that fit everything given."""

    destination: str | None = None
    outcome: Outcome | None = None
    under_way: bool = False
    since: datetime | None = None
    until: datetime | None = None


def deliveries(connection: Connection, wanted: Deliveries, limit: int) -> Sequence[RowMapping]:
    """Deliveries, newest first."""
    begun = []
    if wanted.since is not None:
        # So that a walk back ends there. Ids are in the order of time, but for clocks that were set.
        first = looking.first_since(connection, delivery.c.id, delivery.c.started_at, wanted.since - _LEEWAY)
        begun += [delivery.c.started_at >= wanted.since, delivery.c.id >= (_NEVER if first is None else first)]
    if wanted.until is not None:
        begun.append(delivery.c.started_at < wanted.until)
    parts = [
        connection.execute(select(delivery).where(*part, *begun).order_by(delivery.c.id.desc()).limit(limit)).mappings().all()
        for part in _parts(connection, wanted)
    ]
    return sorted(itertools.chain(*parts), key=lambda row: -row["id"])[:limit]


def _parts(connection: Connection, wanted: Deliveries) -> Iterator[list[ColumnElement[bool]]]:
    """The deliveries wanted in parts, each of which an index has in the order of ids."""
    if wanted.under_way:
        # Few at any time, and in a small index of their own.
        open_ones = select(delivery.c.id).where(delivery.c.finished_at.is_(None))
        among: list[ColumnElement[bool]] = [delivery.c.id.in_(list(connection.execute(open_ones).scalars()))]
        if wanted.destination is not None:
            among.append(delivery.c.destination.concat("") == wanted.destination)
        yield among
    elif wanted.destination is None and wanted.outcome is None:
        yield []
    else:
        names = [wanted.destination] if wanted.destination is not None else _destinations(connection)
        outcomes = [wanted.outcome] if wanted.outcome is not None else [*Outcome, None]
        for name, outcome in itertools.product(names, outcomes):
            yield [delivery.c.destination == name, delivery.c.outcome == outcome]


def _destinations(connection: Connection) -> list[str]:
    """Every destination that a delivery was for: one step each along an index."""
    found: list[str] = []
    first = select(func.min(delivery.c.destination))
    name = connection.execute(first).scalar_one()
    while name is not None:
        found.append(name)
        name = connection.execute(first.where(delivery.c.destination > name)).scalar_one()
    return found


def delivery_of(connection: Connection, delivery_id: int) -> RowMapping | None:
    """One delivery."""
    return connection.execute(select(delivery).where(delivery.c.id == delivery_id)).mappings().one_or_none()


def workers(connection: Connection, *, gone: bool) -> Sequence[RowMapping]:
    """Workers with what they hold, the latest first; the gone ones only when asked for."""
    claims = select(message.c.claimed_by, func.count().label("claims")).where(claimed).group_by(message.c.claimed_by).subquery()
    under_way = select(delivery.c.worker, func.count().label("deliveries")).where(delivery.c.finished_at.is_(None))
    sending = under_way.group_by(delivery.c.worker).subquery()
    held = (func.coalesce(claims.c.claims, 0).label("claims"), func.coalesce(sending.c.deliveries, 0).label("deliveries"))
    statement = select(worker, *held).outerjoin(claims, claims.c.claimed_by == worker.c.id)
    statement = statement.outerjoin(sending, sending.c.worker == worker.c.id)
    if not gone:
        statement = statement.where(worker.c.gone.is_(False))
    return connection.execute(statement.order_by(worker.c.started_at.desc(), worker.c.id)).mappings().all()


def _about_the_dead(selection: Selection) -> Selection:
    """Only the dead have a reason: once that is said, the indexes over the dead serve."""
    if not selection.reasons or selection.states:
        return selection
    return replace(selection, states=(State.DEAD,))


def _by_ids(connection: Connection, selection: Selection) -> Selection | None:
    """The selection with ids in place of keys, which are only quick to find with their destinations; None for no message."""
    if not selection.keys:
        return selection
    names = [selection.destination] if selection.destination else looking.destinations_of_messages(connection)
    found = select(message.c.id).where(message.c.destination.in_(names), message.c.key.in_(selection.keys))
    ids = (*selection.ids, *connection.execute(found).scalars())
    return replace(selection, ids=ids, keys=()) if ids else None


def _walking(connection: Connection, selection: Selection) -> list[ColumnElement[bool]]:
    """The conditions, so said that a walk back from the newest is not given up for an index that must then be sorted."""
    conditions = selecting.conditions(replace(selection, ids=(), destination=None, ordering_key=None))
    if set(selection.states) == {State.DEAD}:
        conditions.append(dead)  # said as the index over the dead says it: SQLite takes no other words for it
    if selection.ids:
        conditions.append(message.c.id.in_(selection.ids))
    if selection.destination is not None:
        conditions.append(message.c.destination.concat("") == selection.destination)
    if selection.ordering_key is not None:
        conditions.append(_ordered_by(connection, selection))
    return conditions


def _ordered_by(connection: Connection, selection: Selection) -> ColumnElement[bool]:
    """The messages of an ordering key. Its streams and shares are looked up first: a walk must not ask for each message."""
    names = [selection.destination] if selection.destination else looking.destinations_of_messages(connection)
    found = []
    for table, column in ((stream, message.c.stream_id), (share, message.c.share_id)):
        mine = select(table.c.id).where(table.c.destination.in_(names), table.c.ordering_key == selection.ordering_key)
        found.append(column.in_(list(connection.execute(mine).scalars())))
    return or_(*found)


def _few(connection: Connection, selection: Selection) -> list[int] | None:
    """The ids of the messages that can be meant, where an index says that they are few."""
    if selection.ids:
        return None  # they are among the conditions
    lookups = _lookups(connection, selection)
    found: list[int] = []
    for statement in lookups:
        found.extend(connection.execute(statement.limit(_FEW + 1 - len(found))).scalars().all())
        if len(found) > _FEW:
            return None
    return found if lookups else None


def _lookups(connection: Connection, selection: Selection) -> list[Select[Any]]:
    """Statements that together name every message that can be meant, each from an index that has all it asks for."""
    states = set(selection.states or State)
    mine = [message.c.destination == selection.destination] if selection.destination is not None else []
    found: list[list[ColumnElement[bool]]] = []
    if states <= {State.PENDING, State.CLAIMED, State.DEAD}:
        if State.PENDING in states:
            found += [[pending, loose, *mine], [pending, in_stream], [in_share]]
        if State.CLAIMED in states:
            found.append([claimed])
        if State.DEAD in states:
            found += [[dead, *each] for each in _among_the_dead(connection, selection)]
    elif mine:
        found.append(mine)
    return [select(message.c.id).where(*conditions) for conditions in found]


def _among_the_dead(connection: Connection, selection: Selection) -> list[list[ColumnElement[bool]]]:
    """What of a selection the index over the dead can answer: time comes third in it, after destination and reason."""
    narrow = replace(selection, ids=(), keys=(), ordering_key=None, text=None, states=(State.DEAD,))
    if narrow.since is None and narrow.until is None:
        return [selecting.conditions(narrow)]
    names = [narrow.destination] if narrow.destination is not None else looking.destinations_of_messages(connection)
    each = itertools.product(names, narrow.reasons or tuple(Reason))
    return [selecting.conditions(replace(narrow, destination=name, reasons=(reason,))) for name, reason in each]
