"""One HTTP request, one answer, within one deadline, whatever the other side does."""

from __future__ import annotations

import gzip
import io
import socket
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from outbox import digests, payload, transport
from outbox.errors import ConfigurationError, FileChanged, FileMissing, NoAnswer, NotSent, SpoolError, TransportError
from outbox.fuses import Fuse, Guard
from outbox.multipart import LARGE_BLOCK, FieldPart, FilePart
from outbox.secret import conceal
from outbox.testing import (
    Behaviour,
    Body,
    Drip,
    EarlyStatus,
    GzipBomb,
    HangUp,
    Hold,
    Receiver,
    Silence,
    SlowRead,
    Status,
    Truncated,
    refused_url,
)
from outbox.transport import ANSWER_LIMIT, Answer, RequestsTransport, Upload
from outbox.verdict import Facts, fit_for_a_row
from tests.pure.making import shelf, spooled
from tests.pure.recorder import Recorder, http, read_request
from tests.road import Pace, Road
from tests.scripted import KEPT_ALIVE, OK, Script, Server, answering, keeping_alive

#: More than the kernels of both sides take without a reader.
LARGE = 64 * 1024 * 1024
SMALL = FieldPart("a", b"{}")
SECRET = "s3cr3t"
#: The deadline's own words, or the socket's, whose patience ends at the same moment.
TOO_LATE = "not finished within its deadline|timed out"
STRUCT = b'{"assetId":"a","time":1579580182824,"events":{"e":{"x":1}}}'
MESSAGE = b'{"method":"integration.event.post","id":"1","version":"1.1","files":{},"params":[' + STRUCT + b"]}"


class Zeros(io.RawIOBase):
    """A large spooled file that takes no room."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        now = min(size, self.left)
        self.left -= now
        return bytes(now)


#: SHA-256 of 64 MiB of zeros.
LARGE_PART = FilePart(
    "f", "zeros", spooled(b"", size=LARGE, sha256="3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351")
)


def open_zeros(_name: str) -> BinaryIO:
    return Zeros(LARGE)  # type: ignore[return-value]


class Client:
    """A transport, and sends with it."""

    def __init__(self, **options: Any) -> None:
        self.transport = RequestsTransport(**options)
        self.pool = ThreadPoolExecutor(4)

    def send(self, url: str, *, large: bool = False, deadline: float = 20.0, connect: float = 5.0, **headers: str) -> Answer:
        parts = [SMALL, LARGE_PART] if large else [FieldPart("enos-message", MESSAGE)]
        return self.transport.send(Upload(url, parts, headers), open_zeros, deadline, connect)

    def to(self, receiver: Receiver, **options: Any) -> Answer:
        return self.send(f"{receiver.url}/connect-service/v2.1/integration?action=postEvent&orgId=o", **options)

    def later(self, *args: Any, **options: Any) -> Future[Answer]:
        return self.pool.submit(self.send, *args, **options)


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.transport.cut()
    client.pool.shutdown()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(check_token=False) as receiver:
        yield receiver


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(script: Script) -> Server:
        made.append(Server(script))
        return made[-1]

    yield start
    for each in made:
        each.close()


def dripping(serve: Callable[..., Server], before: bytes, drop: bytes) -> Server:
    """A server that hears the request, says something, and then lets fall a drop every moment for ever."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(before)
        while not server.stop.wait(0.02):
            connection.sendall(drop)

    server = serve(script)
    return server


def timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


# One request, one answer.


def test_an_answer_is_its_status_headers_and_body(client: Client) -> None:
    with Recorder([http(b'{"code":0}', "201 Created")]) as server:
        answer = client.send(f"{server.url}/p?q=1", token="secret")

    (request,) = server.requests
    assert (201, b'{"code":0}', True, True) == (answer.status, answer.body, answer.whole, answer.sent_whole)
    assert "10" == answer.headers["content-length"]
    assert request.startswith(b"POST /p?q=1 HTTP/1.1\r\n")
    assert b"\r\ntoken: secret\r\n" in request


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "400 Bad", "404 Not Found", "500 Oops", "599 Odd"])
def test_any_final_status_is_an_answer(client: Client, status: str) -> None:
    with Recorder([http(b"", status)]) as server:
        assert int(status[:3]) == client.send(server.url).status


