"""S8 and S9: files that change while they are copied or sent deliver no foreign byte, and no byte more than was declared."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from outbox import DirectorySpool, Refused, SpooledFile, intake
from outbox.digests import WORTH_A_THREAD
from outbox.errors import FileChanged
from outbox.intake import Offered
from outbox.multipart import BLOCK, LARGE_BLOCK, FieldPart, FilePart
from outbox.tables import file
from outbox.transport import RequestsTransport, Upload
from tests.factories import event, states
from tests.security.ear import Ear
from tests.story.conftest import Place

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links are another story there")

CANARY = b"canary-4f2c-" * 100
OURS = [b"a picture " * 300, b"another one" * 10, b""]

#: Exchanges a file, its folder, and what is in it, as fast as it can, until its standard input ends.
ATTACK = """
import os, select, sys
root, outside = sys.argv[1:]
folder, photo = root + "/a", root + "/a/photo.jpg"
spare, spare_folder = root + "/spare.jpg", root + "/spare"
while not select.select([sys.stdin], [], [], 0)[0]:
    for trick in range(7):
        try:
            if trick == 0:
                os.rename(photo, spare); os.symlink(outside + "/photo.jpg", photo)
            elif trick == 1:
                os.unlink(photo); os.rename(spare, photo)
            elif trick == 2:
                os.rename(folder, spare_folder); os.symlink(outside, folder)
            elif trick == 3:
                os.unlink(folder); os.rename(spare_folder, folder)
            elif trick == 4:
                os.rename(photo, spare); os.link(outside + "/photo.jpg", photo)
            elif trick == 5:
                os.unlink(photo); os.rename(spare, photo)
            else:
                with open(photo, "r+b") as opened:
                    opened.truncate(10); opened.seek(0, 2); opened.write(b"x" * 5000); opened.truncate(3000)
        except OSError:
            pass
