"""Crash states, made from recordings of the real product and checked one by one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from outbox.testing import Received, Receiver, read_ledger
from tests.power.checking import DATABASE, Checker
from tests.power.model import Disk, Left
from tests.power.notes import NAME, Promised
from tests.power.recording import Operation, What, record
from tests.power.report import Report
from tests.power.successor import Successor

#: What is recorded: together they use everything that writes.
SCENES: dict[str, dict[str, Any]] = {
    "producer": {"scene": "produce", "messages": 24},
    "slow producer": {"scene": "produce_slowly"},
    "worker": {"scene": "work", "messages": 12},
    "upgrade": {"scene": "upgrade", "messages": 4},
    "truncate and full": {"scene": "produce_with", "messages": 6, "journal": "TRUNCATE", "synchronous": "FULL"},
    "delete and extra": {"scene": "produce_with", "messages": 6, "journal": "DELETE", "synchronous": "EXTRA"},
    "delete and full": {"scene": "produce_with", "messages": 6, "journal": "DELETE", "synchronous": "FULL"},
}
#: The same with as few messages as show everything.
BRIEF = {name: each | {"messages": 6} if "messages" in each else each for name, each in SCENES.items()}
BRIEF["upgrade"]["messages"] = 2
#: States of one recording, before another one is made.
_OF_ONE = 4000
#: One state in so many is taken over by a worker, which takes as long as checking forty.
_TAKEN_OVER = 50


@dataclass
class Recordings:
    """What each scene did, and what the receiver in them got."""

    scenes: Mapping[str, list[Operation]]
    books: Sequence[Received] = field(default=())

    @property
    def operations(self) -> int:
        return sum(len(each) for each in self.scenes.values())


def recordings(folder: Path, seed: int, scenes: Mapping[str, Any] = SCENES) -> Recordings:
    """Play the scenes in `folder`, beside which the recorder is built. Raises Unavailable where that cannot be done."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    books = folder / "books"
    books.touch()
    story = {"scenes": scenes, "seed": seed, "books": str(books)}
    found = split(record(folder / "recorded", folder / "log", "record", story))
    return Recordings(found, read_ledger(books))


def split(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations of each scene by its name, with paths below its own folder."""
    found: dict[str, list[Operation]] = {}
    whose: dict[int, str] = {}
    for each in operations:
        if not each.path:
            if each.inode in whose:
                found[whose[each.inode]].append(each)
            continue
        scene, path = _below(each.path)
        found.setdefault(scene, [])
        if each.what is What.OPENED:
            whose[each.inode] = scene
        if path or each.what is What.OPENED:
            found[scene].append(replace(each, path=path, other=_below(each.other)[1]))
    return found


def _below(path: str) -> tuple[str, str]:
    """The first folder of a path, and what follows; nothing for the folder itself."""
    _, _, whole = path.partition("/")
    scene, _, rest = whole.partition("/")
    return scene, f"/{rest}" if rest else ""


class Replay:
    """One recording, followed operation by operation; `promised` is what must be true of whatever is left at this point."""

    def __init__(self, name: str, operations: Sequence[Operation], *, journaled: bool = False) -> None:
        self.name = name
        self.operations = operations
        self.disk = Disk(journaled=journaled)
        self.promised = Promised()
        self._notes: int | None = None

    def __iter__(self) -> Iterator[int]:
        """The number of operations that have happened, after each."""
        for at, each in enumerate(self.operations, start=1):
            if each.what is What.OPENED and each.path == f"/{NAME}":
                self._notes = each.inode
            elif each.inode != self._notes or each.path:
                self.disk.follow(each)
            elif each.what is What.WROTE:
                for line in each.data.decode().splitlines():
                    self.promised.hear(line)
            yield at


class Examiner:
    """Checks states and counts them; one that was checked before, with the same promises, is not checked again."""

    def __init__(self, folder: Path, seed: int, receiver: Receiver | None = None) -> None:
        self.report = Report(seed)
        self._dice = random.Random(seed)
        self._checker = Checker(folder / "checked")
        self._successor = Successor(folder / "taken over", receiver) if receiver else None
        self._since = 0

    def examine(
        self, found: Recordings, *, part: float = 1.0, some: int = 1, most: float = float("inf"), journaled: bool = False
    ) -> None:
        """Every point of every recording, or a `part` of them: the least that may be left, the most, and `some` in between."""
        self.report.counts["recordings"] += len(found.scenes)
        self.report.counts["operations"] += found.operations
        seen: set[int] = set()
        for name, operations in found.scenes.items():
            replay = Replay(name, operations, journaled=journaled)
            for at in replay:
                if at < len(operations) and self._dice.random() >= part:
                    continue
                states = [("least", replay.disk.least()), ("most", replay.disk.most())]
                states += [("some", replay.disk.some(self._dice)) for _ in range(some)]
                for which, left in states:
                    fingerprint = hash((name, replay.promised.facts, tuple(left.items())))
                    if fingerprint not in seen and self.report.counts["states"] < most:
                        seen.add(fingerprint)
                        where = f"{name}, operation {at} of {len(operations)} ({operations[at - 1].what.name}), {which}"
                        self._look(left, replay.promised, where, found.books)

    def _look(self, left: Left, promised: Promised, where: str, books: Sequence[Received]) -> None:
        self.report.counts["states"] += 1
        self._since += 1
        faults = self._checker.faults(left, promised)
        can_be = promised.schema is not None and not faults and DATABASE in left
        if self._successor is not None and can_be and self._since >= _TAKEN_OVER:
            self._since = 0
            self.report.counts["taken over"] += 1
            faults = self._successor.faults(left, promised, books)
        self.report.faults += [f"{where}: {each}" for each in faults]


def crash_states(folder: Path, count: int, seed: int) -> Report:
    """Replay so many states that a power cut may leave, spread over every recorded workload.

    `report.counts` has "states" (checked, each different from the others of its recording), "taken over" (of these, the ones
    in which a worker delivered all that was left), "recordings" and "operations". Raises Unavailable without a C compiler.
    """
    with Receiver(check_token=False) as receiver:
        examiner = Examiner(folder, seed, receiver)
        counts, number = examiner.report.counts, 0
        while counts["states"] < count:
            found = recordings(folder / "recording", seed + number)
            wanted = min(count - counts["states"], _OF_ONE)
            examiner.examine(found, part=min(1.0, wanted / found.operations / 2), some=2, most=counts["states"] + wanted)
            number += 1
    shutil.rmtree(folder / "recording", ignore_errors=True)
    shutil.rmtree(folder / "built", ignore_errors=True)
    return examiner.report
