"""TLS: who cannot prove who they are hear nothing, and the deadline holds from the first byte of the handshake on."""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from outbox.errors import NoAnswer, NotSent
from outbox.multipart import BLOCK, LARGE_BLOCK, FieldPart, FilePart
from outbox.testing import Receiver
from outbox.transport import Answer, RequestsTransport, Upload
from tests.certificates import HOST, Authority
from tests.pure.making import spooled
from tests.pure.recorder import http, read_request
from tests.road import Pace, Road
from tests.scripted import KEPT_ALIVE, OK, Script, Server, answering, keeping_alive, leading_to, proxying

SECRET = "s3cr3t-t0ken"
PAYLOAD = b'{"method":"integration.event.post","params":["in the clear"]}'
TOO_LATE = "not finished within its deadline|timed out"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def serve(authority: Authority) -> Iterator[Callable[..., Server]]:
    """Starts a server that runs a script: with a good certificate, another context, or in the clear with None."""
    made: list[Server] = []

    def start(script: Script, context: ssl.SSLContext | str | None = "good") -> Server:
        made.append(Server(script, authority.server() if isinstance(context, str) else context))
        return made[-1]

    yield start
    for each in made:
        each.close()


class Client:
    """A transport that trusts the authority, and sends with it."""

    def __init__(self, authority: Authority, **options: Any) -> None:
        self.transport = RequestsTransport(ca_file=authority.ca_file, **options)

    def send(self, url: str, deadline: float = 20.0, connect: float = 5.0) -> Answer:
        upload = Upload(url, [FieldPart("enos-message", PAYLOAD)], {"apim-accesstoken": SECRET})
        return self.transport.send(upload, io.BytesIO, deadline, connect)

    def ask(self, url: str) -> Answer:
        return self.transport.post_json(url, b'{"appKey":"%s"}' % SECRET.encode(), 20, 5)


@pytest.fixture
def client(authority: Authority) -> Iterator[Client]:
    client = Client(authority)
    yield client
    client.transport.close()


class Heard:
    """Answers, and notes down every byte that came through TLS."""

    def __init__(self) -> None:
        self.bytes = b""

    def __call__(self, connection: socket.socket) -> None:
        while block := connection.recv(1 << 16):
            self.bytes += block
            if block.endswith(b"--\r\n"):
                connection.sendall(KEPT_ALIVE)


