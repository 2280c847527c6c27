"""Files larger than memory should be: they go through a worker that stays small."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import State
from outbox.testing import Receiver
from tests.factories import in_full, states
from tests.story.conftest import Place

GIB = 1024**3
SIZE = in_full(2 * GIB, GIB // 4) + 1  # in full more than a signed 32-bit number counts
MOST_MEMORY = 80 * 1000  # KiB as the kernel counts, a little under 80 MB


@pytest.fixture
def place_for_large(sqlite_url: str, tmp_path: Path) -> Iterator[Place]:
    if shutil.disk_usage(tmp_path).free < 5 * GIB:
        pytest.skip("needs 5 GiB of free disk")
    with Receiver(check_token=False, max_file_bytes=3 * GIB) as receiver:
        place = Place(sqlite_url, tmp_path, receiver)
        yield place
        place.close()
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.merge
def test_a_file_larger_than_memory_should_be_goes_through_little_memory(place_for_large: Place, tmp_path: Path) -> None:
    place = place_for_large
    source = tmp_path / "source.bin"
    digest = sparse_file(source)
    options = {"max_file_bytes": 3 * GIB}

    producer = place.run("enqueue_large", cold=True, key="large", path=str(source), options=options)
    assert producer.ended(120) == 0, producer.log
    worker = place.run("work", cold=True, until_idle=True, options=options)
    assert worker.ended(240) == 0, worker.log

    memory = {name: int(each.lines[-1]) for name, each in (("enqueue", producer), ("worker", worker))}
    print(f"peak memory in KiB: {memory}")
    (accepted,) = place.receiver.accepted
    received = accepted.files_by_path["events/crack/photo"]
    assert (SIZE, digest) == (received.size, received.sha256)
    assert {"large": State.DELIVERED} == states(place.database)
    assert {} == {name: each for name, each in memory.items() if each > MOST_MEMORY}
    place.acknowledged["large"] = {"photo": digest}
    place.check()


def sparse_file(path: Path) -> str:
    """A file of SIZE bytes that takes little disk; its SHA-256."""
    places = (0, SIZE // 2, SIZE - 1)
    with path.open("wb") as file:
        for position in places:
            file.seek(position)
            file.write(os.urandom(1))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
