"""A small HTTP port for probes: a few pages to read, nothing to change."""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from outbox.errors import ConfigurationError

log = logging.getLogger("outbox.port")

#: Connections that are answered at the same time; one more is closed at once.
_AT_ONCE = 16
#: Seconds that a client may be silent.
_PATIENCE = 5.0
_ALLOWED = "GET, HEAD"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer: HTTP status, body and its type."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class Port:
    """Serves pages by their path on `address` (`127.0.0.1:9464`, `[::1]:9464`, `:9464` for every address; port 0 is any).

    Binds when it is made, and raises ConfigurationError when that cannot be. `start` begins to answer.
    """

    def __init__(self, address: str, pages: Mapping[str, Callable[[], Page]]) -> None:
        host, port = parsed(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server((host, port), family, pages)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigurationError(f"cannot listen on {address}: {reason}; choose another address for --http") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.2], name="outbox-http", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, as one would open it."""
        host, port = self._server.server_name, self._server.server_port
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 (not a bind)
        shown = anywhere.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{port}"

    def start(self) -> None:
        """Answer from now on, on a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Give the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def parsed(address: str) -> tuple[str, int]:
    """Host and port of an address. Raises ConfigurationError for what is none."""
    host, colon, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    plausible = colon and port.isascii() and port.isdigit() and int(port) < 2**16 and (":" not in bare or host.startswith("["))
    if not plausible:
        raise ConfigurationError(f"expected an address and a port, such as 127.0.0.1:9464, got {address!r}")
    return bare or "0.0.0.0", int(port)  # noqa: S104 (said so by whoever leaves the host out)


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, pages: Mapping[str, Callable[[], Page]]) -> None:
        self.address_family = family
        self.pages = pages
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without asking the name service for our name, which the library would do."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        log.debug("a request for a probe was not answered: %s", sys.exception())


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE
    server_version = "outbox"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            self._answer(Page(404, f"there is {', '.join(self.server.pages)}\n".encode()))
            return
        try:
            answer = page()
        except Exception:
            log.exception("the page %s failed", self.path.partition("?")[0])
            answer = Page(500, b"failed; the log has the traceback\n")
        self._answer(answer)

    do_HEAD = do_GET  # noqa: N815 (the library's name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return lambda: self._answer(Page(405, b"only GET and HEAD\n"))
        raise AttributeError(name)

    def _answer(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if page.status == 405:
            self.send_header("Allow", _ALLOWED)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the library's name)
        """Port come every few seconds: nothing is said of them."""
