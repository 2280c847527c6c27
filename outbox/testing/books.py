"""What a receiver remembers and what it was told to do, shared by all its connections."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from outbox.testing.behaviours import Behaviour
from outbox.testing.ledger import Accepted, Ledger, Received

Predicate = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Refusal:
    """A standing order to refuse every request with a struct that fits."""

    fits: Predicate
    code: int
    msg: str


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
        self.chances: list[tuple[Behaviour, float, random.Random]] = []
        self.numbers = 0
        self.in_flight = 0
        self.peak = 0
        self.held = 0
        self._releases = 0
        self._stopping = False
        self._ledger: Ledger | None = None
        self._on_received = on_received

    def open_visit(self) -> tuple[int, Behaviour | None]:
        """The number of a request that begins now, and how to misbehave towards it."""
        with self.changed:
            self.numbers += 1
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self.changed.notify_all()
            return self.numbers, self._next_behaviour()

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
            return self.token_queue.popleft() if self.token_queue else None

    def refusal_of(self, structs: tuple[dict[str, Any], ...]) -> Refusal | None:
        """The first standing refusal that one of these structs fits."""
        with self.changed:
            refusals = list(self.refusals)
        return next((refusal for refusal in refusals for struct in structs if refusal.fits(struct)), None)

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
