"""The disk that remembers what was synced: what it lets a power cut leave, and what not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.power import Unavailable
from tests.power.building import recorder
from tests.power.model import SECTOR, Disk, Left
from tests.power.recording import Operation, What, read

ROOT, FOLDER, FILE, OTHER = 1, 2, 3, 4


def opened(inode: int, path: str, *, created: bool = True) -> Operation:
    return Operation(What.OPENED, inode, path=path, created=created)


def wrote(inode: int, at: int, data: bytes) -> Operation:
    return Operation(What.WROTE, inode, at, data=data)


def synced(inode: int) -> Operation:
    return Operation(What.SYNCED, inode)


def disk(*operations: Operation, journaled: bool = False) -> Disk:
    """A disk on which this happened; its root can be synced."""
    found = Disk(journaled=journaled)
    for each in (opened(ROOT, "", created=False), *operations):
        found.follow(each)
    return found


def files(left: Left) -> dict[str, bytes]:
    return {path: content for path, content in left.items() if not path.endswith("/")}


def anything(found: Disk, many: int = 200) -> list[Left]:
    dice = random.Random(1)
    return [found.some(dice) for _ in range(many)]


def test_what_was_synced_with_its_folder_is_there_whatever_is_left() -> None:
    found = disk(opened(FILE, "/a"), wrote(FILE, 0, b"x" * 2000), synced(FILE), synced(ROOT))

    assert all({"/a": b"x" * 2000} == left for left in [found.least(), found.most(), *anything(found)])


def test_a_file_that_was_synced_without_its_folder_may_be_gone() -> None:
    found = disk(opened(FILE, "/a"), wrote(FILE, 0, b"x"), synced(FILE))

    assert {} == found.least()
    assert {"/a": b"x"} == found.most()


def test_a_file_whose_folder_was_synced_may_be_torn_in_sectors() -> None:
    found = disk(opened(FILE, "/a"), synced(ROOT), wrote(FILE, 0, b"x" * SECTOR * 4))

    assert {"/a": b""} == found.least()
    contents = {left["/a"] for left in anything(found)}
    assert {0, SECTOR * 4} == {len(content) for content in contents}
    for content in contents:
        assert all(content[at : at + SECTOR] in (b"x" * SECTOR, bytes(SECTOR)) for at in range(0, len(content), SECTOR))
    assert len(contents) > 5


def test_a_sector_is_as_it_was_at_one_moment() -> None:
    """What was written later never comes without what was written earlier beside it."""
    found = disk(opened(FILE, "/a"), synced(ROOT), wrote(FILE, 0, b"first"), wrote(FILE, 5, b"second"))

    seen = {left["/a"].rstrip(b"\0") for left in anything(found)}

    assert {b"", b"first", b"firstsecond"} == seen


def test_a_file_that_was_cut_may_have_its_old_length() -> None:
    found = disk(opened(FILE, "/a"), wrote(FILE, 0, b"x" * 1000), synced(FILE), synced(ROOT), Operation(What.CUT, FILE, at=0))

    assert {"/a": b"x" * 1000} == found.least()
    assert {"/a": b""} == found.most()
    assert {0, 1000} == {len(left["/a"]) for left in anything(found)}


def test_a_file_that_was_cut_and_written_anew_is_the_old_one_or_the_new_one() -> None:
    found = disk(opened(FILE, "/a"), wrote(FILE, 0, b"old" * 1000), synced(FILE), synced(ROOT), Operation(What.CUT, FILE, at=0))
    found.follow(wrote(FILE, 0, b"new" * 100))

    contents = {left["/a"] for left in anything(found)}

    assert {b"old" * 1000, b"", bytes(300), b"new" * 100} == contents


def test_names_of_a_folder_change_in_their_order() -> None:
    found = disk(
        opened(FILE, "/a"), synced(FILE), synced(ROOT), Operation(What.RENAMED, path="/a", other="/b"), opened(OTHER, "/c")
    )

    assert {("/a",), ("/b",), ("/b", "/c")} == {tuple(files(left)) for left in [found.least(), *anything(found)]}


def test_a_rename_to_another_folder_may_show_both_names_or_none() -> None:
    found = disk(
        Operation(What.FOLDER_MADE, path="/from"),
        Operation(What.FOLDER_MADE, path="/to"),
        opened(FOLDER, "/from", created=False),
        opened(FILE, "/from/a"),
        synced(FOLDER),
        synced(ROOT),
        Operation(What.RENAMED, path="/from/a", other="/to/a"),
    )

    seen = {tuple(sorted(files(left))) for left in anything(found)}

    assert {("/from/a",), ("/to/a",), ("/from/a", "/to/a"), ()} == seen


def test_a_file_in_a_folder_that_was_not_synced_into_its_own_is_gone() -> None:
    found = disk(
        Operation(What.FOLDER_MADE, path="/sub"),
        opened(FOLDER, "/sub", created=False),
        opened(FILE, "/sub/a"),
        synced(FILE),
        synced(FOLDER),
    )

    assert {} == found.least()
    found.follow(synced(ROOT))
    assert {"/sub/": b"", "/sub/a": b""} == found.least()


def test_a_removed_file_may_still_be_there_until_its_folder_is_synced() -> None:
    found = disk(opened(FILE, "/a"), synced(ROOT), Operation(What.REMOVED, path="/a"))

    assert {"/a": b""} == found.least()
    found.follow(synced(ROOT))
    assert {} == found.least()


def test_a_link_is_another_name_of_the_same_file() -> None:
    found = disk(opened(FILE, "/a"), Operation(What.LINKED, path="/a", other="/b"), wrote(FILE, 0, b"x"), synced(ROOT))

    assert {"/a": b"x", "/b": b"x"} == found.most()
    found.follow(synced(FILE))
    assert {"/a": b"x", "/b": b"x"} == found.least()


def test_what_a_sync_failed_to_write_no_later_sync_writes() -> None:
    found = disk(opened(FILE, "/a"), synced(ROOT), wrote(FILE, 0, b"lost"), Operation(What.SYNC_FAILED, FILE))

    found.follow(wrote(FILE, 600, b"kept"))
    found.follow(synced(FILE))

    assert {"/a": bytes(600) + b"kept"} == found.least()
    assert b"lost" in found.most()["/a"]


def test_on_a_journaled_disk_any_sync_keeps_every_name() -> None:
    happened = (opened(FILE, "/a"), opened(OTHER, "/b"), wrote(OTHER, 0, b"x"), synced(FILE))

    assert {} == disk(*happened).least()
    assert {"/a": b"", "/b": b""} == disk(*happened, journaled=True).least()


#: Does something of everything, through each of the functions that there are for it.
PROGRAM = """
import os
os.mkdir("sub")
folder = os.open("sub", os.O_RDONLY)
file = os.open("sub/a", os.O_CREAT | os.O_RDWR)
os.write(file, b"one ")
os.pwrite(file, b"two", 4)
os.writev(file, [b"ONE", b"!"])
other = os.dup(file)
os.close(file)
os.fsync(other)
os.ftruncate(other, 6)
os.posix_fallocate(other, 0, 8)
os.fdatasync(other)
again = os.open("sub/a", os.O_WRONLY | os.O_APPEND)
os.write(again, b"end")
os.rename("sub/a", "sub/b")
os.write(again, b"!")
os.link("sub/b", "c")
os.rename("b", "d", src_dir_fd=folder, dst_dir_fd=folder)
os.unlink("sub/d")
os.close(os.open("c", os.O_WRONLY | os.O_TRUNC))
with open("e", "wb", buffering=0) as opened:
    opened.write(b"e")
