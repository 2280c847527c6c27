"""A connection is cut at every byte, in the clear and over TLS: no answer is believed, no request repeated, no doubt denied."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.errors import NoAnswer, NotSent
from outbox.multipart import FieldPart
from outbox.transport import Answer, RequestsTransport, Upload
from tests.certificates import Authority
from tests.factories import in_full
from tests.pure.recorder import read_request
from tests.road import Cut, Road, dice
from tests.scripted import KEPT_ALIVE, Server

SECRET = b"s3cr3t-t0ken"
UPLOAD_PARTS = [FieldPart("enos-message", b'{"method":"integration.event.post","params":["in the clear"]}')]
#: Bytes by which two TLS connections may differ: a signature has no fixed length.
_GIVE = 8


class Way:
    """A transport, the road and a server at its end that counts the requests it hears whole."""

    def __init__(self, tls: bool, folder: Path) -> None:
        authority = Authority(folder)
        self.heard = 0
        self.server = Server(self._hear, authority.server() if tls else None)
        self.road = Road(self.server.port, tls=tls)
        self.transport = RequestsTransport(ca_file=authority.ca_file)

    def _hear(self, connection: socket.socket) -> None:
        while read_request(connection).endswith(b"--\r\n"):
            self.heard += 1
            connection.sendall(KEPT_ALIVE)

    def send(self, cut: Cut | None = None) -> Answer:
        self.heard = self.road.connections = 0
        self.road.fates.extend([cut] if cut else [])
        upload = Upload(f"{self.road.url}/path", UPLOAD_PARTS, {"apim-accesstoken": SECRET.decode()})
        return self.transport.send(upload, io.BytesIO, 20, 20)

    def lengths(self) -> tuple[int, int]:
        """Bytes of a connection with one request, and of what comes back."""
        assert 200 == self.send().status
        self.transport.close()
        give = _GIVE if self.road.tls else 0
        return len(self.road.request) - give, len(self.road.answer) - give

    def close(self) -> None:
        self.transport.close()
        self.road.close()
        self.server.close()


@pytest.fixture(params=[False, True], ids=["in the clear", "TLS"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    way = Way(request.param, tmp_path)
    yield way
    way.close()


def every(length: int, stride: int) -> range:
    """Places from the first byte to the one before the last; each run begins elsewhere."""
    return range(dice().randrange(stride), length, stride)


def cut_requests(way: Way, stride: int) -> None:
    length, _ = way.lengths()
    for number, place in enumerate(every(length, stride)):
        with pytest.raises((NotSent, NoAnswer)):
            way.send(Cut(request=place, how="close" if number % 2 else "reset"))

        assert (0, 1) == (way.heard, way.road.connections), f"cut after {place} of {length} bytes"
        assert not way.road.tls or SECRET not in way.road.request
    assert 200 == way.send().status


def cut_answers(way: Way, stride: int) -> None:
    _, length = way.lengths()
    for number, place in enumerate(every(length, stride)):
        try:
            way.send(Cut(answer=place, how="close" if number % 2 else "reset"))
        except NoAnswer:
            heard = (0, 1)
        except NotSent:
            # Whoever did not hear it must never have said so of one that was heard whole.
            heard = (0,)
        else:
            pytest.fail(f"an answer that was cut after {place} of {length} bytes was believed")

        assert way.heard in heard, f"cut after {place} of {length} bytes"
        assert 1 == way.road.connections, "a hidden retry is an attempt that nobody wrote down"
    assert 200 == way.send().status


def test_a_request_that_is_cut_anywhere_is_not_heard_and_not_repeated(way: Way) -> None:
    cut_requests(way, 61)


def test_an_answer_that_is_cut_anywhere_is_not_believed_and_its_request_not_repeated(way: Way) -> None:
    cut_answers(way, 61 if way.road.tls else 7)


@pytest.mark.merge
def test_a_request_that_is_cut_at_every_byte_is_not_heard_and_not_repeated(way: Way) -> None:
    cut_requests(way, in_full(1, 3) if way.road.tls else 1)


@pytest.mark.merge
def test_an_answer_that_is_cut_at_every_byte_is_not_believed_and_its_request_not_repeated(way: Way) -> None:
    cut_answers(way, in_full(1, 3) if way.road.tls else 1)
