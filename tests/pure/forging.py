"""Forged histories for the ledger to look through: what producers were told, rows, requests and a trail, without a database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from outbox.testing import Received, ReceivedFile
from tests.factories import event
from tests.ledger.evidence import Evidence
from tests.ledger.fate import Attached, Fate, Tried
from tests.ledger.history import Promise, Promises
from tests.ledger.trail import Change, Trail

PHOTO = b"bytes"
SHA256 = hashlib.sha256(PHOTO).hexdigest()


def received(number: int, *keys: str, photos: Iterable[str] = (), **changes: Any) -> Received:
    """A request with these messages, taken and confirmed; those in `photos` with a file. It took half a second."""
    structs = tuple(event(key, *(["photo"] if key in set(photos) else [])) for key in keys)
    for struct in structs:
        if "photo" in struct["events"]["crack"]:
            struct["events"]["crack"]["photo"] = f"local://{struct['assetId']}.jpg"
    told = Received(
        number=number,
        action="postEvent",
        query={"action": "postEvent"},
        headers={},
        complete=True,
        faults=(),
        stored=True,
        status=200,
        code=0,
        answered=True,
        started=float(number),
        finished=number + 0.5,
        wire_bytes=100,
        behaviour=None,
        message={"params": list(structs)},
        files={f"{key}.jpg": ReceivedFile(len(PHOTO), SHA256, "0" * 32, "photo.jpg") for key in photos},
        kept=structs,
    )
    return replace(told, **changes)


def cut(number: int, *keys: str, **changes: Any) -> Received:
    """One that was taken, and whose answer did not arrive."""
    return received(number, *keys, answered=False, **changes)


def refused(number: int, *keys: str, **changes: Any) -> Received:
    return received(number, *keys, **({"stored": False, "kept": (), "code": 1204} | changes))


def tried(*outcomes: str, late: str | None = None) -> tuple[Tried, ...]:
    """Attempts with these outcomes; the delivery of each has the attempt's number. `late`: of the first."""
    return tuple(Tried(number, number, each, late if number == 1 else None) for number, each in enumerate(outcomes, start=1))


@dataclass
class Forged:
    """A story with nothing against it, to be spoilt.

    `photo` was delivered at once; `twice` after an attempt that nobody heard of; `maybe` although its producer was told
    nothing; `one` and `two` are a stream; `dead` was refused; `back` was rolled back.
    """

    fates: dict[str, Fate] = field(default_factory=dict)
    requests: list[Received] = field(default_factory=list)
    promises: Promises = field(default_factory=Promises)
    deliveries: dict[int, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.promises, self.fates, self.requests, self.deliveries, **self.options)

    def change(self, key: str, **changes: Any) -> None:
        """Another fate."""
        self.fates[key] = replace(self.fates[key], **changes)

    def swap(self, number: int, **changes: Any) -> None:
        """Another request in place of one of them."""
        self.requests = [replace(each, **changes) if each.number == number else each for each in self.requests]


def fate(message_id: int, key: str, outcomes: tuple[str, ...] = ("delivered",), **changes: Any) -> Fate:
    told = Fate(message_id, key, outcomes[-1], len(outcomes), attempts=tried(*outcomes), payload=json.dumps(event(key)))
    return replace(told, **changes)


def forged() -> Forged:
    fates = [
        fate(
            1,
            "photo",
            payload=json.dumps(event("photo", "photo")),
            attached={"photo": Attached("f" * 32, SHA256, "photo.jpg")},
        ),
        fate(2, "twice", ("unknown", "delivered")),
        fate(3, "maybe"),
        fate(4, "one", stream_id=1, stream_number=1),
        fate(5, "two", stream_id=1, stream_number=2),
        fate(6, "dead", ("reject",), state="dead"),
    ]
    requests = [
        received(1, "photo", "maybe", photos=["photo"]),
        cut(2, "twice"),
        received(3, "twice", "one"),
        refused(4, "dead"),
        received(5, "two"),
    ]
    acknowledged = {key: Promise() for key in ("twice", "one", "two", "dead")} | {"photo": Promise({"photo": SHA256})}
    promises = Promises(acknowledged, {"maybe": Promise(), "gone": Promise()}, {"back": Promise()})
    deliveries = {number: SimpleNamespace(id=number, finished_at="then", text=None) for number in range(1, 6)}
    return Forged({each.key: each for each in fates}, requests, promises, deliveries)


class Tape:
    """A forged trail. Every step is as it should be, unless it is told otherwise."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._deliveries = 0
        self._ids: dict[str, int] = {}
        self._rows: dict[str, dict[str, Any]] = {}

    @property
    def trail(self) -> Trail:
        return Trail(self.changes)

    def born(self, *keys: str, stream: int | None = None) -> Tape:
        for number, key in enumerate(keys, start=1):
            self._ids[key] = len(self._ids) + 1
            row = {"state": "pending", "attempt": 0, "worker": None, "delivery": None, "replays": 0}
            place = {"stream_id": stream, "stream_number": number if stream is not None else None}
            self._rows[key] = row
            self._add("message", message_id=self._ids[key], key=key, **place, **_prefixed("new", row))
        return self

    def claimed(self, key: str, worker: str = "w1", **changes: Any) -> Tape:
        """By a delivery of its own: they are numbered as they are made."""
        self._deliveries += 1
        place = {"state": "claimed", "worker": worker, "delivery": self._deliveries}
        return self.became(key, **(place | {"attempt": self._rows[key]["attempt"] + 1} | changes))

    def ended(self, key: str, state: str, outcome: str | None = None, **changes: Any) -> Tape:
        """A claim is recorded, and its attempt written."""
        number, delivery = self._rows[key]["attempt"], self._rows[key]["delivery"]
        self.became(key, state=state, worker=None, delivery=None)
        outcomes = {"delivered": "delivered", "dead": "reject", "pending": "retry"}
        return self.wrote(key, **({"state": outcome or outcomes[state], "attempt": number, "delivery": delivery} | changes))

    def became(self, key: str, **changes: Any) -> Tape:
        """A change of the row, whatever it is."""
        old = self._rows[key]
        self._rows[key] = old | changes
        first = next(each for each in self.changes if each.key == key)
        place = {"stream_id": first.stream_id, "stream_number": first.stream_number}
        told = _prefixed("old", old) | _prefixed("new", self._rows[key])
        return self._add("message", message_id=self._ids[key], key=key, **place, **told)

    def wrote(self, key: str, state: str, attempt: int, delivery: int | None, was: str | None = None) -> Tape:
        """The row of an attempt; one that `was` something else was there already."""
        new = {"state": state, "attempt": attempt, "delivery": delivery}
        before = {} if was is None else _prefixed("old", new | {"state": was})
        return self._add("attempt", message_id=self._ids[key], **before, **_prefixed("new", new))

    def deleted(self, key: str) -> Tape:
        return self._add("message", message_id=self._ids[key], key=key, **_prefixed("old", self._rows[key]))

    def worker(self, name: str, state: str) -> Tape:
        return self._add("worker", new_worker=name, new_state=state)

    def _add(self, about: str, **values: Any) -> Tape:
        told: Mapping[str, Any] = dict.fromkeys(Change.__slots__) | values
        self.changes.append(Change(**told | {"id": len(self.changes) + 1, "about": about}))
        return self


def _prefixed(prefix: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in row.items()}
