"""What differs from round to round, so that rare combinations come up."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from outbox.testing import Behaviour, Drip, EarlyStatus, Expired, HangUp, Silence, Slow, Status, Truncated


@dataclass(frozen=True)
class Knobs:
    """One round's."""

    policy: Mapping[str, Any]
    worker: Mapping[str, Any]
    free_after: float
    kept: float | None  #: seconds that what is over is kept; None for ever
    token: bool  #: whether the receiver wants one, which lives for a short time
    pace: float
    poison: float
    behaviours: tuple[tuple[Behaviour, float], ...]  #: of the receiver, with their chances; the first that comes up counts

    @classmethod
    def draw(cls, dice: random.Random, gone_after: float) -> Knobs:
        """By chance, and such that a round comes to its end in seconds."""
        policy = {
            "batch_messages": dice.choice((1, 2, 4, 10, 50)),
            "senders": dice.choice((1, 2, 3)),
            "on_dead": dice.choice(("block", "skip")),
            "on_unknown": dice.choice(("resend", "resend", "resend", "dead")),
            "max_unknown": dice.choice((2, 5, 1000)),
            "max_failures": dice.choice((3, 20, 1000)),
            "in_flight": dice.choice((None, None, None, 2)),
            "large_over": dice.choice((100_000, 8 * 1024 * 1024)),
            "send_base": 3.0,
            "backoff_first": 0.05,
            "backoff_cap": 0.5,
            "breaker_after": dice.choice((3, 8)),
            "probe_first": 0.1,
            "probe_cap": 0.5,
        }
        # None that takes a request and says in clear words that it did not: no bound on copies holds against a liar.
        every = (
            (Slow(dice.uniform(0.1, 0.4)), 0.3),
            (HangUp("after_body"), 0.03),
            (HangUp("in_answer", after_bytes=20), 0.03),
            (HangUp("in_body", after_bytes=100), 0.03),
            (HangUp("before_body"), 0.02),
            (HangUp("after_answer", reset=False), 0.05),
            (Truncated(), 0.03),
            (Drip(0.001), 0.03),
            (Status(503), 0.05),
            (Expired(), 0.01),
            (EarlyStatus(413, drain=True), 0.01),
            (EarlyStatus(503), 0.02),
            (Silence(), 0.004),
        )
        return cls(
            policy=policy,
            worker={"gone_after": gone_after, "poll": dice.choice((0.02, 0.1))},
            free_after=dice.choice((0.5, 3600.0)),
            kept=dice.choice((None, None, None, 1.0)),
            token=dice.random() < 0.5,
            pace=dice.choice((0.0, 0.01, 0.03)),
            poison=dice.choice((0, 0, 3)),
            behaviours=(*(each for each in every if dice.random() < 0.6), (Slow(dice.choice((0.0, 0.02, 0.1))), 1.0)),
        )

    def busy(self) -> Knobs:
        """The same for many messages at a time."""
        return replace(self, policy={**self.policy, "batch_messages": 50, "in_flight": None}, behaviours=self.behaviours[:-1])