def test_informational_answers_are_passed_over(client: Client) -> None:
    with Recorder([b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK]) as server:
        assert 200 == client.send(server.url).status


def test_an_answer_without_a_length_ends_with_its_connection(client: Client) -> None:
    with Recorder([b'HTTP/1.1 200 OK\r\n\r\n{"code":0}']) as server:
        assert (b'{"code":0}', True) == (client.send(server.url).body, True)


def test_a_small_document_is_posted_as_json(client: Client) -> None:
    with Recorder([OK]) as server:
        answer = client.transport.post_json(f"{server.url}/token", b'{"appKey":"k"}', 10, 5)

    (request,) = server.requests
    assert (200, True) == (answer.status, answer.sent_whole)
    assert request.endswith(b'\r\n\r\n{"appKey":"k"}')
    assert b"\r\nContent-Length: 14\r\n" in request
    assert b"\r\nContent-Type: application/json; charset=utf-8\r\n" in request


@pytest.mark.parametrize("size", [2, 300_000, 2_000_000])
def test_an_upload_may_be_a_json_document(client: Client, size: int) -> None:
    body = b'"' + b"x" * (size - 2) + b'"'
    with Recorder([OK]) as server:
        answer = client.transport.send(Upload(f"{server.url}/hook", headers={"X-A": "1"}, json=body), open_zeros, 20, 5)

    (request,) = server.requests
    head, _, sent = request.partition(b"\r\n\r\n")
    assert (200, True, body) == (answer.status, answer.sent_whole, sent)
    assert {b"content-type: application/json", f"content-length: {size}".encode(), b"x-a: 1"} <= set(
        head.lower().split(b"\r\n")
    )


def test_an_answer_before_the_end_of_a_document_is_known_to_be_early(client: Client, serve: Callable[..., Server]) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(http(b"", "503 Busy"))
        connection.close()

    body = b"1" * 50_000_000
    try:
        answer = client.transport.send(Upload(serve(script).url, json=body), open_zeros, 20, 5)
    except NotSent:
        return  # the other side was gone before its answer was read
    assert (503, False) == (answer.status, answer.sent_whole)


def test_an_upload_is_a_form_or_a_document() -> None:
    with pytest.raises(ValueError, match="not both"):
        Upload("https://x.example", [FieldPart("a", b"")], json=b"{}")
    assert (3, 2) == (Upload("u", [FieldPart("a", b"abc")]).size, Upload("u", json=b"{}").size)


