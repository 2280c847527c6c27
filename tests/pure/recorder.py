"""A server that notes down each request byte for byte and gives the answers it was told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType


def http(body: bytes, status: str = "200 OK") -> bytes:
    """An HTTP answer after which the connection ends."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


class Recorder:
    """Answers one request per connection, and forgets nothing."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread.is_alive():
            # Closing a socket does not wake the thread that waits on it.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(read_request(connection))
                with suppress(OSError):  # the client may have heard enough
                    connection.sendall(answer)


def read_request(connection: socket.socket) -> bytes:
    """One request of declared length, or what came of it before the other side left."""
    head = b""
    while b"\r\n\r\n" not in head:
        block = connection.recv(1 << 16)
        if not block:
            return head
        head += block
    head, _, body = head.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    gathered = bytearray(body)
    while len(gathered) < int(lengths[0] if lengths else 0):
        block = connection.recv(1 << 18)
        if not block:
            break
        gathered += block
    return head + b"\r\n\r\n" + bytes(gathered)
