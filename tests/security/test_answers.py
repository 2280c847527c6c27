"""S10 to S13: an answer of any size, packing, slowness or depth costs little memory, ends in time, and is never a surprise."""

from __future__ import annotations

import functools
import gzip
import json
import random
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from outbox import payload
from outbox.destinations import EnosEvents
from outbox.destinations.token import CredentialsRefused, Token
from outbox.errors import Fault, NoAnswer, NotSent, TransportError
from outbox.model import Draft
from outbox.multipart import FieldPart
from outbox.transport import ANSWER_LIMIT, Answer, RequestsTransport, Upload
from outbox.verdict import Delivered, Facts, fit_for_a_row
from tests.pure.making import NOW, batch
from tests.pure.recorder import read_request
from tests.security.documents import DOCUMENTS, MIB, OBJECTS, TOKENS
from tests.security.ear import Ear
from tests.security.plain import plainly_says_yes

#: What an answer may cost at most, whatever it is.
MEMORY = 8 * MIB
DEADLINE = 0.5
#: Seconds that a busy machine may take beyond it; without a deadline each of these would take ten at least.
LENIENT = 4


def send(transport: RequestsTransport, url: str, deadline: float = 20.0, connect: float = 5.0) -> Answer:
    return transport.send(Upload(url, [FieldPart("a", b"{}")]), lambda name: None, deadline, connect)  # type: ignore[arg-type]


# S10 and S11: how much there is of it.


def endlessly(head: bytes, block: bytes, times: int = 1 << 40) -> Callable[[socket.socket, bytearray], None]:
    """A script that hears a request, and answers with a head and the same block again and again."""

    def script(connection: socket.socket, heard: bytearray) -> None:
        read_request(connection)
        connection.sendall(head)
        for _ in range(times):
            connection.sendall(block)

    return script


OK = b"HTTP/1.1 200 OK\r\n"
SPACES = b" " * (1 << 16)
JUNK = random.Random(1).randbytes(1 << 16)


@functools.cache
def zeros(wbits: int = 31, more: int = 0) -> bytes:
    """So many zeros that they would be noticed, packed; and that once more, and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    packed_once = b"".join(packer.compress(bytes(MIB)) for _ in range(32)) + packer.flush()
    return functools.reduce(lambda packed, _: gzip.compress(packed), range(more), packed_once)


#: A frame that declares a terabyte: a magic number, a descriptor, a size, and blocks that repeat one byte 128 KiB long.
ZSTD = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + (b"\x02\x00\x10" + b"\x00") * 2000
#: A window of 16 MiB and a meta-block that says it holds as much; the rest is noise.
BROTLI = b"\x0b\xff\xff\x7f" + JUNK[:1000]


def packed(encoding: str, body: bytes) -> Callable[[socket.socket, bytearray], None]:
    head = OK + f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return endlessly(head + body, b"", 0)


FLOODS: dict[str, Callable[[], Callable[[socket.socket, bytearray], None]]] = {
    "without an end": lambda: endlessly(OK + b"\r\n", SPACES),
    "a gigabyte": lambda: endlessly(OK + b"Content-Length: 1073741824\r\n\r\n", SPACES, 1 << 14),
    "ten thousand headers": lambda: endlessly(OK, b"X-Header: value\r\n" * 10_000, 1),
    "large headers": lambda: endlessly(OK, b"".join(b"X-%d: %s\r\n" % (number, b"v" * 60_000) for number in range(99)), 1),
    "a header without an end": lambda: endlessly(OK + b"X: ", SPACES),
    "a status without an end": lambda: endlessly(b"HTTP/1.1 200 ", SPACES),
    "chunks": lambda: endlessly(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + SPACES + b"\r\n"),
    "one enormous chunk": lambda: endlessly(OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffff\r\n", SPACES),
    "a chunk's size without an end": lambda: endlessly(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * (1 << 16)),
    "an extension without an end": lambda: endlessly(OK + b"Transfer-Encoding: chunked\r\n\r\n1;x=", SPACES),
    "trailers": lambda: endlessly(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X-Trailer: value\r\n" * 5000),
    "gzip": lambda: packed("gzip", zeros()),
    "x-gzip": lambda: packed("X-GZip ", zeros()),
    "deflate": lambda: packed("deflate", zeros(15)),
    "raw deflate": lambda: packed("deflate", zeros(-15)),
    "three layers": lambda: packed("gzip, gzip, gzip", zeros(more=2)),
    "six layers": lambda: packed("gzip, gzip, gzip, gzip, gzip, gzip", zeros(more=5)),
    "a hundred layers": lambda: packed(", ".join(["gzip"] * 100), zeros(more=5)),
    "zstd": lambda: packed("zstd", ZSTD),
    "brotli": lambda: packed("br", BROTLI),
    "an unknown packing": lambda: endlessly(OK + b"Content-Encoding: lzma\r\n\r\n", SPACES),
    "gzip members without an end": lambda: endlessly(OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(bytes(MIB))),
    "empty gzip members without an end": lambda: endlessly(OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"") * 3000),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_no_answer_costs_much_memory_or_more_than_its_deadline(transport: RequestsTransport, flood: str) -> None:
    with Ear(FLOODS[flood]()) as ear:
        tracemalloc.start()
        began = time.monotonic()
        try:
            answer = send(transport, ear.url, deadline=DEADLINE)
        except NoAnswer:
            answer = Answer(0, {}, b"")
        took = time.monotonic() - began
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < MEMORY
    assert took < DEADLINE + LENIENT
    assert len(answer.body) <= ANSWER_LIMIT
    assert payload.believed(answer.body) is None


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "gzip;q=1", "lzma", "identity, gzip"])
def test_what_is_packed_otherwise_than_once_is_left_as_it_came(transport: RequestsTransport, encoding: str) -> None:
    """Whether br and zstd could be unpacked depends on what else is installed; what an answer means must not."""
    body = gzip.compress(gzip.compress(b'{"code":0}')) if encoding.count("gzip") == 2 else gzip.compress(b'{"code":0}')
    with Ear(packed(encoding, body)) as ear:
        answer = send(transport, ear.url)

    assert body == answer.body


# S12: how long it takes, from the first question on.


def took(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


@pytest.fixture
def silent_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A resolver that says nothing before this is set."""
    speak = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        speak.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield speak
    speak.set()
    for thread in threading.enumerate():
        if thread.name == "outbox-resolver":
            thread.join(10)


