"""One HTTP request, one answer; the one file that knows requests."""

from __future__ import annotations

import contextlib
import http.client
import http.cookiejar
import io
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError

from outbox.errors import ConfigurationError, FileChanged, FileMissing, NoAnswer, NotSent, SpoolError, TransportError
from outbox.multipart import BLOCK, Form, Part
from outbox.secret import remember_password

#: Bytes of an answer that are read, after decompression; the rest is not worth a wait.
ANSWER_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """What to send: where to, with which headers, and the parts of the form."""

    url: str
    parts: Sequence[Part]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: HTTP status, headers in lower case, and at most ANSWER_LIMIT bytes of body.

    `whole` is False when there was more of it. `sent_whole` is False when the answer came before the request's last byte went
    out: such an answer can refuse, but never confirm.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True
    sent_whole: bool = True


class Transport(Protocol):
    """Sends one request and reads one answer, within a deadline in seconds, following no redirect and repeating nothing.

    Raises NotSent when the declared length did not go out in full, NoAnswer when it did and no complete answer came back, and
    FileMissing or FileChanged, before the request is complete, when a spooled file is not what was enqueued.
    """

    def send(self, upload: Upload, open_file: Callable[[str], BinaryIO], deadline: float, connect: float) -> Answer:
        """Post a form."""

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        """Post a small JSON document: what a token service takes."""

    def cut(self) -> None:
        """Break off every request in hand, now; those that follow are refused."""


