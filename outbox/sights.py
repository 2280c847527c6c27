"""What there is to see in an outbox, as values with names that stay: for the terminal, a page and metrics alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import RowMapping

from outbox.policy import SILENT_AFTER


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """Where the messages of one destination stand, and what stands in their way. Counts are of messages."""

    due: int = 0  #: their time has come, whether or not the destination is stopped
    waiting: int = 0  #: their time has not come
    claimed: int = 0
    dead: int = 0
    dead_by_reason: Mapping[str, int] = field(default_factory=dict)
    delivered_last_hour: int = 0
    delivered_bytes_last_hour: int = 0
    oldest_due_at: datetime | None = None  #: since when the oldest of those that are due is
    failures: int = 0  #: consecutive, charged to the destination
    last_failure: str | None = None  #: what became of the last upload that failed, while the breaker is open
    reject_streak: int = 0  #: messages rejected alone since the last delivery
    blocked_keys: int = 0  #: ordering keys that a dead message holds up
    paused_keys: int = 0  #: ordering keys that a person has paused
    stop: str | None = None  #: pause, credentials or reject_streak
    stop_text: str | None = None
    stopped_by: str | None = None
    stopped_at: datetime | None = None
    open_until: datetime | None = None  #: the breaker is open; the next try is not before this
    ramp: int | None = None  #: deliveries at a time while it recovers
    learned_bytes: int | None = None  #: larger requests were refused
    declared: bool = False  #: in this process's settings


@dataclass(frozen=True, slots=True)
class BlockedKey:
    """An ordering key that a dead message holds up."""

    destination: str
    ordering_key: str
    message: int  #: the id of the dead one
    reason: str
    reason_text: str | None


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """Files at rest, by their rows, and the room they have. Bytes, and bytes an hour."""

    files: int
    bytes: int
    free_bytes: int | None  #: on the disk of the spool; None for a spool that is no directory
    quota_bytes: int | None
    quota_percent: float | None
    growth_per_hour: int  #: arrivals less what was freed; negative while it shrinks
    full_in_seconds: float | None  #: at that rate, until the disk or the quota is full; None when it is not filling, or unknown
    filling: bool | None  #: None when there is no telling


@dataclass(frozen=True, slots=True)
class Flow:
    """What came and went in the last hour: messages, and their bytes of text and files. Of many arrivals, an estimate."""

    arrived_messages: int
    arrived_bytes: int
    delivered_messages: int
    delivered_bytes: int


@dataclass(frozen=True, slots=True)
class OldTransaction:
    """Who has kept Postgres from vacuuming what was deleted since: claims grow slow while it is open."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Status:
    """Everything at a glance."""

    at: datetime
    destinations: Mapping[str, DestinationStatus]  #: those that are declared, and those that there is anything of
    blocked_keys: Sequence[BlockedKey]  #: the longest blocked; each destination has their number
    workers: int  #: that beat
    spool: SpoolStatus
    last_hour: Flow
    oldest_transaction: OldTransaction | None = None  #: Postgres: the one that has been open for longest


@dataclass(frozen=True, slots=True)
class MessageView:
    """One message, without its payload."""

    id: int
    destination: str
    key: str
    lane: str
    ordering_key: str | None
    stream_number: int | None
    state: str
    reason: str | None
    reason_text: str | None
    attempt: int
    failures: int
    unknowns: int
    batch_limit: int | None
    suspect: bool
    replays: int
    size: int  #: bytes of text it adds to a request, at most
    files: int
    file_bytes: int
    created_at: datetime
    due_at: datetime
    scheduled: bool
    expires_at: datetime | None
    claimed_by: str | None
    delivery_id: int | None
    finished_at: datetime | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class AttachmentView:
    """A file of a message, and whether its bytes are still in the spool.

    `bytes_are`: "there"; "freed" after delivery; "missing"; "changed", of another length than was enqueued (`outbox verify`
    compares digests); "unreadable" when the spool cannot be asked.
    """

    name: str
    filename: str
    content_type: str
    size: int
    sha256: str
    md5: str
    spooled: str  #: its name in the spool
    freed_at: datetime | None
    bytes_are: str


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One try of a message, and what its delivery was answered. Without a delivery's row, only the first five are known."""

    number: int
    delivery_id: int
    outcome: str
    late_outcome: str | None
    finished_at: datetime
    started_at: datetime | None
    seconds: float | None
    messages: int | None  #: that travelled in the same request
    bytes: int | None
    worker: str | None
    status: int | None
    code: int | None
    text: str | None
    request_id: str | None
    answer: str | None  #: the first 4 KB


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One upload request: what it carried, and what was answered."""

    id: int
    destination: str
    lane: str
    worker: str
    messages: int
    bytes: int
    probe: bool
    started_at: datetime
    finished_at: datetime | None  #: None while it is under way
    seconds: float  #: that it took, or takes by now
    outcome: str | None
    status: int | None
    code: int | None
    text: str | None
    request_id: str | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class MessageDetail:
    """A message with everything that belongs to it."""

    message: MessageView
    payload: Any
    attachments: Sequence[AttachmentView]
    attempts: Sequence[AttemptView]  #: oldest first
    under_way: DeliveryView | None  #: the delivery that carries it at this moment
    next_try_at: datetime | None  #: not before this; None when there is none, or a person must act first
    declared: bool  #: whether its destination is, here


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker, by its row."""

    id: str
    host: str
    pid: int
    version: str | None
    started_at: datetime
    beat_at: datetime
    silent_seconds: float  #: since its last beat, by two clocks
    serves: Sequence[str]  #: names of destinations; empty when it was not said
    claims: int  #: messages it holds
    deliveries: int  #: uploads under way
    stop_asked: bool
    gone: bool
    silent: bool  #: not gone, and has not beaten for so long that it must have died; it is declared gone when another one runs


V = TypeVar("V")


def view(kind: type[V], row: Mapping[str, Any] | RowMapping, **more: Any) -> V:
    """A row as one of the values above, by the names of its fields."""
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]  # each of them is a dataclass
    return kind(**({name: row[name] for name in names if name not in more} | more))


def attempt(row: RowMapping) -> AttemptView:
    took = (row["finished_at"] - row["started_at"]).total_seconds() if row["started_at"] else None
    return view(AttemptView, row, seconds=took)


def worker(row: RowMapping, silent_for: float) -> WorkerView:
    silent = not row["gone"] and silent_for > SILENT_AFTER
    return view(WorkerView, row, serves=(row["serves"] or "").split(), silent_seconds=silent_for, silent=silent)


def delivery(row: RowMapping, now: datetime) -> DeliveryView:
    return view(DeliveryView, row, seconds=max(0.0, ((row["finished_at"] or now) - row["started_at"]).total_seconds()))