def test_a_large_upload_arrives_and_memory_stays_flat(client: Client, receiver: Receiver) -> None:
    tracemalloc.start()
    answer = client.to(receiver, large=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert answer.sent_whole
    assert receiver.requests[0].wire_bytes > LARGE
    assert peak < 16 * 1024 * 1024


# The deadline is for all of it.


@pytest.mark.parametrize(
    ("before", "drop"),
    [
        (b"", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X-More: yes\r\nX"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"code":0}', b" "),
    ],
    ids=["status", "headers", "one header", "continue", "body", "endless body", "chunks", "one chunk's size", "after success"],
)
def test_an_answer_that_drips_is_not_waited_for_past_the_deadline(
    client: Client, serve: Callable[..., Server], before: bytes, drop: bytes
) -> None:
    server = dripping(serve, before, drop)

    with pytest.raises(NoAnswer):
        client.send(server.url, deadline=0.4)


@pytest.mark.parametrize("behaviour", [Drip(0.05), Silence(), Hold()], ids=repr)
def test_a_receiver_that_dawdles_ends_with_no_answer_in_time(client: Client, receiver: Receiver, behaviour: Behaviour) -> None:
    receiver.misbehave(behaviour)

    def send() -> None:
        with pytest.raises(NoAnswer, match=TOO_LATE):
            client.to(receiver, deadline=0.4)

    assert timed(send) < 5


def test_a_receiver_that_hardly_reads_ends_as_not_sent_in_time(client: Client, receiver: Receiver) -> None:
    receiver.misbehave(SlowRead(10_000))

    def send() -> None:
        with pytest.raises(NotSent, match=TOO_LATE):
            client.to(receiver, large=True, deadline=0.4)

    assert timed(send) < 5


def test_a_receiver_that_reads_nothing_ends_as_not_sent_in_time(client: Client, serve: Callable[..., Server]) -> None:
    server = serve(lambda connection: server.stop.wait(20) and None)

    with pytest.raises(NotSent, match=TOO_LATE):
        client.send(server.url, large=True, deadline=0.4)


def test_a_road_that_is_slow_is_not_taken_for_one_that_is_silent(
    client: Client, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large block takes twice the time that is meant for silence, and all the while some of it goes."""
    pace = Pace(64 * 1024, 0.1)
    patience = LARGE_BLOCK / pace.piece * pace.pause / 2
    content = bytes(LARGE_BLOCK)
    part = FilePart("f", "x", spooled(content))

    def connected(*args: Any) -> socket.socket:
        sock = connect(*args)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, pace.piece)  # else the kernel takes all of it at once
        return sock

    connect = transport._connected
    monkeypatch.setattr(transport, "_connected", connected)
    monkeypatch.setattr(digests, "WORTH_A_THREAD", 0)

    with Road(serve(answering).port, request_pace=pace) as road:
        answer = client.transport.send(Upload(road.url, [part]), shelf({part.file.name: content}), 60, patience)

    assert (200, True) == (answer.status, answer.sent_whole)


def test_no_leave_is_asked_after_the_last_step_of_a_large_block(
    client: Client, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the other side may have all of it: to call that not sent would make a copy that nobody counts."""
    document = bytes(LARGE_BLOCK)
    out = 0

    def send(sock: socket.socket, block: memoryview) -> int:
        nonlocal out
        now = send_some(sock, block[: LARGE_BLOCK // 3])
        out += now
        return now

    def check(_fuse: Fuse) -> None:
        if out == len(document):
            raise TransportError("too late")

    send_some = socket.socket.send
    monkeypatch.setattr(socket.socket, "send", send)
    monkeypatch.setattr(Fuse, "check", check)

    with pytest.raises(NoAnswer, match="too late"):
        client.transport.post_json(serve(answering).url, document, 20, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="a full queue is answered otherwise elsewhere")
def test_a_host_that_does_not_take_the_connection_is_given_up(client: Client) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())

        with pytest.raises(NotSent):
            client.send(f"http://127.0.0.1:{full.getsockname()[1]}", connect=0.3)

        for other in others:
            other.close()


def test_a_slow_file_is_under_the_deadline_too(client: Client, receiver: Receiver) -> None:
    waiting = threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            waiting.wait(0.05)
            return b"x"

    part = FilePart("f", "x", spooled(b"x" * 1000))

    with pytest.raises(NotSent, match=TOO_LATE):
        client.transport.send(Upload(receiver.url, [part]), lambda _: Slow(), 0.3, 5)


def test_the_deadline_of_one_send_is_not_the_next_ones(client: Client, receiver: Receiver) -> None:
    receiver.misbehave(Silence())
    with pytest.raises(NoAnswer):
        client.to(receiver, deadline=0.2)

    assert 200 == client.to(receiver, deadline=20).status


def test_a_short_deadline_is_kept_while_a_long_one_is_watched(client: Client, receiver: Receiver) -> None:
    receiver.misbehave(Hold(), Drip(seconds_per_byte=0.15))
    patient = client.later(client_url(receiver), deadline=60)
    receiver.wait_for(lambda receiver: receiver.held == 1)

    hasty = client.later(client_url(receiver), deadline=0.2)

    assert NoAnswer is type(hasty.exception(5))
    assert not patient.done()


def test_one_thread_watches_over_all_requests(client: Client, receiver: Receiver) -> None:
    receiver.always(Hold())
    before = watchers()
    for _ in range(4):
        client.later(client_url(receiver))

    receiver.wait_for(lambda receiver: receiver.held == 4)

    assert 1 == len(watchers() - before)


def watchers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "outbox-deadlines"}


def test_nobody_is_watched_over_when_nothing_is_under_way(client: Client, receiver: Receiver) -> None:
    before = watchers()
    client.to(receiver, deadline=0.5)

    for thread in watchers() - before:
        thread.join(5)

    assert watchers() <= before
    assert 200 == client.to(receiver).status


def test_what_a_parent_has_under_way_is_not_cut_by_its_child() -> None:
    """The child of a fork has the parent's connections, and not the thread that watches them."""
    guard = Guard()
    parents = Fuse(60, None, proxy_decides=False)
    guard.light(parents)
    watching, guard._thread = guard._thread, threading.Thread()

    guard.cut()

    guard._thread = watching
    assert parents.reason is None


# Redirects.


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["another host", "the same host"])
def test_a_redirect_is_an_answer_and_never_followed(
    client: Client, receiver: Receiver, serve: Callable[..., Server], status: int, where: str
) -> None:
    thief = serve(lambda connection: connection.sendall(OK))
    target = thief.url if where == "another host" else "/connect-service/v2.1/integration"
    receiver.misbehave(Status(status, b"", {"Location": target}))

    answer = client.to(receiver, **{"apim-accesstoken": "secret"})

    assert (status, target) == (answer.status, answer.headers["location"])
    assert 0 == thief.connections
    assert 1 == len(receiver.requests)


# The environment is not asked.


def test_proxies_of_the_environment_are_ignored(client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    assert 200 == client.to(receiver).status


def test_a_proxy_that_was_given_is_used() -> None:
    with Recorder([OK]) as proxy:
        client = Client(proxies={"http": proxy.url})

        assert 200 == client.send("http://integration.invalid/x").status

    assert proxy.requests[0].startswith(b"POST http://integration.invalid/x HTTP/1.1\r\n")


@pytest.mark.parametrize("host", ["127.0.0.1:99999", "[::1", "", ":3128", "127.0.0.1:x"])
def test_a_proxy_that_is_no_address_is_refused_without_a_word_of_its_password(host: str) -> None:
    with pytest.raises(ConfigurationError, match="the proxy for http: expected an address such as") as caught:
        RequestsTransport(proxies={"http": f"http://ada:{SECRET}@{host}"})

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_the_password_of_a_proxy_is_concealed_wherever_it_comes_back() -> None:
    with Recorder([http(b"you are ada:hunter2/secret", "407 No")]) as proxy:
        client = Client(proxies={"http": proxy.url.replace("//", "//ada:hunter2%2Fsecret@")})

        answer = client.send("http://integration.invalid/x")

    basic = next(line for line in proxy.requests[0].decode().split("\r\n") if line.lower().startswith("proxy-auth"))
    assert "you are ada:***" == fit_for_a_row(Facts(text=answer.body.decode())).text
    assert "Basic ***" == conceal(basic.partition(": ")[2])
    assert "http://ada:***@proxy" == conceal("http://ada:hunter2%2Fsecret@proxy")


def test_a_netrc_is_not_read(client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ada password lovelace\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))

    with Recorder([OK, OK]) as server:
        client.send(server.url)
        client.send(server.url, Authorization="Bearer mine")

    first, second = server.requests
    assert b"authorization" not in first.lower()
    assert b"\r\nAuthorization: Bearer mine\r\n" in second


def test_cookies_are_not_kept(client: Client) -> None:
    sets = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with Recorder([sets, OK]) as server:
        client.send(server.url)
        client.send(server.url)

    assert b"cookie" not in server.requests[1].lower()


# What is read of an answer.


@pytest.mark.parametrize(
    ("size", "kept", "whole"), [(ANSWER_LIMIT, ANSWER_LIMIT, True), (ANSWER_LIMIT + 1, ANSWER_LIMIT, False)]
)
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_is_read_up_to_its_limit(
    client: Client, receiver: Receiver, size: int, kept: int, whole: bool, status: int
) -> None:
    receiver.misbehave(Body(b"x" * size, status=status))

    answer = client.to(receiver)

    assert (status, kept, whole) == (answer.status, len(answer.body), answer.whole)


def test_an_endless_answer_is_cut_off_at_once(client: Client, serve: Callable[..., Server]) -> None:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not server.stop.is_set():
            connection.sendall(b"x" * 65536)

    server = serve(script)

    answer = client.send(server.url)

    assert (ANSWER_LIMIT, False) == (len(answer.body), answer.whole)


def test_a_gzip_bomb_does_not_go_off(client: Client, receiver: Receiver) -> None:
    receiver.misbehave(GzipBomb(64))

    tracemalloc.start()
    answer = client.to(receiver)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (ANSWER_LIMIT, False) == (len(answer.body), answer.whole)
    assert peak < 16 * 1024 * 1024


def test_an_honest_gzip_is_unpacked_though_nobody_asked_for_it(client: Client) -> None:
    packed = gzip.compress(b'{"code":0}')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    with Recorder([head.encode() + packed]) as server:
        answer = client.send(server.url)

    assert b'{"code":0}' == answer.body
    assert b"\r\nAccept-Encoding: identity\r\n" in server.requests[0]


ANSWERS_THAT_ARE_NONE = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "garbage": b"\x00\xff\r\n\r\n",
    "half a status": b"HTTP/1.1 2",
    "half the body": b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"code":0}',
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{}",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "a chunk that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n",
    "broken gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    "a hundred thousand headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    "a header that does not end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
}


