"""What any spool must do; a directory is the one there is."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from outbox import DirectorySpool, FileChanged, FileMissing, SpoolError
from outbox.ambient import uuid7
from outbox.digests import WORTH_A_THREAD
from outbox.spool import directory
from outbox.spool.base import Oversize

CONTENT = b"photo\r\n\x00" * 1000
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR_AHEAD = datetime(2100, 1, 1, tzinfo=UTC)
FORGED = [
    "",
    ".",
    "..",
    "../../x",
    "/etc/passwd",
    "A" * 32,
    "0" * 31,
    "0" * 33,
    "0" * 31 + "/",
    "0" * 31 + "\n",
    "g" * 32,
    "0" * 32 + "\n",
]

NAME = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "spool"


@pytest.fixture
def spool(root: Path) -> DirectorySpool:
    return DirectorySpool(root)


def put(spool: DirectorySpool, name: str = NAME, content: bytes = CONTENT, **options: Any) -> Any:
    return spool.put(name, io.BytesIO(content), **options)


def read(spool: DirectorySpool, name: str = NAME) -> bytes:
    with spool.open(name) as source:
        return b"".join(iter(lambda: source.read(1 << 16), b""))


def everything(root: Path) -> set[str]:
    """Every file below the root, by its path."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


# Putting.


@pytest.mark.parametrize("size", [0, 1, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, 20 * 1024 * 1024])
def test_what_is_put_comes_back_whole_with_its_facts(spool: DirectorySpool, size: int) -> None:
    content = os.urandom(size)

    spooled = put(spool, content=content)

    assert content == read(spool)
    assert (NAME, size) == (spooled.name, spooled.size) == (spooled.name, spool.size(NAME))
    assert hashlib.sha256(content).hexdigest() == spooled.sha256
    assert hashlib.md5(content).hexdigest() == spooled.md5


def test_a_large_stream_that_fills_the_same_array_again_keeps_its_digests(spool: DirectorySpool) -> None:
    """What is hashed on another thread must not be overwritten meanwhile."""
    content = os.urandom(3 * WORTH_A_THREAD)

    room = bytearray(256 * 1024)

    class Frugal(io.BytesIO):
        def read(self, size: int | None = -1) -> Any:
            return room if self.readinto(room) else b""

    spooled = spool.put(NAME, Frugal(content))

    assert hashlib.sha256(content).hexdigest() == spooled.sha256
    assert hashlib.md5(content).hexdigest() == spooled.md5


@pytest.mark.parametrize("ends", ["well", "beyond the limit", "in the midst of the stream"])
def test_a_large_file_leaves_no_thread(spool: DirectorySpool, ends: str) -> None:
    seen: set[str] = set()

    class Watching(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            seen.update(thread.name for thread in threading.enumerate())
            if ends == "in the midst of the stream" and self.tell() > 2 * WORTH_A_THREAD:
                raise OSError("it broke")
            return super().read(size)

    limit = 2 * WORTH_A_THREAD if ends == "beyond the limit" else None
    with suppress(SpoolError):
        spool.put(NAME, Watching(bytes(3 * WORTH_A_THREAD)), limit)

    assert ("outbox-digest" in seen) == (os.cpu_count() != 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "outbox-digest"]


def test_a_source_that_gives_a_little_at_a_time_is_copied_to_its_end(spool: DirectorySpool) -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(7, size or 7))

    spooled = spool.put(NAME, Trickle(CONTENT))

    assert (CONTENT, len(CONTENT)) == (read(spool), spooled.size)


