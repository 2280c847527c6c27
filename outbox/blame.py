"""Blame: what an outcome says about the destination itself, written to its row before any message is settled."""

from __future__ import annotations

import logging
from datetime import datetime

from sqlalchemy import Connection

from outbox.limits import taught
from outbox.patience import (
    Breaker,
    Stop,
    after_delivered,
    after_fault,
    after_rejected,
    after_silent_probe,
    spares,
)
from outbox.policy import Policy
from outbox.store import breaker
from outbox.store.breaker import Standing
from outbox.verdict import Delivered, Reject, Result, Retry, charges_destination

log = logging.getLogger("outbox.blame")


def place(connection: Connection, result: Result, policy: Policy, now: datetime, dice: float) -> bool:
    """Write what a delivery says about its destination; returns whether its messages are spared although it refused them."""
    if not result.witnessed:
        return False
    verdict, probe = result.verdict, result.probe_until is not None
    # A batch that could not even be encoded is refused too, but by us.
    answered = isinstance(verdict, Delivered) or (isinstance(verdict, Reject) and verdict.facts.status is not None)
    charged = charges_destination(verdict)
    if not (answered or charged or probe):
        return False
    seen = breaker.standing(connection, result.destination, lock=True)
    if isinstance(verdict, Reject) and 413 in (verdict.facts.status, verdict.facts.code):
        size = sum(each.size + each.file_bytes for each in result.messages)
        learned = taught(seen.learned, size, now, alone=result.size == 1)
        breaker.save_learned(connection, result.destination, learned)
    changed = _after(seen.breaker, result, policy, now, dice, answered=answered, charged=charged)
    if changed != seen.breaker:
        words = _why(changed, verdict.facts.text)
        breaker.move(connection, result.destination, seen.breaker, changed, now, words)
        _say(result, seen.breaker, changed, words)
    return isinstance(verdict, Reject) and result.size == 1 and spares(seen.breaker, policy)


def is_well(seen: Standing) -> bool:
    """Whether deliveries say nothing new about a destination that stands so: the usual case, found out without a lock."""
    return seen.breaker == Breaker()


def _after(
    seen: Breaker, result: Result, policy: Policy, now: datetime, dice: float, *, answered: bool, charged: bool
) -> Breaker:
    verdict, probe = result.verdict, result.probe_until is not None
    # Another probe may have begun since ours was given up: then only that one's failure moves the next.
    current = probe and seen.open_until == result.probe_until
    if isinstance(verdict, Delivered):
        return after_delivered(seen, policy)
    if isinstance(verdict, Reject) and answered:
        return after_rejected(seen, now, policy, alone=result.size == 1, probe=current)
    if not charged:
        return after_silent_probe(seen, now) if current else seen
    if seen.is_open and not current:
        return seen  # begun before the breaker opened: it tells nothing new
    wait = verdict.wait if isinstance(verdict, Retry) else None
    credentials = isinstance(verdict, Retry) and verdict.credentials
    return after_fault(seen, now, policy, dice, wait, credentials=credentials)


def _why(changed: Breaker, text: str | None) -> str | None:
    if changed.stop is Stop.REJECT_STREAK:
        return f"refused {changed.reject_streak} messages, one after the other; the last one: {text or 'without a word'}"
    return text


def _say(result: Result, seen: Breaker, changed: Breaker, words: str | None) -> None:
    about = {"destination": result.destination}
    if changed.is_open and not seen.is_open:
        until = f"{changed.open_until:%Y-%m-%d %H:%M:%S}Z"
        log.warning("destination %s is left alone until %s: %s", result.destination, until, words, extra=about)
    elif seen.is_open and not changed.is_open:
        log.warning("destination %s answers again", result.destination, extra=about)