"""


@contextmanager
def attacked(folder: Path) -> Iterator[Path]:
    """A picture in an allowed root, under attack by another process that may write there."""
    root, outside = folder / "root", folder / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "a" / "photo.jpg").write_bytes(OURS[0])
    (outside / "photo.jpg").write_bytes(CANARY)
    attacker = subprocess.Popen([sys.executable, "-c", ATTACK, str(root), str(outside)], stdin=subprocess.PIPE)
    try:
        yield root / "a" / "photo.jpg"
    finally:
        attacker.communicate(b"enough")


@pytest.mark.merge
def test_in_ten_thousand_rounds_no_foreign_byte_is_read(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    with attacked(tmp_path) as photo:
        roots = [photo.parents[1].resolve()]
        for _ in range(10_000):
            offered = intake.offer("photo", photo, roots)
            if not isinstance(offered, Offered):
                outcomes[offered[0].text.partition(":")[0]] += 1
                continue
            try:
                with intake.open_source(offered) as source:
                    content = source.read()
            except Refused as refused:
                outcomes[refused.faults[0].text.partition(":")[0]] += 1
                continue
            assert b"canary" not in content
            outcomes["read"] += 1

    assert outcomes["read"] > 50, outcomes
    assert sum(outcomes.values()) - outcomes["read"] > 50, outcomes


@pytest.mark.merge
def test_what_is_enqueued_under_attack_is_delivered_as_it_was_copied(place: Place) -> None:
    outbox = place.outbox()  # without roots: links are followed, and what is read is another's; whole it must be all the same
    kept = tried = 0
    with attacked(place.folder) as photo:
        while kept < 25 and tried < 4_000:
            tried += 1
            with suppress(Refused), place.engine.begin() as connection:
                outbox.enqueue(connection, "enos", event(f"{tried}", "photo"), files={"photo": photo}, key=f"{tried}")
                kept += 1
    place.hand(outbox).turn_while_it_moves(1000)

    with place.engine.connect() as connection:
        facts = {row.sha256: row.size for row in connection.execute(file.select())}
    carried = [each for struct in place.receiver.accepted for each in struct.files.values()]
    assert kept == len(carried) == len(states(place.database)) >= 1
    assert all(facts[each.sha256] == each.size for each in carried)


# While it is sent.

SMUGGLED = b"\r\nPOST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
SIZE = 3 * BLOCK - 1000
#: And one whose digest has a thread of its own, with the bytes that are read of it at a time.
LARGE = WORTH_A_THREAD + 1000
SIZES = {"small": (SIZE, BLOCK), "large": (LARGE, LARGE_BLOCK)}


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _grown(path: Path) -> None:
    with path.open("ab") as opened:
        opened.write(SMUGGLED * 10_000)


def _changed(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.seek(-10, os.SEEK_END)
        opened.write(b"X")


def _changed_at_its_beginning(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.write(SMUGGLED)


def _replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CANARY * 1000)
    other.rename(path)


def _linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _shrunk_and_grown(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, BLOCK)
    with path.open("ab") as opened:
        opened.write(bytes(size - BLOCK))


HARMS = [_truncated, _grown, _changed, _changed_at_its_beginning, _replaced, _linked, _shrunk_and_grown, Path.unlink]


class Watched(io.RawIOBase):
    """A spooled file that something happens to before its n-th read."""

    def __init__(self, source: BinaryIO, number: int, happen: Callable[[], None]) -> None:
        self.source, self.left, self.happen = source, number, happen

    def read(self, size: int = -1) -> bytes:
        if self.left == 0:
            self.happen()
        self.left -= 1
        return self.source.read(size)

    def close(self) -> None:
        self.source.close()


class Told:
    """What came of a send, and what the other side heard of it."""

    def __init__(self, ear: Ear, spooled: SpooledFile) -> None:
        ear.settle()
        (heard,) = ear.conversations
        self.head, _, self.body = bytes(heard).partition(b"\r\n\r\n")
        self.declared = int(re.findall(rb"content-length: (\d+)", self.head.lower())[0])
        self.whole = len(self.body) == self.declared
        start = self.body.find(b"\r\n\r\n", self.body.find(b'name="f"')) + 4
        self.right = spooled.sha256 == hashlib.sha256(self.body[start : start + spooled.size]).hexdigest()


@pytest.mark.parametrize(("size", "block"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__.strip("_"))
def test_a_file_that_changes_at_any_moment_of_its_sending_is_right_or_never_complete(
    tmp_path: Path, transport: RequestsTransport, harm: Callable[[Path], None], size: int, block: int
) -> None:
    spool = DirectorySpool(tmp_path / "spool")
    content = os.urandom(size)
    reads = math.ceil(size / block) + 1
    outcomes = []
    for moment in range(reads + 1):
        spooled = spool.put(f"{moment:032x}", io.BytesIO(content))
        path = spool.where(spooled.name)

        def open_file(name: str, moment: int = moment, path: Path = path) -> Any:
            return Watched(spool.open(name), moment, lambda: harm(path))

        with Ear() as ear:
            parts = [FieldPart("a", b"{}"), FilePart("f", "x", spooled), FieldPart("z", b"end")]
            try:
                answered = transport.send(Upload(ear.url, parts), open_file, 20, 5).status == 200
            except FileChanged:
                answered = False
            told = Told(ear, spooled)

        assert answered == told.whole
        assert len(told.body) <= told.declared
        assert told.right or not told.whole
        assert 1 == told.head.count(b" HTTP/1.1")
        assert not told.whole or b"smuggled" not in told.body
        outcomes.append(answered)

    assert outcomes[-1], "by then every byte of it was read"


@pytest.mark.merge
@pytest.mark.parametrize("round_", range(20))
def test_a_file_that_changes_all_the_while_is_right_or_never_complete(
    tmp_path: Path, transport: RequestsTransport, round_: int
) -> None:
    """As above, at moments that nobody chose."""
    spool = DirectorySpool(tmp_path / "spool")
    spooled = spool.put("0" * 32, io.BytesIO(os.urandom(SIZE)))
    path = spool.where(spooled.name)
    script = (
        "import sys\npath, size = sys.argv[1], int(sys.argv[2])\nwhole = open(path, 'rb').read()\nprint(flush=True)\n"
        "for _ in range(200):\n"
        "    with open(path, 'r+b') as f:\n"
        "        f.truncate(size // 2); f.seek(size - 10); f.write(b'X' * 5000); f.seek(0); f.write(whole); f.truncate(size)\n"
    )
    attacker = subprocess.Popen([sys.executable, "-c", script, str(path), str(SIZE)], stdout=subprocess.PIPE)
    try:
        assert attacker.stdout is not None
        attacker.stdout.readline()
        with Ear() as ear:
            try:
                answered = transport.send(Upload(ear.url, [FilePart("f", "x", spooled)]), spool.open, 20, 5).status == 200
            except FileChanged:
                answered = False
            told = Told(ear, spooled)
    finally:
        attacker.kill()
        attacker.communicate()

    assert answered == told.whole
    assert told.right or not told.whole
    assert len(told.body) <= told.declared
