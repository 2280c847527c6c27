"""Which rows a selection means: the one place where a person's words become conditions."""

from __future__ import annotations

import string
from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, exists, func, literal_column, or_

from outbox.model import FINAL, Selection, State
from outbox.tables import message, share, stream

_SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def conditions(
    selection: Selection, among: Collection[State] = tuple(State), *, by_id: bool = False
) -> list[ColumnElement[bool]]:
    """The messages of a selection, among those in these states. Its limit is for the statement that uses them.

    `by_id`: for a statement that walks messages by id, or names them. It must not be given up for the index over destinations
    and keys, which has every message there is.
    """
    states = states_of(selection, among)
    # Words, not parameters, and for one state no list: a partial index is only used by who says its condition.
    words: list[ColumnElement[str]] = [literal_column(f"'{state.value}'") for state in sorted(states)]
    found: list[ColumnElement[bool]] = []
    if states != set(State):
        found.append(message.c.state == words[0] if len(words) == 1 else message.c.state.in_(words))
    if selection.ids or selection.keys:
        found.append(or_(message.c.id.in_(selection.ids), message.c.key.in_(selection.keys)))
    if selection.destination is not None:
        name = message.c.destination.concat("") if by_id else message.c.destination
        found.append(name == selection.destination)
    if selection.reasons:
        found.append(message.c.reason.in_(selection.reasons))
    if selection.ordering_key is not None:
        ordered = exists().where(stream.c.id == message.c.stream_id, stream.c.ordering_key == selection.ordering_key)
        unordered = exists().where(share.c.id == message.c.share_id, share.c.ordering_key == selection.ordering_key)
        found.append(or_(ordered, unordered))
    if selection.since is not None:
        found.append(instant(states) >= selection.since)
    if selection.until is not None:
        found.append(instant(states) < selection.until)
    if selection.text:
        # Some databases know the capitals of ASCII alone, so what is looked for is said both ways.
        words_of_it = {selection.text.lower(), selection.text.translate(_SMALL)}
        found.append(or_(*(func.lower(message.c.reason_text).contains(each, autoescape=True) for each in sorted(words_of_it))))
    return found


def states_of(selection: Selection, among: Collection[State] = tuple(State)) -> set[State]:
    """Of these states, those that a message of the selection can be in: only the dead have a reason."""
    return set(among) & set(selection.states or among) & ({State.DEAD} if selection.reasons else set(State))


def instant(states: Collection[State]) -> ColumnElement[datetime]:
    """When a message came into its state: the end of one that is final, the enqueue of one that is not."""
    if FINAL.issuperset(states):
        return message.c.finished_at
    if FINAL.isdisjoint(states):
        return message.c.created_at
    return func.coalesce(message.c.finished_at, message.c.created_at)