@pytest.mark.parametrize("said", ANSWERS_THAT_ARE_NONE.values(), ids=ANSWERS_THAT_ARE_NONE)
def test_what_is_no_whole_answer_is_no_answer(client: Client, said: bytes) -> None:
    with Recorder([said]) as server, pytest.raises(NoAnswer) as caught:
        client.send(server.url)

    assert str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 413 Too Large\r\nContent-Length: 20\r\n\r\n{}",
        b"HTTP/1.1 503 Oops\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    ],
    ids=["half the body", "broken gzip"],
)
def test_a_refusal_whose_words_break_off_is_still_a_refusal(client: Client, said: bytes) -> None:
    with Recorder([said]) as server:
        answer = client.send(server.url)

    assert answer.status in (413, 503)
    assert not answer.whole


TEARS = {
    "in its headers": b"HTTP/1.1 200 OK\r\nContent-Le",
    "in a body without a length": b'HTTP/1.1 200 OK\r\n\r\n{"code":0,"msg":"O',
    "in gzip without a length": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b'{"code":0}')[:18],
}


@pytest.mark.parametrize("said", TEARS.values(), ids=TEARS)
def test_a_tear_that_http_cannot_see_is_seen_by_who_judges(client: Client, said: bytes) -> None:
    with Recorder([said]) as server:
        try:
            answer = client.send(server.url)
        except NoAnswer:
            return

    assert payload.believed(answer.body) is None


