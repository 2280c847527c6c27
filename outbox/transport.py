"""One HTTP request, one answer; the one file that knows requests."""

from __future__ import annotations

import contextlib
import copy
import http.client
import io
import os
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any, BinaryIO, NamedTuple, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import check_header_validity
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError, NameResolutionError, NewConnectionError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout
from urllib3.util.connection import allowed_gai_family

from outbox.addresses import Reach
from outbox.errors import ConfigurationError, FileChanged, FileMissing, NoAnswer, NotSent, SpoolError, TransportError
from outbox.exchange import ANSWER_LIMIT, Answer, Transport, Upload
from outbox.fuses import Fuse, Guard, one_more_thread
from outbox.multipart import BLOCK, LARGE_BLOCK, FieldPart, Form
from outbox.route import Route
from outbox.secret import remember_password

__all__ = ["ANSWER_LIMIT", "Answer", "RequestsTransport", "Transport", "Upload"]

#: Bytes of a body that is worth being copied, to go out with its head.
_SMALL = 64 * 1024
#: How an answer may be packed although nobody asked for it: once, and so that it can be unpacked a little at a time.
_UNPACKED = frozenset({"gzip", "x-gzip", "deflate"})
#: What OpenSSL says of a certificate that is not valid yet, and of one that is no more.
_OUT_OF_TIME = frozenset({9, 10})


class RequestsTransport:
    """The real one. Its sessions take nothing from the environment: proxies and certificates are given here or not at all.

    `proxies` has an address for each scheme, as requests takes it: `{"https": "http://user:password@proxy.example:3128"}`.
    Raises ConfigurationError for one that is no address, without repeating it. `ca_file` has the authorities to trust;
    `client_cert` is the file of the certificate to show, or that and the file of its key: PEM, all of them. What a Route says
    goes before.

    Behind a proxy nobody here sees which address a request ends at. One that may only go to some (`public_only` of its
    destination) is therefore refused there, unless `proxy_decides`: that is to say that the proxy refuses all others.
    """

    def __init__(
        self,
        *,
        proxies: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        client_cert: tuple[str, str] | str | None = None,
        proxy_decides: bool = False,
    ) -> None:
        for scheme, address in (proxies or {}).items():
            _require_address(scheme, address)
            remember_password(address)
        self._way = _Way(tuple((proxies or {}).items()), ca_file, client_cert, proxy_decides)
        self._local = threading.local()
        self._guard = Guard()

    def send(self, upload: Upload, open_file: Callable[[str], BinaryIO], deadline: float, connect: float) -> Answer:
        if upload.json is not None:
            return self._send_json(upload, upload.json, deadline, connect)
        with self._fuse(deadline) as fuse:
            form = Form(upload.parts, secrets.token_hex(16), open_file, fuse.check)
            # A file may turn out to be missing: whoever is to receive it hears of its request all the same.
            fuse.in_one_piece = len(form) <= _SMALL and all(isinstance(part, FieldPart) for part in upload.parts)
            try:
                return self._post(upload.url, form, upload.headers, form.content_type, fuse, connect)
            finally:
                form.close()

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        with self._fuse(deadline) as fuse:
            return self._post(url, _Document(body), {}, "application/json; charset=utf-8", fuse, connect)

    def _send_json(self, upload: Upload, body: bytes, deadline: float, connect: float) -> Answer:
        with self._fuse(deadline) as fuse:
            fuse.in_one_piece = 0 < len(body) <= _SMALL
            return self._post(upload.url, _Document(body), upload.headers, "application/json", fuse, connect)

    def cut(self) -> None:
        self._guard.cut()

    def within(self, reach: Reach) -> Self:
        return self._by(self._way._replace(reach=reach))

    def through(self, route: Route) -> Self:
        proxies = self._way.proxies
        if (proxy := route.proxy_address) is not None:
            _require_address("a route", proxy)
            remember_password(proxy)
            proxies = (("http", proxy), ("https", proxy))
        return self._by(
            self._way._replace(
                proxies=proxies,
                ca_file=os.fspath(route.ca_file) if route.ca_file is not None else self._way.ca_file,
                certificate=route.certificate or self._way.certificate,
                proxy_decides=route.proxy_decides or self._way.proxy_decides,
            )
        )

    def _by(self, way: _Way) -> Self:
        other = copy.copy(self)  # the sessions, the requests in hand and the cut are the same ones
        other._way = way  # noqa: SLF001 (it is one of us)
        return other

    def close(self) -> None:
        """Close what this thread keeps open for its next request."""
        for roads in self._all_roads().values():
            roads.close()
        self._all_roads().clear()

    def _post(
        self,
        url: str,
        body: Form | _Document,
        headers: Mapping[str, str],
        content_type: str,
        fuse: Fuse,
        connect: float,
    ) -> Answer:
        _current.fuse = fuse
        try:
            left = fuse.left()
            road = self._roads().to(url)
            response = road.pool.urlopen(
                "POST",
                road.target,
                body=body,
                headers=road.headers(headers, content_type, len(body)),
                retries=_NEVER_AGAIN,
                redirect=False,
                assert_same_host=False,
                timeout=Timeout(connect=min(connect, left), read=left),
                preload_content=False,
                decode_content=False,
            )
            try:
                content, whole = _read_bounded(response, fuse)
            finally:
                response.close()  # only what was not read to its end loses its connection by that
                response.release_conn()
            plain = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, plain, content, whole, body.sent_whole)
        except (FileMissing, FileChanged, SpoolError):
            self._forget_roads()
            raise
        except (requests.RequestException, HTTPError, OSError, TransportError, ValueError) as error:
            # A connection that failed is never used again, whatever its pool thinks of it.
            self._forget_roads()
            # ValueError is what the standard library makes of some broken answers; its words may hold header values.
            text, stranger = fuse.reason or _in_words(error), _took_us_for_a_stranger(error)
            begun = body.tell() > 0 and not stranger
            raise (NoAnswer(text) if body.sent_whole and not stranger else NotSent(text, begun=begun)) from None
        finally:
            _current.fuse = None

    @contextlib.contextmanager
    def _fuse(self, deadline: float) -> Iterator[Fuse]:
        fuse = Fuse(deadline, self._way.reach, proxy_decides=self._way.proxy_decides)
        self._guard.light(fuse)
        try:
            yield fuse
        finally:
            self._guard.put_out(fuse)

    def _all_roads(self) -> dict[_Way, _Roads]:
        """This thread's, by the way they go: a connection that was made for others is none for who may not go there."""
        if not hasattr(self._local, "roads"):
            self._local.roads = {}
        roads: dict[_Way, _Roads] = self._local.roads
        return roads

    def _roads(self) -> _Roads:
        """This thread's: kept, so that connections are used again."""
        roads = self._all_roads().get(self._way)
        if roads is None:
            roads = self._all_roads()[self._way] = _Roads(self._way)
        return roads

    def _forget_roads(self) -> None:
        roads = self._all_roads().pop(self._way, None)
        if roads is not None:
            roads.close()


