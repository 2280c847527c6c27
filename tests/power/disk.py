"""An ext4 file system of our own, whose power can be cut. Needs root, and a kernel with loop devices.

It lives in memory and in a mount namespace of the process that makes it: when that process and its children are gone, however
they went, so are the mounts, the loop device and the image.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from tests.power.report import Unavailable

_CLONE_NEWNS = 0x20000
_MS_PRIVATE, _MS_REC = 1 << 18, 1 << 14
_SHUTDOWN = 0x8004587D  #: EXT4_IOC_SHUTDOWN
#: What becomes of the journal: what is in memory of it is written down before everything stops, or it is lost, too.
WRITE_LOG, LOSE_LOG = 1, 2


def alone() -> None:
    """From now on, what this process mounts is its own and its children's."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mount.argtypes = (*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p)
    if os.geteuid() != 0:
        raise Unavailable("not root: no power is cut for real")
    if library.unshare(_CLONE_NEWNS) or library.mount(None, b"/", None, _MS_PRIVATE | _MS_REC, None):
        raise Unavailable(f"root may not mount here: {os.strerror(ctypes.get_errno())}")


class Disk:
    """One disk after the other, each empty, at the same place."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        """`folder` is empty. Call `alone` first."""
        missing = [each for each in ("mkfs.ext4", "mount", "umount") if shutil.which(each) is None]
        if missing:
            raise Unavailable(f"no {', '.join(missing)}: no power is cut for real")
        self.path = folder / "disk"
        memory = folder / "memory"
        for each in (self.path, memory):
            each.mkdir(parents=True)
        self._image = memory / "image"
        self._megabytes = megabytes
        self._options = ""
        self._mounted = False
        try:
            _run("mount", "-t", "tmpfs", "-o", f"size={2 * megabytes}m", "tmpfs", str(memory))
            self.make()
        except RuntimeError as error:
            raise Unavailable(f"no power is cut for real: {error}") from None

    def make(self, options: str = "") -> None:
        """An empty file system, mounted with these options."""
        self.unmount()
        self._options = options
        with self._image.open("wb") as image:
            image.truncate(self._megabytes * 1024 * 1024)
        # Without what ext4 would go on to write in the background.
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        self.mount()

    def mount(self) -> None:
        more = f",{self._options}" if self._options else ""
        _run("mount", "-t", "ext4", "-o", f"loop{more}", str(self._image), str(self.path))
        self._mounted = True

    def cut(self, what_of_the_log: int = LOSE_LOG) -> None:
        """The power fails: nothing is written any more, and what was not yet is lost at the next mount."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", what_of_the_log))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        if self._mounted:
            _run("umount", str(self.path))
            self._mounted = False


def _run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(ran.stderr or ran.stdout).strip()}")
