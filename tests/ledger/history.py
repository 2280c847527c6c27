"""What a process says it does: a line of JSON before each step and one after, so that a killed one leaves at most one open.

    with History(folder / "producer-1.jsonl", "producer-1") as history:
        with history.enqueue("m7", files={"photo": b"..."}, ordering_key="pump"):
            with engine.begin() as connection:
                outbox.enqueue(connection, "enos", payload, files=..., key="m7")

    Worker(outbox, watcher=Diary(history)).run()

    said = promises(folder.glob("producer-*.jsonl"))     # K, U and X
    came = arrivals(folder.glob("receiver-*.jsonl"))     # of Receiver(ledger=folder / "receiver-1.jsonl"), in any process

Each process has a file of its own, and a new one each time it starts: the torn last line of a killed one is left out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sqlalchemy.exc import DBAPIError

from outbox.errors import OutOfRoom
from outbox.model import Batch
from outbox.testing import Received, read_ledger
from outbox.verdict import Delivered, Unknown, Verdict, outcome
from outbox.watching import Recorded, Watcher

Kind = Literal["invoke", "ok", "fail", "info"]

#: Headers that a Diary adds to each request: the delivery it is, and `id:attempt` of each message in it.
DELIVERY, ATTEMPTS = "x-ledger-delivery", "x-ledger-attempts"


@dataclass(frozen=True, slots=True)
class Line:
    """`invoke` before a step; then, with the same `step`: `ok`, `fail` (it did not happen) or `info` (nobody knows)."""

    at: float  #: monotonic seconds: one clock for all processes of a machine
    process: str
    step: int
    kind: Kind
    operation: str
    key: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Promise:
    """What a producer meant to enqueue under a key."""

    files: Mapping[str, str] = field(default_factory=dict)  #: SHA-256 by the producer's names
    payload: str | None = None  #: `digest` of it; None where nobody noted it
    ordering_key: str | None = None


@dataclass
class Promises:
    """What producers were told: acknowledged (K), nobody knows (U), rolled back (X). No key is in two of them."""

    acknowledged: dict[str, Promise] = field(default_factory=dict)
    unknown: dict[str, Promise] = field(default_factory=dict)
    rolled_back: dict[str, Promise] = field(default_factory=dict)

    def get(self, key: str) -> Promise | None:
        """What was meant by a key, whatever became of it."""
        return self.acknowledged.get(key) or self.unknown.get(key) or self.rolled_back.get(key)


class Try:
    """One enqueue under way."""

    def __init__(self) -> None:
        self.kind: Kind = "ok"

    def rolled_back(self) -> None:
        """The caller ends its transaction without a commit, on purpose."""
        self.kind = "fail"


class History:
    """The lines of one process. Any number of its threads may write."""

    def __init__(self, path: Path, process: str | None = None) -> None:
        self.path = path
        self.process = f"{process or path.stem}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._steps = itertools.count(1)
        # One write for each line on a file opened for appending: whatever is killed, only the last line can be torn.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, kind: Kind, operation: str, key: str | None = None, *, step: int | None = None, **more: Any) -> int:
        """Write a line; returns its step, to give to the second line of it."""
        step = next(self._steps) if step is None else step
        line = {"at": time.monotonic(), "process": self.process, "step": step, "kind": kind, "operation": operation}
        said = json.dumps(line | ({} if key is None else {"key": key}) | more)
        whole = f"{said}\n".encode()
        if os.write(self._file, whole) != len(whole):
            raise OSError(f"{self.path}: a line was written in part; is the disk full?")
        return step

    @contextmanager
    def enqueue(
        self,
        key: str,
        *,
        files: Mapping[str, bytes | str] | None = None,
        payload: Any = None,
        ordering_key: str | None = None,
        **more: Any,
    ) -> Iterator[Try]:
        """Around a transaction, its COMMIT included, that enqueues a message. Of several in one, put one inside the other.

        `files`: contents, or their SHA-256 as text. The key ends in K when the block does; in U when it raises what may have
        struck the COMMIT, or dies with the process; and in X when it raises anything else, or `rolled_back()` was said.
        """
        given = {
            name: each if isinstance(each, str) else hashlib.sha256(each).hexdigest() for name, each in (files or {}).items()
        }
        told: dict[str, Any] = {
            "files": given,
            "ordering_key": ordering_key,
            "digest": None if payload is None else digest(payload),
        }
        step = self.write("invoke", "enqueue", key, **told, **more)
        tried = Try()
        try:
            yield tried
        except BaseException as error:
            kind: Kind = "fail" if tried.kind == "fail" or not may_be_committed(error) else "info"
            self.write(kind, "enqueue", key, step=step, error=f"{type(error).__name__}: {error}"[:300])
            raise
        self.write(tried.kind, "enqueue", key, step=step)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> History:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Diary(Watcher):
    """Writes down what a worker does, and tells the receiver in two headers which attempts a request is."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._steps: dict[int, int] = {}
        self._lock = threading.Lock()

    def started(self, worker_id: str) -> None:
        self._history.write("info", "work", worker=worker_id)

    def stopping(self) -> None:
        self._history.write("info", "stop")

    def upload_begins(self, batch: Batch) -> Mapping[str, str]:
        tried = [[each.key, each.attempt] for each in batch.messages]
        step = self._history.write("invoke", "send", delivery=batch.delivery, worker=batch.worker, messages=tried)
        with self._lock:
            self._steps[batch.delivery] = step
        return headers_of(batch)

    def upload_ended(self, batch: Batch, verdict: Verdict, seconds: float) -> None:
        with self._lock:
            step = self._steps.pop(batch.delivery)
        kind: Kind = "ok" if isinstance(verdict, Delivered) else "info" if isinstance(verdict, Unknown) else "fail"
        self._history.write(kind, "send", step=step, delivery=batch.delivery, outcome=outcome(verdict).value)

    def recorded(self, recorded: Recorded) -> None:
        result = recorded.result
        became = {each.key: recorded.settled[each.id] for each in result.messages if each.id in recorded.settled}
        self._history.write(
            "ok",
            "record",
            delivery=result.delivery,
            worker=result.worker,
            witnessed=result.witnessed,
            messages=[
                [each.key, each.attempt, became[each.key].outcome.value] for each in result.messages if each.key in became
            ],
            late=[each.key for each in result.messages if each.key not in became],
        )


