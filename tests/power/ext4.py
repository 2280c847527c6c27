"""The power is cut for real: producers and workers are at work on an ext4 file system, which forgets what was not synced.

`python -m tests.power.ext4` is the process that owns the disk and that the others are forked from: it has no threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox import Outbox, Policy, Worker, migrate, prepare
from outbox.testing import Received, Receiver
from tests import ledger
from tests.factories import enos, event, real_clock
from tests.ledger.history import Diary, History, arrivals, lines, promises
from tests.power.disk import LOSE_LOG, WRITE_LOG, Disk, alone
from tests.power.report import Report, Unavailable
from tests.power.successor import settle

ROOT = Path(__file__).parents[2]
#: Cuts of one disk, before it is made anew: what is looked at after each grows with them.
_OF_ONE = 10
#: Messages that are acknowledged between two cuts, at most.
_BETWEEN = 25
_MEGABYTES = 96
_RESERVE = 1024 * 1024
#: Seconds that it may take until something is acknowledged.
_PATIENCE = 60
_PR_SET_PDEATHSIG = 1
#: ext4 as it comes, and such that it does not care for the order of data and names.
_OPTIONS = ("", "data=writeback")


def cuts(folder: Path, seed: int, *, count: int | None = None, seconds: float | None = None) -> Report:
    """So many cuts, or as many as fit in the time; two producers and a worker are at work at each.

    `report.counts` has "cuts", "acknowledged", "delivered" and "disks". Raises Unavailable without root, mkfs.ext4 or a loop
    device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="cuts-", dir=folder))
    books = folder / "books"
    with Receiver(check_token=False, ledger=books) as receiver:
        asked = {"folder": str(folder), "seed": seed, "url": receiver.url, "books": str(books)}
        story = asked | {"count": 20 if count is None and seconds is None else count, "seconds": seconds}
        command = [sys.executable, "-m", "tests.power.ext4", json.dumps(story)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
            try:
                said, complained = owner.communicate()
            finally:
                owner.kill()  # and with it go its children, its mounts and its loop device
    if owner.returncode:
        raise RuntimeError(f"the owner of the disk ended with {owner.returncode}: {complained}")
    told = json.loads(said.splitlines()[-1])
    if "unavailable" in told:
        raise Unavailable(told["unavailable"])
    report = Report(seed)
    report.counts.update(told["counts"])
    report.faults += told["faults"]
    return report


class Ground:
    """One disk with a database and a spool on it; what producers and workers say of themselves is kept elsewhere."""

    def __init__(self, disk: Disk, folder: Path, url: str, books: Path, name: str) -> None:
        self.name = name  #: what its keys begin with
        self.spool = disk.path / "spool"
        self.database = f"sqlite:///{disk.path / 'outbox.db'}"
        self._url = url
        self._books = books
        self._said = folder
        self._numbers = itertools.count()
        folder.mkdir(parents=True)

    def outbox(self, **options: Any) -> Outbox:
        policy = Policy(batch_messages=4, backoff_first=0.01, backoff_cap=0.02, probe_first=0.01, probe_cap=0.02)
        return Outbox(
            self.database,
            spool=self.spool,
            destinations=[enos(self._url, policy=policy)],
            durability="ignore",
            **({"reserve": _RESERVE} | options),
        )

    def history(self, who: str) -> History:
        return History(self._said / f"{who}-{next(self._numbers)}.jsonl")

    def faults(self, *, drained: bool) -> tuple[list[str], ledger.Counts]:
        """What does not add up by now."""
        outbox = self.outbox()
        arrived = [each for each in arrivals([self._books]) if self._is_ours(each)]
        try:
            balance = ledger.examine(
                outbox.database,
                arrived,
                promises(self._said.glob("producer-*")),
                drained=drained,
                spool=self.spool,
                swept=drained,
                work=lines(self._said.glob("worker-*")),
            )
        finally:
            outbox.close()
        return balance.faults, balance.counts

    def _is_ours(self, request: Received) -> bool:
        """Whether it came from this disk; the receiver has those of all that there were."""
        return any(struct["assetId"].startswith(self.name) for struct in request.structs)

    def settle(self) -> None:
        clock = real_clock()
        clock.move(hours=1)
        outbox = self.outbox(ambient=clock.ambient)
        try:
            settle(outbox, clock)
        finally:
            outbox.close()


def produce(ground: Ground, name: str, seed: int, told: int) -> None:
    """Enqueue for ever; a byte for each message that was acknowledged."""
    outbox, dice = ground.outbox(), random.Random(f"{name} {seed}")
    engine = prepare(sa.create_engine(ground.database))
    with ground.history("producer") as history:
        for number in itertools.count():
            key = f"{name}-{number}"
            lengths = [dice.choice((0, 700, 4096, 20_000)) for _ in range(dice.choice((0, 1, 1, 3)))]
            files = {f"file{each}": dice.randbytes(length) for each, length in enumerate(lengths)}
            order = {"ordering_key": f"{name}-stream"} if dice.random() < 0.2 else {}
            with history.enqueue(key, files=files), engine.begin() as connection:
                outbox.enqueue(connection, "enos", event(key, *files), files=files, key=key, **order)
            os.write(told, b".")


def work(ground: Ground) -> None:
    """A worker as it is in a service."""
    with ground.history("worker") as history:
        Worker(ground.outbox(), gone_after=1.0, poll=0.02, watcher=Diary(history)).run()


@contextlib.contextmanager
def children(programs: list[Callable[[], None]]) -> Iterator[list[int]]:
    """Processes of their own, which are killed at the end: their ids."""
    pids = [_forked(each) for each in programs]
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def _forked(program: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _end_with_parent()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # that there is no disk any more they notice, too
            program()
        finally:
            os._exit(1)
    return pid


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Cutter:
    """Cuts the power of one disk after the other."""

    def __init__(self, story: dict[str, Any]) -> None:
        self.report = Report(story["seed"])
        self._dice = random.Random(story["seed"])
        self._folder = Path(story["folder"])
        self._url = story["url"]
        self._books = Path(story["books"])
        self._count = story["count"]
        self._ends = None if story["seconds"] is None else time.monotonic() + story["seconds"]
        alone()
        self._disk = Disk(self._folder / "mounted", _MEGABYTES)

    def run(self) -> None:
        while self._goes_on():
            self._one_disk()

    def _goes_on(self) -> bool:
        in_time = self._ends is None or time.monotonic() < self._ends
        return in_time and (self._count is None or self.report.counts["cuts"] < self._count)

    def _one_disk(self) -> None:
        number = self.report.counts["disks"]
        self.report.counts["disks"] += 1
        options = self._dice.choice(_OPTIONS)
        where = f"disk {number} ({options or 'as it comes'})"
        self._disk.make(options)
        ground = Ground(self._disk, self._folder / f"said-{number}", self._url, self._books, f"disk{number}-")
        outbox = ground.outbox()
        outbox.database.create()
        migrate.upgrade(outbox.database)
        outbox.close()
        for cut in range(1, _OF_ONE + 1):
            if not self._goes_on():
                break
            self._cut(ground, f"{ground.name}{cut}")
            self.report.counts["cuts"] += 1
            if faults := ground.faults(drained=False)[0]:
                self.report.faults += [f"{where}, after cut {cut}: {each}" for each in faults]
                return
        ground.settle()
        faults, counts = ground.faults(drained=True)
        self.report.faults += [f"{where}, after it was drained: {each}" for each in faults]
        self.report.counts.update({name: many for name, many in asdict(counts).items() if many})

    def _cut(self, ground: Ground, name: str) -> None:
        """Let producers and a worker work until so much was acknowledged, and cut the power on them."""
        told, telling = os.pipe()
        seeds = [self._dice.randrange(10**6) for _ in range(2)]
        producers = [partial(produce, ground, f"{name}-{each}", seed, telling) for each, seed in enumerate(seeds)]
        wanted, pause = self._dice.randint(1, _BETWEEN), self._dice.uniform(0, 0.01)
        with children([*producers, partial(work, ground)]) as pids:
            os.close(telling)
            heard = 0
            while heard < wanted:
                ready, _, _ = select.select([told], [], [], _PATIENCE)
                heard += len(os.read(told, wanted)) if ready else 0
                assert ready, "nobody acknowledges anything"
            time.sleep(pause)  # into the middle of the next one
            # A sync that is under way while a file system is shut down may still say yes; with the power it would say nothing.
            # So nobody hears it: who is stopped in a call to the kernel stays there until it is over, and comes back no more.
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            self._disk.cut(self._dice.choice((LOSE_LOG, LOSE_LOG, LOSE_LOG, WRITE_LOG)))
        os.close(told)
        self._disk.unmount()
        self._disk.mount()


def main(story: dict[str, Any]) -> None:
    """Cut as often as asked, and print what came of it."""
    _end_with_parent()
    try:
        cutter = Cutter(story)
        cutter.run()
    except Unavailable as error:
        print(json.dumps({"unavailable": str(error)}))
        return
    print(json.dumps({"counts": cutter.report.counts, "faults": cutter.report.faults}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
