"""A road from a client to a server on which anything can happen to what travels: a TCP proxy that sees nothing but bytes."""

from __future__ import annotations

import os
import random
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

BLOCK = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: Seconds in which a server ends its side of a connection that was cut.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Cut:
    """Where a connection ends: when so many bytes of a request have passed, or so many of its answer.

    How: by `reset` (RST); by `close` (FIN), and what still comes is read and dropped; or it does not end but will `stall`: no
    byte passes any more, either way, and nobody is told.
    """

    request: int | None = None
    answer: int | None = None
    how: Literal["reset", "close", "stall"] = "reset"


@dataclass(frozen=True)
class Says:
    """Somebody on the way answers in the server's place, and closes."""

    answer: bytes


@dataclass(frozen=True)
class Pace:
    """Bytes travel in pieces of this size, with so many seconds before each."""

    piece: int = BLOCK
    pause: float = 0.0


Fate = Cut | Says | None
AT_ONCE = Pace()


def dice(number: int = 0) -> random.Random:
    """Dice for a test that prints how they fall, and takes that back from OUTBOX_TEST_SEED."""
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")
    return random.Random(seed + number)


class Road:
    """Leads to a port of this machine. What travels meets the next fate of `fates`, or what `chance` gives, or passes.

    Bytes are counted from the beginning of each request and of its answer: a request begins with the client's first byte, and
    with its first one after an answer. With `tls`, where nobody on the way can tell one from the other, they are counted from
    the beginning of the connection, handshake and all; and each connection has one fate.
    """

    def __init__(self, port: int, *, tls: bool = False, request_pace: Pace = AT_ONCE, answer_pace: Pace = AT_ONCE) -> None:
        self.fates: deque[Fate] = deque()
        self.chance: Callable[[], Fate] = lambda: None
        self.request_pace = request_pace
        self.answer_pace = answer_pace
        #: What the last request, or connection, brought from either side: the request's beginning, and all of the answer.
        self.request = b""
        self.answer = b""
        self.connections = 0
        #: Set when a connection has been cut and closed.
        self.ended = threading.Event()
        self.closing = threading.Event()
        self.tls = tls
        self._port = port
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener = socket.socket()
        # A small window, so that a client which sends much is still sending when the road ends.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._acceptor = threading.Thread(target=self._accept, name="road", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Road:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every connection."""
        self.closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def head(self) -> int:
        """Bytes of the last request before its body."""
        return self.request.index(b"\r\n\r\n") + 4

    def next_fate(self) -> Fate:
        with self._lock:
            return self.fates.popleft() if self.fates else self.chance()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=[client], name="road-connection", daemon=True)
            self._threads.append(thread)
            self.connections += 1
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as server:
            with self._lock:
                self._open |= {client, server}
            try:
                _Passage(self, client, server).run()
            finally:
                with self._lock:
                    self._open -= {client, server}


class _Passage:
    """One connection on a road. Ends when either side does, in the same way, or as its fate will have it."""

    def __init__(self, road: Road, client: socket.socket, server: socket.socket) -> None:
        self._road = road
        self._client = client
        self._server = server
        self._fate: Fate = None
        self._sent = 0
        self._heard = 0
        self._begun = False
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._client, selectors.EVENT_READ, self._from_client)
            selector.register(self._server, selectors.EVENT_READ, self._from_server)
            # What a server had to say before it went is passed on before its end is noticed, and so is what a client had.
            while all(key.data() for key, _ in selector.select()):
                pass

    def _from_client(self) -> bool:
        """Pass something on; whether the connection goes on."""
        if not self._client.recv(1, socket.MSG_PEEK):
            return False
        if not self._begun or (self._heard and not self._road.tls):
            self._begun, self._sent, self._heard = True, 0, 0
            self._road.request = self._road.answer = b""
            self._fate = self._road.next_fate()
        most = self._fate.request if isinstance(self._fate, Cut) else None
        if most == 0:
            return self._cut()
        pace = self._road.request_pace
        block = self._client.recv(min(pace.piece, BLOCK if most is None else most - self._sent))
        self._wait(pace)
        self._sent += len(block)
        if len(self._road.request) < BLOCK:
            self._road.request += block
        self._server.sendall(block)
        return self._cut() if self._sent == most else True

    def _from_server(self) -> bool:
        try:
            block = self._server.recv(BLOCK)
        except ConnectionResetError:
            return self._leave("reset")
        if not block:
            return self._leave("close")
        self._road.answer += block
        if isinstance(self._fate, Says):
            self._client.sendall(self._fate.answer)
            return self._cut()
        most = self._fate.answer if isinstance(self._fate, Cut) else None
        passed = block if most is None else block[: most - self._heard]
        self._heard += len(passed)
        self._dole_out(passed)
        return self._cut() if self._heard == most else True

    def _dole_out(self, block: bytes) -> None:
        pace = self._road.answer_pace
        for start in range(0, len(block), pace.piece):
            self._wait(pace)
            self._client.sendall(block[start : start + pace.piece])

    def _wait(self, pace: Pace) -> None:
        if pace.pause:
            self._road.closing.wait(pace.pause)

    def _cut(self) -> bool:
        # Whatever passed is heard to its end before the client can try again.
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)
            self._server.settimeout(_PATIENCE)
            drain(self._server)
        return self._leave(self._fate.how if isinstance(self._fate, Cut) else "close")

    def _leave(self, how: str) -> bool:
        if how == "stall":
            self._road.ended.set()
            self._road.closing.wait()
        elif how == "reset":
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        else:
            self._client.shutdown(socket.SHUT_WR)
            self._road.ended.set()
            drain(self._client)
        self._client.close()
        self._road.ended.set()
        return False


def drain(connection: socket.socket) -> None:
    """Read to the end, whatever it is."""
    with suppress(OSError):
        while connection.recv(BLOCK):
            pass
