"""A server that hears every byte of every connection on this machine's addresses, and answers what it is told."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from tests.pure.recorder import http

Script = Callable[[socket.socket, bytearray], None]


def answering(connection: socket.socket, heard: bytearray) -> None:
    """Says yes to each request as soon as its declared length is there, and hears on to the end."""
    answered = 0
    while block := connection.recv(1 << 18):
        heard += block
        head, end, body = bytes(heard).partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        if not answered and end and len(body) >= int(lengths[0] if lengths else 0):
            answered = 1
            connection.sendall(http(b'{"code":0}'))
            connection.shutdown(socket.SHUT_WR)


class Ear:
    """Listens on one port of 127.0.0.1, of every other IPv4 address of this machine, and of ::1 where there is IPv6."""

    def __init__(self, script: Script = answering, *, host: str = "0.0.0.0") -> None:
        self.script = script
        self.conversations: list[bytearray] = []
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._listeners = [socket.create_server((host, 0), backlog=200)]
        self.port: int = self._listeners[0].getsockname()[1]
        with suppress(OSError):  # no IPv6 here, or somebody has that port there
            self._listeners.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self._stop, self._stopped = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/path"

    @property
    def heard(self) -> bytes:
        """Every byte so far."""
        return b"".join(bytes(each) for each in self.conversations)

    def settle(self, connections: int = 1) -> None:
        """Wait until so many connections have come, and every one has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._threads) >= connections, 10), "nobody came"
        for thread in list(self._threads):
            thread.join(10)
            assert not thread.is_alive(), "a connection stays open"

    def __enter__(self) -> Ear:
        self._acceptor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.send(b"x")
        self._acceptor.join(10)
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in (*self._listeners, *self._open, self._stop, self._stopped):
            each.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for each in (*self._listeners, self._stopped):
                waiting.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select():
                    if key.fileobj is self._stopped:
                        return
                    listener = key.fileobj
                    assert isinstance(listener, socket.socket)
                    connection, _ = listener.accept()
                    heard = bytearray()
                    self.conversations.append(heard)
                    self._open.append(connection)
                    thread = threading.Thread(target=self._serve, args=[connection, heard], daemon=True)
                    thread.start()
                    with self._changed:
                        self._threads.append(thread)
                        self._changed.notify_all()

    def _serve(self, connection: socket.socket, heard: bytearray) -> None:
        with suppress(OSError):
            self.script(connection, heard)
        with suppress(OSError):  # the other side shall see the end now, whenever this one is tidied up
            connection.shutdown(socket.SHUT_RDWR)
