"""A pooler in transaction mode: each transaction of a client gets another of a few server connections, as PgBouncer's do.

    with Pooler(url) as pooler:
        engine = create_engine(pooler.url)
        ...
        assert {} == pooler.left_behind()

It speaks as much of Postgres's protocol as that takes. Whatever belongs to a session (what was prepared, SET, listened for
or locked there) is met by whoever comes next, or not met by whoever left it. A client can be cut off at a COMMIT of its own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import select
import socket
import struct
import threading
from typing import Any, Self

import psycopg
import sqlalchemy as sa

_SSL, _GSS, _CANCEL = 80877103, 80877104, 80877102
_TOLD = (
    *("server_version", "server_encoding", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone"),
    *("integer_datetimes", "standard_conforming_strings"),
)
#: What a session may keep, and how to ask for it.
_KEPT = {
    "prepared": "SELECT name FROM pg_prepared_statements",
    "listening": "SELECT pg_listening_channels()",
    "locked": "SELECT locktype FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'",
    "set": "SELECT name || ' = ' || setting FROM pg_settings WHERE source = 'session'",
    "made": "SELECT relname FROM pg_class WHERE relpersistence = 't'",
}


class Ended(Exception):
    """A connection is over."""


class _Server:
    """A connection to the server: libpq lets us in, then its socket is ours."""

    def __init__(self, url: sa.URL) -> None:
        plain = url.set(drivername="postgresql").update_query_dict({"sslmode": "disable", "gssencmode": "disable"})
        self.session = psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True)
        self.began_with = self.kept()
        self.socket = socket.socket(fileno=os.dup(self.session.fileno()))
        self.socket.setblocking(True)
        self.told = {name: self.session.pgconn.parameter_status(name.encode()) for name in _TOLD}

    def kept(self) -> dict[str, list[str]]:
        """What this session has kept of those who had it."""
        return {what: [str(row[0]) for row in self.session.execute(ask)] for what, ask in _KEPT.items()}

    def close(self) -> None:
        self.socket.close()
        self.session.close()


class Pooler:
    """Listens on a port of its own, and passes on what it hears there, one transaction after the other."""

    def __init__(self, url: str, servers: int = 3) -> None:
        self._url = sa.make_url(url)
        self._number = servers
        self._free: queue.SimpleQueue[_Server] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clients: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.transactions = 0  #: handed to a server connection so far
        self.cut: str | None = None  #: the next COMMIT: "before" the server has it, or "after" it has said that it is done

    @property
    def url(self) -> str:
        """Where clients connect to."""
        here = self._url.set(host="127.0.0.1", port=self._listener.getsockname()[1], password="nobody asks")
        return here.render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        for _ in range(self._number):
            self._free.put(_Server(self._url))
        self._start(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for _ in range(self._number):
            self._free.get(timeout=10).close()

    def left_behind(self) -> dict[str, list[str]]:
        """What clients have left in the sessions that they had, by its kind."""
        found: dict[str, list[str]] = {}
        servers = [self._free.get(timeout=10) for _ in range(self._number)]
        for server in servers:
            for what, names in server.kept().items():
                if more := [name for name in names if name not in server.began_with[what]]:
                    found.setdefault(what, []).extend(more)
            self._free.put(server)
        return found

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients.add(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(Ended, OSError):
                self._let_in(client)
                while True:
                    self._transaction(client, _message(client))
        finally:
            self._clients.discard(client)

    def _let_in(self, client: socket.socket) -> None:
        """Nobody is asked for a password; whoever asks for encryption is told that there is none."""
        while True:
            length, code = struct.unpack("!II", _exactly(client, 8))
            _exactly(client, length - 8)
            if code == _CANCEL:
                raise Ended
            if code not in (_SSL, _GSS):
                break
            client.sendall(b"N")
        server = self._take()
        told = b"".join(_framed(b"S", name.encode() + b"\0" + (value or b"") + b"\0") for name, value in server.told.items())
        self._free.put(server)
        # As PgBouncer does it: a number of its own, and not that of a session that the client will hardly meet.
        key = _framed(b"K", secrets.token_bytes(8))
        client.sendall(_framed(b"R", struct.pack("!I", 0)) + told + key + _framed(b"Z", b"I"))

    def _take(self) -> _Server:
        server = self._free.get(timeout=30)
        if server.session.closed or not _is_open(server.socket):
            server.close()
            server = _Server(self._url)
        return server

    def _transaction(self, client: socket.socket, first: bytes) -> None:
        """Pass on what a client and a server say to each other, until the server says that no transaction is open."""
        if first[:1] == b"X":
            raise Ended
        server = self._take()
        self.transactions += 1
        idle = False
        try:
            awaited = self._lead(client, server, first)
            while not idle:
                ready, _, _ = select.select([client, server.socket], [], [])
                if client in ready:
                    message = _message(client)
                    if message[:1] == b"X":
                        raise Ended
                    awaited += self._lead(client, server, message)
                if server.socket in ready:
                    message = _message(server.socket)
                    client.sendall(message)
                    if message[:1] == b"Z":
                        awaited -= 1
                        idle = awaited == 0 and message[5:6] == b"I"
        finally:
            if not idle:  # nobody wants a session in the middle of somebody else's transaction
                server.close()
                server = _Server(self._url)
            self._free.put(server)

    def _lead(self, client: socket.socket, server: _Server, message: bytes) -> int:
        """Pass on a message of a client's; how many times the server will say that it is ready, for it."""
        if self.cut is not None and message[:1] == b"Q" and message[5:].upper().startswith(b"COMMIT"):
            when, self.cut = self.cut, None
            if when == "after":
                server.socket.sendall(message)
                while _message(server.socket)[:1] != b"Z":
                    pass
            raise Ended
        server.socket.sendall(message)
        return message[:1] in (b"Q", b"S", b"F")


def _framed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _message(connection: socket.socket) -> bytes:
    """One message, whole."""
    head = _exactly(connection, 5)
    return head + _exactly(connection, struct.unpack("!I", head[1:])[0] - 4)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise Ended
        found += more
    return bytes(found)


def _is_open(connection: socket.socket) -> bool:
    """Whether the other side has said nothing unasked: a server that ends says so."""
    ready, _, _ = select.select([connection], [], [], 0)
    return not ready