def test_a_resolver_that_is_silent_is_given_up_at_the_deadline(
    transport: RequestsTransport, silent_resolver: threading.Event
) -> None:
    def ask() -> None:
        with pytest.raises(NotSent, match="not finished within its deadline"):
            send(transport, "http://integration.invalid/", deadline=DEADLINE)

    assert took(ask) < DEADLINE + LENIENT


def test_a_cut_does_not_wait_for_a_resolver(transport: RequestsTransport, silent_resolver: threading.Event) -> None:
    said: list[Exception] = []

    def ask() -> None:
        try:
            send(transport, "http://integration.invalid/")
        except NotSent as error:
            said.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not any(each.name == "outbox-resolver" for each in threading.enumerate()):
        pass
    transport.cut()
    asking.join(5)

    assert ["cut off because the worker stops"] == [str(error) for error in said]


def test_what_a_resolver_says_in_the_end_is_told(transport: RequestsTransport, silent_resolver: threading.Event) -> None:
    silent_resolver.set()

    with pytest.raises(NotSent, match="Temporary failure in name resolution"):
        send(transport, "http://integration.invalid/")


def test_a_host_of_many_addresses_that_swallow_everything_has_one_deadline(
    transport: RequestsTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each address may take the time to connect; all of them together must not."""

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))] * 200

    def swallow(self: socket.socket, _place: Any) -> None:
        pause = threading.Event()
        pause.wait(self.gettimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", swallow)

    def ask() -> None:
        with pytest.raises(NotSent, match="not finished within its deadline"):
            send(transport, "http://integration.invalid:9/", deadline=DEADLINE, connect=0.1)

    assert took(ask) < DEADLINE + LENIENT


# S13: what stands in it.

ENOS = EnosEvents(name="enos", url="https://integration.example", org_id="o1")


def test_there_are_two_hundred_of_them() -> None:
    assert 200 <= len(set(DOCUMENTS))


T = TypeVar("T")


def done(work: Callable[[], T], within: float) -> T:
    """What a piece of work comes to. Of its processor time the least of three counts: rubbish may be collected meanwhile."""
    least = within
    for _ in range(3):
        began = time.thread_time()
        result = work()
        least = min(least, time.thread_time() - began)
        if least < within:
            return result
    raise AssertionError(f"takes more than {within} s")


@pytest.mark.parametrize("status", [200, 500])
def test_every_document_is_judged_at_once_and_without_a_surprise(status: int) -> None:
    for document in DOCUMENTS:
        answer = Answer(status, {}, document[:ANSWER_LIMIT])

        verdict = done(lambda answer=answer: ENOS.judge(answer, batch(), NOW), within=0.05)

        done(lambda verdict=verdict: fit_for_a_row(verdict.facts), within=0.05)
        assert not isinstance(verdict, Delivered) or (status == 200 and plainly_says_yes(document))


class Saying:
    """A transport whose token service says always the same."""

    def __init__(self, said: bytes) -> None:
        self.said = said

    def post_json(self, *_: Any) -> Answer:
        return Answer(200, {"date": "x" * 1000}, self.said)


def token_from(document: bytes) -> str:
    service: Any = Saying(document[:ANSWER_LIMIT])
    try:
        (value,) = Token("https://gateway.example", "key", "secret-of-the-test").headers(service, NOW, 0.0).values()
    except (TransportError, CredentialsRefused) as error:
        return fit_for_a_row(Facts(text=str(error))).text or ""
    return f"given {value}"


def test_no_document_surprises_who_asks_for_a_token() -> None:
    for document in [*DOCUMENTS, *TOKENS]:
        told = done(lambda document=document: token_from(document), within=0.05)

        assert told == "given t" or not told.startswith("given")


def in_an_event(value: Any) -> dict[str, Any]:
    return {"assetId": "a", "time": 1, "events": {"e": {"x": value}}}


def faults_of(message: Any) -> list[Fault]:
    endless = payload.unbounded(message)
    return [endless] if endless else [*payload.faults(message), *ENOS.check(Draft(message, ""))]


def test_no_payload_surprises_the_door() -> None:
    for given in OBJECTS:
        for message in (given, in_an_event(given), {"assetId": given, "time": given, "events": given}):
            faults = done(lambda message=message: faults_of(message), within=0.5)

            assert faults or message == json.loads(payload.text(message))
            assert all(len(fault.text) < 500 for fault in faults)
