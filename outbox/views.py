"""What there is to see in an outbox, as values with names that stay: for the terminal, a page and metrics alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, RowMapping

from outbox.ambient import Ambient
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.errors import ConfigurationError, FileChanged, FileMissing, NoSuchMessage, SpoolError, UnknownDestination
from outbox.exchange import Upload
from outbox.model import Attachment, Batch, Lane, Message, Outcome, Selection, SpooledFile, State, require_span
from outbox.patience import Stop
from outbox.policy import SILENT_AFTER
from outbox.reserve import Room
from outbox.spool.base import Spool
from outbox.store import causes, listing, looking

#: So many blocked ordering keys are named, the longest blocked first.
_BLOCKED_NAMED = 20
_HOUR = timedelta(hours=1)
#: The spool's growth is that of the worst of these spans: an outage shows in the first, a night's batch only in the second.
_GROWTH_SPANS = (_HOUR, 6 * _HOUR)
#: A spool that is full later than this is not filling.
_FORESEEN = timedelta(days=365)
#: What a list has at most when nothing is said.
_LIST_LIMIT = 50


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


def _view(kind: type[V], row: Mapping[str, Any] | RowMapping, **more: Any) -> V:
    """A row as one of the values above, by the names of its fields."""
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]  # each of them is a dataclass
    return kind(**({name: row[name] for name in names if name not in more} | more))


class Views:
    """The part of an Outbox that only looks; nothing here changes anything."""

    database: Database
    destinations: dict[str, Destination]
    spool_store: Spool
    room: Room
    ambient: Ambient

    def status(self) -> Status:
        """Per destination what waits, what died and why it is stopped; the spool and when it is full; who works."""
        now = self.ambient.now()
        with self.database.snapshot() as connection:
            counts = looking.counts(connection, now)
            delivered = looking.delivered_since(connection, now - _HOUR)
            arrived = looking.arrived_since(connection, now - _HOUR)
            blocked = [BlockedKey(**row) for row in looking.blocked(connection, _BLOCKED_NAMED)]
            workers = looking.alive(connection, now)
            spool = self._spool_status(connection, now)
            for name in (name for name, told in counts.items() if told["open_until"] is not None):
                failure = causes.last_failure(connection, name)
                counts[name]["last_failure"] = str(failure) if failure else None
        for name, amount in delivered.items():
            told = {"delivered_last_hour": amount.messages, "delivered_bytes_last_hour": amount.bytes}
            counts.setdefault(name, looking.nothing()).update(told)
        destinations = {
            name: DestinationStatus(**counts.get(name, {}), declared=name in self.destinations)
            for name in sorted({*counts, *self.destinations})
        }
        gone = (sum(each.messages for each in delivered.values()), sum(each.bytes for each in delivered.values()))
        oldest = self.database.oldest_transaction()
        transaction = OldTransaction(oldest.what, oldest.seconds) if oldest is not None else None
        return Status(now, destinations, blocked, workers, spool, Flow(*arrived, *gone), transaction)

    def messages(self, selection: Selection | None = None) -> list[MessageView]:
        """The messages of a selection, newest first; at most 50 unless it says another limit. Raises UnknownDestination
        for one that is neither declared nor known to the database."""
        selection = selection or Selection()
        with self.database.read() as connection:
            self._require_known(connection, selection.destination)
            rows = listing.messages(connection, selection, selection.limit or _LIST_LIMIT)
        return [_view(MessageView, row) for row in rows]

    def named(self, words: Sequence[str], destination: str | None = None) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Ids and keys that these words are. A word of digits is the key of a message, if no message has it as its id.

        Raises ConfigurationError for one that is the id of one message and the key of another.
        """
        numbers = [word for word in words if word.isascii() and word.isdigit() and len(word) < 19]
        keys = [word for word in words if word not in numbers]
        if not numbers:
            return (), tuple(keys)
        with self.database.read() as connection:
            by_id, by_key = looking.meant(connection, numbers, destination)
        for word in numbers:
            if int(word) in by_id and by_key.get(word, {int(word)}) != {int(word)}:
                other = min(by_key[word] - {int(word)})
                raise ConfigurationError(
                    f"{word} is the id of one message and the key of another (message {other}); say --id {word} or --key {word}"
                )
        keys += [word for word in numbers if int(word) not in by_id and word in by_key]
        return tuple(int(word) for word in numbers if word not in keys), tuple(keys)

    def message(self, id_or_key: int | str, destination: str | None = None) -> MessageDetail:
        """Everything about the message of an id, or else of a key; `destination` says whose key. Raises NoSuchMessage."""
        now = self.ambient.now()
        with self.database.snapshot() as connection:
            row = self._row(connection, id_or_key, destination)
            files = looking.files_of(connection, row["id"])
            attempts = looking.attempts_of(connection, row["id"])
            under_way = listing.delivery_of(connection, row["delivery_id"]) if row["delivery_id"] is not None else None
            held_up = looking.held_up(connection, row)
        return MessageDetail(
            message=_view(MessageView, row),
            payload=json.loads(row["payload"]),
            attachments=[_view(AttachmentView, each, bytes_are=self._bytes_are(each)) for each in files],
            attempts=[_attempt(each) for each in attempts],
            under_way=_delivery(under_way, now) if under_way is not None else None,
            next_try_at=_next_try(row, held_up),
            declared=row["destination"] in self.destinations,
        )

    def upload(self, id_or_key: int | str, destination: str | None = None) -> Upload:
        """The request that would carry a message alone, without what lets it in.

        Raises NoSuchMessage, and UnknownDestination when its destination is not declared here.
        """
        now = self.ambient.now()
        with self.database.snapshot() as connection:
            row = self._row(connection, id_or_key, destination)
            attached = [_attachment(each) for each in looking.files_of(connection, row["id"])]
        names = [each.name for each in fields(Message) if each.name not in ("text", "attachments")]
        message = Message(**{name: row[name] for name in names}, text=row["payload"], attachments=tuple(attached))
        batch = Batch(0, "", row["destination"], Lane(row["lane"]), (message,), now)
        return self._declared(row["destination"]).encode(batch)

    def deliveries(
        self,
        *,
        destination: str | None = None,
        outcome: Outcome | None = None,
        under_way: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = _LIST_LIMIT,
    ) -> list[DeliveryView]:
        """Upload requests, newest first: those that began at `since` or later and before `until`; `under_way`: only those that
        have not ended. Raises UnknownDestination for one that is neither declared nor known to the database, and Refused when
        `since` is later than `until`."""
        require_span(since, until)
        now = self.ambient.now()
        with self.database.read() as connection:
            self._require_known(connection, destination)
            wanted = listing.Deliveries(destination, outcome, under_way, since, until)
            rows = listing.deliveries(connection, wanted, limit)
        return [_delivery(row, now) for row in rows]

    def workers(self, *, gone: bool = False) -> list[WorkerView]:
        """Workers, the latest first: those that are not gone, or with `gone` every one that has a row."""
        now = self.ambient.now()
        with self.database.read() as connection:
            rows = listing.workers(connection, gone=gone)
        return [_worker(row, max(0.0, (now - row["beat_at"]).total_seconds())) for row in rows]

    def _row(self, connection: Connection, id_or_key: int | str, destination: str | None) -> RowMapping:
        row = looking.one(connection, str(id_or_key), destination)
        if row is None:
            of = f" of destination {destination!r}" if destination else ""
            raise NoSuchMessage(f"no message{of} has the id or key {str(id_or_key)!r}")
        return row

    def _require_known(self, connection: Connection, name: str | None) -> None:
        """One that is declared no more may still have messages."""
        if name is not None and name not in self.destinations and name not in looking.destinations_of_messages(connection):
            self._declared(name)

    def _declared(self, name: str) -> Destination:
        if name not in self.destinations:
            raise UnknownDestination(name, self.destinations)
        return self.destinations[name]

    def _bytes_are(self, file: RowMapping) -> Literal["there", "freed", "missing", "changed", "unreadable"]:
        if file["freed_at"] is not None:
            return "freed"
        try:
            return "there" if self.spool_store.size(file["spooled"]) == file["size"] else "changed"
        except FileMissing:
            return "missing"
        except FileChanged:
            return "changed"
        except SpoolError:
            return "unreadable"

    def _spool_status(self, connection: Connection, now: datetime) -> SpoolStatus:
        files, size = looking.spooled(connection)
        growth = max(round(looking.spool_grew(connection, now - span) / (span / _HOUR)) for span in _GROWTH_SPANS)
        free = self.spool_store.left()
        quota = self.room.quota
        # Producers leave the last of a disk alone: to them it is full before it is.
        rooms = [] if free is None else [max(0, free - self.room.reserve)]
        rooms += [] if quota is None else [max(0, quota - size)]
        full_in = time_to_full(min(rooms), growth) if rooms else None
        return SpoolStatus(
            files=files,
            bytes=size,
            free_bytes=free,
            quota_bytes=quota,
            quota_percent=round(100 * size / quota, 1) if quota else None,
            growth_per_hour=growth,
            full_in_seconds=full_in,
            filling=full_in is not None if rooms else None,
        )


