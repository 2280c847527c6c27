"""Crews: of the senders of a destination one is woken when there is something to do, and wakes the next if there is more."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from outbox.dispatcher import Dispatcher, Took
from outbox.limits import lane_order
from outbox.metronome import Loop
from outbox.model import Lane
from outbox.policy import Policy

#: Seconds between two looks at a rate, at least.
SHORTEST_WAIT = 0.01


class Why(Enum):
    """What a sender was woken for."""

    NUDGE = auto()  #: somebody said that there is something; or it was time to try again
    LOOK = auto()  #: a look has found something
    MORE = auto()  #: a look has found more than the others have taken
    SIBLING = auto()  #: another sender has found more than one request's worth; nobody has looked since


@dataclass(eq=False)
class Crew:
    """Senders of one destination that serve the same lanes."""

    destination: str
    large: bool
    full: int  #: messages that one request may hold
    senders: list[SenderLoop] = field(default_factory=list)
    more: bool = False  #: one of them has taken something since the last look, and others sleep
    fruitless_until: float = 0.0  #: whoever was woken by a look found nothing: not again before this

    @property
    def sleeping(self) -> SenderLoop | None:
        """The first that waits to be woken, and not for a time."""
        return next((each for each in self.senders if not each.running and each.due == math.inf), None)


@dataclass(eq=False)
class SenderLoop(Loop):
    """The loop of one sender of a crew; `after` is called when it has nothing more to do."""

    crew: Crew = field(kw_only=True)
    sender: Sender = field(kw_only=True)
    after: Callable[[], object] = field(kw_only=True)
    why: Why = Why.NUDGE
    claims: int = 0  #: requests since it was woken

    def woken(self, why: Why) -> None:
        """It is about to run, and this is why."""
        self.why, self.claims = why, 0
        self.sender.told = why is not Why.SIBLING

    def rest(self, again: float | None) -> float | None:
        if again is not None:
            return min(again, self.retry)
        if self.sender.took is not Took.IN_VAIN:
            return None
        # It waits, and so leaves the destination some peace. A look while it was sending could not tell until when.
        self.crew.more = True
        return self.retry

    def begins(self) -> None:
        if self.timed:
            self.why, self.claims, self.timed = Why.NUDGE, 0, False

    def ends(self, *, failed: bool) -> None:
        if not failed and self.claims == 0 and self.why in (Why.LOOK, Why.MORE):
            self.crew.fruitless_until = time.monotonic() + self.retry

    def rests(self, pause: float | None) -> None:
        if pause is None:
            self.after()


class Sender:
    """The round of a sender: turns of one destination, in the lanes whose turn it is; without a number, in the large one."""

    def __init__(self, dispatcher: Dispatcher, name: str, number: int | None, policy: Policy) -> None:
        self._dispatcher = dispatcher
        self._name = name
        self._turn = number
        self._policy = policy
        self.took = Took.NOTHING  #: how its last turn ended
        self.told = False  #: somebody has looked, or was told, that there is something

    def __call__(self) -> float | None:
        # After a turn that moved something there is most likely more: no need to look first.
        peek = not (self.told or self.took is Took.MORE)
        self.told, self.took = False, Took.NOTHING
        self.took = self._dispatcher.work(self._name, self._lanes, peek=peek)
        if self.took is Took.MORE:
            return 0.0
        wait = self._dispatcher.wait_for_rate(self._name)
        if wait is None or self._policy.rate is None:
            return None
        # Spread out, so that of many senders not all run for the same request: the bucket keeps what they leave.
        return SHORTEST_WAIT + wait + random.random() * self._policy.senders / self._policy.rate

    def _lanes(self) -> Sequence[Lane]:
        """The lanes of the next turn."""
        if self._turn is None:
            return (Lane.LARGE,)
        self._turn += 1
        return lane_order(self._turn - 1)
