"""One HTTP request, one answer; the one file that knows requests."""

from __future__ import annotations

import contextlib
import copy
import http.client
import http.cookiejar
import io
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, BinaryIO, Protocol, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from outbox.addresses import Reach
from outbox.errors import ConfigurationError, FileChanged, FileMissing, NoAnswer, NotSent, SpoolError, TransportError
from outbox.multipart import BLOCK, Form, Part
from outbox.secret import remember_password

#: Bytes of an answer that are read, after decompression; the rest is not worth a wait.
ANSWER_LIMIT = 64 * 1024
#: How an answer may be packed although nobody asked for it: once, and so that it can be unpacked a little at a time.
_UNPACKED = frozenset({"gzip", "x-gzip", "deflate"})
#: What OpenSSL says of a certificate that is not valid yet, and of one that is no more.
_OUT_OF_TIME = frozenset({9, 10})


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

    def within(self, reach: Reach) -> Transport:
        """The same, for requests that may go to these addresses alone: any other ends as NotSent before a byte goes out."""


class RequestsTransport:
    """The real one. Its sessions take nothing from the environment: proxies and certificates are given here or not at all.

    `proxies` has an address for each scheme, as requests takes it: `{"https": "http://user:password@proxy.example:3128"}`.
    Raises ConfigurationError for one that is no address, without repeating it.

    Behind a proxy nobody here sees which address a request ends at. One that may only go to some (`public_only` of its
    destination) is therefore refused there, unless `proxy_decides`: that is to say that the proxy refuses all others.
    """

    def __init__(
        self, *, proxies: Mapping[str, str] | None = None, ca_file: str | None = None, proxy_decides: bool = False
    ) -> None:
        self._proxies = dict(proxies or {})
        for scheme, address in self._proxies.items():
            _require_address(scheme, address)
            remember_password(address)
        self._ca_file = ca_file
        self._proxy_decides = proxy_decides
        self._reach: Reach | None = None
        self._local = threading.local()
        self._running: set[_Fuse] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()

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
            self._closed.set()
            running = list(self._running)
        for fuse in running:
            fuse.blow("cut off because the worker stops")

    def within(self, reach: Reach) -> Self:
        narrow = copy.copy(self)  # the sessions, the requests in hand and the cut are the same ones
        narrow._reach = reach  # noqa: SLF001 (it is one of us)
        return narrow

    def close(self) -> None:
        """Close what this thread keeps open for its next request."""
        for session in self._sessions().values():
            session.close()
        self._sessions().clear()

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
            text, stranger = fuse.reason or _in_words(error), _took_us_for_a_stranger(error)
            begun = body.tell() > 0 and not stranger
            raise (NoAnswer(text) if sent_whole() and not stranger else NotSent(text, begun=begun)) from None
        finally:
            _current.fuse = None

    @contextlib.contextmanager
    def _fuse(self, deadline: float) -> Any:
        fuse = _Fuse(deadline, self._reach, proxy_decides=self._proxy_decides)
        with self._lock:
            if self._closed.is_set():
                raise NotSent("not begun because the worker stops")
            self._running.add(fuse)
        try:
            fuse.light()
            yield fuse
        finally:
            fuse.put_out()
            with self._lock:
                self._running.discard(fuse)

    def _sessions(self) -> dict[Reach | None, requests.Session]:
        """This thread's, by where their connections may go: one that was made for others is none for who may not go there."""
        if not hasattr(self._local, "sessions"):
            self._local.sessions = {}
        sessions: dict[Reach | None, requests.Session] = self._local.sessions
        return sessions

    def _session(self) -> requests.Session:
        """This thread's session: kept, so that connections are used again."""
        session = self._sessions().get(self._reach)
        if session is None:
            session = _Session()
            session.trust_env = False  # ~/.netrc would replace our Authorization, HTTP_PROXY would move our traffic
            session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
            session.headers["User-Agent"] = "durable-outbox"
            adapter = _Adapter(max_retries=0)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            self._sessions()[self._reach] = session
        return session

    def _forget_session(self) -> None:
        session = self._sessions().pop(self._reach, None)
        if session is not None:
            session.close()


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

    Four things carry it: whoever looks for a connection, the body between blocks, the reader of the answer, and a timer that
    shuts the socket under whatever is still blocked. With it goes where the send may `reach`.
    """

    def __init__(self, seconds: float, reach: Reach | None, *, proxy_decides: bool) -> None:
        self.reach = reach
        self.proxy_decides = proxy_decides
        self.stirred = threading.Event()  #: there is news for who waits for a resolver
        self._ends = time.monotonic() + seconds
        self._seconds = seconds
        self._timer = threading.Timer(seconds, self.blow, [f"not finished within its deadline of {seconds:g} s"])
        self._timer.daemon = True
        self._connection: HTTPConnection | None = None
        self._sock: socket.socket | None = None
        self._handle: socket.socket | None = None
        self.reason: str | None = None

    def light(self) -> None:
        with _one_more_thread():
            self._timer.start()

    def put_out(self) -> None:
        self._timer.cancel()
        self.hold(None)
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

    def hold(self, sock: socket.socket | None) -> None:
        """A connection in the making, to be shut through a handle of our own: TLS takes the socket out of everybody's hands."""
        handle, self._handle = self._handle, None if sock is None else sock.dup()
        if handle is not None:
            handle.close()
        if self._handle is not None and self.reason is not None:
            self._shut()

    def blow(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.stirred.set()
        self._shut()

    def _shut(self) -> None:
        for sock in (self._handle, getattr(self._connection, "sock", None) or self._sock):
            if sock is not None:
                with contextlib.suppress(OSError):
                    # On a TLS socket this shuts the TCP connection below, which is what wakes a blocked call.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


@contextlib.contextmanager
def _one_more_thread() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise NotSent(
            "not begun: this machine gives us no more threads; raise their limit (the user's, or the container's on pids), or "
            "lower the destinations' senders"
        ) from None


_current = threading.local()


def _carry(connection: HTTPConnection) -> None:
    fuse: _Fuse | None = getattr(_current, "fuse", None)
    if fuse is not None:
        fuse.carry(connection)


class _Carrying:
    """Lets the fuse know which connection does the request's work, be it new or used again; makes new ones by its rules."""

    def _new_conn(self) -> socket.socket:
        connection: Any = self  # it is mixed into connections
        try:
            return _connected(connection, _current.fuse)
        except socket.gaierror as error:
            raise NameResolutionError(connection.host, connection, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, "the connection timed out") from error
        except OSError as error:
            raise NewConnectionError(connection, str(error)) from error

    def connect(self) -> None:
        _carry(self)  # type: ignore[arg-type]  # it is mixed into connections
        super().connect()  # type: ignore[misc]
        _carry(self)  # type: ignore[arg-type]
        _current.fuse.hold(None)

    def putrequest(self, *args: Any, **named: Any) -> None:
        _carry(self)  # type: ignore[arg-type]
        super().putrequest(*args, **named)  # type: ignore[misc]


def _connected(connection: Any, fuse: _Fuse) -> socket.socket:
    """The first address of a host that takes a connection within the deadline; of those alone that may be reached."""
    reach = fuse.reach
    if reach is not None and connection.proxy is not None:
        if not fuse.proxy_decides:
            raise TransportError(
                "not sent to a proxy: this destination takes public addresses only (public_only), and where a proxy goes "
                "cannot be seen from here; let the proxy refuse all others, and say proxy_decides=True"
            )
        reach = None
    failed: OSError | TransportError = OSError("the host has no address")
    for family, kind, protocol, _, place in _addresses(connection, fuse):
        fuse.check()
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this machine does not speak; the next address may be of another
            failed = error
            continue
        try:
            _require_reach(reach, place, connection.host)  # nothing is to be learnt from whether it would have answered
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            sock.settimeout(min(connection.timeout, fuse.left()))
            fuse.hold(sock)
            sock.connect(place)
            _require_reach(reach, sock.getpeername(), connection.host)
        except (OSError, TransportError) as error:
            sock.close()
            failed = error
        else:
            return sock
    raise failed


def _require_reach(reach: Reach | None, place: Sequence[Any], host: str) -> None:
    if reach is not None and not reach.takes(str(place[0])):
        raise TransportError(
            f"not sent: {host} leads to {place[0]}, which is no public address, and this destination takes no other "
            "(public_only) that its allowed_networks do not name"
        )


def _addresses(connection: Any, fuse: _Fuse) -> Iterable[tuple[Any, ...]]:
    """The addresses of a host. Nothing wakes a thread that waits for a resolver: a silent one is left to wait by itself."""
    host = connection._dns_host.strip("[]")  # noqa: SLF001 (with the dot at its end, which `host` has not)
    wanted = (host, connection.port, allowed_gai_family(), socket.SOCK_STREAM)
    with contextlib.suppress(ValueError):
        ip_address(host.partition("%")[0])
        return socket.getaddrinfo(*wanted)
    found: Future[Iterable[tuple[Any, ...]]] = Future()

    def ask() -> None:
        try:
            found.set_result(socket.getaddrinfo(*wanted))
        except Exception as error:  # noqa: BLE001 (it is raised again below)
            found.set_exception(error)
        fuse.stirred.set()

    fuse.stirred.clear()
    fuse.check()
    with _one_more_thread():
        threading.Thread(target=ask, name="outbox-resolver", daemon=True).start()
    fuse.stirred.wait(fuse.left())
    fuse.check()
    return found.result()


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
    """The final one: the standard library passes over 100 alone of those that come before it."""

    def begin(self) -> None:
        stream, self.fp = self.fp, _Head(self.fp)  # type: ignore[assignment]  # as much of a stream as the head needs
        try:
            super().begin()
            while 101 < self.status < 200:
                self.headers = self.msg = None  # type: ignore[assignment]  # none yet: begin again
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


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None is followed, so none need be an address: what is none would fail here, and an answer be lost with it."""


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        oldest = ssl.TLSVersion.TLSv1_2
        super().init_poolmanager(*args, blocksize=BLOCK, ssl_minimum_version=oldest, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        oldest = ssl.TLSVersion.TLSv1_2
        manager = super().proxy_manager_for(proxy, blocksize=BLOCK, ssl_minimum_version=oldest, **named)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return manager


def _read_bounded(response: requests.Response, fuse: _Fuse) -> tuple[bytes, bool]:
    """At most ANSWER_LIMIT decoded bytes of the answer, and whether that was all of it.

    A refusal whose words break off is still a refusal: its status stands. Only a success must be heard to the end.
    """
    gathered = bytearray()
    # What is packed in another way is no answer to a request that asked for none, and stays as it is.
    unpack = response.headers.get("Content-Encoding", "").strip().lower() in _UNPACKED
    while len(gathered) <= ANSWER_LIMIT:
        try:
            block = response.raw.read(ANSWER_LIMIT + 1 - len(gathered), decode_content=unpack)
            fuse.check()  # what ended because it was cut may look as if it had ended by itself
        except (HTTPError, OSError, TransportError):
            if response.ok:
                raise
            return bytes(gathered), False
        if not block:
            return bytes(gathered), True
        gathered += block
    return bytes(gathered[:ANSWER_LIMIT]), False


def _cause(error: Exception) -> BaseException:
    """The innermost cause of an error."""
    cause: BaseException = error
    seen = set()
    while id(cause) not in seen:
        seen.add(id(cause))
        inner = getattr(cause, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
        cause = inner or cause.__cause__ or cause
    return cause


def _took_us_for_a_stranger(error: Exception) -> bool:
    """Whether the other side wants a certificate of ours: it says so when the request is under way, and has read none of it."""
    cause = _cause(error)
    return isinstance(cause, ssl.SSLError) and cause.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


def _in_words(error: Exception) -> str:
    """A transport error in a few words: the innermost cause, without headers or bodies."""
    cause = _cause(error)
    if isinstance(cause, OSError) and cause.strerror:
        out_of_time = isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _OUT_OF_TIME
        doubt = ", unless this machine's clock is wrong" if out_of_time else ""
        return f"{type(cause).__name__}: {cause.strerror}{doubt}"
    if isinstance(cause, TransportError):
        return str(cause)
    # What is said of a header that is refused holds the header's value, and of an address all of that, which may be a proxy's.
    telling = (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, LocationParseError)
    shown = isinstance(cause, HTTPError | OSError) and not isinstance(cause, telling)
    return f"{type(cause).__name__}: {cause}" if shown else type(cause).__name__