def timed(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


# Servers that must be refused


REFUSED = (
    "expired",
    "not yet valid",
    "another host",
    "another authority",
    "self-signed",
    "old protocols",
    "wants a certificate",
    "wants a certificate, TLS 1.2",
)


@pytest.mark.parametrize("distance", [0.0, 0.03], ids=["near", "far"])
@pytest.mark.parametrize("wrong", REFUSED)
def test_a_server_that_must_be_refused_hears_nothing(
    authority: Authority, client: Client, serve: Callable[..., Server], wrong: str, distance: float
) -> None:
    """From afar its last word comes when all of the request is under way."""
    heard = Heard()
    server = serve(heard, authority.refused[wrong]())

    for send in (client.send, client.ask):
        with Road(server.port, tls=True, answer_pace=Pace(pause=distance)) as road, pytest.raises(NotSent) as caught:
            send(road.url)

        assert str(caught.value)
        assert (1, b"") == (road.connections, heard.bytes)
        assert b"\x16\x03\x01" == road.request[:3], "it began with a handshake"
        assert not any(each in road.request for each in (SECRET.encode(), b"in the clear", b"POST"))


def test_every_server_that_is_refused_is_tried(authority: Authority) -> None:
    assert set(REFUSED) == set(authority.refused)


@pytest.mark.parametrize("wrong", REFUSED[:6])
def test_whoever_does_not_look_is_served_by_them(authority: Authority, serve: Callable[..., Server], wrong: str) -> None:
    """So it is us who refuse."""
    server = serve(answering, authority.refused[wrong]())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")

    with (
        socket.create_connection((HOST, server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as connection,
    ):
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")

        assert OK == connection.recv(1000)


@pytest.mark.parametrize("wrong", ["expired", "not yet valid"])
def test_a_certificate_whose_time_is_not_now_casts_doubt_on_the_clock(
    authority: Authority, client: Client, serve: Callable[..., Server], wrong: str
) -> None:
    """A machine without a battery wakes up in 1970: no certificate is valid yet."""
    with pytest.raises(NotSent, match="this machine's clock"):
        client.send(serve(answering, authority.refused[wrong]()).url)


@pytest.mark.parametrize("wrong", ["another host", "another authority", "self-signed"])
def test_other_certificates_do_not(authority: Authority, client: Client, serve: Callable[..., Server], wrong: str) -> None:
    with pytest.raises(NotSent) as caught:
        client.send(serve(answering, authority.refused[wrong]()).url)

    assert "clock" not in str(caught.value)


def test_without_an_authority_of_ours_its_certificates_count_for_nothing(
    authority: Authority, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(answering)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, authority.ca_file)
    upload = Upload(server.url, [FieldPart("enos-message", PAYLOAD)])

    with pytest.raises(NotSent, match="certificate verify failed"):
        RequestsTransport().send(upload, io.BytesIO, 20, 5)
    assert 1 == server.connections, "a hidden retry is an attempt that nobody wrote down"


@pytest.mark.parametrize("script", ["answers", "hangs up", "is silent"])
def test_a_port_without_tls_hears_a_handshake_and_nothing_in_the_clear(
    client: Client, serve: Callable[..., Server], script: str
) -> None:
    heard: list[bytes] = []

    def plainly(connection: socket.socket) -> None:
        heard.append(connection.recv(1 << 16))
        if script == "answers":
            connection.sendall(http(b"", "400 Bad Request"))
        elif script == "is silent":
            server.stop.wait(20)

    server = serve(plainly, None)

    with pytest.raises(NotSent):
        client.send(server.url.replace("http:", "https:"), deadline=0.3)

    assert 1 == len(heard)
    assert b"\x16\x03\x01" == heard[0][:3]
    assert SECRET.encode() not in heard[0]


# Servers that are what they say


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_authority_that_was_given_is_trusted_and_its_connection_used_again(
    authority: Authority, client: Client, serve: Callable[..., Server], newest: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Path(authority.ca_file).with_name("missing.pem")))
    context = authority.server()
    context.maximum_version = newest
    server = serve(keeping_alive, context)

    for _ in range(3):
        assert [200, 200] == [client.send(server.url).status, client.ask(server.url).status]

    assert 1 == server.connections


def test_a_large_upload_arrives_whole(client: Client, authority: Authority, serve: Callable[..., Server]) -> None:
    with Receiver(check_token=False) as receiver:
        door = serve(leading_to(receiver.port))
        content = bytes(range(256)) * 40_000
        part = FilePart("enos-file", "f", spooled(content), headers={"Content-MD5": spooled(content).md5})
        url = door.url.replace("/path", "/connect-service/v2.1/integration?action=postEvent&orgId=o")

        answer = client.transport.send(Upload(url, [part]), lambda _: io.BytesIO(content), 20, 5)

        assert answer.sent_whole
        assert [spooled(content).sha256] == [each.sha256 for each in receiver.requests[0].files.values()]


@pytest.mark.parametrize("how", ["with a last word", "without", "by reset"])
def test_a_connection_that_was_closed_after_its_answer_costs_nothing(
    client: Client, serve: Callable[..., Server], how: str
) -> None:
    heard, closed = [], threading.Event()

    def script(connection: socket.socket) -> None:
        heard.append(read_request(connection))
        connection.sendall(KEPT_ALIVE)
        go_on.wait(10)
        if how == "with a last word":
            with suppress(OSError):  # it waits for the other side's last word, too
                connection.settimeout(0.001)
                connection.unwrap()  # type: ignore[attr-defined]
        if how == "by reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
        closed.set()

    server = serve(script)
    for _ in range(3):
        go_on = threading.Event()
        closed.clear()
        answer = client.send(server.url)
        go_on.set()
        assert closed.wait(10)
        assert 200 == answer.status

    assert (3, 3) == (len(heard), server.connections)


# The deadline


@pytest.mark.parametrize("ended_by", ["deadline", "cut"])
@pytest.mark.parametrize("drop", [b"", b"\0"], ids=["silent", "dripping"])
def test_a_handshake_ends_when_it_must(client: Client, serve: Callable[..., Server], drop: bytes, ended_by: str) -> None:
    begun = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        begun.set()
        # Much is to come.
        connection.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" if drop else b"")
        while not server.stop.wait(0.02):
            connection.sendall(drop)

    server = serve(script, None)
    if ended_by == "cut":
        threading.Thread(target=lambda: begun.wait(10) and client.transport.cut()).start()

    def send() -> None:
        with pytest.raises(NotSent, match=TOO_LATE if ended_by == "deadline" else "cut off"):
            client.send(server.url.replace("http:", "https:"), deadline=0.3 if ended_by == "deadline" else 20, connect=20)

    assert timed(send) < 5


@pytest.mark.parametrize("ended_by", ["deadline", "cut"])
@pytest.mark.parametrize("reads", [True, False], ids=["no answer", "no reader"])
def test_a_send_ends_when_it_must(client: Client, serve: Callable[..., Server], ended_by: str, reads: bool) -> None:
    reached = threading.Event()

    def script(connection: socket.socket) -> None:
        if reads:
            read_request(connection)
        reached.set()
        server.stop.wait(20)

    server = serve(script)
    if ended_by == "cut":
        threading.Thread(target=lambda: reached.wait(10) and client.transport.cut()).start()
    # More than the kernels of both sides take without a reader.
    large = FilePart("f", "f", spooled(b"", size=64_000_000))
    parts = [FieldPart("enos-message", PAYLOAD)] + ([] if reads else [large])

    def send() -> None:
        words = TOO_LATE if ended_by == "deadline" else "cut off"
        with pytest.raises(NoAnswer if reads else NotSent, match=words):
            client.transport.send(
                Upload(server.url, parts), lambda _: io.BytesIO(bytes(64_000_000)), 0.5 if ended_by == "deadline" else 20, 20
            )

    assert timed(send) < 5


def test_an_answer_that_drips_is_not_waited_for(client: Client, serve: Callable[..., Server]) -> None:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        road.answer_pace = Pace(2, 0.05)
        connection.sendall(KEPT_ALIVE)

    server = serve(script)
    with Road(server.port, tls=True) as road:

        def send() -> None:
            with pytest.raises(NoAnswer, match=TOO_LATE):
                client.send(road.url, deadline=0.5)

        assert timed(send) < 5


# Through a proxy


@pytest.fixture
def proxy(serve: Callable[..., Server]) -> Server:
    return serve(proxying, None)


def test_a_proxy_is_no_party_to_it(authority: Authority, serve: Callable[..., Server], proxy: Server) -> None:
    server = serve(keeping_alive)
    with Road(proxy.port) as road:
        client = Client(authority, proxies={"https": road.url})

        assert [200] * 3 == [client.send(server.url).status for _ in range(3)]

        assert (1, 1) == (road.connections, server.connections)
        client.transport.close()
    assert SECRET.encode() not in road.request


@pytest.mark.parametrize("wrong", ["expired", "another host", "another authority", "self-signed"])
def test_behind_a_proxy_a_server_is_refused_all_the_same(
    authority: Authority, serve: Callable[..., Server], proxy: Server, wrong: str
) -> None:
    heard = Heard()
    server = serve(heard, authority.refused[wrong]())

    with pytest.raises(NotSent, match="certificate verify failed"):
        Client(authority, proxies={"https": proxy.url.removesuffix("/path")}).send(server.url)

    assert (1, b"") == (server.connections, heard.bytes)


@pytest.mark.parametrize(
    "answer", [http(b"", "403 Forbidden"), http(b"", "407 Log In"), http(b'{"code":0}'), b"", b"garbage\r\n\r\n"]
)
def test_a_proxy_that_does_not_let_us_through_is_not_sent(
    authority: Authority, serve: Callable[..., Server], answer: bytes
) -> None:
    heard: list[bytes] = []

    def script(connection: socket.socket) -> None:
        heard.append(read_request(connection))
        connection.sendall(answer)
        if answer:  # else it hangs up
            heard.append(connection.recv(1 << 16))

    proxy = serve(script, None)

    with pytest.raises(NotSent):
        Client(authority, proxies={"https": proxy.url}).send("https://integration.invalid/")

    assert not any(SECRET.encode() in each for each in heard)


def test_a_proxy_that_never_answers_is_given_up_in_time(authority: Authority, serve: Callable[..., Server]) -> None:
    proxy = serve(lambda connection: proxy.stop.wait(20) and None, None)

    def send() -> None:
        with pytest.raises(NotSent, match=TOO_LATE):
            Client(authority, proxies={"https": proxy.url}).send("https://integration.invalid/", deadline=0.3, connect=20)

    assert timed(send) < 5


def test_a_large_block_goes_in_steps_that_a_slow_road_takes_in_time(
    client: Client, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TLS socket takes all that it is given, within the time that is meant for silence."""
    steps: list[int] = []

    def send(sock: ssl.SSLSocket, data: memoryview, flags: int = 0) -> int:
        steps.append(len(data))
        return send_all(sock, data, flags)

    send_all = ssl.SSLSocket.send
    monkeypatch.setattr(ssl.SSLSocket, "send", send)

    answer = client.transport.post_json(serve(answering).url, bytes(LARGE_BLOCK), 20, 5)

    assert (200, True) == (answer.status, answer.sent_whole)
    assert LARGE_BLOCK <= sum(steps)
    assert max(steps) <= BLOCK