def test_a_source_that_has_nothing_yet_is_not_taken_for_one_that_ended(spool: DirectorySpool, root: Path) -> None:
    """A non-blocking stream says None; taking that for the end would cut the file."""

    class NotYet(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(5) or None  # type: ignore[return-value]

    with pytest.raises(SpoolError):
        spool.put(NAME, NotYet(CONTENT))

    assert set() == everything(root)


@pytest.mark.skipif(os.name == "nt", reason="modes mean something else there")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_private_to_its_owner_whatever_the_umask(spool: DirectorySpool, root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        spool.prepare()
        put(spool)
        put(spool, "f" * 32)
        spool.park("f" * 32)
    finally:
        os.umask(before)

    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [root, *root.rglob("*")]}
    assert {(True, 0o700), (False, 0o600)} == modes


def test_making_one_touches_nothing(root: Path) -> None:
    spool = DirectorySpool(root)

    assert [] == list(spool.list())
    assert not root.parent.exists()


def test_preparing_it_twice_is_no_error(spool: DirectorySpool, root: Path) -> None:
    spool.prepare()
    spool.prepare()

    assert {".unfinished", ".swept"} == {path.name for path in root.iterdir()}


def test_a_folder_that_vanished_is_made_again(spool: DirectorySpool) -> None:
    put(spool)
    spool.delete(NAME)
    spool._path(NAME).parent.rmdir()

    put(spool)

    assert CONTENT == read(spool)


# What a power cut must not break.


class Recorder:
    """What is synced and renamed, in order, by the paths below the root."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        self.root = root
        fsync, rename = os.fsync, os.rename

        def record_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self.seen.append(("sync", self.short(Path(f"/proc/self/fd/{descriptor}").readlink())))

        def record_rename(source: Any, target: Any, **more: Any) -> None:
            rename(source, target, **more)
            self.seen.append(("rename", f"{self.short(source)} -> {self.short(target)}"))

        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "rename", record_rename)

    def short(self, path: Any) -> str:
        return os.path.relpath(path, self.root)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks up descriptors in /proc")


@linux
def test_the_bytes_are_synced_before_the_name_and_the_name_before_it_returns(
    spool: DirectorySpool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(spool, "a" * 30 + "ef")
    recorder = Recorder(root, monkeypatch)

    put(spool)

    assert [
        ("sync", f".unfinished/{NAME}"),
        ("rename", f".unfinished/{NAME} -> ef/{NAME}"),
        ("sync", "ef"),
    ] == recorder.seen


@linux
def test_the_folders_that_lead_to_the_first_file_are_synced_before_its_name(
    spool: DirectorySpool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(root, monkeypatch)

    put(spool)

    renamed = recorder.seen.index(("rename", f".unfinished/{NAME} -> ef/{NAME}"))
    assert {("sync", "../.."), ("sync", ".."), ("sync", ".")} <= set(recorder.seen[:renamed])
    assert [("sync", "ef")] == recorder.seen[renamed + 1 :]


@linux
def test_a_folder_that_another_process_just_made_is_synced_too(
    spool: DirectorySpool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "ef").mkdir(parents=True)
    recorder = Recorder(root, monkeypatch)

    put(spool)

    renamed = recorder.seen.index(("rename", f".unfinished/{NAME} -> ef/{NAME}"))
    assert ("sync", ".") in recorder.seen[:renamed]


def failing(times: list[str], error: OSError, real: Callable[..., Any], *, at: int = 1) -> Callable[..., Any]:
    """A system call that fails the at-th time."""

    def call(*args: Any, **named: Any) -> Any:
        times.append("called")
        if len(times) == at:
            raise error
        return real(*args, **named)

    return call


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(28, "No space left on device")], ids=str)
@pytest.mark.parametrize(
    ("call", "at"),
    [("fsync", 1), ("fsync", 2), ("write", 1), ("write", 2), ("rename", 1)],
    ids=["sync of the file", "sync of its folder", "write", "a later write", "rename"],
)
def test_whatever_fails_nothing_is_left_under_the_name_and_nothing_is_tried_twice(
    spool: DirectorySpool, root: Path, monkeypatch: pytest.MonkeyPatch, call: str, at: int, error: OSError
) -> None:
    put(spool, "a" * 30 + "ef")
    before, times = everything(root), list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(times, error, getattr(os, call), at=at))

        with pytest.raises(SpoolError, match=str(error.strerror)):
            put(spool, content=b"x" * 600_000)

    assert at == len(times)
    assert before == everything(root)
    with pytest.raises(FileMissing):
        spool.open(NAME)
    assert put(spool).size == len(CONTENT)


def test_a_source_that_fails_leaves_nothing(spool: DirectorySpool, root: Path) -> None:
    class Torn(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            block = super().read(100)
            if self.tell() > 500:
                raise ValueError("the camera was unplugged")
            return block

    with pytest.raises(ValueError, match="unplugged"):
        spool.put(NAME, Torn(CONTENT))

    assert set() == everything(root)


@pytest.mark.parametrize(("size", "limit"), [(1, 0), (11, 10), (10**6, 10), (300_000, 262_144)])
def test_more_than_the_limit_is_refused_and_leaves_nothing(spool: DirectorySpool, root: Path, size: int, limit: int) -> None:
    with pytest.raises(Oversize) as caught:
        put(spool, content=b"x" * size, limit=limit)

    assert limit == caught.value.limit
    assert set() == everything(root)


@pytest.mark.parametrize("size", [0, 10])
def test_exactly_the_limit_passes(spool: DirectorySpool, size: int) -> None:
    assert size == put(spool, content=b"x" * size, limit=size).size


def test_a_stream_without_an_end_is_given_up_at_the_limit(spool: DirectorySpool) -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            self.taken += size
            return bytes(size)

    source = Endless()

    with pytest.raises(Oversize):
        spool.put(NAME, source, 1_000_000)  # type: ignore[arg-type]

    assert source.taken < 2_000_000


# Names.


def test_a_name_that_is_taken_is_refused_and_its_bytes_stay(spool: DirectorySpool, root: Path) -> None:
    put(spool)
    before = everything(root)

    for content, limit in ((b"other", None), (b"much too long", 3)):
        with pytest.raises(SpoolError):
            put(spool, content=content, limit=limit)

    assert CONTENT == read(spool)
    assert before == everything(root)


def test_a_name_that_is_being_written_is_refused_and_left_to_its_writer(spool: DirectorySpool) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            begun.set()
            go_on.wait(10)
            return super().read(size)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(spool.put, NAME, Slow(CONTENT))
        begun.wait(10)
        try:
            with pytest.raises(SpoolError, match="File exists"):
                put(spool, content=b"other")
        finally:
            go_on.set()
        first.result()

    assert CONTENT == read(spool)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed there")
def test_a_link_put_in_the_way_is_not_followed(spool: DirectorySpool, root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    spool.prepare()
    (root / ".unfinished" / NAME).symlink_to(victim)
    other = "f" * 32
    put(spool, other)
    spool._path(other).unlink()
    spool._path(other).symlink_to(victim)

    with pytest.raises(SpoolError):
        put(spool)
    with pytest.raises(SpoolError):
        spool.open(other)

    assert b"precious" == victim.read_bytes()


@pytest.mark.parametrize("name", FORGED, ids=ascii)
@pytest.mark.parametrize("method", ["open", "size", "touch", "delete", "park", "put"])
def test_a_name_that_is_not_ours_is_refused(spool: DirectorySpool, root: Path, method: str, name: str) -> None:
    put(spool)
    before = everything(root.parent)

    with pytest.raises(SpoolError, match="is not the name of a spooled file"):
        getattr(spool, method)(name, *([io.BytesIO(b"x")] if method == "put" else []))

    assert before == everything(root.parent)


# Missing.


@pytest.mark.parametrize("method", ["open", "size", "touch"])
def test_a_missing_file_is_missing_by_name(spool: DirectorySpool, method: str) -> None:
    spool.prepare()

    with pytest.raises(FileMissing) as caught:
        getattr(spool, method)(NAME)

    assert (NAME, f"spooled file {NAME} is missing") == (caught.value.name, str(caught.value))


@pytest.mark.parametrize("method", ["open", "size", "touch"])
def test_a_file_is_not_missing_from_a_spool_that_is_not_there(spool: DirectorySpool, root: Path, method: str) -> None:
    put(spool)
    root.rename(root.with_name("unmounted"))
    root.mkdir()

    with pytest.raises(SpoolError, match="is the disk mounted") as caught:
        getattr(spool, method)(NAME)

    assert not isinstance(caught.value, FileMissing)


def test_nothing_is_put_where_a_spool_was(spool: DirectorySpool, root: Path) -> None:
    put(spool)
    root.rename(root.with_name("unmounted"))
    root.mkdir()

    with pytest.raises(SpoolError, match="is the disk mounted"):
        put(spool, "1" * 32)

    assert set() == everything(root)


@pytest.mark.parametrize("method", ["open", "size"])
def test_a_link_in_the_place_of_a_file_is_no_file_of_ours(spool: DirectorySpool, root: Path, method: str) -> None:
    put(spool)
    (root / "ef" / NAME).rename(root / "ef" / "elsewhere")
    (root / "ef" / NAME).symlink_to(root / "ef" / "elsewhere")

    with pytest.raises(FileChanged, match="is not what was enqueued"):
        getattr(spool, method)(NAME)


@pytest.mark.parametrize("method", ["delete", "park"])
def test_what_is_to_go_may_be_gone_already(spool: DirectorySpool, method: str) -> None:
    getattr(spool, method)(NAME)
    put(spool)
    spool.delete(NAME)
    getattr(spool, method)(NAME)

    assert [] == list(spool.list())


@pytest.mark.parametrize("method", ["put", "open", "size", "touch", "delete", "park"])
def test_a_spool_that_is_no_directory_says_so_in_its_own_words(tmp_path: Path, method: str) -> None:
    (tmp_path / "spool").write_bytes(b"")
    spool = DirectorySpool(tmp_path / "spool")

    with pytest.raises(SpoolError):
        getattr(spool, method)(NAME, *([io.BytesIO(b"x")] if method == "put" else []))


def test_a_deleted_file_can_be_read_to_its_end_by_who_has_it_open(spool: DirectorySpool) -> None:
    put(spool)

    with spool.open(NAME) as source:
        spool.delete(NAME)
        content = source.read(len(CONTENT) + 1)

    assert CONTENT == content
    assert set() == {entry.name for entry in spool.list()}


# Being looked at.


def aged(spool: DirectorySpool, name: str, when: datetime) -> None:
    os.utime(spool._path(name), (when.timestamp(), when.timestamp()))


def test_it_lists_what_a_row_may_refer_to_with_its_age(spool: DirectorySpool) -> None:
    names = [uuid7() for _ in range(20)]
    for name in names:
        put(spool, name, b"")
        aged(spool, name, LONG_AGO)

    assert {(name, LONG_AGO) for name in names} == set(spool.list())


def test_it_lists_nothing_that_is_not_ours(spool: DirectorySpool, root: Path, tmp_path: Path) -> None:
    put(spool)
    folder = root / "ef"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ("1" * 30 + "ab")).write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"x")
    (folder / ("0" * 30 + "ef")).mkdir()
    (folder / ("1" * 30 + "ef")).symlink_to(elsewhere / ("1" * 30 + "ab"))
    (folder / ("2" * 32)).write_bytes(b"in the wrong folder")
    (root / "ab").symlink_to(elsewhere)
    (root / "cd").write_bytes(b"x")
    (root / "lost+found").mkdir()
    (root / "lost+found" / ("3" * 32)).write_bytes(b"x")
    (root / ".unfinished" / ("4" * 32)).write_bytes(b"x")

    assert [NAME] == [entry.name for entry in spool.list()]


def test_touching_makes_it_young(spool: DirectorySpool) -> None:
    put(spool)
    aged(spool, NAME, LONG_AGO)

    spool.touch(NAME)

    (entry,) = spool.list()
    assert datetime.now(UTC) - entry.modified_at < timedelta(minutes=1)


def test_a_file_that_vanishes_while_it_is_listed_is_passed_over(spool: DirectorySpool) -> None:
    names = sorted("0" * 29 + f"{number:x}aa" for number in range(10))
    for name in names:
        put(spool, name, b"")
    listed = spool.list()
    first = next(listed).name
    for name in names:
        if name != first:
            spool.delete(name)

    assert {first} >= {entry.name for entry in listed if spool._path(entry.name).exists()}


# Setting aside.


def test_what_is_parked_is_listed_no_more_and_still_found(spool: DirectorySpool, root: Path) -> None:
    put(spool)
    spool.park(NAME)
    parked, listed = everything(root), list(spool.list())

    content = read(spool)

    assert ({f".swept/{NAME}"}, []) == (parked, listed)
    assert CONTENT == content
    assert {f"ef/{NAME}"} == everything(root)


@pytest.mark.parametrize("method", ["open", "size", "touch"])
def test_whoever_wants_a_parked_file_takes_it_back(spool: DirectorySpool, root: Path, method: str) -> None:
    put(spool)
    spool.park(NAME)

    found = getattr(spool, method)(NAME)
    if method == "open":
        found.close()

    assert {f"ef/{NAME}"} == everything(root)


def test_a_parked_file_can_be_deleted(spool: DirectorySpool, root: Path) -> None:
    put(spool)
    spool.park(NAME)

    spool.delete(NAME)

    assert set() == everything(root)


def test_parking_counts_from_now_not_from_the_last_use(spool: DirectorySpool) -> None:
    put(spool)
    aged(spool, NAME, LONG_AGO)

    spool.park(NAME)

    (entry,) = spool.parked()
    assert datetime.now(UTC) - entry.modified_at < timedelta(minutes=1)


def test_many_who_want_a_parked_file_all_get_it(spool: DirectorySpool) -> None:
    for _ in range(20):
        with suppress(SpoolError):
            put(spool)
        spool.park(NAME)
        gate = threading.Barrier(4)

        def take(gate: threading.Barrier = gate) -> bytes:
            gate.wait()
            return read(spool)

        with ThreadPoolExecutor(4) as pool:
            assert [CONTENT] * 4 == [future.result() for future in [pool.submit(take) for _ in range(4)]]


@pytest.mark.parametrize("first", ["taken back", "parked"])
def test_a_file_that_is_parked_and_taken_back_at_the_same_moment_keeps_a_name(
    spool: DirectorySpool, root: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The second comes when the first has made the new name, and has not yet taken the old one away."""
    put(spool)
    if first == "taken back":
        spool.park(NAME)
    other, came, sync = DirectorySpool(root), [], directory._sync_folder

    def meanwhile(folder: Path) -> None:
        sync(folder)
        if not came and spool._path(NAME).exists() and (spool._swept / NAME).exists():
            came.append(1)
            other.park(NAME) if first == "taken back" else read(other)

    monkeypatch.setattr(directory, "_sync_folder", meanwhile)
    read(spool) if first == "taken back" else spool.park(NAME)

    assert came
    assert CONTENT == read(spool)


# Cleaning.


@pytest.fixture
def littered(spool: DirectorySpool, root: Path) -> Iterator[Path]:
    """A file at rest, one parked, one unfinished, and something foreign in each place."""
    put(spool)
    put(spool, "a" * 32)
    spool.park("a" * 32)
    (root / ".unfinished" / ("b" * 32)).write_bytes(b"half")
    for folder in (".unfinished", ".swept", "ef"):
        (root / folder / "notes.txt").write_bytes(b"not ours")
    yield root
    assert {".unfinished/notes.txt", ".swept/notes.txt", "ef/notes.txt", f"ef/{NAME}"} <= everything(root)


@pytest.mark.parametrize(
    ("before", "left"), [(LONG_AGO, {".unfinished/" + "b" * 32}), (FAR_AHEAD, set())], ids=["too young", "old enough"]
)
def test_cleaning_takes_what_was_left_unfinished_and_is_ours(
    spool: DirectorySpool, littered: Path, before: datetime, left: set[str]
) -> None:
    spool.clean(before)

    assert left | {".swept/" + "a" * 32} == everything(littered) & {".unfinished/" + "b" * 32, ".swept/" + "a" * 32}


def test_what_is_parked_is_listed_apart(spool: DirectorySpool, littered: Path) -> None:
    assert ["a" * 32] == [entry.name for entry in spool.parked()]


def test_a_spool_that_is_not_there_holds_nothing(spool: DirectorySpool) -> None:
    spool.clean(FAR_AHEAD)

    assert [] == [*spool.list(), *spool.parked()]


# Many at once.


def test_many_threads_fill_one_spool(spool: DirectorySpool) -> None:
    contents = {uuid7(): os.urandom(5000) for _ in range(40)}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: put(spool, *item), contents.items()))

    assert contents == {entry.name: read(spool, entry.name) for entry in spool.list()}
