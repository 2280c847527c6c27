"""What can hold a message or a destination up, as it was found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from outbox.explaining.words import brief
from outbox.limits import Bucket, Learned, Traffic
from outbox.model import Pause
from outbox.patience import Breaker
from outbox.policy import GONE_AFTER, SILENT_AFTER, Policy
from outbox.timekeeping import When


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker, as its row has it."""

    id: str
    host: str
    pid: int
    started_at: datetime
    beat_at: datetime
    gone: bool
    stop_asked: bool
    serves: str | None
    gone_after: float | None = None  #: one of an older version does not say

    @property
    def patience(self) -> float:
        """After how many seconds without a beat it takes another worker for gone."""
        return GONE_AFTER if self.gone_after is None else self.gone_after

    def may_serve(self, name: str) -> bool:
        """Whether it serves a destination; one that does not say may serve any."""
        return self.serves is None or name in self.serves.split()

    def is_silent(self, now: datetime) -> bool:
        """Whether its last beat is so long ago that it must have died."""
        return (now - self.beat_at).total_seconds() > SILENT_AFTER

    def __str__(self) -> str:
        return f"worker {self.id} on {self.host} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of an upload."""

    outcome: str
    status: int | None
    code: int | None
    text: str | None
    messages: int | None = None

    def __str__(self) -> str:
        numbers = [f"HTTP {self.status}" if self.status else "", f"code {self.code}" if self.code is not None else ""]
        said = ": ".join(filter(None, (", ".join(filter(None, numbers)), brief(self.text))))
        return said or f"{self.outcome}, without a word"


@dataclass(frozen=True, slots=True)
class Upload:
    """A delivery that is under way; `worker` is None when it has no row."""

    id: int
    worker_id: str
    worker: WorkerSeen | None
    since: datetime
    messages: int
    bytes: int
    lane: str


@dataclass(frozen=True, slots=True)
class DestinationFacts:
    """Everything about a destination that can hold a message up."""

    name: str
    declared: bool
    policy: Policy
    when: When
    breaker: Breaker
    bucket: Bucket
    learned: Learned
    stop_text: str | None
    stopped_by: str | None
    stopped_at: datetime | None
    last_failure: Answered | None
    traffic: Traffic
    probe: Upload | None  #: a small one that is under way; a large one does not count
    workers: tuple[WorkerSeen, ...]  #: those that were not declared gone
    suspect_under_way: bool
    due: bool
    smaller_due: bool  #: anything but in the large lane
    next_due: datetime | None  #: if nothing is due
    blocked_keys: int  #: ordering keys that a dead message holds up
    paused_keys: int = 0  #: ordering keys that a person has paused
    paused: tuple[Pause, ...] = ()  #: the first few of them
    locked: bool = False  #: somebody keeps everybody else from writing to the database

    @property
    def alive(self) -> list[WorkerSeen]:
        """Workers that beat."""
        return [each for each in self.workers if not self._is_silent(each)]

    @property
    def serving(self) -> list[WorkerSeen]:
        """Workers that would begin an upload to it."""
        return [each for each in self.alive if each.may_serve(self.name) and not each.stop_asked]

    def is_abandoned(self, upload: Upload) -> bool:
        """Whether nobody is left who could end an upload."""
        return upload.worker is None or upload.worker.gone or self._is_silent(upload.worker)

    def _is_silent(self, worker: WorkerSeen) -> bool:
        """Whether a worker must have died. While nobody can write a beat, silence says nothing."""
        return not self.locked and worker.is_silent(self.when.now)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another message of the same ordering key."""

    id: int
    key: str
    due_at: datetime
    scheduled: bool
    reason: str | None
    reason_text: str | None

    def __str__(self) -> str:
        return f"message {self.id} ({self.key!r})"


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """Where the stream of a message stands."""

    ordering_key: str
    claimed_by: str | None
    blocked_by: Neighbour | None  #: the dead message that holds it up
    first: Neighbour | None  #: the first that is unfinished
    tried: Neighbour | None  #: the one that is being sent
    before: int  #: unfinished messages before this one, counted up to a bound
    behind: int  #: and after it


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """An attachment, and what the spool says about its bytes."""

    name: str
    spooled: str
    size: int
    freed_at: datetime | None
    missing: bool = False
    changed: str | None = None  #: in which way
    unreadable: str | None = None  #: why the spool could not tell


@dataclass(frozen=True, slots=True)
class MessageFacts:
    """Everything about one message that can hold it up."""

    id: int
    key: str
    destination: str
    lane: str
    state: str
    reason: str | None
    reason_text: str | None
    attempt: int
    failures: int
    unknowns: int
    batch_limit: int | None
    suspect: bool
    size: int
    file_bytes: int
    files: int
    due_at: datetime
    scheduled: bool
    expires_at: datetime | None
    clock_plausible: bool
    finished_at: datetime | None
    claimed_by: str | None
    last: Answered | None  #: what became of its last attempt
    last_with_others: Answered | None  #: and of the last in company
    upload: Upload | None  #: the one that carries it now
    stream: StreamFacts | None
    attached: tuple[AttachedFile, ...]
    before: int  #: what goes before it in its lane, counted up to a bound
    before_it: str  #: and what that is
    pause: Pause | None = None  #: of its ordering key
    kept: timedelta | None = None  #: how long it is kept when it is over; None is for ever

    def __str__(self) -> str:
        return f"message {self.id}"
