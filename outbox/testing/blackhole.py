"""Addresses on this machine that nobody answers: one that is silent, and one that refuses."""

from __future__ import annotations

import socket
from functools import cache
from types import TracebackType

#: Seconds in which a connection on this machine is made, if it is made at all.
_PROMPT = 0.1
_MANY = 16


class BlackHole:
    """A port on 127.0.0.1 that lets every connection hang, from ``start`` (or ``with``) to ``close``; on Linux only.

    It listens, but its queue is full of connections that nobody takes, so the system drops every further attempt: a
    client sees neither an answer nor a refusal until its own time-out. After ``close`` the port refuses.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._port = 0

    def start(self) -> BlackHole:
        """Bind a free port and fill its queue; OSError where the system does not let connections hang."""
        if self._sockets:
            raise RuntimeError("this black hole is already there")
        listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._sockets.append(listener)
        self._port = listener.getsockname()[1]
        for _ in range(_MANY):
            if not self._takes_one_more():
                return self
        self.close()
        raise OSError("this system takes connections beyond the queue of the port; a black hole needs Linux")

    def close(self) -> None:
        """Give the port back. Harmless if it is not there."""
        while self._sockets:
            self._sockets.pop().close()

    def __enter__(self) -> BlackHole:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port on which connections hang; 0 before the first start."""
        return self._port

    @property
    def url(self) -> str:
        """The address as a client is given it, for uploads and for tokens."""
        if not self._port:
            raise RuntimeError("this black hole has no address before it is started")
        return f"http://127.0.0.1:{self._port}"

    def _takes_one_more(self) -> bool:
        """Put one more connection into the queue; False if there is no room for it."""
        filler = socket.socket()
        self._sockets.append(filler)
        filler.settimeout(_PROMPT)
        try:
            filler.connect(("127.0.0.1", self._port))
        except TimeoutError:
            return False
        return True


@cache
def refused_url() -> str:
    """The address of a port on 127.0.0.1 that refuses every connection, the same one until this process ends."""
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    # Bound, never listening, and left to the end of the process: nobody else gets the port meanwhile.
    reserved.detach()
    return f"http://127.0.0.1:{port}"
