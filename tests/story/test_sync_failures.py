"""A sync, a write or a rename fails, once or for good: nothing is acknowledged that may be lost, and then it goes on."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import random
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from outbox.errors import SpoolError
from outbox.testing import Receiver
from tests.conftest import missing
from tests.factories import event, in_full, states
from tests.power import Unavailable
from tests.power.recording import What
from tests.power.states import Examiner, Recordings, Replay, recordings
from tests.power.workloads import ALWAYS
from tests.story.conftest import Place

SYNCS = [("sync", "EIO", 1), ("sync", "EIO", ALWAYS)]
#: A disk that is full, or of which we may not have more; a file that may not grow; a device that fails; too many open files.
OTHERS = {
    "ENOSPC": [("write", 1), ("write", ALWAYS), ("rename", 1), ("create", 1)],
    "EDQUOT": [("write", 1), ("rename", 1), ("create", 1)],
    "EFBIG": [("write", 1)],
    "EIO": [("write", ALWAYS), ("rename", 1)],
    "EMFILE": [("create", 1)],
}


def record(
    folder: Path, seed: int, producer: Sequence[tuple[str, str, int]], worker: Sequence[tuple[str, str, int]]
) -> Recordings:
    """What a producer and a worker do when these operations of theirs fail: their kind, the error, and how often."""
    scenes = {
        "producer": {"scene": "fail_to_enqueue", "failures": producer},
        "worker": {"scene": "fail_to_deliver", "failures": worker},
    }
    try:
        return recordings(folder, seed, scenes)
    except Unavailable as error:
        missing(str(error))


@pytest.fixture(scope="module")
def seed() -> int:
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")
    return seed


@pytest.fixture(scope="module")
def failed_syncs(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Callable[[], Recordings]:
    """Recorded once for the tests of this file, by the first that asks."""
    return functools.cache(lambda: record(tmp_path_factory.mktemp("recording"), seed, SYNCS, SYNCS))


def end_of(recording: Recordings, scene: str) -> Replay:
    """A scene after its last operation, with all that was said in it."""
    replay = Replay(scene, recording.scenes[scene])
    for _ in replay:
        pass
    return replay


def never_acknowledged(recording: Recordings) -> None:
    promised = end_of(recording, "producer").promised
    struck = [each for each in promised.tried if each["reached"]]
    print(Counter((each["kind"], each["error"], each["said"]) for each in struck))
    assert [] == [each for each in struck if each["said"] == "" or each["key"] in promised.committed]
    assert {f"{each['key']}-next" for each in promised.tried} <= promised.committed, "and the next one is taken"
    assert {each["key"] for each in promised.tried if not each["reached"]} <= promised.committed
    assert struck


def delivered_once(recording: Recordings) -> None:
    """A claim that was not committed is not sent, and an outcome that was not recorded is kept until it is."""
    promised = end_of(recording, "worker").promised
    assert all(each["said"] for each in promised.tried if each["reached"])
    copies = Counter(struct["assetId"] for request in recording.books if request.stored for struct in request.structs)
    assert dict.fromkeys(promised.committed, 1) == copies
    assert {2} >= {step for _, _, step in promised.progress.values()}, "and every message is final"


def whatever_is_left(recording: Recordings, receiver: Receiver, folder: Path, seed: int, states: int) -> None:
    examiner = Examiner(folder, seed, receiver)
    examiner.examine(recording, part=states / 3 / recording.operations)
    print(examiner.report)
    assert [] == examiner.report.faults


def test_what_failed_to_be_synced_is_never_acknowledged(failed_syncs: Callable[[], Recordings]) -> None:
    never_acknowledged(failed_syncs())


def test_what_a_worker_failed_to_commit_is_sent_once_all_the_same(failed_syncs: Callable[[], Recordings]) -> None:
    delivered_once(failed_syncs())


def test_a_spooled_file_whose_sync_failed_is_not_synced_again(failed_syncs: Callable[[], Recordings]) -> None:
    """The kernel may have dropped what it could not write, and say yes the next time."""
    names: dict[int, str] = {}
    failed: list[str] = []
    for each in failed_syncs().scenes["producer"]:
        if each.what is What.OPENED:  # a folder may have the number of a file that is gone
            names[each.inode] = "" if each.folder else each.path
        if each.what in (What.SYNCED, What.SYNC_FAILED) and names.get(each.inode, "").startswith("/spool/"):
            assert names[each.inode] not in failed, f"{names[each.inode]} is synced once more"
            failed += [names[each.inode]] if each.what is What.SYNC_FAILED else []
    assert len(failed) >= 2


def test_nothing_is_lost_in_a_power_cut_after_a_sync_that_failed(
    failed_syncs: Callable[[], Recordings], receiver: Receiver, tmp_path: Path, seed: int
) -> None:
    """What such a sync should have written is never safe: not by the next sync either, the database's included."""
    whatever_is_left(failed_syncs(), receiver, tmp_path, seed, states=120)


@pytest.mark.merge
@pytest.mark.parametrize("error", [pytest.param(each, marks=[] if each == "EIO" else pytest.mark.full) for each in OTHERS])
def test_nothing_is_lost_whatever_file_operation_fails(receiver: Receiver, tmp_path: Path, seed: int, error: str) -> None:
    failures = [(kind, error, times) for kind, times in OTHERS[error]]
    found = record(tmp_path / "recording", seed, failures, [each for each in failures if each[0] == "write"][:1])

    never_acknowledged(found)
    delivered_once(found)
    whatever_is_left(found, receiver, tmp_path, seed, states=in_full(200, 60))


# Without a compiler, and on every kind of database


def failing(number: int, times: int, real: Callable[[int], None], failed: list[int]) -> Callable[[int], None]:
    """A sync that fails the n-th time, and so many times from then on; no file whose sync failed may be synced again."""
    calls = itertools.count()

    def fsync(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        assert inode not in failed or stat.S_ISDIR(os.fstat(descriptor).st_mode), "a file is synced that could not be"
        if number <= next(calls) < number + times:
            failed.append(inode)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    return fsync


@pytest.mark.parametrize("times", [1, ALWAYS], ids=["once", "always"])
def test_an_enqueue_whose_files_cannot_be_synced_leaves_nothing_and_the_next_one_is_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    outbox = place.outbox()
    place.enqueue(outbox, "first", {"photo": b"bytes"})
    files = {"photo": b"bytes", "log": b"more"}
    refused = 0
    for number in range(100):
        failed: list[int] = []
        with monkeypatch.context() as patched, place.engine.begin() as connection:
            patched.setattr(os, "fsync", failing(number, times, os.fsync, failed))
            with suppress(SpoolError):
                outbox.enqueue(connection, "enos", event("a", *files), files=files, key="a")
        if not failed:
            break
        refused += 1
        assert ["first"] == list(states(place.database)), f"after the sync number {number} failed"
        assert 1 == len(place.spooled())

    place.acknowledge("a", files)
    place.enqueue(outbox, "b", files)
    assert {"first", "a", "b"} == states(place.database).keys()
    assert 5 == len(place.spooled())
    assert refused >= 4
    place.check(drained=False)
