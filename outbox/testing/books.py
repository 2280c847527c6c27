"""What a receiver remembers and what it was told to do, shared by all its connections."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from outbox.testing.behaviours import Behaviour
from outbox.testing.ledger import Accepted, Ledger, Received

Predicate = Callable[[dict[str, Any]], bool]
Structs: TypeAlias = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Refusal:
    """A standing order to refuse every request with a struct that fits."""

    fits: Predicate
    code: int
    msg: str
    keep_good: bool


class Books:
    """Standing orders in, records out. ``changed`` guards it all and is notified whenever something happened."""

    def __init__(
        self,
        *,
        remember: int | None,
        on_received: Callable[[Received], None] | None,
    ) -> None:
        self.changed = threading.Condition()
        self.requests: deque[Received] = deque(maxlen=remember)
        self.accepted: deque[Accepted] = deque(maxlen=remember)
        self.violations: deque[str] = deque(maxlen=remember)
        self.refusals: list[Refusal] = []
        self.queue: deque[Behaviour] = deque()
        self.token_queue: deque[Behaviour] = deque()
        self.standing: Behaviour | None = None
        self.token_standing: Behaviour | None = None
        self.breaks: list[tuple[Predicate, Behaviour]] = []
        self.chances: list[tuple[Behaviour, float, random.Random]] = []
        self.starts: deque[float] = deque(maxlen=remember)
        self.numbers = 0
        self.in_flight = 0
        self.peak = 0
        self.held = 0
        self._releases = 0
        self._stopping = False
        self._ledger: Ledger | None = None
        self._on_received = on_received

    def open_visit(self, monotonic: Callable[[], float]) -> tuple[int, float, Behaviour | None]:
        """The number of a request that begins now, what time it is, and how to misbehave towards it."""
        with self.changed:
            started = monotonic()
            self.starts.append(started)
            self.numbers += 1
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self.changed.notify_all()
            return self.numbers, started, self._next_behaviour()

    def close_visit(self, finish: Callable[[], Received]) -> None:
        """Let ``finish`` write the last bytes of the answer and record what it returns.

        Both happen under the lock: whoever saw the answer and asks the receiver then finds the request in its books.
        """
        with self.changed:
            try:
                received = finish()
                self.requests.append(received)
                self.accepted.extend(received.accepted)
                self.violations.extend(f"request {received.number}: {fault}" for fault in received.faults)
                if self._ledger is not None:
                    self._ledger.write(received)
            finally:
                self.in_flight -= 1
                self.changed.notify_all()
        if self._on_received is not None:
            self._on_received(received)

    def next_token_behaviour(self) -> Behaviour | None:
        """How to misbehave towards a request for a token."""
        with self.changed:
            return self.token_queue.popleft() if self.token_queue else self.token_standing

    def judge(self, structs: Structs) -> tuple[Refusal | None, Structs]:
        """The first standing refusal that one of these structs fits, and the structs that are stored nevertheless."""
        with self.changed:
            refusals = list(self.refusals)
        answer: Refusal | None = None
        good = structs
        for refusal in refusals:
            left = _without(good, refusal)
            if len(left) < len(good):
                answer = answer or refusal
                good = left
        return answer, good

    def break_of(self, structs: Structs) -> Behaviour | None:
        """The behaviour of the first standing order that one of these structs fits."""
        with self.changed:
            breaks = list(self.breaks)
        return next((behaviour for fits, behaviour in breaks for struct in structs if fits(struct)), None)

    def note_violation(self, words: str) -> None:
        """Remember something wrong with a request that is not an upload."""
        with self.changed:
            self.violations.append(words)
            self.changed.notify_all()

    def announce(self) -> None:
        """Wake whoever waits for something the books do not keep themselves."""
        with self.changed:
            self.changed.notify_all()

    def hold(self) -> None:
        """Wait for the next release, or for the receiver to stop."""
        with self.changed:
            before = self._releases
            self.held += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: self._releases > before or self._stopping)
            self.held -= 1
            self.changed.notify_all()

    def release(self) -> None:
        """Let everyone go who is held now."""
        with self.changed:
            self._releases += 1
            self.changed.notify_all()

    def start(self, ledger: Ledger | None) -> None:
        """Begin to write to this ledger, and to hold again."""
        with self.changed:
            self._ledger = ledger
            self._stopping = False

    def stop(self) -> None:
        """Let everyone go, and hold no one any more."""
        with self.changed:
            self._stopping = True
            self.changed.notify_all()

    def _next_behaviour(self) -> Behaviour | None:
        if self.queue:
            return self.queue.popleft()
        if self.standing is not None:
            return self.standing
        # Every dice is thrown every time, so that one behaviour's luck does not shift another's.
        drawn = [behaviour for behaviour, chance, dice in self.chances if dice.random() < chance]
        return drawn[0] if drawn else None


def _without(structs: Structs, refusal: Refusal) -> Structs:
    """What is left of these structs after the refusal."""
    if refusal.keep_good:
        return tuple(struct for struct in structs if not refusal.fits(struct))
    return () if any(refusal.fits(struct) for struct in structs) else structs
