"""Where the database and the spool are: the file system, its room, and who may read and write there."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from outbox.checkup.findings import AS_ITS_USER

#: File systems of other machines: their locks and their fsync promise less than SQLite and the spool count on.
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ncpfs"}
)
_REMOTE_FUSE = frozenset({"sshfs", "glusterfs", "s3fs", "rclone", "gcsfuse", "goofys", "cephfs", "smbnetfs", "davfs2"})
_MOUNTS = Path("/proc/self/mountinfo")


class Mount(NamedTuple):
    """A mounted file system."""

    point: str
    kind: str

    @property
    def remote(self) -> bool:
        """Whether it is on another machine."""
        return self.kind in _REMOTE or (self.kind.startswith("fuse.") and self.kind.removeprefix("fuse.") in _REMOTE_FUSE)


def mounts() -> str | None:
    """What the kernel says is mounted; None where it does not say it in Linux' way."""
    try:
        return _MOUNTS.read_text("utf-8", "replace")
    except OSError:
        return None


def mount_of(path: Path, told: str) -> Mount | None:
    """The file system that a path is on, by the text of /proc/self/mountinfo; the last of several on one point hides them."""
    best: Mount | None = None
    for line in told.splitlines():
        head, _, tail = line.partition(" - ")
        fields, kinds = head.split(), tail.split()
        if len(fields) < 5 or not kinds:
            continue
        # Blanks and the like are written as three octal digits.
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = path == Path(point) or Path(point) in path.parents
        if inside and (best is None or len(point) >= len(best.point)):
            best = Mount(point, kinds[0])
    return best


def nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((each for each in (path, *path.parents) if each.exists()), path)


class Room(NamedTuple):
    """What is left of a file system, for us; `files` is None where there is no such number."""

    free: int
    total: int
    files: int | None


def room(path: Path) -> Room:
    """What is left where a path is."""
    there = nearest(path)
    usage = shutil.disk_usage(there)
    if not hasattr(os, "statvfs"):
        return Room(usage.free, usage.total, None)
    counted = os.statvfs(there)
    return Room(usage.free, usage.total, counted.f_favail if counted.f_files else None)


class Fault(NamedTuple):
    """What is wrong with a path's permissions; `grave` when strangers may write there, or we may not."""

    text: str
    remedy: str
    grave: bool


def permission_faults(paths: Iterable[Path], owner: int | None = None) -> Iterator[Fault]:
    """What is wrong with the permissions of these files and folders, those that are there; nothing where there are no modes.

    All should be one user's alone, and ours to write: `owner` is that user, the owner of the first if none is given.
    """
    if os.name == "nt":
        return
    for path in paths:
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Fault(f"{path} cannot be looked at: {error.strerror}", AS_ITS_USER, True)
            continue
        owner = found.st_uid if owner is None else owner
        mode, folder = stat.S_IMODE(found.st_mode), stat.S_ISDIR(found.st_mode)
        private = "700" if folder else "600"
        if stat.S_ISLNK(found.st_mode):
            continue
        if mode & 0o002:
            yield Fault(f"everybody may write to {path} ({mode:04o})", f"run: chmod {private} {path}", True)
        elif mode & 0o077:
            yield Fault(f"others than its owner may use {path} ({mode:04o})", f"run: chmod {private} {path}", False)
        if found.st_uid != owner:
            text = f"{path} belongs to user {found.st_uid} and not to user {owner} like the rest"
            yield Fault(text, f"run: chown {owner} {path}", True)
        if not os.access(path, os.R_OK | os.W_OK | (os.X_OK if folder else 0)):
            text = f"we (user {os.geteuid()}) may not write to {path}, which is user {found.st_uid}'s ({mode:04o})"
            yield Fault(text, f"run this as user {found.st_uid}, or give it to ours: chown {os.geteuid()} {path}", True)