def time_to_full(room: int, growth_per_hour: int) -> float | None:
    """Seconds until so many bytes are taken at that rate; None when they never are, or not within a year."""
    if room <= 0:
        return 0.0
    if growth_per_hour <= 0:
        return None
    seconds = room / growth_per_hour * _HOUR.total_seconds()
    return seconds if seconds <= _FORESEEN.total_seconds() else None


def _next_try(row: RowMapping, held_up: looking.HeldUp) -> datetime | None:
    if row["state"] != State.PENDING or held_up.blocked or held_up.paused or held_up.stop == Stop.PAUSE:
        return None
    due_at: datetime = row["due_at"]
    return max(due_at, held_up.open_until) if held_up.open_until else due_at


def _attempt(row: RowMapping) -> AttemptView:
    took = (row["finished_at"] - row["started_at"]).total_seconds() if row["started_at"] else None
    return _view(AttemptView, row, seconds=took)


def _worker(row: RowMapping, silent_for: float) -> WorkerView:
    silent = not row["gone"] and silent_for > SILENT_AFTER
    return _view(WorkerView, row, serves=(row["serves"] or "").split(), silent_seconds=silent_for, silent=silent)


def _delivery(row: RowMapping, now: datetime) -> DeliveryView:
    return _view(DeliveryView, row, seconds=max(0.0, ((row["finished_at"] or now) - row["started_at"]).total_seconds()))


def _attachment(row: RowMapping) -> Attachment:
    file = SpooledFile(row["spooled"], row["size"], row["sha256"], row["md5"])
    return Attachment(row["name"], file, row["filename"], row["content_type"])
