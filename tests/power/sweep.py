"""Kills a process at every point of everything that an outbox does, and looks each time whether all adds up.

`python -m tests.power.sweep` is where the processes come from: forked from one that has all its imports and no thread, no
connection and nothing else that a fork should not have.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from outbox import Outbox, Policy
from outbox.testing import Received, Receiver
from tests import ledger
from tests.factories import enos, real_clock
from tests.power.notes import NAME, Promised
from tests.power.operations import OPERATIONS, Bench
from tests.power.points import Points
from tests.power.successor import promises, settle
from tests.warm import WarmPopen

ROOT = Path(__file__).parents[2]
#: Seconds that one operation may take; longer, and something stands still.
_PATIENCE = 60
_PR_SET_PTRACER = 0x59616D61


@dataclass(frozen=True)
class Ended:
    """What became of a process: the points it came to, the one it was killed at, and how it ended."""

    labels: tuple[str, ...]
    killed_at: str
    status: int
    said: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Forks:
    """The process that the others are forked from."""

    def __init__(self) -> None:
        self._process = WarmPopen(
            [sys.executable, "-m", "tests.power.sweep"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, asked: Mapping[str, Any]) -> int:
        """Fork one that does as asked; its process id. One that is asked to wait has prepared everything by then."""
        self._say(asked)
        return int(self._hear()["pid"])

    def go_on(self) -> None:
        """Let one go on that was asked to wait."""
        self._say({})

    def end(self) -> Ended:
        """Wait for its end."""
        heard = self._hear()
        return Ended(tuple(heard["labels"]), heard["killed_at"], heard["status"], heard["said"])

    def close(self) -> None:
        self._process.communicate()

    def _say(self, what: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that the others are forked from is gone"
        heard: dict[str, Any] = json.loads(line)
        return heard


class Sweep:
    """One place, in which operations are begun and cut off, and a successor makes good each time."""

    def __init__(self, url: str, folder: Path, receiver: Receiver, forks: Forks) -> None:
        self.url = url
        self.clock = real_clock()  # a sweep compares it with the times of files
        self.promised = Promised()
        self._receiver = receiver
        self.forks = forks
        self._number = 0
        self._heard = 0
        self._known = len(receiver.requests)
        self._notes = folder / "noted"
        self._notes.mkdir(parents=True)
        self._spool = folder / "spool"
        self.outbox = Outbox(
            url,
            spool=self._spool,
            destinations=[enos(receiver.url, policy=Policy(batch_messages=3))],
            durability="ignore",
            reserve=0,
            ambient=self.clock.ambient,
        )
        self.outbox.spool_store.prepare()
        self.outbox.mark_spool()
        receiver.refuse(lambda struct: struct["assetId"].endswith("-bad"))

    def close(self) -> None:
        self.outbox.close()

    def start(self, operation: str, *, kill_at: int = 0, waits: bool = False) -> int:
        """Begin an operation in a process of its own, which kills itself at a point; its process id."""
        self._let_go()
        asked = OPERATIONS[operation]
        self._number += 1
        if asked.behaviour is not None:
            self._receiver.misbehave(asked.behaviour)
        return self.forks.start(
            {
                "operation": operation,
                "name": f"{self._number}",
                "now": self.clock.wall.isoformat(),
                "database": self.url,
                "spool": str(self._spool),
                "notes": str(self._notes),
                "url": self._receiver.url,
                "reserve": asked.reserve,
                "kill_at": kill_at,
                "waits": waits,
            }
        )

    def run(self, operation: str, kill_at: int = 0) -> Ended:
        self.start(operation, kill_at=kill_at)
        return self.forks.end()

    def make_good(self, passed: timedelta) -> list[str]:
        """A successor delivers everything that is left; what does not add up then."""
        self.clock.move(passed.total_seconds())
        self._hear_notes()
        self.outbox.resume("enos", "ada")
        settle(self.outbox, self.clock)
        balance = ledger.examine(
            self.outbox.database,
            self._arrived(),
            promises(self.promised),
            purged=self.promised.may_go,
            spool=self._spool,
            swept=True,
        )
        self._receiver.never()
        return balance.faults

    def _arrived(self) -> list[Received]:
        """What the receiver got; of what may be purged it does not matter any more which delivery it was."""
        found = self._receiver.requests[self._known :]
        if not self.promised.deliveries_may_go:
            return found
        purged = self.promised.may_go

        def over(request: Received) -> bool:
            return {str(struct["assetId"]) for struct in request.structs} <= purged

        return [replace(each, headers={}) if over(each) else each for each in found]

    def _let_go(self) -> None:
        """Close every connection, so that whoever is started opens the database as the first."""
        database = self.outbox.database
        for engine in (database._engine, database._reader):
            if engine is not None:
                engine.dispose()

    def _hear_notes(self) -> None:
        lines = (self._notes / NAME).read_text().splitlines()
        for line in lines[self._heard :]:
            self.promised.hear(line)
        self._heard = len(lines)


def _serve() -> None:
    """Fork for every line that comes in, and tell how it ended."""
    for line in sys.stdin:
        asked = json.loads(line)
        told, telling = os.pipe()
        going, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(told)
            os.close(go)
            _be_one(asked, telling, going)
        os.close(telling)
        os.close(going)
        with os.fdopen(told, "rb") as heard, os.fdopen(go, "wb", buffering=0) as starter:
            if asked["waits"]:
                heard.readline()  # it is ready
            _answer(pid=pid)
            if asked["waits"]:
                sys.stdin.readline()
                with contextlib.suppress(BrokenPipeError):
                    starter.write(b"\n")
            said = heard.read().decode(errors="replace").splitlines()
            _, status = os.waitpid(pid, 0)
        _answer(**_told(said), status=os.waitstatus_to_exitcode(status))


def _told(said: list[str]) -> dict[str, Any]:
    labels = [each.removeprefix("came to ") for each in said if each.startswith("came to ")]
    killed_at = next((each.removeprefix("killed ") for each in said if each.startswith("killed ")), "")
    rest = [each for each in said if not each.startswith(("came to ", "killed "))]
    return {"labels": labels, "killed_at": killed_at, "said": "\n".join(rest)}


def _answer(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _be_one(asked: Mapping[str, Any], telling: int, going: int) -> None:
    """In a fork, which does not return: the operation, killed at its point or not at all."""
    write, status = os.write, 1

    def tell(word: str, what: str = "") -> None:
        write(telling, f"{word} {what}\n".encode())

    try:
        os.dup2(telling, 2)
        signal.alarm(_PATIENCE)
        places = [asked["spool"], asked["database"].removeprefix("sqlite:///")]
        points = Points(places, lambda label: tell("killed", label), asked["kill_at"])
        _act(asked, points, tell, going)
        for label in points.labels:
            tell("came to", label)
        status = 0
    except BaseException:  # noqa: BLE001 (it is told, and the process ends here)
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def _act(asked: Mapping[str, Any], points: Points, tell: Any, going: int) -> None:
    steps = OPERATIONS[asked["operation"]].steps(Bench(asked))
    next(steps)
    if asked["waits"]:
        _let_be_traced()
        tell("ready")
        os.read(going, 1)
    else:
        points.arm()
    for _ in steps:
        pass
    points.disarm()


def _let_be_traced() -> None:
    """Where only parents may trace, allow it to anybody."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)


@contextlib.contextmanager
def forks() -> Iterator[Forks]:
    found = Forks()
    try:
        yield found
    finally:
        found.close()


if __name__ == "__main__":
    _serve()
