"""What a message is, and the five states it can be in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, BinaryIO, NamedTuple

from outbox.errors import Fault, Refused


class State(StrEnum):
    """Where a message is in its life."""

    PENDING = "pending"  #: waiting for due_at, or for its destination: new, snoozed and retrying alike
    CLAIMED = "claimed"  #: one live worker is trying it; it comes back by record, release or rescue
    DELIVERED = "delivered"  #: final: the destination said yes
    DEAD = "dead"  #: final: given up for the reason kept with it; replay starts it afresh
    CANCELLED = "cancelled"  #: final: withdrawn by a person while it was pending


FINAL = frozenset({State.DELIVERED, State.DEAD, State.CANCELLED})


class Lane(StrEnum):
    """Which queue of its destination a message waits in; served in a fixed weighted turn."""

    EXPRESS = "express"  #: alarms: before everything else
    NORMAL = "normal"  #: the default
    BULK = "bulk"  #: replays and backfills: when the others leave room
    LARGE = "large"  #: big files, with senders of their own, so that nothing small waits behind them


class Reason(StrEnum):
    """Why a message is dead."""

    REJECTED = "rejected"  #: the destination refused it, and it travelled alone
    EXHAUSTED = "exhausted"  #: it failed max_failures times while its destination served others
    EXPIRED = "expired"  #: its expires_at passed
    FILE_MISSING = "file_missing"  #: an attachment is gone from the spool
    FILE_CHANGED = "file_changed"  #: an attachment is not the bytes that were enqueued
    TOO_LARGE = "too_large"  #: alone, and still more than the destination takes
    OUTCOME_UNKNOWN = "outcome_unknown"  #: max_unknown tries ended without an answer


class Outcome(StrEnum):
    """What became of a delivery, and of one message's attempt in it."""

    DELIVERED = "delivered"  #: the destination has it
    RETRY = "retry"  #: refused or failed through no fault of the message
    REJECT = "reject"  #: the message, or the batch it was in, was refused
    UNKNOWN = "unknown"  #: the whole body went out and no answer was understood, or the worker is gone
    NOT_SENT = "not_sent"  #: the declared length did not go out in full


#: Characters that the name of an attachment may have, or that of a file.
NAME_LIMIT = 255


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """Bytes at rest in the spool: their name there, length in bytes and digests (lower-case hex).

    Made by `outbox.spool(...)`, and may be attached to any number of messages.
    """

    name: str
    size: int
    sha256: str
    md5: str
    filename: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """A file to attach, with the name and type the receiver shall see.

    `source` is a path, bytes, a binary stream read from where it stands, or a SpooledFile. A File is given in `files=`, or
    stands in the payload, where the destination has a place for it; without a name of its own it is called as that place is.
    """

    source: str | os.PathLike[str] | bytes | BinaryIO | SpooledFile
    filename: str | None = None
    content_type: str | None = None


FileSource = str | os.PathLike[str] | bytes | BinaryIO | SpooledFile | File


@dataclass(slots=True)
class Entry:
    """A message for `enqueue_many`: what `enqueue` takes beside the destination."""

    payload: Any
    files: Mapping[str, FileSource] | None = None
    key: str | None = None
    ordering_key: str | None = None
    ordered: bool | None = None
    due_at: datetime | None = None
    expires_at: datetime | None = None
    lane: Lane | str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file's place in a message: the producer's name for it, and the spooled bytes."""

    name: str
    file: SpooledFile
    filename: str
    content_type: str


@dataclass(slots=True)  # not frozen: for one that is made of each message that costs a microsecond
class Draft:
    """A message at the door: what a destination checks and weighs before anything is written.

    `sizes` has the length in bytes of each attachment by name, or None where only copying will tell.
    """

    payload: Any
    text: str
    files: Mapping[str, str] = field(default_factory=dict)  #: attachment name -> file name shown to the receiver
    sizes: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What `enqueue` returns: the message's id, whether this call made it, and its state."""

    id: int
    new: bool
    state: State


@dataclass(frozen=True, slots=True)
class Pause:
    """Who holds back the messages of an ordering key, since when and why."""

    ordering_key: str
    paused_at: datetime
    paused_by: str
    text: str


