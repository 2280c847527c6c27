"""How much may go at once: batches, lanes, rates and learned sizes, as pure functions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from outbox.model import Lane
from outbox.policy import Policy
from outbox.timekeeping import SKEW

#: A learned limit doubles in this many seconds: a limit that was lifted is found out again.
LEARNED_DOUBLES_IN = 86_400.0
#: No server's limit is smaller than this many bytes: a 413 for less says something else.
LEARNED_LEAST = 16 * 1024


class Weighed(Protocol):
    """What `fill` needs to know of a waiting message."""

    @property
    def size(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...
    @property
    def batch_limit(self) -> int | None: ...
    @property
    def suspect(self) -> bool: ...


W = TypeVar("W", bound=Weighed)


_SUSPECT, _BATCH_LIMIT, _SIZE, _FILE_BYTES = map(operator.attrgetter, ("suspect", "batch_limit", "size", "file_bytes"))


def fill(waiting: Sequence[W], messages: int, total: int, text: int | None) -> list[W]:
    """The messages at the head of a queue that fit one request: never none of a non-empty queue.

    `messages` bounds their count, `total` their bytes with files, `text` the bytes of the text part alone. A message with a
    batch_limit was in a batch that failed: it travels with its like and at most that many, itself included, so that no
    message of good repute shares its way. A suspect travels alone. Otherwise the first that does not fit ends the batch, so
    nothing is overtaken for ever.
    """
    head = waiting[:messages]
    if not any(map(_SUSPECT, head)) and not any(map(_BATCH_LIMIT, head)):  # the usual case, told at a glance
        bytes_text = sum(map(_SIZE, head))
        if bytes_text + sum(map(_FILE_BYTES, head)) <= total and (text is None or bytes_text <= text):
            return list(head)
    taken: list[W] = []
    bytes_total = bytes_text = 0
    for message in waiting:
        if taken and (message.suspect or message.batch_limit != taken[0].batch_limit):
            continue
        messages = 1 if message.suspect else min(messages, message.batch_limit or messages)
        bytes_text += message.size
        bytes_total += message.size + message.file_bytes
        too_heavy = bytes_total > total or (text is not None and bytes_text > text)
        if taken and (len(taken) >= messages or too_heavy):
            break
        taken.append(message)
    return taken


#: One round of a sender that serves every lane but large: a lane earlier in the turn is asked first, later ones fill in.
TURN: Sequence[Lane] = (Lane.EXPRESS,) * 8 + (Lane.NORMAL,) * 4 + (Lane.BULK,)


def lane_order(turn: int) -> tuple[Lane, ...]:
    """The lanes to ask in the n-th turn: usually express first, but each gets its share, so nothing starves."""
    first = TURN[(turn * 5) % len(TURN)]
    return (first, *(lane for lane in (Lane.EXPRESS, Lane.NORMAL, Lane.BULK) if lane is not first))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Uploads to a destination that are under way in the whole fleet."""

    small: int
    large: int


def has_room(traffic: Traffic, lane: Lane, in_flight: int | None, ramp: int | None) -> bool:
    """Whether one more upload may begin.

    The ramp counts large ones by themselves, and of a limit they leave one to the others: nothing small waits for them.
    """
    alike = traffic.large if lane is Lane.LARGE else traffic.small
    if ramp is not None and alike >= ramp:
        return False
    if in_flight is None:
        return True
    spared = 1 if lane is Lane.LARGE and in_flight > 1 else 0
    return traffic.small + traffic.large < in_flight and alike < in_flight - spared


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a destination's rate has saved up: requests, and when that was counted."""

    tokens: float | None = None
    at: datetime | None = None


def refilled(bucket: Bucket, now: datetime, policy: Policy) -> Bucket:
    """The bucket as it is now. A fleet that has never sent begins with one request, not with a burst.

    Several clocks count, and it follows the one that is ahead. A clock that stepped back by more than they may differ does not
    stop it, and one that jumped ahead is worth no more than a burst.
    """
    if bucket.tokens is None or bucket.at is None:
        return Bucket(1.0, now)
    passed = (now - bucket.at).total_seconds()
    if passed < -SKEW:
        return Bucket(max(1.0, bucket.tokens), now)  # one request, so that the new time is written down with it
    tokens = bucket.tokens + max(0.0, passed) * (policy.rate or 0.0)
    return Bucket(min(policy.bucket, tokens), max(bucket.at, now))


def drawn(bucket: Bucket) -> Bucket | None:
    """The bucket after one more request; None when it must wait."""
    if bucket.tokens is None or bucket.tokens < 1.0:
        return None
    return Bucket(bucket.tokens - 1.0, bucket.at)


def refill_wait(bucket: Bucket, policy: Policy) -> float:
    """Seconds until there is one request more in it."""
    return max(0.0, 1.0 - (bucket.tokens or 0.0)) / (policy.rate or 1.0)


@dataclass(frozen=True, slots=True)
class Learned:
    """The size of a request in bytes that a destination taught us to stay under, and when."""

    size: int | None = None
    at: datetime | None = None


def learned_limit(learned: Learned, now: datetime) -> int | None:
    """The most bytes to put into one request; forgotten slowly, since limits are lifted without a word."""
    if learned.size is None or learned.at is None:
        return None
    age = max(0.0, (now - learned.at).total_seconds())
    return int(learned.size * 2.0 ** min(age / LEARNED_DOUBLES_IN, 30))


def taught(learned: Learned, refused: int, now: datetime, *, alone: bool = False) -> Learned:
    """What is known after a request of `refused` bytes was answered 413.

    Half of it is tried next. What held so far, and was only being forgotten, holds again. A message that is refused even
    `alone`, where larger requests may go, is too large in a way of its own: what its batches taught was not about requests.
    """
    if learned.size is not None and refused > learned.size:
        return Learned(learned.size, now)
    if alone:
        return Learned()
    if refused <= LEARNED_LEAST:
        return learned
    return Learned(max(refused // 2, LEARNED_LEAST), now)