def headers_of(batch: Batch) -> dict[str, str]:
    """What tells a receiver which attempts a request is."""
    return {DELIVERY: str(batch.delivery), ATTEMPTS: " ".join(f"{each.id}:{each.attempt}" for each in batch.messages)}


def digest(payload: Any) -> str:
    """SHA-256 of a payload, whatever the order of its members, and whatever names its files travel under."""
    return hashlib.sha256(json.dumps(masked(payload), sort_keys=True).encode()).hexdigest()


def masked(value: Any) -> Any:
    """A payload whose references to files name none."""
    if isinstance(value, dict):
        return {name: masked(each) for name, each in value.items()}
    if isinstance(value, list):
        return [masked(each) for each in value]
    return "local://" if isinstance(value, str) and value.startswith("local://") else value


#: What SQLite says before anything of a COMMIT has counted.
_SQLITE_REFUSES = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_CONSTRAINT", "SQLITE_READONLY", "SQLITE_ERROR")


def may_be_committed(error: BaseException) -> bool:
    """Whether a transaction that ended in this error may be committed all the same: a connection that broke tells nothing."""
    chain = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    if any(isinstance(each, OutOfRoom) for each in chain):
        return False
    from_database = [each for each in chain if isinstance(each, DBAPIError)]
    if not from_database:
        return not isinstance(chain[0], Exception)  # an interrupt may have come in the middle of a COMMIT
    return any(_tells_nothing(each) for each in from_database)


def _tells_nothing(error: DBAPIError) -> bool:
    said = getattr(error.orig, "sqlite_errorname", None)
    if said is not None:
        return not str(said).startswith(_SQLITE_REFUSES)
    state = getattr(error.orig, "sqlstate", None)
    # Class 08: the connection; 40003: nobody knows; 57P: the server goes down. Anything else with a state was rolled back.
    return state is None or state.startswith(("08", "57P")) or state == "40003"


def lines(paths: Iterable[Path]) -> list[Line]:
    """The lines of these files, as they followed each other in time."""
    found = [_line(json.loads(each)) for path in paths for each in path.read_bytes().split(b"\n")[:-1]]
    return sorted(found, key=lambda line: line.at)


def _line(said: dict[str, Any]) -> Line:
    known = {name: said.pop(name) for name in ("at", "process", "step", "kind", "operation")}
    return Line(**known, key=said.pop("key", None), more=said)


def open_steps(found: Iterable[Line]) -> list[Line]:
    """The first lines of steps that have no second one: their process died meanwhile, or is at it."""
    ends: dict[tuple[str, int], Line] = {}
    for line in found:
        ends[line.process, line.step] = line
    return [line for line in ends.values() if line.kind == "invoke"]


def promises(paths: Iterable[Path]) -> Promises:
    """What the producers that wrote these files were told. What one of several tries under a key was told of counts most."""
    tries: dict[str, dict[tuple[str, int], tuple[Kind, Promise]]] = {}
    for line in lines(paths):
        if line.operation != "enqueue" or line.key is None:
            continue
        mine, at = tries.setdefault(line.key, {}), (line.process, line.step)
        if line.kind == "invoke":
            mine[at] = ("invoke", Promise(line.more["files"], line.more["digest"], line.more["ordering_key"]))
        else:
            mine[at] = (line.kind, mine[at][1])
    told = Promises()
    for key, mine in tries.items():
        by_kind = dict(mine.values())
        if "ok" in by_kind:
            told.acknowledged[key] = by_kind["ok"]
        elif by_kind.keys() == {"fail"}:
            told.rolled_back[key] = by_kind["fail"]
        else:
            told.unknown[key] = by_kind.get("info") or by_kind["invoke"]
    return told


def arrivals(paths: Iterable[Path]) -> list[Received]:
    """What receivers wrote to their ledgers, wherever they ran, as it began to arrive."""
    return sorted((each for path in paths for each in read_ledger(path)), key=lambda received: received.started)
