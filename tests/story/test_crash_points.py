"""A process is killed at every point of everything that an outbox does, and its successor makes good each time."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing import Receiver
from tests.conftest import missing
from tests.factories import in_full
from tests.power import Unavailable, tracing
from tests.power.operations import OPERATIONS
from tests.power.sweep import Forks, Sweep, forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks up descriptors in /proc")

#: Of these each system call is tried: one that commits for a producer, one that commits for a worker, and what it sends.
TRACED = ("enqueue a file", "deliver")


@pytest.fixture(scope="session", name="forks")
def one_forks() -> Iterator[Forks]:
    with forks() as found:
        yield found


@pytest.fixture
def sweep(database_url: str, tmp_path: Path, receiver: Receiver, forks: Forks) -> Iterator[Sweep]:
    sweep = Sweep(database_url, tmp_path / "swept", receiver, forks)
    yield sweep
    sweep.close()


@pytest.fixture
def sqlite_sweep(sqlite_url: str, tmp_path: Path, receiver: Receiver, forks: Forks) -> Iterator[Sweep]:
    sweep = Sweep(sqlite_url, tmp_path / "swept", receiver, forks)
    yield sweep
    sweep.close()


def dice() -> random.Random:
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")
    return random.Random(seed)


def kill(sweep: Sweep, operation: str, at: int) -> str:
    """Kill it at that point, and see to it that all adds up afterwards; the point, or "" when it had come to its end."""
    ended = sweep.run(operation, at)
    assert ended.killed or ended.status == 0, f"{operation} ended with {ended.status} before point {at}: {ended.said}"
    faults = sweep.make_good(OPERATIONS[operation].passes)
    assert [] == faults, f"{operation}, killed at point {at} ({ended.killed_at})"
    return ended.killed_at


@pytest.mark.long
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_process_that_is_killed_at_any_point_is_made_good(sweep: Sweep, operation: str) -> None:
    """In full at each; in brief at one in five, from where chance begins."""
    stride = in_full(1, 7)
    at = dice().randint(1, stride)
    struck: list[str] = []
    while (point := kill(sweep, operation, at)) and point != "the end":
        struck.append(point)
        at += stride

    words = ", ".join(f"{point} {many}" for point, many in Counter(struck).items())
    print(f"{operation}: killed at {len(struck)} points before its end: {words}")
    assert struck or stride > 1 or (operation, sweep.outbox.database.kind) == ("keep room", "postgresql"), "nothing was struck"


def test_a_process_that_is_killed_at_some_point_is_made_good(sqlite_sweep: Sweep) -> None:
    """Of some operations one point each, by chance; for more of them, and on both databases: `make test-merge`."""
    chance = dice()
    for operation in chance.sample(list(OPERATIONS), 8):
        many = len(sqlite_sweep.run(operation).labels)
        at = chance.randint(1, many)
        print(f"{operation}: {kill(sqlite_sweep, operation, at)}, point {at} of {many}")


# At system calls


@pytest.fixture
def strace() -> None:
    try:
        tracing.strace()
    except Unavailable as error:
        missing(str(error))


def kill_at_call(sweep: Sweep, operation: str, call: str, number: int) -> None:
    ended = tracing.kill_at(sweep, operation, call, number)
    assert ended.killed, f"{operation} ended with {ended.status} before {call} number {number}: {ended.said}"
    faults = sweep.make_good(OPERATIONS[operation].passes)
    assert [] == faults, f"{operation}, killed at {call} number {number}"


@pytest.mark.merge
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("operation", TRACED)
def test_a_process_that_is_killed_at_any_system_call_is_made_good(sqlite_sweep: Sweep, tmp_path: Path, operation: str) -> None:
    """In full at each; in brief of the many that write a page only some."""
    found = tracing.calls(sqlite_sweep, operation, tmp_path)
    assert [] == sqlite_sweep.make_good(OPERATIONS[operation].passes)

    for call, many in found.items():
        for number in range(1, many + 1, in_full(1, max(1, many // 2))):
            kill_at_call(sqlite_sweep, operation, call, number)

    print(f"{operation}: {found.total()} system calls; {dict(found)}")
    assert {"pwrite64", "fdatasync"} <= set(found)


@pytest.mark.usefixtures("strace")
def test_a_process_that_is_killed_at_a_sync_or_a_rename_is_made_good(sqlite_sweep: Sweep) -> None:
    """Those that its promises hang on."""
    for call in ("fsync", "rename", "fdatasync"):
        kill_at_call(sqlite_sweep, "enqueue a file", call, 1)
