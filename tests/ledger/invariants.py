"""The invariants by their numbers, each with the function that says in sentences what is against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tests.ledger import arrivals
from tests.ledger.balance import Balance, Counts, in_order
from tests.ledger.claims import along_the_trail
from tests.ledger.evidence import Evidence

Invariant = Callable[[Evidence], Iterable[str]]


def done(evidence: Evidence) -> Iterator[str]:
    """I15, as far as rows tell: a story that went on until nothing was left to do has nothing left to do."""
    if evidence.drained:
        yield from (f"{fate.key} is still {fate.state}" for fate in evidence.there if not fate.over)


#: What can be told from the evidence alone. I4 is a count; I12 and I14 look at a spool and a database; I16 is the scenario's.
FROM_EVIDENCE: dict[str, Invariant] = {
    "I1": arrivals.nothing_lost,
    "I2": arrivals.nothing_invented,
    "I3": arrivals.nothing_rolled_back,
    "I5": arrivals.copies_explained,
    "I8": arrivals.delivered_was_received,
    "I9": arrivals.in_order,
    "I10": arrivals.bytes_agree,
    "I11": arrivals.attempts_agree,
    "I15": done,
}
FROM_TRAIL = ("I6", "I7", "I13")


def judge(evidence: Evidence, more: dict[str, Iterable[str]] | None = None) -> Balance:
    """Everything that this evidence tells; `more` is what others have to say, by number."""
    said: dict[str, list[str]] = {number: list(invariant(evidence)) for number, invariant in FROM_EVIDENCE.items()}
    if evidence.trail is not None:
        for number in FROM_TRAIL:
            said[number] = []
        for number, sentences in along_the_trail(evidence).items():
            said[number] += sentences
    for number, others in (more or {}).items():
        said[number] = [*said.get(number, ()), *others]
    looked = in_order({*said, "I4"})
    found = {number: tuple(said[number]) for number in looked if said.get(number)}
    return Balance(found, count(evidence), looked)


def count(evidence: Evidence) -> Counts:
    """How much there was of everything."""
    fates = evidence.fates.values()
    states = Counter(fate.state for fate in fates if not fate.purged)
    arrived = evidence.arrived.values()
    return Counts(
        acknowledged=len(evidence.promises.acknowledged),
        unknown=len(evidence.promises.unknown),
        rolled_back=len(evidence.promises.rolled_back),
        recovered=len(arrivals.recovered(evidence)),
        delivered=states["delivered"],
        dead=states["dead"],
        cancelled=states["cancelled"],
        purged=sum(fate.purged for fate in fates),
        attempts=sum(fate.finished for fate in fates),
        unknown_attempts=sum(fate.unknown_attempts for fate in fates),
        late_outcomes=sum(each.late_outcome is not None for fate in fates for each in fate.attempts),
        replays=sum(fate.replays for fate in fates),
        requests=len(evidence.requests),
        copies=sum(each.copies for each in arrived),
        extra_copies=sum(max(0, each.copies - 1) for each in arrived),
        kept_parts=sum(each.parts for each in arrived),
        changes=len(evidence.trail.changes) if evidence.trail is not None else 0,
    )
