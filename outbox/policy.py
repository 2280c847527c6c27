"""Back-off, limits and the breaker, as pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, Protocol, TypeVar

from outbox.errors import ConfigurationError
from outbox.model import Lane

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a destination is treated: the one table of defaults. Times in seconds, sizes in bytes."""

    batch_messages: int = 100  #: messages in one upload request, at most
    batch_bytes: int = MIB  #: text and files in one upload request; one message may exceed it alone
    senders: int = 4  #: uploads at a time, per worker process
    large_senders: int = 1  #: the same for the large lane
    large_over: int = 8 * MIB  #: a message with more than this travels in the large lane
    connect_timeout: float = 10.0
    send_base: float = 120.0  #: a send may take this long ...
    slowest_rate: int = 64 * 1024  #: ... plus its bytes at this many bytes a second
    backoff_first: float = 1.0  #: doubles with each failure ...
    backoff_cap: float = 3600.0  #: ... up to this, with full jitter
    max_failures: int = 20
    max_unknown: int = 5
    on_unknown: Literal["resend", "dead"] = "resend"
    breaker_after: int = 5  #: consecutive destination failures that open the breaker
    probe_first: float = 5.0  #: wait before the first probe; doubles ...
    probe_cap: float = 900.0  #: ... up to this; also the interval of probes while credentials are refused

    def __post_init__(self) -> None:
        for name in (
            "batch_messages",
            "batch_bytes",
            "senders",
            "large_senders",
            "slowest_rate",
            "max_failures",
            "max_unknown",
            "breaker_after",
        ):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"expected {name} to be at least 1, got {getattr(self, name)}")
        for name in ("connect_timeout", "send_base", "backoff_first", "backoff_cap", "probe_first", "probe_cap"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"expected {name} to be more than 0 seconds, got {getattr(self, name)}")
        if self.large_over < 0:
            raise ConfigurationError(f"expected large_over to be at least 0, got {self.large_over}")
        if self.on_unknown not in ("resend", "dead"):
            raise ConfigurationError(f"expected on_unknown to be 'resend' or 'dead', got {self.on_unknown!r}")


#: A worker counts as gone when its beat stood still this many seconds of the observer's own monotonic clock.
GONE_AFTER = 15.0
#: Seconds that a stopping worker gives an upload in hand before it is cut.
STOP_GRACE = 30.0
#: Seconds that an idle loop waits before it looks again.
POLL = 0.5
#: How long the bytes of a delivered message stay in the spool.
FREE_AFTER = timedelta(hours=1)
#: Age at which a file without a row counts as rubbish: longer than any transaction.
SWEEP_GRACE = timedelta(hours=24)


def doubling(times: int, first: float, cap: float) -> float:
    """first, 2 × first, 4 × first … seconds for times = 1, 2, 3 …, never more than cap."""
    return min(cap, first * 2.0 ** min(max(times, 1) - 1, 62))


def backoff(failures: int, policy: Policy, dice: float) -> timedelta:
    """How long a message waits after its n-th failure: full jitter, so a crowd that failed together spreads out."""
    return timedelta(seconds=dice * doubling(failures, policy.backoff_first, policy.backoff_cap))


def send_deadline(size: int, policy: Policy) -> float:
    """Seconds a whole send of `size` bytes may take, answer included."""
    return policy.send_base + size / policy.slowest_rate


def clamp(instant: datetime, now: datetime, longest: float) -> datetime:
    """An instant that we invented is never further away than its own maximum, whatever the clock did since."""
    return min(instant, now + timedelta(seconds=longest))


