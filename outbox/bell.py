"""A bell for one thread that waits: another thread rings it, and on Linux whoever writes a file of a folder does, too.

The kernel tells of writes with a signal, to the one thread that asked and that holds it back (dnotify, fcntl(2): the older
sister of inotify, which the standard library has no way to). Elsewhere, and where the kernel says no, only threads ring.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import threading

if sys.platform == "linux":
    import fcntl

#: Of <linux/fcntl.h>, which Python does not name: whom signals of a file go to, and that this is one thread.
_F_SETOWN_EX, _F_OWNER_TID = 15, 0


class Bell:
    """One thread, the same all the time, waits and watches; any other may ring."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._watched: int | None = None  #: the folder, open
        self._possible = sys.platform == "linux"
        # A bare lock: waiting for an Event costs several times as much.
        self._rung = threading.Lock()
        self._rung.acquire()
        self._watching: int | None = None  #: the thread that waits for a signal; nobody signals one that is gone
        self._guard = threading.Lock()

    def watch(self) -> bool:
        """From now on the next write rings, too: of any file that lies in the folder itself, once. False where none can."""
        if sys.platform != "linux" or not self._possible:
            return False
        try:
            if self._watched is None:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
                self._watched = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.fcntl(self._watched, _F_SETOWN_EX, struct.pack("ii", _F_OWNER_TID, threading.get_native_id()))
            signal.sigtimedwait({signal.SIGIO}, 0)  # what it has told so far, is told
            fcntl.fcntl(self._watched, fcntl.F_NOTIFY, fcntl.DN_MODIFY)
        except OSError:  # a kernel without it, or a folder that may be passed through but not read
            self._possible = False
            self.close()
        return self._possible

    def wait(self, seconds: float, *, watching: bool = False) -> bool:
        """Wait until it rings, so many seconds at most; whether somebody wrote, which it heeds only when told so."""
        if sys.platform != "linux" or not watching:
            self._rung.acquire(timeout=seconds)
            return False
        with self._guard:
            self._watching = threading.get_ident()
        try:
            rung = self._rung.acquire(blocking=False)
            told = None if rung else signal.sigtimedwait({signal.SIGIO}, seconds)
        finally:
            with self._guard:
                self._watching = None
        return told is not None and not self._rung.acquire(blocking=False)

    def ring(self) -> None:
        """Let whoever waits go on; nobody there, whoever waits next."""
        with contextlib.suppress(RuntimeError):  # it has been rung already
            self._rung.release()
        with self._guard:
            if sys.platform == "linux" and self._watching is not None:
                signal.pthread_kill(self._watching, signal.SIGIO)

    def close(self) -> None:
        """Watch no more."""
        watched, self._watched = self._watched, None
        if watched is not None:
            os.close(watched)
