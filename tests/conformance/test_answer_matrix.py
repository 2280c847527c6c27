"""Every answer through a real socket, one by one: it means what the table says, and nothing else delivers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from outbox.ambient import Ambient
from outbox.destinations import EnosEvents
from outbox.destinations.token import SIGNATURES, Token
from outbox.model import State
from outbox.policy import Policy
from outbox.sending import Sender
from outbox.testing import Receiver
from outbox.transport import RequestsTransport
from outbox.verdict import NotSent, Verdict, fit_for_a_row, settle
from tests.answers import (
    ANSWERS,
    CREDENTIALS,
    DELIVERED,
    REJECTED,
    TOKEN_ANSWERS,
    TOKEN_VALUE,
    TOO_LARGE,
    Cell,
    Given,
    TokenCell,
    meaning_of,
)
from tests.pure.making import NOW, batch, carrying, event
from tests.pure.recorder import read_request
from tests.scripted import Server

BATCH = batch(carrying(1, event()))
NO_FILES: Any = SimpleNamespace(open=None)


class Saying(Server):
    """Hears each request to its end, says what it is to say, and hangs up."""

    def __init__(self) -> None:
        self.said = b""
        self.heard = 0
        super().__init__(self._say)

    def _say(self, connection: socket.socket) -> None:
        self.heard += read_request(connection).endswith(b"--\r\n")
        if hasattr(socket, "TCP_CORK"):  # answer and end in one: nobody takes the connection for one that is kept open
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        connection.sendall(self.said)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


@pytest.fixture(scope="module")
def server() -> Iterator[Saying]:
    server = Saying()
    yield server
    server.close()


@pytest.fixture(scope="module")
def transport() -> Iterator[RequestsTransport]:
    transport = RequestsTransport()
    yield transport
    transport.close()


def sent(server: Saying, transport: RequestsTransport, said: bytes, deadline: float = 20.0) -> Verdict:
    """What becomes of a batch that gets this answer."""
    transport.close()  # a connection that the server is about to end would do, and the request on it would not be heard
    transport.close()  # who answers nonsense hangs up, at any time: the next request shall not meet that
    server.said, server.heard = said, 0
    destination = EnosEvents(
        name="enos",
        url=server.url.removesuffix("/path"),
        org_id="o1",
        allow_plain_http=True,
        policy=Policy(send_base=deadline, connect_timeout=10),
    )
    return Sender(NO_FILES, Ambient(), transport).send(destination, BATCH, lambda: None)


@pytest.mark.parametrize("cell", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_means_what_the_table_says(server: Saying, transport: RequestsTransport, cell: Cell) -> None:
    verdict = sent(server, transport, cell.said)

    assert cell.meaning is meaning_of(verdict)
    assert 1 == server.heard, "a hidden retry is an attempt that nobody wrote down"
    words = replace(verdict.facts, answer=None)  # that is kept as it came
    assert fit_for_a_row(words) == words
    settled = settle(BATCH.messages[0], verdict, 1, Policy(), NOW, 1.0, recovered=False)
    ends = {DELIVERED: State.DELIVERED, REJECTED: State.DEAD, TOO_LARGE: State.DEAD}
    assert (ends.get(cell.meaning, State.PENDING), 0, 0) == (settled.state, settled.failures, settled.unknowns)


# The token service


SECRET = "s3cr3t-0f-the-test"


@pytest.fixture(scope="module")
def thief() -> Iterator[Server]:
    """Would take anything, and gives a token for it."""
    thief = Saying()
    thief.said = TOKEN_ANSWERS["as documented"].said
    yield thief
    thief.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver(check_token=False) as receiver:
        yield receiver


def given(receiver: Receiver, transport: RequestsTransport, token_url: str) -> Verdict:
    """What becomes of a batch whose token comes from there."""
    transport.close()
    token = Token(token_url, app_key="app-key", app_secret=SECRET, allow_plain_http=True)
    destination = EnosEvents(name="enos", url=receiver.url, org_id="o1", token=token, allow_plain_http=True)
    return Sender(NO_FILES, Ambient(), transport).send(destination, BATCH, lambda: None)


@pytest.mark.parametrize("cell", TOKEN_ANSWERS.values(), ids=TOKEN_ANSWERS)
def test_an_answer_of_the_token_service_comes_to_what_the_table_says(
    server: Saying, thief: Server, receiver: Receiver, transport: RequestsTransport, cell: TokenCell
) -> None:
    server.said = cell.said.replace(b"THIEF", thief.url.encode())
    before, uploads = server.connections, receiver.begun

    verdict = given(receiver, transport, server.url.removesuffix("/path"))

    match cell.given:
        case Given.TOKEN:
            assert DELIVERED is meaning_of(verdict)
            assert TOKEN_VALUE == receiver.requests[-1].headers["apim-accesstoken"]
        case Given.REFUSED:
            assert CREDENTIALS is meaning_of(verdict)
        case Given.LATER:
            assert NotSent(verdict.facts, begun=False) == verdict
    asked = SIGNATURES if cell is TOKEN_ANSWERS["always a repetition"] else 1
    assert (asked, 0) == (server.connections - before, thief.connections)
    assert (cell.given is Given.TOKEN) == receiver.begun - uploads, "without a token nothing was begun"
    assert SECRET not in repr(verdict)


@pytest.mark.parametrize("drop", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"x"], ids=["silent", "dripping", "dripping junk"])
def test_a_token_service_that_never_ends_is_given_up(
    receiver: Receiver, transport: RequestsTransport, monkeypatch: pytest.MonkeyPatch, drop: bytes
) -> None:
    monkeypatch.setattr("outbox.destinations.token._DEADLINE", 0.3)
    uploads = receiver.begun

    def script(connection: socket.socket) -> None:
        read_request(connection)
        while not server.stop.wait(0.02):
            connection.sendall(drop)

    server = Server(script)

    verdict = given(receiver, transport, server.url.removesuffix("/path"))
    server.close()

    assert NotSent(verdict.facts, begun=False) == verdict
    assert uploads == receiver.begun