class Weighed(Protocol):
    """What `fill` needs to know of a waiting message."""

    @property
    def size(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    @property
    def batch_limit(self) -> int | None: ...


W = TypeVar("W", bound=Weighed)


def fill(waiting: Iterable[W], messages: int, total: int, text: int | None) -> list[W]:
    """The messages at the head of a queue that fit one request: never none of a non-empty queue.

    `messages` bounds their count, `total` their bytes with files, `text` the bytes of the text part alone. A message with a
    batch_limit was in a refused batch: it travels with at most that many, itself included. The first that does not fit ends
    the batch, so order is kept and nothing is overtaken for ever.
    """
    taken: list[W] = []
    bytes_total = bytes_text = 0
    for message in waiting:
        messages = min(messages, message.batch_limit or messages)
        bytes_text += message.size
        bytes_total += message.size + message.file_bytes
        too_heavy = bytes_total > total or (text is not None and bytes_text > text)
        if taken and (len(taken) >= messages or too_heavy):
            break
        taken.append(message)
    return taken


class Stop(StrEnum):
    """Why a destination sends nothing; `breaker` is not kept here but follows from open_until."""

    PAUSE = "pause"  #: a person said so
    CREDENTIALS = "credentials"  #: ours are refused; probed now and then
    REJECT_STREAK = "reject_streak"  #: it refused one message after the other


@dataclass(frozen=True, slots=True)
class Breaker:
    """A destination's persisted patience: consecutive failures, when to probe, and why it is stopped."""

    failures: int = 0
    open_until: datetime | None = None
    stop: Stop | None = None

    @property
    def is_open(self) -> bool:
        """Whether only probes may pass."""
        return self.open_until is not None


class Passage(StrEnum):
    """What a destination's breaker and stop let a claim do."""

    FREE = "free"  #: claim as much as fits
    PROBE = "probe"  #: one message, by the one who moves open_until
    NONE = "none"


def passage(breaker: Breaker, now: datetime, policy: Policy) -> Passage:
    """Whether a destination may be claimed for now."""
    if breaker.stop in (Stop.PAUSE, Stop.REJECT_STREAK):
        return Passage.NONE
    if breaker.open_until is None:
        return Passage.FREE
    # Further away than anything `after_fault` or `after_probe_began` would say: the clock that said it was wrong, or ours is.
    longest = max(policy.probe_cap, send_deadline(GIB, policy))
    invented = clamp(breaker.open_until, now, longest) == breaker.open_until
    return Passage.NONE if invented and breaker.open_until > now else Passage.PROBE


def after_probe_began(breaker: Breaker, now: datetime, size: int, policy: Policy) -> Breaker:
    """The breaker while a probe is under way: open for as long as the probe may take, so a dead prober heals."""
    wait = max(doubling(breaker.failures, policy.probe_first, policy.probe_cap), send_deadline(size, policy))
    return Breaker(breaker.failures, now + timedelta(seconds=wait), breaker.stop)


def after_success(breaker: Breaker) -> Breaker:
    """The breaker after a delivery: nothing is held against it any more, but what a person has stopped stays stopped."""
    return Breaker(stop=breaker.stop if breaker.stop in (Stop.PAUSE, Stop.REJECT_STREAK) else None)


def after_fault(
    breaker: Breaker, now: datetime, policy: Policy, dice: float, wait: float | None, *, credentials: bool
) -> Breaker:
    """The breaker after the destination failed once more; `wait` is what it asked for in Retry-After, in seconds."""
    failures = breaker.failures + 1
    if breaker.stop in (Stop.PAUSE, Stop.REJECT_STREAK):
        return Breaker(failures, breaker.open_until, breaker.stop)
    if credentials:
        return Breaker(failures, now + timedelta(seconds=policy.probe_cap), Stop.CREDENTIALS)
    if wait is None and failures < policy.breaker_after and not breaker.is_open:
        return Breaker(failures, None, None)
    pause = doubling(failures - policy.breaker_after + 1, policy.probe_first, policy.probe_cap)
    spread = pause * (0.5 + dice / 2)
    return Breaker(failures, now + timedelta(seconds=max(spread, min(wait or 0.0, policy.probe_cap))), breaker.stop)


#: One round of a sender that serves every lane but large: a lane earlier in the turn is asked first, later ones fill in.
TURN: Sequence[Lane] = (Lane.EXPRESS,) * 8 + (Lane.NORMAL,) * 4 + (Lane.BULK,)


def lane_order(turn: int) -> tuple[Lane, ...]:
    """The lanes to ask in the n-th turn: usually express first, but each gets its share, so nothing starves."""
    first = TURN[(turn * 5) % len(TURN)]
    return (first, *(lane for lane in (Lane.EXPRESS, Lane.NORMAL, Lane.BULK) if lane is not first))