class _Way(NamedTuple):
    """How requests go: what connections must have in common to be used for each other's."""

    proxies: tuple[tuple[str, str], ...]
    ca_file: str | None
    certificate: tuple[str, str] | str | None
    proxy_decides: bool
    reach: Reach | None = None


#: Nothing is tried again here. With `read=False` what fails is raised as it is.
_NEVER_AGAIN = Retry(0, read=False)
#: Addresses whose preparation is kept; as many connection pools, so that none of theirs is closed to make room.
_KEPT = 32


class _Road:
    """The way to one address: a pool of connections, what to ask it for, and what each request says of itself."""

    def __init__(self, pool: HTTPConnectionPool, target: str, headers: Mapping[str, str]) -> None:
        self.pool = pool
        self.target = target
        self._headers = {name.lower(): (name, value) for name, value in headers.items()}
        #: Who is in the address itself is who sends.
        self._last = {name: header for name, header in self._headers.items() if name == "authorization"}

    def headers(self, given: Mapping[str, str], content_type: str, length: int) -> dict[str, str]:
        """All headers of a request. Where a name is given twice, in whatever spelling, the later one is meant."""
        found = dict(self._headers)
        for header in given.items():
            check_header_validity(header)
            found[header[0].lower()] = header
        found |= self._last
        found["content-type"] = ("Content-Type", content_type)
        found["content-length"] = ("Content-Length", str(length))
        return dict(found.values())


class _Roads:
    """Connections, and how addresses are reached; for one thread.

    Half of what `requests.Session.post` does is to prepare a request, anew each time. Here that is done once for an address,
    by requests, and what is sent goes to its pool at once.

    Nothing is taken from the environment: ~/.netrc would replace our Authorization, HTTP_PROXY would move our traffic. There is
    no jar for cookies, and nobody follows a redirect.
    """

    def __init__(self, way: _Way) -> None:
        self._proxies = dict(way.proxies)
        self._verify = way.ca_file or True
        self._certificate = way.certificate
        self.adapter = _Adapter(pool_connections=_KEPT, max_retries=0)
        self._known: dict[str, _Road] = {}

    def to(self, url: str) -> _Road:
        """Raises a RequestException for what is no address."""
        road = self._known.get(url)
        if road is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            road = self._known[url] = self._prepared(url)
        return road

    def _prepared(self, url: str) -> _Road:
        request = requests.Request("POST", url, headers=_HEADERS).prepare()
        prepared = request.url or ""
        if not prepared.lower().startswith(("http://", "https://")):
            raise requests.exceptions.InvalidSchema("expected an address that begins with http:// or https://")
        pool = self.adapter.get_connection_with_tls_context(request, self._verify, self._proxies, self._certificate)
        self.adapter.cert_verify(pool, prepared, self._verify, self._certificate)
        target = self.adapter.request_url(request, self._proxies)
        headers = {name: str(value) for name, value in request.headers.items() if name != "Content-Length"}
        return _Road(pool, target, headers)

    def close(self) -> None:
        self._known.clear()
        self.adapter.close()


