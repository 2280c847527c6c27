"""What a person does: which messages an act is for, what it would do, replay and cancel, and the audit of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from outbox.model import FINAL, Lane, Selection, State
from outbox.store import looking, selecting, shares
from outbox.tables import (
    Instant,
    attachment,
    audit,
    claimed,
    file,
    head,
    in_share,
    in_stream,
    loose,
    message,
    pending,
)
from outbox.verdict import cleaned

Action: TypeAlias = Literal["replay", "cancel", "purge"]

#: The states that a message may be in for each act.
FROM: dict[Action, frozenset[State]] = {
    "replay": FINAL,
    "cancel": frozenset({State.PENDING, State.DEAD}),
    "purge": FINAL,
}
#: And those whose messages are told when they are passed over: somebody may have meant them too.
_TOLD: dict[Action, tuple[State, ...]] = {
    "replay": (State.PENDING, State.CLAIMED),
    "cancel": (State.CLAIMED,),
    "purge": (State.PENDING, State.CLAIMED),
}
#: Each of them has a condition for every partial index it is in, so that what is over is never walked.
_COUNTED: dict[State, tuple[ColumnElement[bool], ...]] = {
    State.PENDING: (and_(pending, loose), and_(pending, in_stream), in_share),
    State.CLAIMED: (and_(claimed, message.c.claimed_by.is_not(None)),),
}
#: Names in one statement.
_TOGETHER = 500

_in_ids = message.c.id.in_(bindparam("ids", expanding=True))
_lost = exists().where(attachment.c.message_id == message.c.id, attachment.c.file == file.c.name, file.c.freed_at.is_not(None))


class Candidate(NamedTuple):
    """A message that an act may be for, as it was when nobody held it."""

    id: int
    stream_id: int | None
    share_id: int | None = None


class Page(NamedTuple):
    """Which candidates are looked up: so many, with an id after one and up to another, and among these."""

    after: int
    until: int
    limit: int
    among: tuple[int, ...] | None = None


class Chosen(NamedTuple):
    """Messages that an act is for, locked, and before them their streams; and what was passed over."""

    ids: list[int]
    with_files: list[int]  #: those of them that have attachments
    streams: dict[int, int]  #: those of them that are in a stream, with it
    shares: set[int]  #: those that they are in
    held: set[int]  #: streams that somebody else holds at this moment, whose messages were passed over


class Window(NamedTuple):
    """An act is for messages that came into their state before it began: none is taken twice, whatever became of it since.

    One that says it ended later than `now` was told so by a clock that was wrong, and did so before.
    """

    began: Any  #: both instants, or what stands for them in a statement
    now: Any


def named(connection: Connection, selection: Selection) -> list[int] | None:
    """The ids of the messages that a selection names, in order; None when it names none."""
    if not (selection.ids or selection.keys):
        return None
    ids, keys = set(selection.ids), sorted(set(selection.keys))
    names = [selection.destination] if selection.destination else looking.destinations_of_messages(connection)
    for first in range(0, len(keys), _TOGETHER):
        # With their destinations, or every message there is would be looked at.
        mine = (message.c.destination.in_(names), message.c.key.in_(keys[first : first + _TOGETHER]))
        ids.update(connection.execute(select(message.c.id).where(*mine)).scalars())
    return sorted(ids)


def bounds(connection: Connection) -> tuple[int, int]:
    """The ids of the first and of the last message."""
    ends = (select(each(message.c.id)).scalar_subquery() for each in (func.min, func.max))
    first, last = connection.execute(select(*ends)).one()
    return first or 0, last or 0


def candidates(
    connection: Connection, action: Action, selection: Selection, window: Window, page: Page, *, only_streams: bool = False
) -> list[Candidate]:
    """The messages of a selection, by id, that the act is for; `choose` looks at them again."""
    conditions = [message.c.id > page.after, message.c.id <= page.until, *_conditions(action, selection, window)]
    if page.among is not None:
        conditions.append(message.c.id.in_(page.among))
    if only_streams:
        conditions.append(message.c.stream_id.is_not(None))
    columns = (message.c.id, message.c.stream_id, message.c.share_id)
    found = select(*columns).where(*conditions).order_by(message.c.id).limit(page.limit)
    return [Candidate(*row) for row in connection.execute(found)]


def wait_for(connection: Connection, stream_id: int) -> None:
    """Wait until nobody else holds a stream. Of several none is waited for: a producer may hold one and wait for the other."""
    connection.execute(select(head.c.stream_id).where(head.c.stream_id == stream_id).with_for_update())


def choice(action: Action, selection: Selection) -> Select[Any]:
    """What `choose` asks, made once for an act: making it takes longer than asking it, and others wait meanwhile."""
    columns = (message.c.id, message.c.stream_id, message.c.share_id, message.c.files)
    window = Window(bindparam("began", type_=Instant), bindparam("now", type_=Instant))
    found = select(*columns).where(_in_ids, *_conditions(action, selection, window)).order_by(message.c.id)
    return found.with_for_update(skip_locked=True)


def choose(connection: Connection, choice: Select[Any], window: Window, among: Collection[Candidate]) -> Chosen:
    """Of these messages, those that the act is for now that they are locked; those that others hold are passed over."""
    wanted = {each.stream_id for each in among if each.stream_id is not None}
    free = select(head.c.stream_id).where(head.c.stream_id.in_(wanted)).order_by(head.c.stream_id)
    ours = set(connection.execute(free.with_for_update(skip_locked=True)).scalars()) if wanted else set()
    ids = [each.id for each in among if each.stream_id is None or each.stream_id in ours]
    rows = connection.execute(choice, {"ids": ids, **window._asdict()}).all() if ids else []
    return Chosen(
        [row.id for row in rows],
        [row.id for row in rows if row.files],
        {row.id: row.stream_id for row in rows if row.stream_id is not None},
        {row.share_id for row in rows if row.share_id is not None},
        wanted - ours,
    )


def _conditions(action: Action, selection: Selection, window: Window | None = None) -> list[ColumnElement[bool]]:
    found = selecting.conditions(selection, FROM[action], by_id=window is not None)
    if window is not None:
        since = selecting.instant(selecting.states_of(selection, FROM[action]))
        found.append(or_(since <= window.began, since > window.now))
    return found


@dataclass(frozen=True, slots=True)
class Preview:
    """What an act would be done to. Sizes in bytes."""

    messages: int = 0
    bytes: int = 0  #: of their text
    files: int = 0
    file_bytes: int = 0
    destinations: Mapping[str, int] = field(default_factory=dict)  #: messages of each
    oldest: datetime | None = None  #: since when the oldest has been in its state
    may_be_duplicates: int = 0  #: of a replay: delivered before, or tried without an answer
    lost_their_file: int = 0  #: of a replay: these would be passed over
    passed_over: Mapping[str, int] = field(default_factory=dict)  #: the others that are meant, by why they are none

    def __add__(self, other: Preview) -> Preview:
        return Preview(
            self.messages + other.messages,
            self.bytes + other.bytes,
            self.files + other.files,
            self.file_bytes + other.file_bytes,
            _added(self.destinations, other.destinations),
            min((each for each in (self.oldest, other.oldest) if each is not None), default=None),
            self.may_be_duplicates + other.may_be_duplicates,
            self.lost_their_file + other.lost_their_file,
            _added(self.passed_over, other.passed_over),
        )


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}


def preview(connection: Connection, action: Action, selection: Selection) -> Preview:
    """What the act would be done to. The dead are counted from an index alone."""
    ids = named(connection, selection)
    if ids is None:
        return _preview(connection, action, selection, None)
    total, what = Preview(), replace(selection, ids=(), keys=())
    for first in range(0, len(ids), _TOGETHER):
        left = None if selection.limit is None else selection.limit - total.messages
        if left == 0:
            break
        total += _preview(connection, action, replace(what, limit=left), ids[first : first + _TOGETHER])
    return total


def _preview(connection: Connection, action: Action, selection: Selection, among: Sequence[int] | None) -> Preview:
    conditions = _conditions(action, selection)
    if among is not None:
        conditions.append(message.c.id.in_(among))
    if selection.limit is not None:
        ends = _last_of(connection, action, conditions, selection.limit)
        conditions += [message.c.id <= ends] if ends is not None else []
    total = _weighed(connection, action, selection, conditions)
    if action == "replay" and total.files:
        without = _weighed(connection, action, selection, [*conditions, message.c.files > 0, _lost])
        total = _less(total, without)
    return total + Preview(passed_over=_others(connection, action, selection, among))


def _last_of(connection: Connection, action: Action, conditions: Sequence[ColumnElement[bool]], limit: int) -> int | None:
    """The last message that a limit lets through; None when there are fewer."""
    whole = [or_(message.c.files == 0, ~_lost)] if action == "replay" else []
    found = select(message.c.id).where(*conditions, *whole).order_by(message.c.id).offset(limit - 1).limit(1)
    return connection.execute(found).scalar_one_or_none()


def _weighed(
    connection: Connection, action: Action, selection: Selection, conditions: Sequence[ColumnElement[bool]]
) -> Preview:
    states = selecting.states_of(selection, FROM[action])
    twice: ColumnElement[Any] = literal(0)
    if action == "replay":
        # Of the dead alone nothing is read but their index, which does not have the state.
        again = or_(message.c.state == State.DELIVERED, message.c.unknowns > 0)
        twice = func.sum(case(((again if State.DELIVERED in states else message.c.unknowns > 0), 1), else_=0))
    # SQLite would walk an index over every message there is, only because it has them by destination; that of the dead has too.
    name = message.c.destination if states == {State.DEAD} else message.c.destination.concat("")
    columns = (func.sum(message.c[each]) for each in ("size", "files", "file_bytes"))
    grouped = select(name, func.count(), *columns, twice, func.min(selecting.instant(states))).where(*conditions).group_by(name)
    total = Preview()
    for destination, count, size, files, file_bytes, duplicates, oldest in connection.execute(grouped).all():
        total += Preview(count, int(size), int(files), int(file_bytes), {destination: count}, oldest, int(duplicates))
    return total


def _less(total: Preview, lost: Preview) -> Preview:
    left = {name: count - lost.destinations.get(name, 0) for name, count in total.destinations.items()}
    return Preview(
        total.messages - lost.messages,
        total.bytes - lost.bytes,
        total.files - lost.files,
        total.file_bytes - lost.file_bytes,
        {name: count for name, count in left.items() if count},
        total.oldest,
        total.may_be_duplicates - lost.may_be_duplicates,
        lost.messages,
    )


def _others(connection: Connection, action: Action, selection: Selection, among: Sequence[int] | None) -> dict[str, int]:
    """Messages of the selection in states that the act is not for; of many, without those that are over."""
    if among is not None:
        rest = selecting.conditions(selection, frozenset(State) - FROM[action])
        counted = select(message.c.state, func.count()).where(message.c.id.in_(among), *rest).group_by(message.c.state)
        return {str(state): count for state, count in connection.execute(counted).all()}
    found: dict[str, int] = {}
    for state in _TOLD[action]:
        if state not in selecting.states_of(selection):
            continue
        for condition in _COUNTED[state]:
            counted_too = select(func.count()).where(condition, *selecting.conditions(selection, {state}))
            found[state.value] = found.get(state.value, 0) + connection.execute(counted_too).scalar_one()
    return {name: count for name, count in found.items() if count}


_AFRESH = (
    update(message)
    .where(_in_ids)
    .values(
        {
            "state": State.PENDING,
            "reason": None,
            "reason_text": None,
            "failures": 0,
            "unknowns": 0,
            "faulted_in": None,
            "finished_at": None,
            "due_at": bindparam("at", type_=Instant),
            "scheduled": False,
            "expires_at": None,
            "suspect": False,
            "share_id": func.coalesce(shares.REPLAYED_IN, message.c.share_id),
            "replays": message.c.replays + 1,
            "lane": case((message.c.lane == Lane.LARGE, message.c.lane), else_=Lane.BULK.value),
        }
    )
    .returning(message.c.id)
)
_AFRESH_IF_WHOLE = _AFRESH.where(~_lost)
_theirs = select(attachment.c.file).where(attachment.c.message_id.in_(bindparam("ids", expanding=True)))
_KEPT = (
    select(file.c.name)
    .where(file.c.name.in_(_theirs), file.c.freed_at.is_(None))
    .order_by(file.c.name)
    .with_for_update(key_share=True)
)
_NEEDED = (
    update(file)
    .where(file.c.name.in_(_theirs.where(attachment.c.file.in_(bindparam("names", expanding=True)))))
    .values(free_at=None)
)
_WITHDRAWN = (
    update(message)
    .where(_in_ids)
    .values({"state": State.CANCELLED, "reason": None, "finished_at": bindparam("at", type_=Instant)})
    .returning(message.c.id)
)


def replay(
    connection: Connection, ids: Collection[int], now: datetime, with_files: Collection[int], of_shares: Collection[int] = ()
) -> list[int]:
    """Give these final messages, locked here, a fresh start; those that have lost a file stay as they are.

    Those of shares keep their ordering key, and take its turns in the bulk lane, if `shares.missing_for_replay` is there.
    """
    waking = shares.hold_for_replay(connection, of_shares) if of_shares else []
    names: list[str] = []
    if with_files:
        # Held until COMMIT, so that freeing, which asks whether a message still needs them, cannot come in between.
        names = list(connection.execute(_KEPT, {"ids": list(with_files)}).scalars())
    statement = _AFRESH_IF_WHOLE if with_files else _AFRESH
    replayed = list(connection.execute(statement, {"ids": list(ids), "at": now}).scalars())
    if names:
        connection.execute(_NEEDED, {"ids": replayed, "names": names})
    if waking and replayed:
        shares.wake(connection, waking, now)
    return replayed


def cancel(connection: Connection, ids: Collection[int], now: datetime) -> list[int]:
    """Withdraw these messages, locked here."""
    return list(connection.execute(_WITHDRAWN, {"ids": list(ids), "at": now}).scalars())


def streams_of(connection: Connection, streams: Collection[int], skipping: Collection[str], *, skip: bool) -> list[int]:
    """Of these streams, those whose destinations skip the dead, or those whose do not."""
    if not streams:
        return []
    kind = head.c.destination.in_(skipping) if skip else head.c.destination.not_in(skipping)
    return list(connection.execute(select(head.c.stream_id).where(head.c.stream_id.in_(streams), kind)).scalars())


# The audit.


def note(connection: Connection, now: datetime, by: str, action: str, selection: str) -> None:
    """Who did what, to something that is no message."""
    words = {"actor": cleaned(by, 255), "selection": cleaned(selection, 10_000)}
    connection.execute(insert(audit).values({"at": now, "action": action, "messages": 0, "finished_at": now, **words}))


def open_act(connection: Connection, now: datetime, by: str, action: Action, selection: Selection) -> int:
    """The one row of an act that begins; its id."""
    words = {"actor": cleaned(by, 255), "selection": cleaned(str(selection), 10_000), "chosen": selection.as_json()}
    values = {"at": now, "action": action, "messages": 0, "position": 0, **words}
    return int(connection.execute(insert(audit).values(values).returning(audit.c.id)).scalar_one())


_ACT = select(audit).where(audit.c.id == bindparam("act"))
_HELD = select(audit.c.messages, audit.c.position).where(audit.c.id == bindparam("act")).with_for_update()
_ADVANCED = (
    update(audit)
    .where(audit.c.id == bindparam("act"))
    .values(messages=audit.c.messages + bindparam("more"), position=bindparam("last"))
)


def act(connection: Connection, act_id: int) -> RowMapping | None:
    """The row of an act."""
    return connection.execute(_ACT, {"act": act_id}).mappings().one_or_none()


def hold(connection: Connection, act_id: int) -> tuple[int, int]:
    """Lock the row of an act; to how many messages it was done so far, and the last that was looked at.

    Whoever does an act holds it first: of several runs each goes on where the others have come to.
    """
    messages, position = connection.execute(_HELD, {"act": act_id}).one()
    return messages, position or 0


def advance(connection: Connection, act_id: int, messages: int, position: int) -> None:
    """So many more messages were done, and everything up to this one was looked at; of an act that is held here."""
    connection.execute(_ADVANCED, {"act": act_id, "more": messages, "last": position})


def finish(connection: Connection, act_id: int, now: datetime) -> None:
    """The act is over."""
    connection.execute(update(audit).where(audit.c.id == act_id, audit.c.finished_at.is_(None)).values(finished_at=now))


def acts(connection: Connection, limit: int) -> Sequence[RowMapping]:
    """What people did, newest first."""
    return connection.execute(select(audit).order_by(audit.c.id.desc()).limit(limit)).mappings().all()
