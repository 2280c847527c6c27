"""A server that does to each connection what a script says, over TLS if it is given a context."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.pure.recorder import http, read_request

Script = Callable[[socket.socket], None]
OK = http(b'{"code":0}')
KEPT_ALIVE = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"code":0}'
_BLOCK = 1 << 16


class _Secure(ssl.SSLSocket):
    """Closed when it is forgotten: the library forgets one whose other side left before it was made."""

    def __del__(self) -> None:
        self.close()


class Server:
    """Runs a script for each connection; `stop` ends what a script waits for."""

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        #: Of those, handshakes that went wrong, in the words of OpenSSL.
        self.refused: list[str] = []
        self.stop = threading.Event()
        #: May be exchanged: it counts for the connections that follow.
        self.context = context
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}/path"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=[connection], daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.context is not None:
                self.context.sslsocket_class = _Secure
                connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._open.append(connection)
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
        except OSError as error:
            self.refused.append(str(error))
            _leave_politely(connection)
            return
        with suppress(OSError), connection:
            self._script(connection)

    def close(self) -> None:
        self.stop.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):  # wakes the thread that reads from it, with or without TLS
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)


def _leave_politely(connection: socket.socket) -> None:
    """Read what still comes, past TLS: a socket that is closed before that may take its last word along."""
    with suppress(OSError), connection:
        socket.socket.shutdown(connection, socket.SHUT_WR)
        connection.settimeout(5)
        while socket.socket.recv(connection, _BLOCK):
            pass


def answering(connection: socket.socket) -> None:
    """One request, one answer, and the end."""
    read_request(connection)
    connection.sendall(OK)


def keeping_alive(connection: socket.socket) -> None:
    """An answer to each request."""
    while read_request(connection):
        connection.sendall(KEPT_ALIVE)


def leading_to(port: int) -> Script:
    """A door to a port of this machine: with a context, TLS ends here."""

    def lead(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as inside:
            _join(connection, inside)

    return lead


def proxying(connection: socket.socket) -> None:
    """A proxy: leads to wherever CONNECT says."""
    head = b""
    while b"\r\n\r\n" not in head:
        block = connection.recv(_BLOCK)
        if not block:
            return
        head += block
    method, target, _ = head.split(b" ", 2)
    if method != b"CONNECT":
        connection.sendall(http(b"", "405 Method Not Allowed"))
        return
    host, _, port = target.decode().rpartition(":")
    with socket.create_connection((host, int(port))) as server:
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        _join(connection, server)


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass on what either says until one of them ends."""
    while True:
        waiting = isinstance(one, ssl.SSLSocket) and one.pending()
        ready = [one] if waiting else select.select([one, other], [], [])[0]
        for source, sink in ((one, other), (other, one)):
            if source in ready:
                block = source.recv(_BLOCK)
                if not block:
                    return
                sink.sendall(block)
