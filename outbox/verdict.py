"""What an answer means for a message: the state machine, with no I/O."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, assert_never

from outbox.model import Message, Outcome, Reason, State
from outbox.policy import Policy, backoff
from outbox.secret import conceal

#: Text from the other side is kept up to this many characters.
TEXT_LIMIT = 2000
#: And of an answer as it came, so many.
ANSWER_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Facts:
    """What an answer said, in words that a row can keep; None where there was no answer or it said nothing."""

    status: int | None = None
    code: int | None = None
    text: str | None = None
    request_id: str | None = None
    answer: str | None = None  #: the beginning of it, whatever it was


@dataclass(frozen=True, slots=True)
class Delivered:
    """The destination has every message of the batch."""

    facts: Facts = Facts()


@dataclass(frozen=True, slots=True)
class Retry:
    """The destination is at fault, not a message: try again when it is well. `wait` is its own wish, in seconds."""

    facts: Facts = Facts()
    wait: float | None = None
    renew: bool = False  #: our credentials have run out: renew them once and send again before giving up
    credentials: bool = False  #: our credentials are refused: stop the destination with that reason


@dataclass(frozen=True, slots=True)
class Reject:
    """A message of the batch is at fault; which one, only a message that travels alone can tell."""

    facts: Facts = Facts()
    reason: Reason = Reason.REJECTED


@dataclass(frozen=True, slots=True)
class Unknown:
    """The whole body went out and no answer was understood, or the worker is gone."""

    facts: Facts = Facts()
    gone: bool = False  #: the worker is: the messages may be what it died of


@dataclass(frozen=True, slots=True)
class NotSent:
    """The declared length did not go out in full, so the other side cannot have it."""

    facts: Facts = Facts()
    charged: bool = True  #: to the destination; False when it was us who stopped
    begun: bool = True  #: some of it went out: what broke it may be in it
    accused: int | None = None  #: the message whose file broke the request, by id ...
    reason: Reason | None = None  #: ... and what was wrong with it


Verdict = Delivered | Retry | Reject | Unknown | NotSent


def outcome(verdict: Verdict) -> Outcome:
    """The word for a verdict on the delivery and its attempts."""
    match verdict:
        case Delivered():
            return Outcome.DELIVERED
        case Retry():
            return Outcome.RETRY
        case Reject():
            return Outcome.REJECT
        case Unknown():
            return Outcome.UNKNOWN
        case NotSent():
            return Outcome.NOT_SENT
        case _:
            assert_never(verdict)


def charges_destination(verdict: Verdict) -> bool:
    """Whether the destination's patience with itself, the breaker, counts this verdict."""
    match verdict:
        case Retry():
            return True
        case NotSent(charged=charged):
            return charged
        case Unknown():
            return True
        case Delivered() | Reject():
            return False
        case _:
            assert_never(verdict)


@dataclass(frozen=True, slots=True)
class Result:
    """A delivery that is over: what is to be recorded of it."""

    delivery: int
    worker: str
    destination: str
    messages: tuple[Message, ...]
    size: int  #: messages in the delivery when it began
    verdict: Verdict
    probe_until: datetime | None = None  #: of a probe, the `open_until` that it set when it began
    witnessed: bool = True  #: False for a delivery that another worker left behind: it tells nothing about the destination
    trace_id: str | None = None  #: of its span, if it was traced


@dataclass(frozen=True, slots=True)
class Settlement:
    """The row that a claimed message becomes; None for due_at leaves it as it is."""

    state: State
    outcome: Outcome
    failures: int
    unknowns: int
    batch_limit: int | None
    reason: Reason | None = None
    text: str | None = None  #: of a dead message, what was said about it
    due_at: datetime | None = None
    faulted: bool = False  #: remember this delivery as the message's last failure that the destination was charged for
    suspect: bool = False  #: a worker died while it travelled alone: no other such message may travel at the same time

    def __post_init__(self) -> None:
        if (self.state is State.DEAD) != (self.reason is not None):
            raise AssertionError("a message is dead exactly when it has a reason")


