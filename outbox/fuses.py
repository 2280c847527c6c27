"""A request's total deadline, and the one thread that watches over all of them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from outbox.addresses import Reach
from outbox.errors import NotSent, TransportError


class Fuse:
    """A send's total deadline: urllib3's own timeouts bound silence, not duration.

    Four things carry it: whoever looks for a connection, the body between blocks, the reader of the answer, and a guard that
    shuts the socket under whatever is still blocked. With it goes where the send may `reach`.
    """

    def __init__(self, seconds: float, reach: Reach | None, *, proxy_decides: bool) -> None:
        self.reach = reach
        self.proxy_decides = proxy_decides
        self.in_one_piece = False  #: the request goes out with its head, all at once
        self.stirred: threading.Event | None = None  #: for who waits for a resolver: there is news
        self.ends = time.monotonic() + seconds
        self._seconds = seconds
        self._connection: Any = None  #: http.client's, or one made of it
        self._sock: socket.socket | None = None
        self._handle: socket.socket | None = None
        self.reason: str | None = None

    def put_out(self) -> None:
        self.hold(None)
        self._connection = self._sock = None

    def left(self) -> float:
        return max(0.001, self.ends - time.monotonic())

    def check(self) -> None:
        """Raises TransportError when the time is up or the request was cut."""
        if self.reason is None and time.monotonic() >= self.ends:
            self.reason = self.too_late
        if self.reason is not None:
            raise TransportError(self.reason)

    @property
    def too_late(self) -> str:
        return f"not finished within its deadline of {self._seconds:g} s"

    def carry(self, connection: Any) -> None:
        """This connection does the request's work: it is the one to shut."""
        self._connection = connection
        # Kept, since a connection forgets its socket when the answer says that it is the last: then only the answer reads it.
        self._sock = getattr(connection, "sock", None) or self._sock
        if self.reason is not None:
            self._shut()

    def hold(self, sock: socket.socket | None) -> None:
        """A connection in the making, to be shut through a handle of our own: TLS takes the socket out of everybody's hands."""
        handle, self._handle = self._handle, None if sock is None else sock.dup()
        if handle is not None:
            handle.close()
        if self._handle is not None and self.reason is not None:
            self._shut()

    def blow(self, reason: str) -> None:
        self.reason = self.reason or reason
        if self.stirred is not None:
            self.stirred.set()
        self._shut()

    def _shut(self) -> None:
        for sock in (self._handle, getattr(self._connection, "sock", None) or self._sock):
            if sock is not None:
                with contextlib.suppress(OSError):
                    # On a TLS socket this shuts the TCP connection below, which is what wakes a blocked call.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


class Guard:
    """Blows the fuses whose time is up, and all of them at the cut. One thread watches, however many requests are under way.

    It looks again when the earliest deadline that it knows of has come, whether that request is over by then or not: so a
    request that is answered in time, as nearly all are, costs it nothing. With nothing left to watch it ends.
    """

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._lit: set[Fuse] = set()
        self._looks_at = 0.0
        self._thread: threading.Thread | None = None
        self._cut = False

    def light(self, fuse: Fuse) -> None:
        """Watch a request. Raises NotSent after the cut, and when there is no thread to be had."""
        with self._news:
            if self._cut:
                raise NotSent("not begun because the worker stops")
            if not self._watched:
                self._lit.clear()  # in the child of a fork these are the parent's, and so are their connections
                self._looks_at = fuse.ends
                thread = threading.Thread(target=self._watch, name="outbox-deadlines", daemon=True)
                with one_more_thread():
                    thread.start()
                self._thread = thread
            elif fuse.ends < self._looks_at:
                self._news.notify()
            self._lit.add(fuse)

    def put_out(self, fuse: Fuse) -> None:
        with self._news:  # in here nobody shuts its connection, which may be the next request's a moment later
            self._lit.discard(fuse)
        fuse.put_out()

    def cut(self) -> None:
        with self._news:
            self._cut = True
            for fuse in self._lit if self._watched else ():
                fuse.blow("cut off because the worker stops")

    @property
    def _watched(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _watch(self) -> None:
        with self._news:
            while self._lit or self._looks_at > time.monotonic():
                now = time.monotonic()
                for fuse in self._lit:
                    if fuse.ends <= now and fuse.reason is None:
                        fuse.blow(fuse.too_late)
                if self._lit:
                    self._looks_at = min((fuse.ends for fuse in self._lit if fuse.reason is None), default=now + 60)
                self._news.wait(min(self._looks_at - now, threading.TIMEOUT_MAX))
            self._thread = None


@contextlib.contextmanager
def one_more_thread() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise NotSent(
            "not begun: this machine gives us no more threads; raise their limit (the user's, or the container's on pids), or "
            "lower the destinations' senders"
        ) from None