child = os.fork()
if child == 0:
    with open("e", "ab", buffering=0) as opened:
        opened.write(b"f")
    os._exit(0)
os.waitpid(child, 0)
os.fsync(folder)
os.mkdir("gone")
os.rmdir("gone")
open("/dev/null", "w").write("not ours")
"""


@pytest.fixture
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return recorder(tmp_path_factory.getbasetemp() / "built")
    except Unavailable as error:
        missing(str(error))


def recorded(library: Path, folder: Path, program: str) -> list[Operation]:
    root, log = folder / "root", folder / "log"
    root.mkdir()
    environment = os.environ | {"LD_PRELOAD": str(library), "POWER_ROOT": str(root), "POWER_LOG": str(log)}
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", program], cwd=root, env=environment, capture_output=True, text=True)
    assert 0 == ran.returncode, ran.stderr
    return list(read(log))


def test_a_recording_has_every_operation_in_its_order(library: Path, tmp_path: Path) -> None:
    operations = recorded(library, tmp_path, PROGRAM)

    assert "moowwwstasowrwlruotowowsmd" == "".join(each.what for each in operations)
    assert [0, 4, 4, 8, 11, 0, 1] == [each.at for each in operations if each.what is What.WROTE]
    assert [b"one ", b"two", b"ONE!", b"end", b"!", b"e", b"f"] == [each.data for each in operations if each.data]


def test_what_is_rebuilt_from_a_recording_is_what_is_there(library: Path, tmp_path: Path) -> None:
    found = disk(*recorded(library, tmp_path, PROGRAM))

    there = {f"/{path.relative_to(tmp_path / 'root')}": path for path in (tmp_path / "root").rglob("*")}
    assert {path: each.read_bytes() for path, each in there.items() if each.is_file()} == files(found.most())
    assert {f"{path}/" for path, each in there.items() if each.is_dir()} == set(found.most()) - set(files(found.most()))


def test_the_calls_that_are_chosen_fail_and_the_others_do_not(library: Path, tmp_path: Path) -> None:
    program = """
import ctypes, errno, os
library = ctypes.CDLL(None)
file = os.open("a", os.O_CREAT | os.O_WRONLY)
library.power_fail(1, 1, 2, errno.EIO)
said = []
for _ in range(4):
    os.write(file, b"x")
    try:
        os.fsync(file)
        said.append("safe")
    except OSError as error:
        said.append(errno.errorcode[error.errno])
assert ["safe", "EIO", "EIO", "safe"] == said, said
assert 4 == library.power_seen()
library.power_fail(2 | 4 | 8, 0, 3, errno.ENOSPC)
for each in (lambda: os.write(file, b"x"), lambda: os.rename("a", "b"), lambda: os.open("b", os.O_CREAT)):
    try:
        each()
    except OSError as error:
        assert errno.ENOSPC == error.errno
    else:
        raise AssertionError
os.rename("a", "b")
"""
    operations = recorded(library, tmp_path, program)

    assert "owswfwfwsr" == "".join(each.what for each in operations)
