"""A spool in a local directory.

    spool/.outbox       the mark of the database that it belongs to
    spool/4f/…4f        files at rest, spread over 256 folders by the last two digits of their names
    spool/.unfinished/  files being written
    spool/.swept/       files that no row referred to when they were swept

The order that a power cut must not break: write, fsync the file, rename, fsync the folder; the row comes after all that.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from outbox import digests
from outbox.ambient import uuid7
from outbox.errors import FileChanged, FileMissing, SpoolError, SpoolFull
from outbox.model import SpooledFile
from outbox.spool.base import Oversize, SpoolEntry, checked_name

_BLOCK = 256 * 1024
#: Bytes written at a time. While pages are pushed out, ext4 takes three times as long for pieces of 256 KiB.
_PIECE = 64 * 1024
#: Dirty pages are pushed out this often, so that the final fsync has little left to do.
_WRITE_BACK = 16 * 1024 * 1024
_MARK = re.compile(rb"([0-9a-f]{32})\n?")


class DirectorySpool:
    """Files in a local directory, private to its owner (0700, files 0600). Not for network file systems.

    One that somebody else made, or in which a folder is a link, is refused: whoever did that could have the files elsewhere.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        self._unfinished = self.root / ".unfinished"
        self._swept = self.root / ".swept"
        self._mark = self.root / ".outbox"
        self._durable: set[Path] = set()

    def __repr__(self) -> str:
        return f"DirectorySpool({str(self.root)!r})"

    def __str__(self) -> str:
        return str(self.root)

    def prepare(self) -> None:
        """Create the directories, durably. Doing it again is no error."""
        try:
            for folder in (self.root, self._unfinished, self._swept):
                self._make_durable(folder)
        except OSError as error:
            raise SpoolError(f"cannot create the spool {self.root}: {error.strerror}") from error

    def is_there(self) -> bool:
        return self._unfinished.is_dir()

    def mark(self) -> str | None:
        try:
            # Not blocking: what somebody put in its place may be a pipe.
            descriptor = os.open(self._mark, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
            with os.fdopen(descriptor, "rb", buffering=0) as source:
                found = _MARK.fullmatch(source.read(_BLOCK) or b"")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SpoolError(f"cannot read whose spool this is, in {self._mark}: {error.strerror}") from error
        if found is None:
            raise SpoolError(
                f"{self._mark} does not say whose spool this is: expected 32 hexadecimal digits; if no other database has "
                "files here, remove it, and the next worker writes it anew"
            )
        return found[1].decode()

    def set_mark(self, mark: str, *, replace: bool = False) -> str:
        unfinished = self._unfinished / uuid7()  # what a crash leaves of it is cleaned away like any other
        try:
            if not self._unfinished.is_dir():
                raise self._not_there()
            try:
                self._write_mark(unfinished, mark)
                if replace:
                    unfinished.replace(self._mark)
                else:
                    self._put_in_place(unfinished, mark)
                _sync_folder(self.root)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            what = f"cannot write whose spool this is, in {self._mark}: {error.strerror}"
            raise (SpoolFull if error.errno in _FULL else SpoolError)(what) from error
        return self.mark() or mark

    def _write_mark(self, path: Path, mark: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as target:
                target.write(f"{checked_name(mark)}\n".encode())
                target.flush()
                owner = self.root.stat()
                if hasattr(os, "geteuid") and os.geteuid() == 0 != owner.st_uid:
                    # A worker that root runs must not lock out producers that root does not.
                    os.fchown(target.fileno(), owner.st_uid, owner.st_gid)
                os.fsync(target.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _put_in_place(self, unfinished: Path, mark: str) -> None:
        """Give it its name, unless there is one of that name."""
        with contextlib.suppress(FileExistsError):
            try:
                self._mark.hardlink_to(unfinished)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                self._write_mark(self._mark, mark)

    def put(self, name: str, source: BinaryIO, limit: int | None = None) -> SpooledFile:
        final = self._path(name)
        unfinished = self._unfinished / name
        try:
            if self._unfinished not in self._durable:
                self.prepare()
            elif not self._unfinished.is_dir():
                raise self._not_there()
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
            ours = unfinished
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as target:
                    if final.exists():
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                    spooled = _copy(name, source, target.fileno(), limit)
                    # A failed fsync is never tried again on the same file: the kernel may have dropped the pages.
                    os.fsync(target.fileno())
                self._make_durable(final.parent)
                ours = unfinished.rename(final)
                _sync_folder(final.parent)
            except BaseException:
                with contextlib.suppress(OSError):
                    ours.unlink()
                raise
        except OSError as error:
            if error.errno in _FULL:
                raise SpoolFull(
                    f"cannot spool a file in {self.root}: {error.strerror}; make room on its disk, and try again"
                ) from error
            raise SpoolError(f"cannot spool a file in {self.root}: {error.strerror or error}") from error
        return spooled

    def open(self, name: str) -> BinaryIO:
        try:
            descriptor = os.open(self._find(name), os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FileChanged(name, "it is a link") from None
            raise SpoolError(f"cannot read spooled file {name}: {error.strerror}") from error
        return os.fdopen(descriptor, "rb", buffering=0)

    def size(self, name: str) -> int:
        try:
            found = self._find(name).lstat()
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            raise SpoolError(f"cannot look at spooled file {name}: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise FileChanged(name, "it is no regular file")
        return found.st_size

    def where(self, name: str) -> Path:
        """The path of a file at rest, for a person; whether it is there, `size` tells."""
        return self._path(name)

    def touch(self, name: str) -> None:
        try:
            os.utime(self._find(name))
        except FileNotFoundError:
            raise self._missing(name) from None
        except OSError as error:
            raise SpoolError(f"cannot touch spooled file {name}: {error.strerror}") from error

    def delete(self, name: str) -> None:
        try:
            for path in (self._path(name), self._swept / name):
                with _unless_in_use():
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise SpoolError(f"cannot delete spooled file {name}: {error.strerror}") from error

    def list(self) -> Iterator[SpoolEntry]:
        if not self.root.is_dir():
            return
        for folder in sorted(self.root.iterdir()):
            if len(folder.name) == 2 and not folder.is_symlink() and folder.is_dir():
                # One that lies in the wrong folder is none that `open` would find.
                yield from (entry for entry in _entries(folder) if self._path(entry.name).parent == folder)

    def park(self, name: str) -> None:
        try:
            path, parked = self._path(name), self._swept / name
            self._make_durable(self._swept)
            if parked.exists():
                return  # whoever was killed in the midst of it has left both names: both are deleted when its time is over
            # The time of parking, not of the last use, is what the parked file's keeping counts from.
            os.utime(path)
            with _unless_in_use():
                _move(path, parked)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SpoolError(f"cannot set aside spooled file {name}: {error.strerror}") from error

    def parked(self) -> Iterator[SpoolEntry]:
        if self._swept.is_dir():
            yield from _entries(self._swept)

    def clean(self, before: datetime) -> None:
        if self._unfinished.is_dir():
            for entry in _entries(self._unfinished):
                if entry.modified_at <= before:
                    with _unless_in_use():
                        (self._unfinished / entry.name).unlink(missing_ok=True)

    def left(self) -> int | None:
        return disk_left(self.root)

    def _missing(self, name: str) -> SpoolError:
        """A file is missing only from a spool that is there: one that is not mounted says nothing about its files."""
        if self._unfinished.is_dir():
            return FileMissing(name)
        return self._not_there()

    def _not_there(self) -> SpoolError:
        return SpoolError(f"{self.root} is not a spool, it has no {self._unfinished.name} in it; is the disk mounted?")

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name)[-2:] / name

    def _find(self, name: str) -> Path:
        """Where a file is now: at rest, or taken back from the swept ones."""
        path = self._path(name)
        parked = self._swept / name
        if not path.exists() and parked.exists():
            self._make_durable(path.parent)
            with contextlib.suppress(FileNotFoundError):
                _move(parked, path)
        return path

    def _make_durable(self, folder: Path) -> None:
        """A folder that is there and survives a power cut, checked once in the life of this process.

        That it exists is not enough: another process may have made it a moment ago and not yet synced its parent.
        """
        if folder in self._durable and folder.is_dir():
            return
        missing = [folder, *(parent for parent in folder.parents if not parent.exists())]
        for part in reversed(missing):
            part.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(PermissionError):  # a parent that we may not read was not made by us
                _sync_folder(part.parent)
        self._require_ours(folder)
        self._durable.add(folder)

    def _require_ours(self, folder: Path) -> None:
        """Raises SpoolError for a folder that is a link, or another user's. Root may work in anybody's, anybody in root's."""
        found = folder.stat() if folder == self.root else folder.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise SpoolError(f"{folder} is a link, and files would go where it leads; remove it, and a folder takes its place")
        if hasattr(os, "geteuid") and os.geteuid() not in (0, found.st_uid) and found.st_uid != 0:
            raise SpoolError(
                f"{folder} belongs to user {found.st_uid}, and not to us (user {os.geteuid()}): name another directory as the "
                f"spool, or give it to us: chown -R {os.geteuid()} {self.root}"
            )


#: What a disk that is full says, or one of which we may not have more.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def disk_left(folder: str | os.PathLike[str]) -> int | None:
    """Bytes that an ordinary user may still write to the disk that a folder is on, or would be; None if it does not say."""
    try:
        if hasattr(os, "statvfs"):
            told = os.statvfs(folder)
            return told.f_bavail * told.f_frsize
        return shutil.disk_usage(folder).free
    except FileNotFoundError:
        above = Path(folder).parent
        return disk_left(above) if above != Path(folder) else None
    except OSError:
        return None


def _copy(name: str, source: BinaryIO, target: int, limit: int | None) -> SpooledFile:
    sha256 = hashlib.sha256()
    # The EnOS wire asks for it, as a checksum.
    md5: digests.Digest = hashlib.md5(usedforsecurity=False)
    size = pushed = 0
    with contextlib.ExitStack() as ending:
        while (block := source.read(_BLOCK)) != b"":
            if block is None:
                raise BlockingIOError(errno.EAGAIN, "the stream has no more bytes yet; give one that waits for them")
            if not isinstance(block, bytes | bytearray):
                raise TypeError(f"expected bytes, the stream gave {type(block).__name__}")
            if size < digests.WORTH_A_THREAD <= size + len(block) and len(block) >= _PIECE:
                # It takes longer than all the rest together; of a stream that gives a little at a time it is the handing over.
                md5 = digests.beside(md5)
                ending.callback(digests.close, md5)
            size += len(block)
            if limit is not None and size > limit:
                raise Oversize(limit)
            md5.update(bytes(block))  # a stream may fill the same array again
            sha256.update(block)
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(target, rest[:_PIECE]) :]
            if size - pushed >= _WRITE_BACK and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(target, pushed, size - pushed, os.POSIX_FADV_DONTNEED)
                pushed = size
        return SpooledFile(name, size, sha256.hexdigest(), md5.hexdigest())


def _move(source: Path, target: Path) -> None:
    """Give a file a name in another folder; it loses the old one when the new one survives a power cut, and not before.

    Only who made the new name takes the old one away: of two who move it to and fro at once each would take one.
    """
    try:
        target.hardlink_to(source)
    except FileExistsError:  # somebody was faster, or was killed before it was done
        if source.samefile(target):
            return
        source.replace(target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        source.rename(target)
    _sync_folder(target.parent)
    with _unless_in_use():  # it has both names then, as after a kill
        source.unlink(missing_ok=True)


def _entries(folder: Path) -> Iterator[SpoolEntry]:
    """Our own files in a folder; foreign ones, links and folders are left alone."""
    with os.scandir(folder) as found:
        for entry in found:
            with contextlib.suppress(FileNotFoundError, SpoolError):
                if entry.is_file(follow_symlinks=False):
                    modified = entry.stat(follow_symlinks=False).st_mtime
                    yield SpoolEntry(checked_name(entry.name), datetime.fromtimestamp(modified, UTC))


#: Windows' word for a file that somebody has open (ERROR_SHARING_VIOLATION).
_IN_USE = 32


@contextlib.contextmanager
def _unless_in_use() -> Iterator[None]:
    """Windows takes no name from a file that somebody has open: it stays, and the next sweep finds it."""
    try:
        yield
    except PermissionError as error:
        if getattr(error, "winerror", None) != _IN_USE:
            raise


def _sync_folder(folder: Path) -> None:
    """Names in a folder survive a power cut. Windows has no such thing, and NTFS keeps a journal of them."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
