"""A place, the road from it to its receiver, and a worker whose turns are taken by hand: each meets what the road holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from outbox import Outbox, Policy, State
from tests.factories import an_outbox, enos, outcomes, states
from tests.road import Fate, Road
from tests.story.conftest import Hand, Place

#: However often the road is cut, the breaker stays closed and no message ends.
PATIENT = Policy(breaker_after=100_000, max_unknown=100_000, max_failures=100_000)
FILES = {"photo": b"first file, " * 9, "log": b"second file, " * 9}


@dataclass(frozen=True)
class Bench:
    """All of it."""

    place: Place
    road: Road
    outbox: Outbox
    hand: Hand

    def enqueue(self, key: str, files: dict[str, bytes] | None = None) -> None:
        self.place.enqueue(self.outbox, key, FILES if files is None else files)

    def turn(self, *fates: Fate) -> None:
        """One delivery, after every back-off; its requests meet these fates."""
        self.place.clock.move(hours=2)
        self.road.fates.extend(fates)
        self.hand.turn()
        assert not self.road.fates, "nothing met what was to happen"

    def last(self, key: str) -> str:
        """The outcome of a message's last attempt."""
        return outcomes(self.place.database, key)[-1][0]

    def stored(self, key: str) -> int:
        """Copies that the receiver has."""
        requests = self.place.receiver.requests
        return sum(struct["assetId"] == key for request in requests if request.stored for struct in request.structs)

    def end(self) -> None:
        """One more delivery, and everything adds up."""
        self.turn()
        assert {State.DELIVERED} == set(states(self.place.database).values())
        self.place.check()


def make_bench(place: Place, road: Road, policy: Policy = PATIENT, *, ca_file: str | None = None, **options: Any) -> Bench:
    """With `ca_file` it trusts that authority."""
    outbox = an_outbox(place.url, place.spool, enos(road.url, policy=policy, **options), ambient=place.clock.ambient)
    place._outboxes.append(outbox)
    hand = place.hand(outbox)
    hand.transport._way = hand.transport._way._replace(ca_file=ca_file)
    return Bench(place, road, outbox, hand)
