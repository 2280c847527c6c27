"""Connections are cut at every place of a request and of its answer: every copy that arrives is explained by an attempt."""

from __future__ import annotations

import os
import random
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

import pytest

from outbox import Outbox, Policy, State, Worker
from tests.factories import an_outbox, column, enos, in_full, outcomes, states
from tests.story.conftest import Hand, Place

BLOCK = 1 << 16
pytestmark = pytest.mark.long
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: More than the sockets between us and the road hold.
BIG = 12_000_000
#: No number of cuts opens the breaker or ends a message.
PATIENT = Policy(breaker_after=100_000, max_unknown=100_000, max_failures=100_000)
FILES = {"photo": b"first file, " * 9, "log": b"second file, " * 9}
BOTH = {"reset": True, "politely": False}


@dataclass(frozen=True)
class Cut:
    """Where a connection ends: after so many bytes of a request, of its answer, or after all of both.

    By reset (RST), else politely (FIN): then what still comes is read and dropped, or with `stall` not even read.
    """

    request: int | None = None
    answer: int | None = None
    reset: bool = True
    stall: bool = False


class RoadEnds(Exception):
    """The connection was cut as told."""


class Road:
    """Leads to a receiver. Each request meets the next cut of `cuts`, or what `chance` gives, or passes."""

    def __init__(self, port: int) -> None:
        self.cuts: deque[Cut] = deque()
        self.chance: Callable[[], Cut | None] = lambda: None
        #: The beginning of the last request, and the last answer, as far as the road went.
        self.request = b""
        self.answer = b""
        self.connections = 0
        #: Set when a connection has been cut and closed.
        self.ended = threading.Event()
        self._port = port
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener = socket.socket()
        # A small window, so that a client which sends much is still sending when the road ends.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Road:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def head(self) -> int:
        """Bytes of the last request before its body."""
        return self.request.index(b"\r\n\r\n") + 4

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=[client], daemon=True)
            self._threads.append(thread)
            self.connections += 1
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as receiver:
            with self._lock:
                self._open |= {client, receiver}
            try:
                while client.recv(1, socket.MSG_PEEK):
                    self._lead(client, receiver, self._next())
            except (OSError, RoadEnds):
                pass
            finally:
                with self._lock:
                    self._open -= {client, receiver}

    def _next(self) -> Cut:
        with self._lock:
            return self.cuts.popleft() if self.cuts else self.chance() or Cut(None, None)

    def _lead(self, client: socket.socket, receiver: socket.socket, cut: Cut) -> None:
        whole = self._request(client, receiver, cut.request)
        if not whole:
            # Whatever passed is heard to its end before the client can try again.
            receiver.shutdown(socket.SHUT_WR)
            drain(receiver)
            self._leave(client, cut)
        self.answer = answer_of(receiver)
        client.sendall(self.answer[: cut.answer])
        if cut.answer is not None:
            self._leave(client, cut)

    def _request(self, client: socket.socket, receiver: socket.socket, most: int | None) -> bool:
        """Pass a request on, at most so many bytes of it; whether that was all of it.

        A head that breaks off is not passed on: the receiver's HTTP library would take it for a whole one.
        """
        seen, passed, length = b"", 0, None
        while length is None or passed < length:
            room = BLOCK if most is None else min(BLOCK, most - passed)
            if room == 0:
                return False
            block = client.recv(room if length is None else min(room, length - passed))
            if not block:
                raise RoadEnds
            passed += len(block)
            if length is not None:
                receiver.sendall(block)
            seen = seen + block if len(seen) < BLOCK else seen
            if length is None and b"\r\n\r\n" in seen:
                receiver.sendall(seen)
                length = length_of(seen)
            self.request = seen
        return True

    def _leave(self, client: socket.socket, cut: Cut) -> None:
        if cut.reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        else:
            client.shutdown(socket.SHUT_WR)
            if cut.stall:
                self._closing.wait()
            else:
                self.ended.set()
                drain(client)
        client.close()
        self.ended.set()
        raise RoadEnds


