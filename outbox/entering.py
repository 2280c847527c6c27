"""Enter: messages that were found in order, with their files at rest, become rows of the caller's transaction."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from outbox import intake
from outbox.ambient import several
from outbox.errors import KeyConflict, OutboxError, SpoolError
from outbox.model import Attachment, Enqueued, Lane, SpooledFile, State
from outbox.store import arriving, shares
from outbox.store.arriving import NewMessage
from outbox.timekeeping import plausible


@dataclass(slots=True)
class Arrival:
    """A request in order, its files at rest in the spool, and those of them that were copied for it."""

    request: intake.Request
    attachments: Sequence[Attachment]
    fresh: Sequence[SpooledFile]


@dataclass(slots=True)
class Entered:
    """What became of a message, its key, and the copies of files that it does not need: it was there already."""

    enqueued: Enqueued
    key: str
    unneeded: Sequence[SpooledFile] = ()


def enter(
    connection: Connection, arrivals: Sequence[Arrival], now: datetime, new_id: Callable[[], str], *, nudge: bool = False
) -> list[Entered]:
    """Write messages of one destination; all of them, or none: a caller may go on after an error, and commit.

    With `nudge` the statement that does so nudges, if there is a new one.
    """
    if len(arrivals) == 1 and not (arrivals[0].attachments or arrivals[0].request.ordering_key):
        key = arrivals[0].request.key
        row = _row(arrivals[0], now, key or new_id())
        return [_found(connection, arrivals[0], row, _add(connection, [row], nudge=nudge, chosen=key is not None))]
    given = [each.request.key for each in arrivals]
    made = iter(several(new_id, given.count(None)))
    keys, chosen = [key or next(made) for key in given], any(given)
    laden = [each for each in arrivals if each.attachments]
    fresh = {file.name for each in laden for file in each.fresh}
    shared = {a.file.name: a.name for each in laden for a in each.attachments if a.file.name not in fresh}
    for name in arriving.freed(connection, shared) if shared else ():
        raise SpoolError(spool_again(shared[name]))
    new = [_row(each, now, key) for each, key in zip(arrivals, keys, strict=True)]
    placed = _placed(connection, new, [each.request for each in arrivals])
    ids = _add(connection, placed, nudge=nudge, chosen=chosen)
    mine = list(ids.values())
    try:
        entered = [_found(connection, each, row, ids) for each, row in zip(arrivals, placed, strict=True)]
        if placed is not new:
            _wake(connection, placed)
        if laden:
            added = [(each, found.enqueued.id) for each, found in zip(arrivals, entered, strict=True) if found.enqueued.new]
            for each, _ in added:
                for file in each.fresh:
                    arriving.add_file(connection, file, now)
            arriving.attach(connection, {message_id: each.attachments for each, message_id in added if each.attachments})
    except BaseException:
        withdraw(connection, mine, now)
        raise
    return entered


def withdraw(connection: Connection, ids: Iterable[int], now: datetime) -> None:
    """Undo the entering of messages: there must be none without its files, nor a part of those that belong together."""
    with contextlib.suppress(Exception):  # the connection may be lost, and a transaction with it
        arriving.withdraw(connection, list(ids), now)


def spool_again(name: str) -> str:
    return f"the spooled file given as {name!r} has been freed since; spool it again"


def _row(arrival: Arrival, now: datetime, key: str) -> NewMessage:
    request = arrival.request
    attachments = arrival.attachments
    file_bytes = sum(each.file.size for each in attachments) if attachments else 0
    large = request.size + file_bytes > request.destination.policy.large_over
    return NewMessage(  # by place: names would cost a fiftieth of an enqueue
        request.destination.name,
        request.lane or (Lane.LARGE if large else Lane.NORMAL),
        key,
        request.text,
        intake.digest(request.text, attachments, request.ordering_key),
        request.size,
        file_bytes,
        len(attachments),
        now,
        request.due_at or now,
        plausible(now),
        request.due_at is not None,
        request.expires_at,
        request.traceparent,
    )


def _placed(connection: Connection, new: Sequence[NewMessage], requests: Sequence[intake.Request]) -> Sequence[NewMessage]:
    """The same rows at their places in streams and shares; those are locked in the order of their keys, whoever comes."""
    if not any(each.ordering_key for each in requests):
        return new
    placed = list(new)
    ordered = [(each.ordering_key, at) for at, each in enumerate(requests) if each.ordering_key and each.ordered]
    counts = Counter(key for key, _ in ordered)
    streams = {}
    for key in sorted(counts):
        first = next(at for each, at in ordered if each == key)
        stream_id, last = arriving.next_in_stream(connection, new[first], key, counts[key])
        streams[key] = [stream_id, last - counts[key]]
    for key, at in ordered:
        streams[key][1] += 1
        placed[at] = new[at]._replace(stream_id=streams[key][0], stream_number=streams[key][1])
    loose = {
        (each.ordering_key, new[at].lane): at for at, each in enumerate(requests) if each.ordering_key and not each.ordered
    }
    joined = {which: shares.join(connection, new[loose[which]], which[0]) for which in sorted(loose)}
    for at, each in enumerate(requests):
        if each.ordering_key and not each.ordered:
            placed[at] = new[at]._replace(share_id=joined[each.ordering_key, new[at].lane])
    return placed


def _add(connection: Connection, new: Sequence[NewMessage], *, nudge: bool, chosen: bool) -> dict[str, int]:
    if len(new) > 1:
        return arriving.add_messages(connection, new, nudge=nudge, chosen=chosen)
    message_id = arriving.add_message(connection, new[0], nudge=nudge, chosen=chosen)
    return {} if message_id is None else {new[0].key: message_id}


def _found(connection: Connection, arrival: Arrival, row: NewMessage, ids: dict[str, int]) -> Entered:
    """The message that was made, or the one that its key names. Raises KeyConflict when that is another."""
    if (message_id := ids.pop(row.key, None)) is not None:  # the first of a key that is in it twice
        return Entered(Enqueued(message_id, True, State.PENDING), row.key)
    known = arriving.named(connection, row.destination, row.key)
    if known is None:
        raise OutboxError(f"key {row.key!r} was that of a message that has been purged just now; try again")
    # What plain SQL has put there may have none.
    digest = known.digest or intake.digest(*arriving.content(connection, known.id))
    if digest != row.digest:
        raise KeyConflict(row.destination, row.key, known.id)
    return Entered(Enqueued(known.id, False, known.state), row.key, arrival.fresh)


def _wake(connection: Connection, placed: Sequence[NewMessage]) -> None:
    """Streams and shares become due with the first of their new messages."""
    firsts: dict[int, NewMessage] = {}
    waking: dict[tuple[datetime, bool], set[int]] = {}
    for each in placed:
        if each.stream_id is not None:
            firsts.setdefault(each.stream_id, each)
        if each.share_id is not None:
            waking.setdefault((each.due_at, each.scheduled), set()).add(each.share_id)
    for stream_id in sorted(firsts):
        arriving.wake_stream(connection, stream_id, firsts[stream_id])
    for (due_at, scheduled), ids in sorted(waking.items()):
        shares.wake(connection, ids, due_at, scheduled=scheduled)
