"""Whatever is slow, and however slow it is: a request ends within its deadline and a second more."""

from __future__ import annotations

import io
import socket
import threading
import time
from concurrent import futures
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest

from outbox.errors import NoAnswer, NotSent, TransportError
from outbox.multipart import FieldPart, FilePart, Part
from outbox.transport import RequestsTransport, Upload
from tests.certificates import Authority
from tests.pure.making import spooled
from tests.pure.recorder import read_request
from tests.road import AT_ONCE, Cut, Pace, Road
from tests.scripted import Server

DEADLINE = 3.0  # so long that a busy machine has sent its request and its handshake by then
OK = b"HTTP/1.1 200 OK\r\n"
SMALL: list[Part] = [FieldPart("enos-message", b"{}")]
#: More than the kernels on the way take without a reader.
LARGE: list[Part] = [*SMALL, FilePart("enos-file", "zeros", spooled(b"", size=32_000_000))]


class Drops(NamedTuple):
    """What is said at once, and what then falls every moment for ever; nothing, where it stalls."""

    before: bytes
    drop: bytes = b""


ANSWERS = {
    "never answers": Drops(b""),
    "stalls in the status": Drops(b"HTTP/1.1 2"),
    "stalls in its headers": Drops(OK + b"Content-Le"),
    "stalls in the body": Drops(OK + b'Content-Length: 10\r\n\r\n{"code"'),
    "stalls in a chunk": Drops(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"),
    "stalls after success": Drops(OK + b'\r\n{"code":0}'),
    "drips its status": Drops(b"", b"H"),
    "drips its headers": Drops(OK, b"X-More: yes\r\n"),
    "drips one header": Drops(OK + b"X: ", b"y"),
    "drips 100": Drops(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "drips 103": Drops(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "drips its body": Drops(OK + b"Content-Length: 9999\r\n\r\n", b" "),
    "drips chunks": Drops(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "drips the size of a chunk": Drops(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "drips after success": Drops(OK + b'\r\n{"code":0}', b" "),
}
#: How fast an upload is read.
READERS = {"reads a byte a second": Pace(1, 1.0), "reads slowly": Pace(4096, 0.05)}
#: What becomes of a handshake.
HANDSHAKES = {f"stalls after {place} bytes of its handshake": Cut(answer=place, how="stall") for place in (0, 1, 100)}


@dataclass
class Slow:
    """One that is slow: where it is, what it is sent, and how that has to end."""

    url: str
    parts: list[Part]
    ends: type[TransportError]


class Village:
    """All of them, each at a port of its own, in the clear and with TLS."""

    def __init__(self, stack: ExitStack, authority: Authority) -> None:
        self.slow: dict[str, Slow] = {}
        self._stack = stack
        self._authority = authority
        self._stop = threading.Event()
        for tls in (False, True):
            for name, drops in ANSWERS.items():
                self._add(name, Slow("", SMALL, NoAnswer), drops, tls=tls)
            for name, pace in READERS.items():
                self._add(name, Slow("", LARGE, NotSent), Drops(OK), tls=tls, request_pace=pace)
            self._add("reads nothing", Slow("", LARGE, NotSent), None, tls=tls)
        for name, cut in HANDSHAKES.items():
            self._add(name, Slow("", SMALL, NotSent), Drops(OK), tls=True, cut=cut)
        self._add("drips its handshake", Slow("", SMALL, NotSent), Drops(OK), tls=True, answer_pace=Pace(1, 0.05))
        stack.callback(self._stop.set)

    def _add(
        self,
        name: str,
        slow: Slow,
        drops: Drops | None,
        *,
        tls: bool,
        request_pace: Pace = AT_ONCE,
        answer_pace: Pace = AT_ONCE,
        cut: Cut | None = None,
    ) -> None:
        def script(connection: socket.socket) -> None:
            if drops is not None:
                read_request(connection)
                connection.sendall(drops.before)
            while not self._stop.wait(0.02):
                connection.sendall(drops.drop if drops else b"")

        server = Server(script, self._authority.server() if tls else None)
        self._stack.callback(server.close)
        road = self._stack.enter_context(Road(server.port, tls=tls, request_pace=request_pace, answer_pace=answer_pace))
        road.fates.append(cut)
        slow.url = road.url
        self.slow[f"{name}{' over TLS' if tls else ''}"] = slow


class Zeros(io.RawIOBase):
    """A large spooled file that takes no room."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def open_zeros(_name: str) -> BinaryIO:
    return Zeros()  # type: ignore[return-value]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_whatever_is_slow_a_request_ends_within_its_deadline_and_a_second(authority: Authority) -> None:
    """All at the same time; a mere wait of the same length tells how late this machine itself is."""
    begin = threading.Event()

    def send(slow: Slow) -> tuple[str, float]:
        begin.wait(10)
        began = time.monotonic()
        transport = RequestsTransport(ca_file=authority.ca_file)
        try:
            answer = transport.send(Upload(slow.url, slow.parts), open_zeros, DEADLINE, 10)
        except TransportError as error:
            return type(error).__name__, time.monotonic() - began
        finally:
            transport.close()
        return f"answered {answer}", time.monotonic() - began

    def wait() -> float:
        begin.wait(10)
        began = time.monotonic()
        threading.Event().wait(DEADLINE)
        return time.monotonic() - began

    # However it ends, they end first, and then nobody waits for them any more.
    with futures.ThreadPoolExecutor(100) as pool, ExitStack() as stack:
        village = Village(stack, authority).slow
        waiting = pool.submit(wait)
        sending = {name: pool.submit(send, slow) for name, slow in village.items()}
        begin.set()
        futures.wait(sending.values(), DEADLINE + 20)
    ended = {name: each.result() for name, each in sending.items()}

    assert {name: slow.ends.__name__ for name, slow in village.items()} == {name: how for name, (how, _) in ended.items()}
    assert {} == {name: took for name, (_, took) in ended.items() if took > waiting.result() + 1}
