"""Connections are cut at every place of a request and of its answer: every copy that arrives is explained by an attempt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest

from outbox import State, Worker
from tests.factories import an_outbox, column, enos, in_full, outcomes, states
from tests.road import Cut, Fate, Road, dice
from tests.story.conftest import Place
from tests.story.roadside import PATIENT, Bench, make_bench

#: More than the sockets between us and the road hold.
BIG = 12_000_000


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


def test_a_request_that_is_cut_is_never_delivered_and_never_doubled(measured: Bench) -> None:
    """One message, and each of its attempts gets a little further."""
    cuts = both_ways(where(measured.road) for where in IN_REQUEST.values())
    for place, how in cuts:
        measured.turn(Cut(request=place, how=how))

    assert {"not_sent", "unknown"} >= {each for each, _ in outcomes(measured.place.database, "b")}
    assert (len(cuts), 0) == (len(outcomes(measured.place.database, "b")), measured.stored("b"))
    measured.end()
    assert 1 == measured.stored("b")


def test_a_request_whose_answer_is_cut_is_unknown(measured: Bench) -> None:
    cuts = both_ways(where(measured.road) for where in IN_ANSWER.values())
    for place, how in cuts:
        measured.turn(Cut(answer=place, how=how))

    assert [("unknown", None)] * len(cuts) == outcomes(measured.place.database, "b")
    assert len(cuts) == measured.stored("b")
    measured.end()


def both_ways(places: Iterable[int]) -> list[tuple[int, Any]]:
    """By reset and by a polite end: in full each place both ways, in brief in turns."""
    ways = cycle(["reset", "close"])
    return [(place, next(ways)) for place in places for _ in range(in_full(2, 1))]


def test_a_connection_that_ends_after_the_last_byte_of_an_answer_costs_nothing(measured: Bench) -> None:
    whole = len(measured.road.answer)
    measured.turn(Cut(answer=whole))
    measured.enqueue("c")
    measured.turn(Cut(answer=whole, how="close"))
    measured.enqueue("d")
    measured.end()

    assert [[("delivered", None)]] * 4 == [outcomes(measured.place.database, key) for key in "abcd"]
    assert 4 == len(measured.place.receiver.requests)


# Every place


@pytest.mark.long
def test_a_request_is_cut_at_every_place(measured: Bench) -> None:
    stride = {"sqlite": in_full(7, 61), "postgresql": 127}[measured.place.engine.url.get_backend_name()]
    places = range(dice().randrange(stride), len(measured.road.request), stride)
    for number, place in enumerate(places):
        measured.turn(Cut(request=place, how="close" if number % 2 else "reset"))

    assert {"not_sent", "unknown"} >= {each for each, _ in outcomes(measured.place.database, "b")}
    assert len(places) == len(outcomes(measured.place.database, "b"))
    assert (State.PENDING, 0) == (column(measured.place.database, "b", "state"), measured.stored("b"))
    measured.end()
    assert 1 == measured.stored("b")


@pytest.mark.long
def test_an_answer_is_cut_at_every_place(measured: Bench) -> None:
    stride = {"sqlite": in_full(2, 5), "postgresql": 13}[measured.place.engine.url.get_backend_name()]
    places = range(dice().randrange(stride), len(measured.road.answer), stride)
    # A reset is noticed wherever it comes; a polite end is what looks like the end of an answer.
    cuts = [*(Cut(answer=place, how="close") for place in places), *(Cut(answer=place) for place in places[::7])]
    for cut in cuts:
        measured.turn(cut)

    known = [cut for cut, (each, _) in zip(cuts, outcomes(measured.place.database, "b"), strict=True) if each != "unknown"]
    assert [] == known
    assert len(cuts) == measured.stored("b")
    measured.end()


@pytest.mark.long
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_road_that_breaks_anywhere_at_any_time_doubles_nothing_without_an_explanation(
    place: Place, road: Road, number: int
) -> None:
    chance = dice(number)

    def fate() -> Fate:
        if chance.random() < 0.5:
            return None
        # One that only stalls is noticed when its time is over, so there are few of these.
        how = chance.choices(["reset", "close", "stall"], [12, 12, 1])[0]
        if chance.random() < 0.5:
            return Cut(request=chance.randrange(5000), how=how)
        return Cut(answer=chance.randrange(170), how=how)

    waits = {"backoff_first": 0.01, "backoff_cap": 0.02, "probe_first": 0.01, "probe_cap": 0.02, "send_base": 0.5}
    outbox = an_outbox(place.url, place.spool, enos(road.url, policy=replace(PATIENT, batch_messages=4, **waits)))
    place._outboxes.append(outbox)
    for each in range(40):
        files = {"photo": bytes([each]) * chance.randrange(3000)} if each % 2 else {}
        place.enqueue(outbox, f"m{each}", files, ordering_key=f"s{each % 3}" if each % 4 == 0 else None)
    road.chance = fate

    Worker(outbox, poll=0.02).run(until_idle=True)

    assert {State.DELIVERED} == set(states(place.database).values())
    assert len(place.receiver.requests) > 10
    place.check()


# A connection that is used again


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_server_that_hangs_up_on_an_idle_connection_costs_no_attempt_and_no_copy(measured: Bench, how: Any) -> None:
    whole = len(measured.road.answer)
    for key, following in ("bc", "cd", "de"):
        measured.road.ended.clear()
        measured.turn(Cut(answer=whole, how=how))
        assert measured.road.ended.wait(10)
        measured.enqueue(following)
        assert "delivered" == measured.last(key)
    measured.end()

    assert [[("delivered", None)]] * 5 == [outcomes(measured.place.database, key) for key in "abcde"]
    # The first one was kept, and cut in its second answer.
    assert (4, 5) == (measured.road.connections, len(measured.place.receiver.requests))


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_second_request_that_is_cut_is_no_copy_of_anything(measured: Bench, how: Any) -> None:
    """As when a server gives up an idle connection in the very moment that a request comes."""
    places = ["before its first byte", "in its headers", "after its headers", "in the message"]
    cuts = [IN_REQUEST[where](measured.road) for where in places]
    for number, cut in enumerate(cuts):
        connections = measured.road.connections
        measured.turn(Cut(request=cut, how=how))
        again = measured.road.connections
        measured.turn()
        assert (1 + number, 1 + number, 2 + number) == (connections, again, measured.road.connections)
        measured.enqueue("cdef"[number])
    measured.end()

    assert [1] * 6 == [measured.stored(key) for key in "abcdef"]
    assert [("delivered", None)] == outcomes(measured.place.database, "a")
    assert [2] * 4 == [len(outcomes(measured.place.database, key)) for key in "bcde"]


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_second_request_whose_answer_is_cut_is_unknown_and_the_first_stays_delivered(measured: Bench, how: Any) -> None:
    measured.turn(Cut(answer=0, how=how))
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
    "and then not read any further": Cut(request=BIG // 3, how="stall"),
}


@pytest.mark.long
@pytest.mark.parametrize("cut", LARGE_CUTS.values(), ids=LARGE_CUTS)
def test_a_large_upload_that_is_cut_in_the_middle_is_not_sent(place: Place, road: Road, cut: Cut) -> None:
    bench = make_bench(place, road, replace(PATIENT, send_base=2.0, slowest_rate=100_000_000))
    bench.enqueue("a", {"photo": os.urandom(BIG), "log": os.urandom(BIG)})

    bench.turn(cut)

    assert [("not_sent", None)] == outcomes(place.database, "a")
    assert (State.PENDING, 0, 0) == tuple(column(place.database, "a", name) for name in ("state", "failures", "unknowns"))
    make_bench(place, road).end()  # with as much time as a busy machine needs
    assert [False, True] == [request.stored for request in place.receiver.requests]


@pytest.mark.long
def test_a_large_upload_whose_reader_says_goodbye_and_reads_on_is_in_doubt_and_arrives_once(bench: Bench) -> None:
    bench.enqueue("a", {"photo": os.urandom(BIG)})

    bench.turn(Cut(request=BIG // 2, how="close"))

    assert bench.last("a") in ("not_sent", "unknown")
    bench.end()
    assert 1 == bench.stored("a")


@pytest.mark.long
def test_a_large_upload_whose_answer_is_cut_is_unknown(bench: Bench) -> None:
    bench.enqueue("a", {"photo": os.urandom(BIG)})

    for answer in (0, 20, 150):
        bench.turn(Cut(answer=answer))

    assert [("unknown", None)] * 3 == outcomes(bench.place.database, "a")
    bench.end()
    assert 4 == bench.stored("a")
