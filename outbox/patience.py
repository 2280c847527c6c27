"""A destination's patience: its breaker, the ramp after it, and its stops, as pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from outbox.policy import Policy, clamp, doubling


class Stop(StrEnum):
    """Why a destination sends nothing; `breaker` is not kept here but follows from open_until."""

    PAUSE = "pause"  #: a person said so, until a person says otherwise
    CREDENTIALS = "credentials"  #: ours are refused; probed now and then
    REJECT_STREAK = "reject_streak"  #: it refused one message after the other; probed now and then


@dataclass(frozen=True, slots=True)
class Breaker:
    """A destination's persisted patience, shared by every worker."""

    failures: int = 0  #: consecutive, charged to it
    open_until: datetime | None = None  #: only a probe passes, and not before this
    stop: Stop | None = None
    reject_streak: int = 0  #: messages rejected alone since the last delivery
    ramp: int | None = None  #: uploads at a time while it recovers

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
    if breaker.stop is Stop.PAUSE:
        return Passage.NONE
    if breaker.open_until is None:
        return Passage.FREE if breaker.stop is None else Passage.PROBE
    # Further away than anything said below: the clock that said it was wrong, or ours is.
    invented = clamp(breaker.open_until, now, policy.probe_cap) == breaker.open_until
    return Passage.NONE if invented and breaker.open_until > now else Passage.PROBE


def after_probe_began(breaker: Breaker, now: datetime, policy: Policy) -> Breaker:
    """The breaker when a probe begins: of several who would, the one who moves it does. It is open for the usual interval.

    That the probe may take longer is told by its delivery, which is under way until then, or until its worker is gone.
    """
    return replace(breaker, open_until=now + timedelta(seconds=_interval(breaker, policy)))


def after_silent_probe(breaker: Breaker, now: datetime) -> Breaker:
    """The breaker after a probe that was never sent, for reasons of ours: another may at once."""
    return replace(breaker, open_until=now if breaker.is_open else None)


def after_delivered(breaker: Breaker, policy: Policy) -> Breaker:
    """The breaker after a delivery: nothing is held against the destination, but what a person has stopped stays stopped."""
    return Breaker(stop=_kept(breaker), ramp=_ramp(breaker, policy))


def after_rejected(breaker: Breaker, now: datetime, policy: Policy, *, alone: bool, probe: bool) -> Breaker:
    """The breaker after a refusal that accuses a message: an answer, so the destination is there and knows us.

    One message alone after the other is too much to believe: the destination stops, and is probed now and then.
    """
    streak = breaker.reject_streak + alone
    later = now + timedelta(seconds=policy.probe_cap)
    if breaker.stop is Stop.REJECT_STREAK:
        return replace(breaker, open_until=later, reject_streak=streak) if probe else breaker
    if streak >= policy.reject_streak and breaker.stop is Stop.PAUSE:
        return replace(breaker, open_until=later, reject_streak=streak)  # after the pause, a probe first
    if streak >= policy.reject_streak:
        return Breaker(open_until=later, stop=Stop.REJECT_STREAK, reject_streak=streak)
    return Breaker(stop=_kept(breaker), reject_streak=streak, ramp=_ramp(breaker, policy))


def spares(breaker: Breaker, policy: Policy) -> bool:
    """Whether a message that is rejected alone stays alive: too many were, and it is hardly the messages' fault."""
    return breaker.reject_streak >= policy.reject_streak


def after_fault(
    breaker: Breaker, now: datetime, policy: Policy, dice: float, wait: float | None, *, credentials: bool
) -> Breaker:
    """The breaker after the destination failed once more; `wait` is what it asked for in Retry-After, in seconds."""
    failed = replace(breaker, failures=breaker.failures + 1)
    if breaker.stop is Stop.PAUSE:
        return failed
    later = now + timedelta(seconds=policy.probe_cap)
    if breaker.stop is Stop.REJECT_STREAK:
        return replace(failed, open_until=later)
    failed = replace(failed, ramp=None)
    if credentials:
        return replace(failed, open_until=later, stop=Stop.CREDENTIALS)
    recovering = breaker.is_open or breaker.ramp is not None
    if wait is None and failed.failures < policy.breaker_after and not recovering:
        return failed
    spread = _interval(failed, policy) * (0.5 + dice / 2)
    return replace(failed, open_until=now + timedelta(seconds=max(spread, min(wait or 0.0, policy.probe_cap))))


def paused(breaker: Breaker) -> Breaker:
    """The breaker when a person stops the destination; what it was waiting for is kept."""
    return replace(breaker, stop=Stop.PAUSE)


def resumed(breaker: Breaker, now: datetime) -> Breaker:
    """The breaker when a person lets the destination go on: at once, but by a probe if it was in trouble."""
    troubled = breaker.is_open or breaker.stop in (Stop.CREDENTIALS, Stop.REJECT_STREAK)
    return replace(breaker, open_until=now if troubled else None, stop=None, reject_streak=0)


def _interval(breaker: Breaker, policy: Policy) -> float:
    """Seconds between two probes: the longer the more of them failed."""
    return doubling(breaker.failures - policy.breaker_after + 1, policy.probe_first, policy.probe_cap)


def _kept(breaker: Breaker) -> Stop | None:
    return Stop.PAUSE if breaker.stop is Stop.PAUSE else None


def _ramp(breaker: Breaker, policy: Policy) -> int | None:
    """A destination that comes back is not stampeded: a few uploads at a time, one more with each that went well."""
    if breaker.is_open:
        ramp = policy.ramp_first
    elif breaker.ramp is None:
        return None
    else:
        ramp = breaker.ramp + 1
    return ramp if ramp < policy.ramp_until else None
