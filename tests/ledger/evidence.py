"""What there is to hold against each other: promises, rows, what arrived, the trail and the spool, each read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from outbox.database import Database
from outbox.tables import attachment, attempt, delivery, file, head, message
from outbox.testing import Received
from tests.ledger import trail as trails
from tests.ledger.fate import Attached, Fate, Tried
from tests.ledger.history import ATTEMPTS, DELIVERY, Line, Promises
from tests.ledger.trail import Trail

#: What is said of a delivery that was taken from a worker.
RESCUED = "the worker is gone"


@dataclass
class Arrived:
    """What the receiver saw of one message; moments in its monotonic seconds."""

    copies: int = 0  #: that it took
    parts: int = 0  #: that it took out of requests it refused
    told: int = 0  #: that it took and said so, to the last byte
    first: float | None = None  #: when the first of those that it took began
    begun: float | None = None  #: when the first request with it began, taken or not
    confirmed: float | None = None  #: when the first answer that said so had left


@dataclass
class Evidence:
    """One database, what producers were told, and what arrived."""

    promises: Promises
    fates: Mapping[str, Fate]  #: by key, of messages that are there, and, where there is a trail, of those that were purged
    requests: Sequence[Received]
    deliveries: Mapping[int, Any] = field(default_factory=dict)
    drained: bool = True  #: the story went on until nothing was left to do
    purged: Collection[str] | None = ()  #: keys that may be; None for every one that was final, which takes a trail to tell
    claimed_streams: Sequence[int] = ()
    trail: Trail | None = None
    work: Sequence[Line] = ()  #: what workers wrote down

    @classmethod
    def gather(cls, database: Database, requests: Iterable[Received], promises: Promises, **options: Any) -> Evidence:
        """Read what is in the database, the trail too if one is installed."""
        with database.read() as connection:
            trail = trails.read_on(connection)
            rows = connection.execute(sa.select(message)).all()
            tried: dict[int, list[Tried]] = defaultdict(list)
            for row in connection.execute(sa.select(attempt).order_by(attempt.c.message_id, attempt.c.number)):
                tried[row.message_id].append(Tried(row.number, row.delivery_id, row.outcome, row.late_outcome))
            columns = (attachment.c.message_id, attachment.c.name, attachment.c.filename, attachment.c.file, file.c.sha256)
            attached: dict[int, dict[str, Attached]] = defaultdict(dict)
            for row in connection.execute(sa.select(*columns).join(file, attachment.c.file == file.c.name)):
                attached[row.message_id][row.name] = Attached(row.file, row.sha256, row.filename)
            deliveries = {row.id: row for row in connection.execute(sa.select(delivery))}
            claimed = connection.execute(sa.select(head.c.stream_id).where(head.c.claimed_by.is_not(None))).scalars().all()
        fates = trail.fates_of_deleted() if trail is not None else {}
        lives = trail.lives() if trail is not None else {}
        for row in rows:
            place = (row.stream_id, row.stream_number)
            fates[row.key] = Fate(
                row.id,
                row.key,
                row.state,
                row.attempt,
                row.replays,
                *place,
                attempts=tuple(tried[row.id]),
                payload=row.payload,
                attached=attached[row.id],
                lives=lives.get(row.key, 1),
            )
        found = {"deliveries": deliveries, "claimed_streams": claimed, "trail": trail}
        return cls(promises, fates, list(requests), **(found | options))

    @cached_property
    def arrived(self) -> Mapping[str, Arrived]:
        """What came of each message, by key."""
        found: dict[str, Arrived] = defaultdict(Arrived)
        for request in self.requests:
            for struct in request.structs:
                each = found[str(struct.get("assetId"))]
                each.begun = _earlier(each.begun, request.started)
                if request.stored:
                    each.copies += 1
                    each.first = _earlier(each.first, request.started)
            if not request.stored:
                for struct in request.kept:
                    found[str(struct.get("assetId"))].parts += 1
            for accepted in request.accepted:
                each = found[str(accepted.struct.get("assetId"))]
                each.told += 1
                each.confirmed = _earlier(each.confirmed, request.finished)
        return dict(found)

    @cached_property
    def there(self) -> list[Fate]:
        """Messages whose rows are there."""
        return [fate for fate in self.fates.values() if not fate.purged]

    def copies(self, key: str) -> int:
        return self.arrived[key].copies if key in self.arrived else 0

    def may_be_purged(self, key: str) -> bool:
        """Whether nobody need wonder that a message has no row."""
        if self.purged is not None:
            return key in self.purged
        fate = self.fates.get(key)
        return fate is not None and fate.purged and fate.over


def attempts_told(request: Received) -> tuple[int, dict[int, int]] | None:
    """The delivery that a request says it is, and each message's attempt by id; None when its worker kept no diary."""
    if DELIVERY not in request.headers or ATTEMPTS not in request.headers:
        return None
    pairs = (each.split(":") for each in request.headers[ATTEMPTS].split())
    return int(request.headers[DELIVERY]), {int(message_id): int(number) for message_id, number in pairs}


def _earlier(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)
