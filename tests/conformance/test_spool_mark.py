"""The mark of a spool: written once and whole, however many write at once, and never taken for a file."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from outbox import DirectorySpool, SpoolError
from outbox.errors import SpoolFull

MARK, OTHER = "0" * 31 + "1", "0" * 31 + "2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(root: Path) -> DirectorySpool:
    spool = DirectorySpool(root)
    spool.prepare()
    return spool


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_it_has_none_until_one_is_set(spool: DirectorySpool) -> None:
    assert (None, MARK, MARK) == (spool.mark(), spool.set_mark(MARK), spool.mark())


@pytest.mark.skipif(os.name == "nt", reason="modes mean something else there")
def test_it_is_one_line_in_a_private_file_and_nothing_else_is_left(spool: DirectorySpool, root: Path) -> None:
    before = os.umask(0)
    try:
        spool.set_mark(MARK)
    finally:
        os.umask(before)

    assert {".outbox"} == everything(root)
    assert f"{MARK}\n" == (root / ".outbox").read_text()
    assert 0o600 == stat.S_IMODE((root / ".outbox").stat().st_mode)


def test_one_that_is_there_stays(spool: DirectorySpool) -> None:
    spool.set_mark(MARK)

    assert (MARK, MARK) == (spool.set_mark(OTHER), spool.mark())


def test_it_is_replaced_if_asked(spool: DirectorySpool, root: Path) -> None:
    spool.set_mark(MARK)

    assert (OTHER, OTHER) == (spool.set_mark(OTHER, replace=True), spool.mark())
    assert {".outbox"} == everything(root)


def test_of_many_who_set_one_at_once_all_get_the_same(spool: DirectorySpool, root: Path) -> None:
    marks = [f"{number:032x}" for number in range(8)]
    together = threading.Barrier(len(marks))

    def set_it(mark: str) -> str:
        together.wait()
        return DirectorySpool(root).set_mark(mark)

    with ThreadPoolExecutor(len(marks)) as threads:
        told = set(threads.map(set_it, marks))

    assert {spool.mark()} == told
    assert {".outbox"} == everything(root)


def test_it_is_synced_and_so_is_its_name(spool: DirectorySpool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)

    spool.set_mark(MARK)

    assert [(root / ".outbox").stat().st_ino, root.stat().st_ino] == synced


def no_links(*_: Any, **__: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_where_there_are_no_links_it_is_not_overwritten_either(
    spool: DirectorySpool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)

    assert [MARK, MARK] == [spool.set_mark(MARK), spool.set_mark(OTHER)]
    assert {".outbox"} == everything(root)


def make_empty(path: Path) -> None:
    path.touch()


def make_words(path: Path) -> None:
    path.write_text("the spool of the shop\n")


def make_long(path: Path) -> None:
    path.write_text(MARK + "\n" + MARK + "\n")


def make_upper(path: Path) -> None:
    path.write_text("A" * 32)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_text(MARK)
    path.symlink_to(elsewhere)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.skipif(os.name == "nt", reason="it has neither these links nor pipes")
@pytest.mark.parametrize("make", [make_empty, make_words, make_long, make_upper, make_folder, make_link, make_pipe])
def test_what_is_no_mark_is_refused_by_its_path(spool: DirectorySpool, root: Path, make: Callable[[Path], None]) -> None:
    make(root / ".outbox")

    with pytest.raises(SpoolError, match=r"whose spool this is.*"):
        spool.mark()


def test_what_is_no_mark_is_not_overwritten(spool: DirectorySpool, root: Path) -> None:
    make_words(root / ".outbox")

    with pytest.raises(SpoolError, match=r"\.outbox does not say whose spool this is.*remove it"):
        spool.set_mark(MARK)
    assert "the spool of the shop\n" == (root / ".outbox").read_text()


def test_nothing_is_marked_where_no_spool_is(root: Path) -> None:
    with pytest.raises(SpoolError, match="is not a spool"):
        DirectorySpool(root).set_mark(MARK)

    assert (None, False) == (DirectorySpool(root).mark(), root.exists())


@pytest.mark.parametrize("links", [True, False])
def test_without_room_there_is_no_mark_and_nothing_is_left(
    spool: DirectorySpool, root: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    fails = iter([links, True])

    def full(*_: Any) -> None:
        if next(fails):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        if not links:
            patched.setattr(os, "link", no_links)
        with pytest.raises(SpoolFull, match="No space left"):
            spool.set_mark(MARK)

    assert (set(), None) == (everything(root), spool.mark())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root makes files for others")
def test_one_that_root_writes_is_the_owners_of_the_spool(spool: DirectorySpool, root: Path) -> None:
    os.chown(root, 12345, 12346)

    spool.set_mark(MARK)

    found = (root / ".outbox").stat()
    assert (12345, 12346) == (found.st_uid, found.st_gid)


def test_it_is_no_file_of_the_spool(spool: DirectorySpool) -> None:
    spool.set_mark(MARK)

    spool.clean(datetime.max.replace(tzinfo=UTC))

    assert ([], [], MARK) == (list(spool.list()), list(spool.parked()), spool.mark())