#: What every request says, and what it says if nothing else is said.
_HEADERS = {"User-Agent": "durable-outbox", "Accept-Encoding": "identity", "Accept": "*/*", "Connection": "keep-alive"}


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

    def __len__(self) -> int:
        return len(self.getbuffer())

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(size)
        self.sent_whole = self.sent_whole or not block
        return block


_current = threading.local()


def _carry(connection: HTTPConnection) -> None:
    fuse: Fuse | None = getattr(_current, "fuse", None)
    if fuse is not None:
        fuse.carry(connection)


class _Carrying:
    """Lets the fuse know which connection does the request's work, be it new or used again; makes new ones by its rules.

    The head of a small request goes out together with its body: one packet, and whoever receives it wakes up once.
    """

    _head: bytes | None = None  #: of the request in hand, while it waits for the body
    _ends_head = False

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
        self._head = None
        super().putrequest(*args, **named)  # type: ignore[misc]

    def endheaders(self, *args: Any, **named: Any) -> None:
        self._ends_head = _current.fuse.in_one_piece
        super().endheaders(*args, **named)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        if self._ends_head:
            self._ends_head = False
            if getattr(self, "sock", None) is None:
                self.connect()  # before the body is read: whoever cannot be reached has been sent nothing
            self._head = data
            return
        if self._head is not None:
            data, self._head = self._head + data, None
        sock = getattr(self, "sock", None)
        if sock is None or len(data) <= BLOCK:
            super().send(data)  # type: ignore[misc]
        else:
            _send_by_and_by(sock, data, _current.fuse)


def _send_by_and_by(sock: Any, data: bytes, fuse: Fuse) -> None:
    """All of a large block. The socket's patience, meant for a silent other side, is there anew for each step: `sendall` would
    give up a slow road that takes longer for so many bytes. One that is too slow for them all is a matter of the deadline.
    """
    # The kernel takes what it has room for. TLS takes all that it is given, and has the same patience for that.
    step = len(data) if type(sock) is socket.socket else BLOCK
    rest = memoryview(data)
    while rest:
        fuse.check()  # before a step: after the last one all of it is out, whatever the time
        rest = rest[sock.send(rest[:step]) :]


def _connected(connection: Any, fuse: Fuse) -> socket.socket:
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


def _addresses(connection: Any, fuse: Fuse) -> Iterable[tuple[Any, ...]]:
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
        stirred.set()

    fuse.stirred = stirred = threading.Event()
    fuse.check()
    with one_more_thread():
        threading.Thread(target=ask, name="outbox-resolver", daemon=True).start()
    stirred.wait(fuse.left())
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


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        oldest = ssl.TLSVersion.TLSv1_2
        super().init_poolmanager(*args, blocksize=LARGE_BLOCK, ssl_minimum_version=oldest, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
        oldest = ssl.TLSVersion.TLSv1_2
        manager = super().proxy_manager_for(proxy, blocksize=LARGE_BLOCK, ssl_minimum_version=oldest, **named)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return manager


def _read_bounded(response: BaseHTTPResponse, fuse: Fuse) -> tuple[bytes, bool]:
    """At most ANSWER_LIMIT decoded bytes of the answer, and whether that was all of it.

    A refusal whose words break off is still a refusal: its status stands. Only a success must be heard to the end.
    """
    gathered = bytearray()
    # What is packed in another way is no answer to a request that asked for none, and stays as it is.
    unpack = response.headers.get("Content-Encoding", "").strip().lower() in _UNPACKED
    while len(gathered) <= ANSWER_LIMIT:
        try:
            block = response.read(ANSWER_LIMIT + 1 - len(gathered), decode_content=unpack)
            fuse.check()  # what ended because it was cut may look as if it had ended by itself
        except (HTTPError, OSError, TransportError):
            if not 400 <= response.status < 600:
                raise
            return bytes(gathered), False
        if not block:
            return bytes(gathered), True
        gathered += block
    return bytes(gathered[:ANSWER_LIMIT]), False


def _cause(error: Exception) -> BaseException:
    """The innermost cause of an error."""
    return _causes(error)[-1]


def _causes(error: Exception) -> list[BaseException]:
    """An error, what caused it, and so on."""
    cause: BaseException = error
    found: list[BaseException] = []
    while not any(each is cause for each in found):
        found.append(cause)
        inner = getattr(cause, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
        cause = inner or cause.__cause__ or cause
    return found


def _unreached(error: Exception) -> str:
    """Where a connection should have gone that was never made: to the destination, or to a proxy."""
    never = next((each for each in _causes(error) if isinstance(each, NewConnectionError)), None)
    connection: Any = getattr(never, "conn", None)
    return "" if connection is None else f" ({connection.host}:{connection.port})"


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
        return f"{type(cause).__name__}: {cause.strerror}{_unreached(error)}{doubt}"
    if isinstance(cause, TransportError):
        return str(cause)
    # What is said of a header that is refused holds the header's value, and of an address all of that, which may be a proxy's.
    telling = (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, LocationParseError)
    shown = isinstance(cause, HTTPError | OSError) and not isinstance(cause, telling)
    return f"{type(cause).__name__}: {cause}" if shown else type(cause).__name__
