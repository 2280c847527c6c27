"""The spool as it lies there: looked at without touching it, which the spool itself does not promise."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from outbox.errors import FileChanged, FileMissing, SpoolError
from outbox.spool.base import Spool, checked_name
from outbox.spool.directory import DirectorySpool

_BLOCK = 256 * 1024
_SWEPT, _UNFINISHED = ".swept", ".unfinished"


class Read(NamedTuple):
    """What a file turned out to be; without digests where only its length was asked for."""

    size: int
    sha256: str | None = None
    md5: str | None = None


class Found(NamedTuple):
    """A file of ours in the spool; `swept`: set aside because no row referred to it."""

    name: str
    modified_at: datetime
    swept: bool = False


class Foreign(NamedTuple):
    """Something in the spool that is none of ours. `name`: what it would be called if it were."""

    path: Path
    what: str
    name: str | None


class Shelf:
    """A spool, for looking at only."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.root: Path | None = spool.root if isinstance(spool, DirectorySpool) else None

    def is_there(self) -> bool:
        """Whether it is a spool: the mount point of a disk that is not mounted is none."""
        return self.root is None or (self.root / _UNFINISHED).is_dir()

    def size(self, name: str) -> int:
        """Length in bytes. Raises FileMissing, FileChanged for what is no file, SpoolError for what cannot be looked at."""
        return self._spool.size(name) if self.root is None else self._lies_at(self.root, name)[1]

    def read(self, name: str, *, fast: bool = False, pulse: Callable[[int], None] = lambda _: None) -> Read:
        """What a file is; `pulse` is called with the length of each block. Raises as `size` does."""
        if fast:
            return Read(self.size(name))
        source = self._spool.open(name) if self.root is None else self._open(self.root, name)
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        size = 0
        with source:
            try:
                while block := source.read(_BLOCK):
                    sha256.update(block)
                    md5.update(block)
                    size += len(block)
                    pulse(len(block))
            except OSError as error:
                raise SpoolError(f"it cannot be read after {size} bytes: {error.strerror}") from None
        return Read(size, sha256.hexdigest(), md5.hexdigest())

    def files(self) -> Iterator[Found]:
        """Every file of ours, in no order."""
        yield from (Found(each.name, each.modified_at) for each in self._spool.list())
        yield from (Found(each.name, each.modified_at, swept=True) for each in self._spool.parked())

    def foreign(self) -> Iterator[Foreign]:
        """Everything below a spool's directory that is none of ours; names that begin with a dot are left out at its top."""
        if self.root is None or not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            ours = folder.name in (_SWEPT, _UNFINISHED) or (len(folder.name) == 2 and _is_hex(folder.name))
            if ours and not folder.is_symlink() and folder.is_dir():
                yield from self._foreign_in(folder)
            elif ours or not folder.name.startswith("."):
                yield Foreign(folder, _what(folder.lstat().st_mode), None)

    def _foreign_in(self, folder: Path) -> Iterator[Foreign]:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                except FileNotFoundError:  # gone since
                    continue
                try:
                    name: str | None = checked_name(entry.name)
                except SpoolError:
                    name = None
                at_home = name is not None and (len(folder.name) > 2 or name.endswith(folder.name))
                if not stat.S_ISREG(mode) or not at_home:
                    what = _what(mode) if name is None or at_home else "file in the wrong folder"
                    yield Foreign(Path(entry.path), what, name if at_home else None)

    def _lies_at(self, root: Path, name: str) -> tuple[Path, int]:
        for path in (root / checked_name(name)[-2:] / name, root / _SWEPT / name):
            try:
                found = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise SpoolError(f"it cannot be looked at: {error.strerror}") from None
            if not stat.S_ISREG(found.st_mode):
                raise FileChanged(name, f"it is a {_what(found.st_mode)}")
            return path, found.st_size
        raise FileMissing(name)

    def _open(self, root: Path, name: str) -> BinaryIO:
        path, _ = self._lies_at(root, name)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb", buffering=0)
        except FileNotFoundError:
            raise FileMissing(name) from None
        except OSError as error:
            raise SpoolError(f"it cannot be read: {error.strerror}") from None


def _is_hex(name: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in name)


def _what(mode: int) -> str:
    kinds = ((stat.S_ISLNK, "link"), (stat.S_ISDIR, "folder"), (stat.S_ISREG, "file"), (stat.S_ISFIFO, "pipe"))
    return next((word for is_one, word in kinds if is_one(mode)), "device or socket")


def older_than(found: Found, now: datetime, seconds: float) -> bool:
    """Whether a file was last used that long ago; one from the future was not."""
    return (now.astimezone(UTC) - found.modified_at).total_seconds() >= seconds