def settle(
    message: Message,
    verdict: Verdict,
    batch: int,
    policy: Policy,
    now: datetime,
    dice: float,
    *,
    recovered: bool,
    spared: bool = False,
) -> Settlement:
    """The row that `message` becomes after `verdict` on a delivery of `batch` messages.

    `recovered` tells that the destination delivered something else since this message's last failure there: only then does
    a failure that the destination is charged for say something about the messages too. In a batch it is then halved, as
    after a refusal; alone the failure counts against the message, be it an answer or none. For a delivery whose worker died,
    which no destination can be charged for, it is true. `spared` tells that the destination refuses everything, so that
    its refusals kill no message any more.
    """
    if isinstance(verdict, Delivered):
        return delivered(message)
    failures, unknowns = message.failures, message.unknowns
    # Rounded up: two halves, and not two and a rest, so that n messages are told apart in log2(n) rounds.
    halved = (batch + 1) // 2

    def pending(
        result: Outcome,
        limit: int | None = message.batch_limit,
        due_at: datetime | None = None,
        *,
        faulted: bool = False,
        suspect: bool = message.suspect,
    ) -> Settlement:
        return Settlement(State.PENDING, result, failures, unknowns, limit, due_at=due_at, faulted=faulted, suspect=suspect)

    def dead(result: Outcome, reason: Reason, limit: int | None = message.batch_limit) -> Settlement:
        return Settlement(State.DEAD, result, failures, unknowns, limit, reason, verdict.facts.text)

    match verdict:
        case Reject() if batch > 1:
            return pending(Outcome.REJECT, halved)
        case Reject(reason=reason):
            # One that was refused alone goes alone if it is replayed.
            return pending(Outcome.REJECT, 1) if spared else dead(Outcome.REJECT, reason, 1)
        case NotSent(accused=message.id, reason=Reason() as reason):
            return dead(Outcome.NOT_SENT, reason)
        case NotSent(charged=False):
            return pending(Outcome.NOT_SENT)
        case Retry(credentials=True) | NotSent(begun=False):
            return pending(outcome(verdict))  # nothing in the messages can have caused it
        case Retry() | NotSent():
            result = outcome(verdict)
            if not recovered:
                return pending(result, faulted=True)
            if batch > 1:
                return pending(result, halved, faulted=True)
            failures += 1
            if failures >= policy.max_failures:
                return dead(result, Reason.EXHAUSTED)
            return pending(result, due_at=now + backoff(failures, policy, dice), faulted=True)
        case Unknown(gone=gone):
            if policy.on_unknown == "dead":
                unknowns += 1
                return dead(Outcome.UNKNOWN, Reason.OUTCOME_UNKNOWN)
            if batch > 1:
                return pending(Outcome.UNKNOWN, halved, faulted=True)
            if not recovered:
                return pending(Outcome.UNKNOWN, faulted=True)
            unknowns += 1
            if unknowns > policy.max_unknown:
                return dead(Outcome.UNKNOWN, Reason.OUTCOME_UNKNOWN)
            # A worker that died has cost time enough already.
            due_at = None if gone else now + backoff(unknowns, policy, dice)
            return pending(Outcome.UNKNOWN, due_at=due_at, faulted=True, suspect=gone or message.suspect)
        case _:
            assert_never(verdict)


def delivered(message: Message) -> Settlement:
    """The row that a message becomes when it has arrived."""
    return _delivered(message.failures, message.unknowns, message.batch_limit)


@functools.lru_cache(maxsize=256)
def _delivered(failures: int, unknowns: int, batch_limit: int | None) -> Settlement:
    """Of the messages of a batch nearly all become the same."""
    return Settlement(State.DELIVERED, Outcome.DELIVERED, failures, unknowns, batch_limit)


def fit_for_a_row(facts: Facts) -> Facts:
    """Facts that any database takes, whatever a destination's `judge` made of an answer.

    Raises TypeError or AttributeError for what is none of what they hold.
    """
    if facts.status is not None and not isinstance(facts.status, int):
        raise TypeError("expected a status to be an integer")
    return Facts(
        facts.status,
        facts.code if facts.code is not None and abs(facts.code) < 2**63 else None,
        None if facts.text is None else cleaned(facts.text),
        None if facts.request_id is None else cleaned(facts.request_id, 255),
        None if facts.answer is None else cleaned(facts.answer, ANSWER_KEPT),
    )


def fit_to_record(verdict: Any) -> Verdict:
    """A verdict that can be settled, and recorded together with others.

    Raises TypeError or AttributeError for what is none, or holds another type than it says.
    """
    if not isinstance(verdict, Delivered | Retry | Reject | Unknown | NotSent):
        raise TypeError("expected a verdict")
    wait: Any = verdict.wait if isinstance(verdict, Retry) else None
    if not isinstance(wait, int | float | None):
        raise TypeError("expected a wait to be a number of seconds")
    return replace(verdict, facts=fit_for_a_row(verdict.facts))


def cleaned(text: str, limit: int = TEXT_LIMIT) -> str:
    """Text from the other side, fit for any database, log or terminal: one line, no controls, no lone surrogates."""
    shown = conceal(text)[: limit + 1].encode("utf-8", "replace").decode("utf-8")
    if not shown.isprintable():
        shown = "".join(letter if letter.isprintable() else " " for letter in shown)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
