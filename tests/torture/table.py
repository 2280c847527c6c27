"""What was done, what was asked for, and what was wrong: one table, which is right or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.torture.course import News
from tests.torture.lanes import LANES, NAMES, Lane

#: Of how much was wrong; I4 is a count of what was recovered, and no fault.
INVARIANTS = {
    "I1": "messages lost",
    "I2": "messages that nobody enqueued",
    "I3": "messages of transactions that were rolled back",
    "I5": "copies that no unknown attempt and no replay explains",
    "I6": "claims of one message at the same time",
    "I7": "changes by an attempt that was over",
    "I8": "delivered, and not received",
    "I9": "first copies out of order",
    "I10": "bytes that differ",
    "I11": "attempts and requests that do not agree",
    "I12": "rows without bytes, bytes without rows",
    "I13": "final states that were left without a replay",
    "I14": "unsound databases",
    "I15": "not drained, or not ended, in time",
    "I16": "workers that grew",
}
BESIDES = {"power": "wrong after a power cut", "server": "wrong after a kill of the database", "odd": "anything else"}
#: Those that every round must have looked at, wherever there is a ledger.
ALWAYS = tuple(number for number in INVARIANTS if number not in ("I15", "I16"))
#: What is told besides, summed up over all databases.
TOLD = (
    ("acknowledged", "messages acknowledged"),
    ("unknown", "commits that a kill left unknown"),
    ("recovered", "of these, delivered"),
    ("requests", "upload requests"),
    ("late_outcomes", "outcomes kept as late"),
    ("purged", "messages purged by operators"),
)
COUNTED = (
    "killed in a transaction",
    "killed in a commit",
    "killed in an upload",
    "kills of all at once",
    "kills of operators",
    "killed in an act",
    "paused in an upload",
    "paused in a transaction",
    "declared gone in a pause",
    "transactions in a crowd",
    "orders of steps that they stand for",
)


@dataclass(frozen=True)
class Row:
    """A count; `asked` is what it must be, in words, and None where it need not be anything."""

    what: str
    done: str
    asked: str | None = None
    kept: bool = True

    @property
    def cells(self) -> tuple[str, str, str, str]:
        verdict = "" if self.asked is None else "yes" if self.kept else "NO"
        return self.what, self.done, self.asked or "", verdict


def rows(news: Iterable[News], lanes: Sequence[Lane], minutes: float, *, all_tools: bool = False) -> list[Row]:
    """The table of a torture that had these lanes."""
    news = list(news)
    return [
        *(_goal(lane, [each for each in news if each.lane == lane.key], minutes, all_tools) for lane in lanes),
        *_invariants(news),
        *_copies(news),
        *_besides(news),
    ]


def _goal(lane: Lane, news: Sequence[News], minutes: float, all_tools: bool) -> Row:
    done, asked = sum(each.counts.get(lane.what, 0) for each in news), lane.asked(minutes)
    if not asked:
        return Row(lane.told, f"{done:,}")
    if missing := next((each.missing for each in news if each.missing), None):
        return Row(lane.told, f"not possible here: {missing}", f"at least {asked:,}", kept=not all_tools)
    return Row(lane.told, f"{done:,}", f"at least {asked:,}", kept=done >= asked)


def _invariants(news: Sequence[News]) -> list[Row]:
    with_ledger = [each for each in news if each.looked is not None]
    found: Counter[str] = Counter()
    for each in news:
        found.update({number: len(said) for number, said in each.found.items()})
    result = []
    for number, words in INVARIANTS.items():
        looked = bool(with_ledger) and all(number in (each.looked or ()) for each in with_ledger)
        if looked or found[number] or (number in ALWAYS and with_ledger):
            done = f"{found[number]:,}" if looked or found[number] else "not looked at"
            result.append(Row(f"{number}: {words}", done, "0", kept=not found[number] and (looked or number not in ALWAYS)))
    numbers = sorted(found.keys() - INVARIANTS.keys() | {"odd"}, key=list(BESIDES).index)
    return result + [Row(BESIDES[number], f"{found[number]:,}", "0", kept=not found[number]) for number in numbers]


def _copies(news: Sequence[News]) -> list[Row]:
    total = _summed(each.ledger for each in news)
    if not total:
        return []
    most = total["unknown_attempts"] + total["replays"] + total["kept_parts"]
    asked = f"at most {most:,}: {total['unknown_attempts']:,} unknown attempts, {total['replays']:,} replays"
    return [Row("copies beyond the first", f"{total['extra_copies']:,}", asked, kept=total["extra_copies"] <= most)]


def _besides(news: Sequence[News]) -> list[Row]:
    ledger, counts = _summed(each.ledger for each in news), _summed(each.counts for each in news)
    told = [Row(words, f"{ledger[name]:,}") for name, words in TOLD if ledger[name]]
    told += [Row(name, f"{counts[name]:,}") for name in COUNTED if counts[name]]
    most: Counter[str] = Counter()
    for each in news:
        most |= Counter(each.most)
    return told + [Row(f"{name}, at most", f"{many:,}") for name, many in sorted(most.items())]


def _summed(counted: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counted:
        total.update(each)
    return total


def drawn(rows: Sequence[Row]) -> str:
    """As Markdown that is a table to the eye, too."""
    cells = [("what", "done", "asked for", "kept"), *(row.cells for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in cells
    ]
    rule = (
        "|"
        + "|".join("-" * (width + 1) + ":" if column == 1 else "-" * (width + 2) for column, width in enumerate(widths))
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def all_kept(rows: Iterable[Row]) -> bool:
    """Whether everything is as it was asked for."""
    return all(row.kept for row in rows)


__all__ = ["LANES", "NAMES", "Row", "all_kept", "drawn", "rows"]
