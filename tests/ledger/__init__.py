"""The end of every story: nothing lost, nothing invented, and every copy that arrived is explained by an attempt.

    trail.install(database)                                  # before the story: for I6, I7, I13 and the claims of I9
    balance = ledger.examine(database, requests, promises, spool=folder, swept=True, purged=None)
    balance = balance.plus("I15", bounds.in_time(last_fault, drained, within=30))
    total = balance + another                                # of several rounds
    assert total.adds_up, total.faults

`requests`: those of a Receiver in this process, or `history.arrivals(paths)` of the ledger files of others. `promises`:
`history.promises(paths)` of what producers wrote, or a mapping of keys to the SHA-256 of their files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from outbox.database import Database
from outbox.testing import Received
from tests.ledger.balance import Balance, Counts
from tests.ledger.evidence import Evidence
from tests.ledger.history import Line, Promise, Promises
from tests.ledger.invariants import judge
from tests.ledger.soundness import database_sound
from tests.ledger.spooled import spool_agrees

__all__ = ["Acknowledged", "Balance", "Counts", "Evidence", "Promises", "check", "examine", "faults"]

#: What a producer was told is safe: each message by its key, with the SHA-256 of its files by their names.
Acknowledged = Mapping[str, Mapping[str, str]]


def check(
    database: Database,
    requests: Iterable[Received],
    acknowledged: Acknowledged,
    *,
    rolled_back: Collection[str] = (),
    drained: bool = True,
) -> None:
    """Compare what producers were told, what the database says and what the receiver saw.

    Each message's payload repeats its key as `assetId`. `drained`: the story went on until nothing was left to do.
    """
    found = faults(database, requests, acknowledged, rolled_back=rolled_back, drained=drained)
    assert [] == found, found


def faults(
    database: Database,
    requests: Iterable[Received],
    acknowledged: Acknowledged,
    *,
    rolled_back: Collection[str] = (),
    drained: bool = True,
) -> list[str]:
    """Everything that does not add up, in words, each with the number of its invariant."""
    return examine(database, requests, promised(acknowledged, rolled_back), drained=drained).faults


def promised(acknowledged: Acknowledged, rolled_back: Collection[str] = ()) -> Promises:
    """Promises that nobody wrote down as they were made."""
    told = {key: Promise(files) for key, files in acknowledged.items()}
    return Promises(told, {}, {key: Promise() for key in rolled_back if key not in told})


def examine(
    database: Database,
    requests: Iterable[Received],
    promises: Promises | Acknowledged,
    *,
    drained: bool = True,
    purged: Collection[str] | None = (),
    spool: Path | None = None,
    swept: bool = False,
    harmed: bool = False,
    work: Sequence[Line] = (),
    thorough: bool = True,
) -> Balance:
    """Look at every invariant that can be looked at, while nobody does anything.

    `purged`: keys that may be; None for every one that was final, which takes a trail to tell. `spool`: its folder, `swept`
    after a sweep without grace, `harmed` where the story harms files so that messages die of it. `work`: the `history.lines` of
    workers. `thorough`: read every byte of the spool, and let Postgres check itself.
    """
    told = promises if isinstance(promises, Promises) else promised(promises)
    evidence = Evidence.gather(database, requests, told, drained=drained, purged=purged, work=work)
    more: dict[str, Iterable[str]] = {"I14": database_sound(database, thorough=thorough)}
    if spool is not None:
        more["I12"] = spool_agrees(database, spool, swept=swept, harmed=harmed, thorough=thorough)
    return judge(evidence, more)
