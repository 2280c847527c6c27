"""How a destination is treated: the one table of defaults, and the waits that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Literal, assert_never

from outbox.errors import ConfigurationError
from outbox.model import Outcome, State
from outbox.timekeeping import SKEW
from outbox.units import in_words

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a destination is treated: the one table of defaults. Times in seconds, sizes in bytes."""

    batch_messages: int = 100  #: messages in one upload request, at most
    batch_bytes: int = MIB  #: text and files in one upload request; one message may exceed it alone
    senders: int = 4  #: uploads at a time, per worker process
    large_senders: int = 1  #: the same for the large lane
    large_over: int = 8 * MIB  #: a message with more than this travels in the large lane
    in_flight: int | None = None  #: uploads at a time, across all workers; the large lane leaves one of them to the others
    rate: float | None = None  #: requests a second, across all workers
    burst: float | None = None  #: requests that may go at once after a quiet time; default half a second's worth, at least one
    connect_timeout: float = 10.0  #: until a connection stands; none in that time is a failure of the destination
    send_base: float = 120.0  #: a send may take this long ...
    slowest_rate: int = 64 * 1024  #: ... plus its bytes at this many bytes a second
    backoff_first: float = 1.0  #: doubles with each failure ...
    backoff_cap: float = 3600.0  #: ... up to this, with full jitter
    backoff_schedule: Sequence[float] | None = None  #: or exactly these waits, one after each failure; the last one repeats
    max_failures: int = 20  #: with so many failures, while its destination took others, a message is dead (exhausted)
    max_unknown: int = 5  #: with so many tries of unknown outcome a message is dead (outcome_unknown)
    on_unknown: Literal["resend", "dead"] = (
        "resend"  #: after a try of unknown outcome: a copy rather than none, or none rather than two
    )
    max_age: float | None = None  #: a message that is older than this is dead (expired)
    ordered: bool = True  #: False: an ordering key only gives its messages a fair turn, their order is dropped
    on_dead: Literal["block", "skip"] = "block"  #: what a dead message does to its stream
    breaker_after: int = 5  #: consecutive destination failures that open the breaker
    probe_first: float = 5.0  #: wait before the first probe; doubles ...
    probe_cap: float = 900.0  #: ... up to this; also the interval of probes while credentials are refused, or everything is
    ramp_first: int = (
        1  #: uploads at a time, across all workers, when the breaker has just closed; one more with each delivery ...
    )
    ramp_until: int = 16  #: ... up to this, and then as many as there are senders
    reject_streak: int = 20  #: messages rejected alone, with no delivery between them, that stop the destination

    def __post_init__(self) -> None:
        for name in (
            "batch_messages",
            "batch_bytes",
            "senders",
            "large_senders",
            "in_flight",
            "burst",
            "slowest_rate",
            "max_failures",
            "max_unknown",
            "breaker_after",
            "ramp_first",
            "ramp_until",
            "reject_streak",
        ):
            if (value := getattr(self, name)) is not None and not value >= 1:
                raise ConfigurationError(f"expected {name} to be at least 1, got {value}")
        for name in ("connect_timeout", "send_base", "backoff_first", "backoff_cap", "probe_first", "probe_cap", "max_age"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigurationError(f"expected {name} to be more than 0 seconds, got {value}")
        if self.rate is not None and not self.rate > 0:
            raise ConfigurationError(f"expected rate to be more than 0 requests a second, got {self.rate}")
        if self.large_over < 0:
            raise ConfigurationError(f"expected large_over to be at least 0, got {self.large_over}")
        if self.on_unknown not in ("resend", "dead"):
            raise ConfigurationError(f"expected on_unknown to be 'resend' or 'dead', got {self.on_unknown!r}")
        if self.on_dead not in ("block", "skip"):
            raise ConfigurationError(f"expected on_dead to be 'block' or 'skip', got {self.on_dead!r}")
        if self.backoff_schedule is not None:
            waits = tuple(self.backoff_schedule)
            if not waits or not all(wait >= 0 for wait in waits):
                raise ConfigurationError(f"expected backoff_schedule to be waits in seconds, such as (5, 60, 600), got {waits}")
            object.__setattr__(self, "backoff_schedule", waits)

    @property
    def bucket(self) -> float:
        """How many requests the rate saves up for, at most."""
        return self.burst or max(1.0, (self.rate or 0.0) / 2)

    @property
    def longest_backoff(self) -> float:
        """Seconds that a message is put off by a failure, at most."""
        return max(self.backoff_schedule) if self.backoff_schedule else self.backoff_cap


#: What is kept for longer is kept for ever: no date is so far away.
_LONGEST_KEPT = timedelta(days=36_500)
#: What a person has at least; less is a slip of the pen, such as 90s for 90d.
_SHORTEST_KEPT_DEAD = timedelta(hours=1)
#: How long the bytes of a delivered message stay in the spool.
FREE_AFTER = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long what is over is kept; None is for ever. A key is remembered for as long as its message is kept.

    Zero means not at all: it goes with the next round of housekeeping. A message takes its key along, so that the same key may
    be enqueued, and delivered, again. Dead messages wait for a person, an hour at least; one that holds up its ordering key is
    kept until somebody acts.
    """

    delivered: timedelta | None = timedelta(days=7)  #: messages, from their delivery; and the uploads that delivered them
    cancelled: timedelta | None = timedelta(days=7)  #: messages that a person withdrew
    dead: timedelta | None = timedelta(days=90)  #: dead messages with their files; and uploads that delivered nothing
    free_after: timedelta | None = FREE_AFTER  #: a delivered message's bytes in the spool; at the latest they go with it

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                continue
            if not (isinstance(value, timedelta) and value >= timedelta(0)):
                raise ConfigurationError(
                    f"expected {each.name} to be a timedelta of at least 0, or None for ever, got {value!r}"
                )
            if value > _LONGEST_KEPT:
                raise ConfigurationError(
                    f"expected {each.name} to be at most {_LONGEST_KEPT.days:,} days, or for ever, got {value.days:,} days"
                )
        if self.dead is not None and self.dead < _SHORTEST_KEPT_DEAD:
            raise ConfigurationError(
                f"expected dead to be at least {in_words(_SHORTEST_KEPT_DEAD)}, got {in_words(self.dead)}: what was given up "
                "would be deleted before a person has seen it"
            )

    def of(self, state: State) -> timedelta | None:
        """How long a message is kept from the moment that it came into this state; None is for ever."""
        match state:
            case State.DELIVERED:
                return self.delivered
            case State.CANCELLED:
                return self.cancelled
            case State.DEAD:
                return self.dead
            case State.PENDING | State.CLAIMED:
                return None
            case _:
                assert_never(state)

    def of_delivery(self, outcome: str) -> timedelta | None:
        """How long the row of an upload is kept from its end."""
        return self.delivered if outcome == Outcome.DELIVERED else self.dead


#: Attempts that are kept of a message which is tried for ever: the last ones.
ATTEMPTS_KEPT = 1000
#: How long the row of a worker stays that is gone and holds nothing.
WORKERS_KEPT = timedelta(days=7)
#: Bytes of disk beside the database that are kept for recording and purging when the disk is full.
RESERVE = 16 * MIB
#: Bytes inside a SQLite database that may not grow for ever, for the same.
RESERVE_INSIDE = MIB
#: Seconds that a Postgres transaction may be open, anybody's, before a worker warns of it: nothing can be vacuumed meanwhile.
LONG_TRANSACTION = 60.0

#: A worker counts as gone when its beat stood still this many seconds of the observer's own monotonic clock.
GONE_AFTER = 15.0
#: A worker that has not beaten for so long has died, as far as somebody can tell who only compares two clocks.
SILENT_AFTER = GONE_AFTER + SKEW
#: Seconds that a stopping worker gives an upload in hand before it is cut.
STOP_GRACE = 30.0
#: Seconds that an idle loop waits before it looks again.
POLL = 0.5
#: Rows that one transaction of housekeeping or of a bulk act touches, at most.
HANDFUL = 500
#: Age at which a file without a row counts as rubbish: longer than any transaction.
SWEEP_GRACE = timedelta(hours=24)


def doubling(times: int, first: float, cap: float) -> float:
    """first, 2 × first, 4 × first … seconds for times = 1, 2, 3 …, never more than cap."""
    return min(cap, first * 2.0 ** min(max(times, 1) - 1, 62))


def backoff(failures: int, policy: Policy, dice: float) -> timedelta:
    """How long a message waits after its n-th failure: full jitter, so a crowd that failed together spreads out.

    An explicit schedule is kept to the second.
    """
    if policy.backoff_schedule:
        return timedelta(seconds=policy.backoff_schedule[min(max(failures, 1), len(policy.backoff_schedule)) - 1])
    return timedelta(seconds=dice * doubling(failures, policy.backoff_first, policy.backoff_cap))


def send_deadline(size: int, policy: Policy) -> float:
    """Seconds a whole send of `size` bytes may take, answer included."""
    return policy.send_base + size / policy.slowest_rate


def clamp(instant: datetime, now: datetime, longest: float) -> datetime:
    """An instant that we invented is never further away than its own maximum, whatever the clock did since."""
    return min(instant, now + timedelta(seconds=longest))