def drain(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(BLOCK):
            pass


def length_of(message: bytes) -> int:
    """Bytes of an HTTP message, of which the head is here."""
    head, _, _ = message.partition(b"\r\n\r\n")
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    assert found, head
    return len(head) + 4 + int(found[1])


def answer_of(receiver: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer) < length_of(answer):
        block = receiver.recv(BLOCK)
        if not block:
            raise RoadEnds
        answer += block
    return answer


@dataclass(frozen=True)
class Bench:
    """A place, the road from it to its receiver, and a worker whose turns are taken by hand."""

    place: Place
    road: Road
    outbox: Outbox
    hand: Hand

    def enqueue(self, key: str, files: dict[str, bytes] | None = None) -> None:
        self.place.enqueue(self.outbox, key, FILES if files is None else files)

    def turn(self, cut: Cut | None = None) -> None:
        """One upload, after every back-off; it meets the cut."""
        self.place.clock.move(hours=2)
        self.road.cuts.extend([cut] if cut else [])
        self.hand.turn()
        assert not self.road.cuts, "the cut was never met"

    def last(self, key: str) -> str:
        """The outcome of a message's last attempt."""
        return outcomes(self.place.database, key)[-1][0]

    def stored(self, key: str) -> int:
        """Copies that the receiver has."""
        requests = self.place.receiver.requests
        return sum(struct["assetId"] == key for request in requests if request.stored for struct in request.structs)

    def end(self) -> None:
        """One more upload, and everything adds up."""
        self.turn()
        assert {State.DELIVERED} == set(states(self.place.database).values())
        self.place.check()


def make_bench(place: Place, road: Road, policy: Policy = PATIENT) -> Bench:
    outbox = an_outbox(place.url, place.spool, enos(road.url, policy=policy), ambient=place.clock.ambient)
    place._outboxes.append(outbox)
    return Bench(place, road, outbox, place.hand(outbox))


@pytest.fixture
def road(place: Place) -> Iterator[Road]:
    with Road(place.receiver.port) as road:
        yield road


@pytest.fixture
def bench(place: Place, road: Road) -> Bench:
    return make_bench(place, road)


# Every kind of place


def after(words: bytes, more: int = 0, *, last: bool = False) -> Callable[[Road], int]:
    """The place so many bytes after the first or last of these words in a request."""
    return lambda road: (road.request.rindex if last else road.request.index)(words) + len(words) + more


IN_REQUEST: dict[str, Callable[[Road], int]] = {
    "before its first byte": lambda _: 0,
    "in the request line": lambda _: 10,
    "in its headers": lambda road: road.head // 2,
    "before the blank line": lambda road: road.head - 2,
    "in the blank line": lambda road: road.head - 1,
    "after its headers": lambda road: road.head,
    "in the first boundary": lambda road: road.head + 9,
    "in the headers of the message": after(b"Content-Disposi"),
    "after the headers of the message": lambda road: road.request.index(b'{"method"'),
    "in the message": after(b'"params"'),
    "after the message": after(b"}]}"),
    "in the boundary between the parts": after(b"}]}\r\n--", 3),
    "in the headers of the first file": after(b"Content-MD5"),
    "in the first file": after(b"first file, ", 7),
    "between the files": after(b"first file, ", 2, last=True),
    "in the headers of the second file": after(b"Content-MD5", last=True),
    "in the second file": after(b"second file, ", 7),
    "after the second file": after(b"second file, ", last=True),
    "in the closing boundary": lambda road: len(road.request) - 9,
    "before its last byte": lambda road: len(road.request) - 1,
}

IN_ANSWER: dict[str, Callable[[Road], int]] = {
    "before its first byte": lambda _: 0,
    "in the protocol": lambda _: 5,
    "in the status": lambda road: road.answer.index(b"200") + 2,
    "after the status": lambda road: road.answer.index(b"200") + 3,
    "after the status line": lambda road: road.answer.index(b"\r\n") + 2,
    "in the name of a header": lambda road: road.answer.index(b"Content-Length") + 8,
    "before the length": lambda road: road.answer.index(b"Content-Length: ") + 16,
    "in the length": lambda road: road.answer.index(b"Content-Length: ") + 17,
    "after its headers": lambda road: road.answer.index(b"\r\n\r\n") + 4,
    "in its code": lambda road: road.answer.index(b'"code"') + 4,
    "after its code": lambda road: road.answer.index(b'"code":0') + 8,
    "before its last byte": lambda road: len(road.answer) - 1,
}


@pytest.fixture
def measured(bench: Bench) -> Bench:
    """A bench at which message `a` has passed whole: what `b` looks like is known, and so is its place in every list."""
    bench.enqueue("a")
    bench.turn()
    bench.enqueue("b")
    return bench


@pytest.mark.parametrize("where", IN_REQUEST)
def test_a_request_that_is_cut_is_never_delivered_and_never_doubled(measured: Bench, where: str) -> None:
    place = IN_REQUEST[where](measured.road)
    for reset in BOTH.values():
        measured.turn(Cut(request=place, reset=reset))

    assert {"not_sent", "unknown"} >= {each for each, _ in outcomes(measured.place.database, "b")}
    assert 0 == measured.stored("b")
    measured.end()
    assert 1 == measured.stored("b")


@pytest.mark.parametrize("where", IN_ANSWER)
def test_a_request_whose_answer_is_cut_is_unknown(measured: Bench, where: str) -> None:
    place = IN_ANSWER[where](measured.road)
    for reset in BOTH.values():
        measured.turn(Cut(answer=place, reset=reset))

    assert 2 == measured.stored("b")
    assert [("unknown", None)] * 2 == outcomes(measured.place.database, "b")
    measured.end()
    assert 3 == measured.stored("b")


@pytest.mark.parametrize("reset", BOTH.values(), ids=BOTH)
def test_a_connection_that_ends_after_the_last_byte_of_an_answer_costs_nothing(measured: Bench, reset: bool) -> None:
    measured.turn(Cut(answer=len(measured.road.answer), reset=reset))
    delivered = measured.last("b")
    measured.enqueue("c")
    measured.end()

    assert "delivered" == delivered
    assert [1, 1, 1] == [measured.stored(key) for key in "abc"]
    assert 3 == len(measured.place.receiver.requests)


# Every place


@pytest.mark.slow
def test_a_request_is_cut_at_every_place(measured: Bench) -> None:
    """One message, and each of its attempts gets a little further."""
    stride = {"sqlite": in_full(7, 29), "postgresql": 127}[measured.place.engine.url.get_backend_name()]
    places = range(0, len(measured.road.request), stride)
    for number, place in enumerate(places):
        measured.turn(Cut(request=place, reset=number % 2 == 0))

    assert {"not_sent", "unknown"} >= {each for each, _ in outcomes(measured.place.database, "b")}
    assert len(places) == len(outcomes(measured.place.database, "b"))
    assert (State.PENDING, 0) == (column(measured.place.database, "b", "state"), measured.stored("b"))
    measured.end()
    assert 1 == measured.stored("b")


@pytest.mark.slow
def test_an_answer_is_cut_at_every_place(measured: Bench) -> None:
    stride = {"sqlite": 2, "postgresql": 13}[measured.place.engine.url.get_backend_name()]
    places = range(0, len(measured.road.answer), stride)
    # A reset is noticed wherever it comes; a polite end is what looks like the end of an answer.
    cuts = [*(Cut(answer=place, reset=False) for place in places), *(Cut(answer=place) for place in places[::7])]
    for cut in cuts:
        measured.turn(cut)

    known = [cut for cut, (each, _) in zip(cuts, outcomes(measured.place.database, "b"), strict=True) if each != "unknown"]
    assert [] == known
    assert len(cuts) == measured.stored("b")
    measured.end()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_road_that_breaks_anywhere_at_any_time_doubles_nothing_without_an_explanation(
    place: Place, road: Road, seed: int
) -> None:
    dice = random.Random(seed)

    def chance() -> Cut | None:
        if dice.random() < 0.5:
            return None
        reset = dice.random() < 0.5
        if dice.random() < 0.5:
            return Cut(request=dice.randrange(5000), reset=reset)
        return Cut(answer=dice.randrange(170), reset=reset)

    policy = replace(PATIENT, batch_messages=4, backoff_first=0.01, backoff_cap=0.02, probe_first=0.01, probe_cap=0.02)
    outbox = an_outbox(place.url, place.spool, enos(road.url, policy=policy))
    place._outboxes.append(outbox)
    for number in range(40):
        files = {"photo": bytes([number]) * dice.randrange(3000)} if number % 2 else {}
        place.enqueue(outbox, f"m{number}", files, ordering_key=f"s{number % 3}" if number % 4 == 0 else None)
    road.chance = chance

    Worker(outbox, poll=0.02).run(until_idle=True)

    assert {State.DELIVERED} == set(states(place.database).values())
    assert len(place.receiver.requests) > 10
    place.check()


# A connection that is used again


@pytest.mark.parametrize("reset", BOTH.values(), ids=BOTH)
def test_a_server_that_hangs_up_on_an_idle_connection_costs_no_attempt_and_no_copy(bench: Bench, reset: bool) -> None:
    for key in "abcd":
        bench.enqueue(key)
        bench.road.ended.clear()
        bench.turn(Cut(answer=2000, reset=reset))
        assert bench.road.ended.wait(10)

    assert dict.fromkeys("abcd", State.DELIVERED) == states(bench.place.database)
    assert [[("delivered", None)]] * 4 == [outcomes(bench.place.database, key) for key in "abcd"]
    assert (4, 4) == (bench.road.connections, len(bench.place.receiver.requests))
    bench.place.check()


@pytest.mark.parametrize("reset", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("where", ["before its first byte", "in its headers", "after its headers", "in the message"])
def test_a_second_request_that_is_cut_is_no_copy_of_anything(measured: Bench, where: str, reset: bool) -> None:
    """As when a server gives up an idle connection in the very moment that a request comes."""
    connections = measured.road.connections

    measured.turn(Cut(request=IN_REQUEST[where](measured.road), reset=reset))
    again = measured.road.connections
    measured.end()

    assert (1, 1, 2) == (connections, again, measured.road.connections)
    assert [1, 1] == [measured.stored(key) for key in "ab"]
    assert [("delivered", None)] == outcomes(measured.place.database, "a")
    assert 2 == len(outcomes(measured.place.database, "b"))


@pytest.mark.parametrize("reset", BOTH.values(), ids=BOTH)
def test_a_second_request_whose_answer_is_cut_is_unknown_and_the_first_stays_delivered(measured: Bench, reset: bool) -> None:
    measured.turn(Cut(answer=0, reset=reset))
    connections = measured.road.connections
    measured.end()

    assert (1, 2) == (connections, measured.road.connections)
    assert [("delivered", None)] == outcomes(measured.place.database, "a")
    assert [("unknown", None), ("delivered", None)] == outcomes(measured.place.database, "b")
    assert [1, 2] == [measured.stored(key) for key in "ab"]


# Uploads that are larger than what lies between


LARGE_CUTS = {
    "in the first file by reset": Cut(request=BIG // 3),
    "in the second file by reset": Cut(request=BIG + BIG // 3),
    "and then not read any further": Cut(request=BIG // 3, reset=False, stall=True),
}


@pytest.mark.parametrize("cut", LARGE_CUTS.values(), ids=LARGE_CUTS)
def test_a_large_upload_that_is_cut_in_the_middle_is_not_sent(place: Place, road: Road, cut: Cut) -> None:
    bench = make_bench(place, road, replace(PATIENT, send_base=2.0, slowest_rate=100_000_000))
    bench.enqueue("a", {"photo": os.urandom(BIG), "log": os.urandom(BIG)})

    bench.turn(cut)

    assert [("not_sent", None)] == outcomes(place.database, "a")
    assert (State.PENDING, 0, 0) == tuple(column(place.database, "a", name) for name in ("state", "failures", "unknowns"))
    make_bench(place, road).end()  # with as much time as a busy machine needs
    assert [False, True] == [request.stored for request in place.receiver.requests]


def test_a_large_upload_whose_reader_says_goodbye_and_reads_on_is_in_doubt_and_arrives_once(bench: Bench) -> None:
    bench.enqueue("a", {"photo": os.urandom(BIG)})

    bench.turn(Cut(request=BIG // 2, reset=False))

    assert bench.last("a") in ("not_sent", "unknown")
    bench.end()
    assert 1 == bench.stored("a")


@pytest.mark.parametrize("answer", [0, 20, 150])
def test_a_large_upload_whose_answer_is_cut_is_unknown(bench: Bench, answer: int) -> None:
    bench.enqueue("a", {"photo": os.urandom(BIG)})

    bench.turn(Cut(answer=answer))

    assert [("unknown", None)] == outcomes(bench.place.database, "a")
    bench.end()
    assert 2 == bench.stored("a")
