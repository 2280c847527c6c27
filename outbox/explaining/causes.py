"""What a cause is, and which ones there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import NamedTuple


class Code(StrEnum):
    """Why something is not moving."""

    AMBIGUOUS = "ambiguous"  #: the word means several things, and each is explained
    DATABASE = "database"  #: it cannot be opened or read
    SCHEMA = "schema"  #: it is not the one of this code
    LOCKED = "locked"  #: somebody keeps everybody else from writing to it
    DISK_FULL = "disk_full"  #: nothing more can be written
    CLOCK = "clock"  #: the clock of this machine cannot be right
    DELIVERED = "delivered"
    CANCELLED = "cancelled"
    DEAD = "dead"
    HOLDS_UP = "holds_up"  #: it is dead, and messages of its ordering key wait for it
    CLAIMED = "claimed"  #: it is being sent
    ABANDONED = "abandoned"  #: it is claimed by a worker that is gone
    NOT_DECLARED = "not_declared"  #: these settings do not know the destination
    PAUSED = "paused"  #: a person stopped the destination
    KEY_PAUSED = "key_paused"  #: a person stopped its ordering key
    NO_WORKER = "no_worker"  #: none is alive
    NOT_SERVED = "not_served"  #: no live one serves the destination
    SPOOL = "spool"  #: its files cannot be looked at
    ATTACHMENTS = "attachments"  #: it has fewer than it should
    FILE_MISSING = "file_missing"
    FILE_FREED = "file_freed"
    FILE_CHANGED = "file_changed"
    ORDER_DEAD = "order_dead"  #: the head of its ordering key is dead
    CREDENTIALS = "credentials"  #: ours are refused
    REJECT_STREAK = "reject_streak"  #: the destination refused one message after the other
    BREAKER = "breaker"  #: the destination failed, and is left alone
    PROBE = "probe"  #: one message finds out whether the destination is well
    NOT_DUE = "not_due"  #: its due_at has not come
    BACKOFF = "back_off"  #: it failed, and is put off
    EXPIRED = "expired"  #: its expires_at has come, and it is about to be given up
    ORDER_UNDER_WAY = "order_under_way"  #: another message of its ordering key is being sent
    ORDER_BEHIND = "order_behind"  #: another message of its ordering key goes first
    SUSPECT = "suspect"  #: a worker died while it travelled alone
    RATE = "rate"
    IN_FLIGHT = "in_flight"
    RECOVERING = "recovering"
    SENDERS = "senders"  #: all are busy
    LARGE_BUSY = "large_busy"  #: those of the large lane are
    BEFORE = "before"  #: others are, in its lane
    TOO_LARGE = "too_large"  #: for the size that the destination taught us
    LEARNED = "learned_size"
    ALONE = "alone"  #: it travels alone since it was refused with others
    BATCH_LIMIT = "batch_limit"  #: the same, with few others
    EXPIRES = "expires"
    IDLE = "idle"  #: nothing is due
    READY = "ready"  #: nothing stands in its way


class Weight(IntEnum):
    """How much a cause matters."""

    FIRST = 0  #: to be known before all else; holds nothing up by itself
    ACT = 1  #: holds it up until somebody does something
    WAIT = 2  #: holds it up for a time
    NOTE = 3  #: does not hold it up


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is not moving, in a sentence; what happens next, and when if that is known."""

    code: Code
    sentence: str
    next: str
    at: datetime | None = None


class Found(NamedTuple):
    """A cause, and how much it matters."""

    weight: Weight
    cause: Cause


def found(weight: Weight, code: Code, sentence: str, next: str, at: datetime | None = None) -> Found:  # noqa: A002 (its name)
    """A cause that was found."""
    return Found(weight, Cause(code, sentence, next, at))


def in_order(causes: Iterable[Found]) -> list[Cause]:
    """Those that matter most first: what needs somebody, then what takes longest, then what is only worth knowing.

    What holds up several of the things that were asked for is said once.
    """

    def place(each: Found) -> tuple[int, float, int]:
        until = each.cause.at.timestamp() if each.cause.at and each.weight is Weight.WAIT else 0.0
        return each.weight, -until, list(Code).index(each.cause.code)

    return list(dict.fromkeys(each.cause for each in sorted(causes, key=place)))
