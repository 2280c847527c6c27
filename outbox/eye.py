"""An eye on a file: sleeps until somebody writes to it, where the system (Linux, by inotify) tells of that."""

from __future__ import annotations

import contextlib
import math
import os
import select
import struct
import sys
import threading
from typing import Any

_MODIFIED, _IGNORED = 0x2, 0x8000
_HEAD = struct.Struct("iIII")  #: of each event: watch, mask, cookie, and the length of a name behind it


class Eye:
    """Waits for a file to be written to. One thread waits; any other may ring it awake."""

    def __init__(self, watch: int) -> None:
        self._watch = watch
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._either, self._rung = select.poll(), select.poll()
        self._either.register(watch, select.POLLIN)
        for each in (self._either, self._rung):
            each.register(self._bell, select.POLLIN)
        self.blind = False  #: the file is there no more
        self._lock = threading.Lock()
        self._closed = False

    def wait(self, seconds: float, *, closed: bool = False) -> bool:
        """Wait until the file was written to, and return that; or for so long, or until it rings. `closed`: only for that."""
        for number, _ in (self._rung if closed else self._either).poll(math.ceil(seconds * 1000)):
            if number == self._bell:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
            else:
                self._read()
                return True
        return False

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            told, at = os.read(self._watch, 16_384), 0
            while at < len(told):
                _, mask, _, name = _HEAD.unpack_from(told, at)
                at += _HEAD.size + name
                self.blind = self.blind or bool(mask & _IGNORED)

    def ring(self) -> None:
        """Wake whoever waits."""
        with self._lock:  # once it is closed, its number may be another file's
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._closed = True
            os.close(self._watch)
            os.close(self._bell)


def eye_on(path: str) -> Eye | None:
    """An eye on a file that is there; None where there is none to be had."""
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        watch: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return None
    if watch < 0:
        return None
    if libc.inotify_add_watch(watch, os.fsencode(path), _MODIFIED) < 0:
        os.close(watch)
        return None
    return Eye(watch)