# Sent or not.


@pytest.mark.parametrize("when", ["before_body", "in_body"])
def test_hung_up_on_before_the_end_of_the_body_it_is_not_sent(client: Client, receiver: Receiver, when: Any) -> None:
    receiver.misbehave(HangUp(when, after_bytes=100_000))

    with pytest.raises(NotSent):
        client.to(receiver, large=True)

    assert 1 == len(receiver.requests)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "behaviour",
    [
        HangUp("after_body"),
        HangUp("after_body", reset=False),
        HangUp("in_answer", after_bytes=5),
        HangUp("in_answer", after_bytes=60, reset=False),
        Truncated(),
    ],
    ids=repr,
)
def test_hung_up_on_after_the_body_its_outcome_is_unknown_and_it_is_not_repeated(
    client: Client, receiver: Receiver, behaviour: Behaviour, large: bool
) -> None:
    receiver.misbehave(behaviour)

    with pytest.raises(NoAnswer):
        client.to(receiver, large=large)

    assert 1 == len(receiver.requests)


def test_nobody_listening_it_is_not_sent(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    for send in (client.send, lambda url: client.transport.post_json(url, b"{}", 5, 5)):
        with pytest.raises(NotSent, match="refused"):
            send(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://", "http://[::1", "nonsense", "http://127.0.0.1:99999/"])
def test_an_address_that_is_none_is_not_sent(client: Client, url: str) -> None:
    with pytest.raises(NotSent):
        client.send(url)


@pytest.mark.parametrize("large", [False, True])
def test_an_early_refusal_is_heard(client: Client, receiver: Receiver, large: bool) -> None:
    receiver.misbehave(EarlyStatus(413, b'{"code":413}', drain=True))

    answer = client.to(receiver, large=large)

    assert (413, b'{"code":413}') == (answer.status, answer.body)


def early(serve: Callable[..., Server], said: bytes) -> Server:
    """Answers after the headers, and reads no more."""

    def script(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(said)
        server.stop.wait(20)

    server = serve(script)
    return server


def test_a_refusal_is_heard_though_the_body_never_went_out(client: Client, serve: Callable[..., Server]) -> None:
    server = early(serve, http(b"", "413 Too Large"))

    answer = client.send(server.url, large=True, deadline=3)

    assert (413, False) == (answer.status, answer.sent_whole)


def test_a_success_that_came_before_the_body_went_out_is_none(client: Client, serve: Callable[..., Server]) -> None:
    server = early(serve, OK)

    try:
        answer = client.send(server.url, large=True, deadline=1)
    except NotSent:
        return
    assert not answer.sent_whole


def test_a_receiver_that_refuses_and_closes_is_heard_or_not_but_never_leaves_doubt(client: Client, receiver: Receiver) -> None:
    for _ in range(5):
        receiver.misbehave(EarlyStatus(413))
        try:
            answer = client.to(receiver, large=True)
        except NotSent:
            continue
        assert (413, False) == (answer.status, answer.sent_whole)


# Files.


@pytest.mark.parametrize(
    ("contents", "error"), [({}, FileMissing), ({f"{1:032x}": b"wrong"}, FileChanged), ({f"{1:032x}": b"rightly"}, FileChanged)]
)
def test_a_file_that_is_not_what_was_enqueued_never_completes_a_request(
    client: Client, receiver: Receiver, contents: dict[str, bytes], error: type[SpoolError]
) -> None:
    part = FilePart("f", "x", spooled(b"right"))

    with pytest.raises(error):
        client.transport.send(Upload(client_url(receiver), [SMALL, part]), shelf(contents), 10, 5)

    receiver.wait_for(lambda receiver: receiver.in_flight == 0 and len(receiver.requests) == 1)
    assert not receiver.requests[0].complete
    assert 200 == client.to(receiver).status


def client_url(receiver: Receiver) -> str:
    return f"{receiver.url}/connect-service/v2.1/integration?action=postEvent&orgId=o"


def test_a_spool_that_fails_says_so_itself(client: Client, receiver: Receiver) -> None:
    def broken(_name: str) -> BinaryIO:
        raise SpoolError("the disk is gone")

    with pytest.raises(SpoolError, match="the disk is gone"):
        client.transport.send(Upload(client_url(receiver), [FilePart("f", "x", spooled(b"x"))]), broken, 10, 5)


# Cutting.


def test_cutting_ends_a_send_that_waits_for_its_answer(client: Client, receiver: Receiver) -> None:
    receiver.misbehave(Hold())
    sending = client.later(client_url(receiver))
    receiver.wait_for(lambda receiver: receiver.held == 1)

    client.transport.cut()

    with pytest.raises(NoAnswer, match="cut off because the worker stops"):
        sending.result(10)


def test_cutting_ends_a_send_in_the_middle_of_its_body(client: Client, receiver: Receiver) -> None:
    receiver.misbehave(SlowRead(10_000))
    sending = client.later(client_url(receiver), large=True)
    receiver.wait_for(lambda receiver: receiver.in_flight == 1)

    client.transport.cut()

    with pytest.raises(NotSent, match="cut off because the worker stops"):
        sending.result(10)


def test_cutting_ends_a_send_in_the_middle_of_an_answer(client: Client, serve: Callable[..., Server]) -> None:
    reached = threading.Event()

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"code":0}')
        reached.set()
        server.stop.wait(20)

    server = serve(script)
    sending = client.later(server.url)
    reached.wait(10)

    client.transport.cut()

    with pytest.raises(NoAnswer, match="cut off"):
        sending.result(10)


def test_cutting_ends_every_send(client: Client, receiver: Receiver) -> None:
    receiver.always(Hold())
    sending = [client.later(client_url(receiver)) for _ in range(4)]
    receiver.wait_for(lambda receiver: receiver.held == 4)

    client.transport.cut()

    assert [NoAnswer] * 4 == [type(each.exception(10)) for each in sending]


def test_nothing_is_begun_after_the_cut(client: Client, receiver: Receiver) -> None:
    client.transport.cut()
    client.transport.cut()

    for send in (client.to, lambda receiver: client.transport.post_json(receiver.token_url, b"{}", 5, 5)):
        with pytest.raises(NotSent, match="not begun because the worker stops"):
            send(receiver)
    assert [] == receiver.requests


def test_what_a_destination_says_goes_before_what_we_say_but_the_form_speaks_for_itself(
    client: Client, serve: Callable[..., Server]
) -> None:
    heads: list[list[bytes]] = []

    def script(connection: socket.socket) -> None:
        while request := read_request(connection):
            heads.append(request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:])
            connection.sendall(KEPT_ALIVE)

    server = serve(script)
    for _ in range(2):
        client.send(server.url, **{"USER-AGENT": "mine", "content-type": "text/plain", "content-LENGTH": "1", "x-trace": "7"})
    client.send(server.url)

    mine, again, plain = ({line.split(b": ")[0].lower(): line.split(b": ")[1] for line in head} for head in heads)
    assert [len(head) for head in heads] == [len(mine), len(again), len(plain)], "no name twice"
    assert (b"mine", b"7") == (mine[b"user-agent"], mine[b"x-trace"]) == (again[b"user-agent"], again[b"x-trace"])
    assert (b"durable-outbox", None) == (plain[b"user-agent"], plain.get(b"x-trace"))
    assert mine[b"content-type"].startswith(b"multipart/form-data; boundary=")
    assert mine[b"content-length"] == plain[b"content-length"]


def test_a_small_request_goes_out_in_one_piece(
    client: Client, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head and body apart would wake its receiver twice."""
    sent: list[bytes] = []
    sendall = socket.socket.sendall

    def seen(sock: socket.socket, data: bytes) -> None:
        sent.append(data)
        sendall(sock, data)

    server = serve(keeping_alive)
    monkeypatch.setattr(socket.socket, "sendall", seen)
    client.send(server.url)

    ours = [data for data in sent if data != KEPT_ALIVE]
    assert [(True, True)] == [(data.startswith(b"POST "), MESSAGE in data) for data in ours]


# Connections are used again, unless they failed.


def test_a_connection_is_used_again(client: Client, serve: Callable[..., Server]) -> None:
    server = serve(keeping_alive)

    for _ in range(5):
        client.send(server.url)
        client.transport.post_json(server.url, b"{}", 5, 5)

    assert 1 == server.connections


def test_each_thread_has_its_own(client: Client, serve: Callable[..., Server]) -> None:
    gate = threading.Barrier(3)

    def script(connection: socket.socket) -> None:
        while read_request(connection):
            gate.wait(10)
            connection.sendall(KEPT_ALIVE)

    server = serve(script)

    for _ in range(3):
        for each in [client.later(server.url) for _ in range(3)]:
            assert 200 == each.result(10).status

    assert 3 <= server.connections <= 4


@pytest.mark.parametrize("reset", [True, False])
def test_a_connection_that_was_closed_after_its_answer_costs_nothing(
    client: Client, serve: Callable[..., Server], reset: bool
) -> None:
    closed = threading.Event()
    heard: list[bytes] = []

    def script(connection: socket.socket) -> None:
        heard.append(read_request(connection))
        connection.sendall(KEPT_ALIVE)
        go_on.wait(10)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
        closed.set()

    server = serve(script)
    for _ in range(5):
        go_on = threading.Event()
        closed.clear()
        answer = client.send(server.url)
        go_on.set()
        closed.wait(10)
        assert 200 == answer.status

    assert (5, 5) == (len(heard), server.connections)


def test_a_receiver_that_tires_of_keep_alive_gets_nothing_twice(client: Client, receiver: Receiver) -> None:
    receiver.always(HangUp("after_answer", reset=False))
    answered = 0

    for _ in range(5):
        with suppress(NotSent, NoAnswer):  # it may hang up in the very moment that we write: then nobody can know
            assert 200 == client.to(receiver).status
            answered += 1

    assert answered > 0
    assert [answered] * 2 == [len(receiver.accepted), len(receiver.requests)]


def test_a_connection_that_failed_is_not_used_again(client: Client, serve: Callable[..., Server]) -> None:
    """Its answer may still come, and must not be taken for the answer to another request."""
    late = threading.Event()

    def script(connection: socket.socket) -> None:
        number = server.connections
        read_request(connection)
        if number == 1:
            late.wait(10)
        connection.sendall(http(str(number).encode()))

    server = serve(script)
    with pytest.raises(NoAnswer):
        client.send(server.url, deadline=0.3)
    late.set()

    assert b"2" == client.send(server.url).body


def test_the_rest_of_a_long_answer_is_not_taken_for_the_next_one(client: Client, serve: Callable[..., Server]) -> None:
    def script(connection: socket.socket) -> None:
        number = server.connections
        while read_request(connection):
            body = b"x" * 10 * ANSWER_LIMIT if number == 1 else b"short"
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    server = serve(script)
    first = client.send(server.url)

    assert not first.whole
    assert b"short" == client.send(server.url).body


def test_a_connection_on_which_a_file_broke_off_is_not_used_again(client: Client, serve: Callable[..., Server]) -> None:
    server = serve(keeping_alive)
    with pytest.raises(FileMissing):
        client.transport.send(Upload(server.url, [FilePart("f", "x", spooled(b"x"))]), shelf({}), 10, 5)

    assert 200 == client.send(server.url).status
    assert 2 == server.connections


def test_what_comes_unasked_is_not_taken_for_an_answer(client: Client, serve: Callable[..., Server]) -> None:
    """A second answer behind the first would be believed of the next request."""
    behind = threading.Event()

    def script(connection: socket.socket) -> None:
        while read_request(connection):
            if behind.is_set():
                connection.sendall(http(b"its own"))
                return
            connection.sendall(KEPT_ALIVE)
            connection.sendall(KEPT_ALIVE)
            behind.set()

    server = serve(script)
    client.send(server.url)
    behind.wait(10)

    assert b"its own" == client.send(server.url).body


# Secrets.


@pytest.mark.parametrize(
    "value",
    ["s3cr3t\nX-Injected: yes", "s3cr3t\r\n", "\ns3cr3t", " s3cr3t", "s3cr3t\x00", "s3cr3t-é-🙂", "s3cr3t\ud800"],
    ids=ascii,
)
def test_a_header_that_cannot_be_sent_is_not_shown(client: Client, receiver: Receiver, value: str) -> None:
    error: BaseException | None = None
    try:
        client.to(receiver, **{"apim-accesstoken": value})
    except NotSent as caught:
        error = caught

    said = "".join(traceback.format_exception(error)) + repr(error)
    assert "s3cr3t" not in said
    assert all("x-injected" not in request.headers for request in receiver.requests)


@pytest.mark.parametrize("behaviour", [HangUp("after_body"), HangUp("before_body"), Silence(), Truncated()], ids=repr)
def test_no_failure_shows_what_was_sent(client: Client, receiver: Receiver, behaviour: Behaviour) -> None:
    receiver.misbehave(behaviour)

    with pytest.raises(TransportError) as caught:
        client.to(receiver, deadline=0.4, **{"apim-accesstoken": SECRET})

    said = "".join(traceback.format_exception(caught.value)) + repr(caught.value.args)
    assert SECRET not in said


def test_it_leaves_no_thread_and_no_descriptor_behind(serve: Callable[..., Server]) -> None:
    server = serve(answering)
    client = Client()
    client.send(server.url)
    threads, descriptors = threading.active_count(), open_descriptors()

    for _ in range(20):
        client.send(server.url)

    for thread in threading.enumerate():
        if thread.name.startswith("Thread-"):  # the server's, one for each connection
            thread.join(0.2)
    assert threading.active_count() <= threads + 1
    assert open_descriptors() <= descriptors + 2


def open_descriptors() -> int:
    """How many files and sockets this process has open, as far as the system tells."""
    told = Path("/proc/self/fd")
    return len(list(told.iterdir())) if told.is_dir() else 0


def test_an_address_that_cannot_be_reached_is_named() -> None:
    url = refused_url()

    with pytest.raises(NotSent, match=rf"Connection refused \({url.removeprefix('http://').rstrip('/')}\)"):
        RequestsTransport().send(Upload(url, [FieldPart("a", b"b")]), io.BytesIO, 5, 5)  # type: ignore[arg-type]