def require_span(since: datetime | None, until: datetime | None) -> None:
    """Raises Refused when one who asks for what came at `since` or later and before `until` has them the wrong way round."""
    if since is None or until is None or (since.tzinfo is None) != (until.tzinfo is None):
        return
    if since > until:
        raise Refused([Fault("since", f"{_second(since)} is later than until, {_second(until)}: nothing fits both")])


def _second(when: datetime) -> str:
    """An instant as tables have it."""
    return f"{when:%Y-%m-%d %H:%M:%S}" if when.tzinfo is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


#: What a database can hold: no id is larger, and no limit needs to be.
MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages a person means: all that fit everything given, oldest first.

    Raises Refused when `since` is later than `until`: no message would fit; and for an id or a limit of more than 2**63 - 1.
    """

    ids: tuple[int, ...] = ()
    keys: tuple[str, ...] = ()  #: with `ids`, one of either is enough
    destination: str | None = None
    states: tuple[State, ...] = ()
    reasons: tuple[Reason, ...] = ()
    ordering_key: str | None = None
    since: datetime | None = None  #: it ended at this instant or later; one that is unfinished was enqueued then
    until: datetime | None = None  #: and before this one
    text: str | None = None  #: these words are in what was said when it died, in capitals or not
    limit: int | None = None  #: so many, the oldest

    def __post_init__(self) -> None:
        require_span(self.since, self.until)
        numbers = [("ids", each) for each in self.ids] + [("limit", self.limit or 0)]
        if too_large := [Fault(name, f"expected at most {MOST:,}, got {each}") for name, each in numbers if abs(each) > MOST]:
            raise Refused(too_large)

    @property
    def narrows(self) -> bool:
        """Whether anything but a limit is said."""
        return any(getattr(self, each.name) for each in fields(self) if each.name != "limit")

    def as_json(self) -> str:
        """The selection as a text that `from_json` reads."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps({name: value for name, value in said.items() if value not in ((), None)}, default=str)

    @classmethod
    def from_json(cls, text: str) -> Selection:
        """What `as_json` wrote. Raises ValueError, TypeError, KeyError, AttributeError or OverflowError for anything else."""
        said: dict[str, Any] = json.loads(text)
        kinds: dict[str, Callable[[Any], Any]] = {
            "ids": lambda numbers: tuple(int(number) for number in numbers),
            "keys": lambda words: tuple(str(word) for word in words),
            **dict.fromkeys(("destination", "ordering_key", "text"), str),
            "limit": int,
            "states": lambda words: tuple(State(word) for word in words),
            "reasons": lambda words: tuple(Reason(word) for word in words),
            "since": datetime.fromisoformat,
            "until": datetime.fromisoformat,
        }
        return cls(**{name: kinds[name](value) if name in kinds else value for name, value in said.items()})

    def __str__(self) -> str:
        said = [
            f"ids {', '.join(map(str, self.ids))}" if self.ids else "",
            f"keys {', '.join(self.keys)}" if self.keys else "",
            f"destination {self.destination}" if self.destination else "",
            f"state {' or '.join(self.states)}" if self.states else "",
            f"reason {' or '.join(self.reasons)}" if self.reasons else "",
            f"ordering key {self.ordering_key}" if self.ordering_key else "",
            f"since {self.since:%Y-%m-%d %H:%M:%S}Z" if self.since else "",
            f"until {self.until:%Y-%m-%d %H:%M:%S}Z" if self.until else "",
            f"with {self.text!r} in its answer" if self.text else "",
            f"at most {self.limit}" if self.limit is not None else "",
        ]
        return "; ".join(filter(None, said)) or "everything"


class Message(NamedTuple):
    """A claimed message, as a destination and the state machine see it."""

    id: int
    key: str
    text: str
    attempt: int
    failures: int
    unknowns: int
    batch_limit: int | None
    size: int
    file_bytes: int
    files: int = 0
    attachments: tuple[Attachment, ...] = ()
    suspect: bool = False  #: a worker died while it travelled alone
    traceparent: str | None = None  #: the context of the trace it was enqueued in
    has_ordering_key: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """One delivery's worth of messages: what travels in one upload request."""

    delivery: int
    worker: str
    destination: str
    lane: Lane
    messages: tuple[Message, ...]
    started_at: datetime
    probe_until: datetime | None = None  #: of a probe, the `open_until` that it set when it began

    @property
    def size(self) -> int:
        """Bytes of text and files in this batch, without the form around them."""
        return sum(message.size + message.file_bytes for message in self.messages)