class RequestsTransport:
    """The real one. Its sessions take nothing from the environment: proxies and certificates are given here or not at all.

    `proxies` has an address for each scheme, as requests takes it: `{"https": "http://user:password@proxy.example:3128"}`.
    Raises ConfigurationError for one that is no address, without repeating it.
    """

    def __init__(self, *, proxies: Mapping[str, str] | None = None, ca_file: str | None = None) -> None:
        self._proxies = dict(proxies or {})
        for scheme, address in self._proxies.items():
            _require_address(scheme, address)
            remember_password(address)
        self._ca_file = ca_file
        self._local = threading.local()
        self._running: set[_Fuse] = set()
        self._lock = threading.Lock()
        self._closed = False

    def send(self, upload: Upload, open_file: Callable[[str], BinaryIO], deadline: float, connect: float) -> Answer:
        with self._fuse(deadline) as fuse:
            form = Form(upload.parts, secrets.token_hex(16), open_file, fuse.check)
            headers = {**upload.headers, "Content-Type": form.content_type}
            try:
                return self._post(upload.url, form, headers, fuse, connect, lambda: form.sent_whole)
            finally:
                form.close()

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        with self._fuse(deadline) as fuse:
            document = _Document(body)
            headers = {"Content-Type": "application/json; charset=utf-8"}
            return self._post(url, document, headers, fuse, connect, lambda: document.sent_whole)

    def cut(self) -> None:
        with self._lock:
            self._closed = True
            running = list(self._running)
        for fuse in running:
            fuse.blow("cut off because the worker stops")

    def close(self) -> None:
        """Close what this thread keeps open for its next request."""
        self._forget_session()

    def _post(
        self,
        url: str,
        body: Form | _Document,
        headers: Mapping[str, str],
        fuse: _Fuse,
        connect: float,
        sent_whole: Callable[[], bool],
    ) -> Answer:
        _current.fuse = fuse
        try:
            left = fuse.left()
            response = self._session().post(
                url,
                data=body,
                headers={"Accept-Encoding": "identity", **headers},
                timeout=(min(connect, left), left),
                allow_redirects=False,
                stream=True,
                proxies=self._proxies,
                verify=self._ca_file or True,
            )
            with response:
                content, whole = _read_bounded(response, fuse)
                plain = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status_code, plain, content, whole, sent_whole())
        except (FileMissing, FileChanged, SpoolError):
            self._forget_session()
            raise
        except (requests.RequestException, HTTPError, OSError, TransportError, ValueError) as error:
            # A connection that failed is never used again, whatever its pool thinks of it.
            self._forget_session()
            # ValueError is what the standard library makes of some broken answers; its words may hold header values.
            text = fuse.reason or _in_words(error)
            raise (NoAnswer(text) if sent_whole() else NotSent(text, begun=body.tell() > 0)) from None
        finally:
            _current.fuse = None

    @contextlib.contextmanager
    def _fuse(self, deadline: float) -> Any:
        fuse = _Fuse(deadline)
        with self._lock:
            if self._closed:
                raise NotSent("not begun because the worker stops")
            self._running.add(fuse)
        try:
            fuse.light()
            yield fuse
        finally:
            fuse.put_out()
            with self._lock:
                self._running.discard(fuse)

    def _session(self) -> requests.Session:
        """This thread's session: kept, so that connections are used again."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = False  # ~/.netrc would replace our Authorization, HTTP_PROXY would move our traffic
            session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
            session.headers["User-Agent"] = "durable-outbox"
            adapter = _Adapter(max_retries=0)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            self._local.session = session
        return session

    def _forget_session(self) -> None:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is not None:
            session.close()
            self._local.session = None


def _require_address(scheme: str, address: str) -> None:
    try:
        parts = urlsplit(address)
        complete = bool(parts.scheme and parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
    if not complete:
        raise ConfigurationError(f"the proxy for {scheme}: expected an address such as http://proxy.example:3128")


class _Document(io.BytesIO):
    """A small body that knows, as a form does, whether all of it went out."""

    sent_whole = False

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(size)
        self.sent_whole = self.sent_whole or not block
        return block


class _Fuse:
    """A send's total deadline: requests' own timeouts bound silence, not duration.

    Three things carry it: the body between blocks, the reader of the answer, and a timer that shuts the socket under whatever
    is still blocked.
    """

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._seconds = seconds
        self._timer = threading.Timer(seconds, self.blow, [f"not finished within its deadline of {seconds:g} s"])
        self._timer.daemon = True
        self._connection: HTTPConnection | None = None
        self._sock: socket.socket | None = None
        self.reason: str | None = None

    def light(self) -> None:
        self._timer.start()

    def put_out(self) -> None:
        self._timer.cancel()
        # A timer that fires in this very moment must not shut the connection under the next request.
        self._connection = self._sock = None

    def left(self) -> float:
        return max(0.001, self._ends - time.monotonic())

    def check(self) -> None:
        """Raises TransportError when the time is up or the request was cut."""
        if self.reason is None and time.monotonic() >= self._ends:
            self.reason = f"not finished within its deadline of {self._seconds:g} s"
        if self.reason is not None:
            raise TransportError(self.reason)

    def carry(self, connection: HTTPConnection) -> None:
        """This connection does the request's work: it is the one to shut."""
        self._connection = connection
        # Kept, since a connection forgets its socket when the answer says that it is the last: then only the answer reads it.
        self._sock = getattr(connection, "sock", None) or self._sock
        if self.reason is not None:
            self._shut()

    def blow(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._shut()

    def _shut(self) -> None:
        sock = getattr(self._connection, "sock", None) or self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                # On a TLS socket this shuts the TCP connection below, which is what wakes a blocked call.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


_current = threading.local()


def _carry(connection: HTTPConnection) -> None:
    fuse: _Fuse | None = getattr(_current, "fuse", None)
    if fuse is not None:
        fuse.carry(connection)


class _Carrying:
    """Lets the fuse know which connection does the request's work, be it new or used again."""

    def connect(self) -> None:
        _carry(self)  # type: ignore[arg-type]  # it is mixed into connections
        super().connect()  # type: ignore[misc]
        _carry(self)  # type: ignore[arg-type]

    def putrequest(self, *args: Any, **named: Any) -> None:
        _carry(self)  # type: ignore[arg-type]
        super().putrequest(*args, **named)  # type: ignore[misc]


class _Head:
    """The lines of an answer's head. The standard library takes an end in the midst of them for their end."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readline(self, limit: int) -> bytes:
        line: bytes = self._stream.readline(limit)
        if not line.endswith(b"\n") and len(line) < limit:
            raise http.client.RemoteDisconnected("the answer ended within its head")
        return line

    def close(self) -> None:
        self._stream.close()


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        stream, self.fp = self.fp, _Head(self.fp)  # type: ignore[assignment]  # as much of a stream as the head needs
        try:
            super().begin()
        finally:
            self.fp = stream


class _Connection(_Carrying, HTTPConnection):
    response_class = _Response


class _SecureConnection(_Carrying, HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        super().init_poolmanager(*args, blocksize=BLOCK, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        manager = super().proxy_manager_for(proxy, blocksize=BLOCK, **named)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return manager


def _read_bounded(response: requests.Response, fuse: _Fuse) -> tuple[bytes, bool]:
    """At most ANSWER_LIMIT decoded bytes of the answer, and whether that was all of it.

    A refusal whose words break off is still a refusal: its status stands. Only a success must be heard to the end.
    """
    gathered = bytearray()
    while len(gathered) <= ANSWER_LIMIT:
        try:
            fuse.check()
            block = response.raw.read(ANSWER_LIMIT + 1 - len(gathered), decode_content=True)
        except (HTTPError, OSError, TransportError):
            if response.ok:
                raise
            return bytes(gathered), False
        if not block:
            return bytes(gathered), True
        gathered += block
    return bytes(gathered[:ANSWER_LIMIT]), False


def _in_words(error: Exception) -> str:
    """A transport error in a few words: the innermost cause, without headers or bodies."""
    cause: BaseException = error
    seen = set()
    while id(cause) not in seen:
        seen.add(id(cause))
        inner = getattr(cause, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
        cause = inner or cause.__cause__ or cause
    if isinstance(cause, OSError) and cause.strerror:
        return f"{type(cause).__name__}: {cause.strerror}"
    if isinstance(cause, TransportError):
        return str(cause)
    # What is said of a header that is refused holds the header's value, and of an address all of that, which may be a proxy's.
    telling = (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, LocationParseError)
    shown = isinstance(cause, HTTPError | OSError) and not isinstance(cause, telling)
    return f"{type(cause).__name__}: {cause}" if shown else type(cause).__name__
