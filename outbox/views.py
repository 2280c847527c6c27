"""The verbs of an Outbox that look; what they see is in `sights`, imported when somebody looks: a producer never does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection, RowMapping

from outbox.ambient import Ambient
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.errors import ConfigurationError, FileChanged, FileMissing, NoSuchMessage, SpoolError, UnknownDestination
from outbox.exchange import Upload
from outbox.model import Attachment, Batch, Lane, Message, Outcome, Selection, SpooledFile, State, require_span
from outbox.patience import Stop
from outbox.reserve import Room
from outbox.spool.base import Spool
from outbox.store import causes, listing, looking

if TYPE_CHECKING:
    from outbox.sights import DeliveryView, MessageDetail, MessageView, SpoolStatus, Status, WorkerView

#: So many blocked ordering keys are named, the longest blocked first.
_BLOCKED_NAMED = 20
_HOUR = timedelta(hours=1)
#: The spool's growth is that of the worst of these spans: an outage shows in the first, a night's batch only in the second.
_GROWTH_SPANS = (_HOUR, 6 * _HOUR)
#: A spool that is full later than this is not filling.
_FORESEEN = timedelta(days=365)
#: What a list has at most when nothing is said.
_LIST_LIMIT = 50


class Views:
    """The part of an Outbox that only looks; nothing here changes anything."""

    database: Database
    destinations: dict[str, Destination]
    spool_store: Spool
    room: Room
    ambient: Ambient

    def status(self) -> Status:
        """Per destination what waits, what died and why it is stopped; the spool and when it is full; who works."""
        from outbox import sights

        now = self.ambient.now()
        with self.database.snapshot() as connection:
            counts = looking.counts(connection, now)
            delivered = looking.delivered_since(connection, now - _HOUR)
            arrived = looking.arrived_since(connection, now - _HOUR)
            blocked = [sights.BlockedKey(**row) for row in looking.blocked(connection, _BLOCKED_NAMED)]
            workers = looking.alive(connection, now)
            spool = self._spool_status(connection, now)
            for name in (name for name, told in counts.items() if told["open_until"] is not None):
                failure = causes.last_failure(connection, name)
                counts[name]["last_failure"] = str(failure) if failure else None
        for name, amount in delivered.items():
            told = {"delivered_last_hour": amount.messages, "delivered_bytes_last_hour": amount.bytes}
            counts.setdefault(name, looking.nothing()).update(told)
        destinations = {
            name: sights.DestinationStatus(**counts.get(name, {}), declared=name in self.destinations)
            for name in sorted({*counts, *self.destinations})
        }
        gone = (sum(each.messages for each in delivered.values()), sum(each.bytes for each in delivered.values()))
        oldest = self.database.oldest_transaction()
        transaction = sights.OldTransaction(oldest.what, oldest.seconds) if oldest is not None else None
        return sights.Status(now, destinations, blocked, workers, spool, sights.Flow(*arrived, *gone), transaction)

    def messages(self, selection: Selection | None = None) -> list[MessageView]:
        """The messages of a selection, newest first; at most 50 unless it says another limit. Raises UnknownDestination
        for one that is neither declared nor known to the database."""
        from outbox import sights

        selection = selection or Selection()
        with self.database.read() as connection:
            self._require_known(connection, selection.destination)
            rows = listing.messages(connection, selection, selection.limit or _LIST_LIMIT)
        return [sights.view(sights.MessageView, row) for row in rows]

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
        from outbox import sights

        now = self.ambient.now()
        with self.database.snapshot() as connection:
            row = self._row(connection, id_or_key, destination)
            files = looking.files_of(connection, row["id"])
            attempts = looking.attempts_of(connection, row["id"])
            under_way = listing.delivery_of(connection, row["delivery_id"]) if row["delivery_id"] is not None else None
            held_up = looking.held_up(connection, row)
        return sights.MessageDetail(
            message=sights.view(sights.MessageView, row),
            payload=json.loads(row["payload"]),
            attachments=[sights.view(sights.AttachmentView, each, bytes_are=self._bytes_are(each)) for each in files],
            attempts=[sights.attempt(each) for each in attempts],
            under_way=sights.delivery(under_way, now) if under_way is not None else None,
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
        names = [name for name in Message._fields if name not in ("text", "attachments", "has_ordering_key")]
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
        from outbox import sights

        require_span(since, until)
        now = self.ambient.now()
        with self.database.read() as connection:
            self._require_known(connection, destination)
            wanted = listing.Deliveries(destination, outcome, under_way, since, until)
            rows = listing.deliveries(connection, wanted, limit)
        return [sights.delivery(row, now) for row in rows]

    def workers(self, *, gone: bool = False) -> list[WorkerView]:
        """Workers, the latest first: those that are not gone, or with `gone` every one that has a row."""
        from outbox import sights

        now = self.ambient.now()
        with self.database.read() as connection:
            rows = listing.workers(connection, gone=gone)
        return [sights.worker(row, max(0.0, (now - row["beat_at"]).total_seconds())) for row in rows]

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
        from outbox import sights

        files, size = looking.spooled(connection)
        growth = max(round(looking.spool_grew(connection, now - span) / (span / _HOUR)) for span in _GROWTH_SPANS)
        free = self.spool_store.left()
        quota = self.room.quota
        # Producers leave the last of a disk alone: to them it is full before it is.
        rooms = [] if free is None else [max(0, free - self.room.reserve)]
        rooms += [] if quota is None else [max(0, quota - size)]
        full_in = time_to_full(min(rooms), growth) if rooms else None
        return sights.SpoolStatus(
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


def _attachment(row: RowMapping) -> Attachment:
    file = SpooledFile(row["spooled"], row["size"], row["sha256"], row["md5"])
    return Attachment(row["name"], file, row["filename"], row["content_type"])
