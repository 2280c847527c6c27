"""A receiver misbehaves in every way there is: each message ends as it should, and nobody else's has to wait."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, State, Token, Worker
from outbox.model import Reason
from outbox.tables import message
from outbox.testing import Behaviour, Drip, Hold, Receiver, Silence, Status
from tests.answers import ANSWERS, DELIVERED, REJECTED, TOO_LARGE, UNKNOWN
from tests.factories import an_outbox, column, deliveries, enos, event, in_full, outcomes, reasons, states
from tests.road import AT_ONCE, Pace, Road, Says, dice
from tests.story.conftest import Place, eventually
from tests.story.roadside import make_bench


@pytest.fixture
def road(place: Place) -> Iterator[Road]:
    with Road(place.receiver.port) as road:
        yield road


# Whatever it says


OUTCOMES = {DELIVERED: "delivered", REJECTED: "reject", TOO_LARGE: "reject", UNKNOWN: "unknown"}


@pytest.mark.long
def test_every_answer_is_recorded_as_what_it_means(place: Place, road: Road) -> None:
    """Somebody on the way says it: what the receiver would have said is kept back. Then the way is clear again."""
    bench = make_bench(place, road)
    stride = in_full(1, 3)  # in brief a third of them, each time another one
    cells = dict(list(ANSWERS.items())[dice().randrange(stride) :: stride])
    for name, cell in cells.items():
        bench.enqueue(name, {})
        if cell.meaning not in (DELIVERED, UNKNOWN):
            place.receiver.misbehave(Status(503))  # who says no has not taken it
        bench.turn(Says(cell.said))
        bench.turn()

    first = {name: outcomes(place.database, name)[0][0] for name in cells}
    assert {name: OUTCOMES.get(cell.meaning, "retry") for name, cell in cells.items()} == first
    dead = {name: cell.meaning for name, cell in cells.items() if cell.meaning in (REJECTED, TOO_LARGE)}
    assert {name: Reason[meaning.name] for name, meaning in dead.items()} == reasons(place.database)
    assert {State.DELIVERED} == {state for name, state in states(place.database).items() if name not in dead}
    assert [] == charged(place)
    place.check()


def charged(place: Place) -> list[str]:
    """Messages against which something counts."""
    with place.database.read() as connection:
        statement = sa.select(message.c.key).where((message.c.failures > 0) | (message.c.unknowns > 0))
        return list(connection.execute(statement).scalars())


# When it wants to be left alone


#: What it says, and for how long it is left alone; at least as long as it would be without having said anything.
WAITS = {
    "in seconds": ("7", 7.0),
    "in no seconds": ("0", 5.0),
    "with blanks": (" 40 ", 40.0),
    "for an hour": ("3600", 900.0),
    "for ever": ("9" * 40, 900.0),
    "until a date": (timedelta(seconds=90), 90.0),
    "until a day far away": (timedelta(days=4000), 900.0),
    "until a moment ago": (timedelta(seconds=-1), 5.0),
    "until long ago": (timedelta(days=-20_000), 5.0),
    "until a date that is none": ("Wed, 99 Foo 2026 77:00:00 GMT", None),
    "for less than nothing": ("-5", None),
    "for a part of a second": ("0.5", None),
    "for a while": ("soon", None),
    "and does not say for how long": ("", None),
}


def test_the_destination_waits_as_it_was_asked_and_never_a_message(place: Place) -> None:
    hand = place.hand(place.outbox(Policy(ramp_until=1), clock=place.clock))  # once it is well it is well
    waited = {}
    for number, (name, (said, _)) in enumerate(WAITS.items()):
        value = said if isinstance(said, str) else format_datetime(place.clock.wall + said, usegmt=True)
        place.receiver.misbehave(Status((429, 503)[number % 2], headers={"Retry-After": value}))
        place.enqueue(hand.outbox, name)
        due_at = column(place.database, name, "due_at")
        hand.turn()

        until = hand.breaker().open_until
        waited[name] = None if until is None else (until - place.clock.wall).total_seconds()
        assert (State.PENDING, due_at, 0) == tuple(
            column(place.database, name, each) for each in ("state", "due_at", "failures")
        )
        place.clock.move(hours=1)
        hand.turn()

    assert {name: wait for name, (_, wait) in WAITS.items()} == waited
    assert {State.DELIVERED} == set(states(place.database).values())
    place.check()


# When it is slow


def reads_slowly(road: Road, receiver: Receiver) -> None:
    road.request_pace = Pace(1, 1.0)


def behaves(behaviour: Behaviour) -> Any:
    return lambda _road, receiver: receiver.break_on(lambda struct: struct["assetId"].startswith("slow"), behaviour)


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(reads_slowly, id="reads a byte a second", marks=pytest.mark.long),
        pytest.param(behaves(Silence()), id="never answers"),
        pytest.param(behaves(Hold()), id="holds its answers back", marks=pytest.mark.long),
        pytest.param(behaves(Drip(5.0)), id="drips", marks=pytest.mark.long),
    ],
)
def test_a_destination_that_is_slow_holds_up_no_other(place: Place, road: Road, begin: Any) -> None:
    """Both are served by one worker; to the slow one everything goes by the road."""
    policy = Policy(batch_messages=1, senders=2, send_base=60.0)
    slow = enos(road.url, "slow", policy)
    outbox = an_outbox(place.url, place.spool, enos(place.receiver.url), slow)
    place._outboxes.append(outbox)
    begin(road, place.receiver)
    enqueue_slow(place, outbox, 3)

    with Worker(outbox, poll=0.05, stop_grace=0.1):
        busy(road)
        for number in range(8):
            place.enqueue(outbox, f"quick-{number}")
        place.receiver.wait_for(lambda receiver: accepted(receiver, "quick") == 8, 30)
        assert 0 == accepted(place.receiver, "slow")
    place.receiver.never()
    place.receiver.release()
    road.request_pace = AT_ONCE
    Worker(outbox, poll=0.05).run(until_idle=True)

    assert {State.DELIVERED} == set(states(place.database).values())
    place.check()


def enqueue_slow(place: Place, outbox: Outbox, number: int) -> None:
    for each in range(number):
        with place.engine.begin() as connection:
            outbox.enqueue(connection, "slow", event(f"slow-{each}"), key=f"slow-{each}")
        place.acknowledge(f"slow-{each}", None)


def busy(road: Road) -> None:
    """Wait until every sender of the slow destination is on its way."""
    eventually(lambda: road.connections >= 2)


def accepted(receiver: Receiver, beginning: str) -> int:
    return sum(each.struct["assetId"].startswith(beginning) for each in receiver.accepted)


# When its name is not known


class Resolver:
    """Knows one name; says of it what it is told to say, one after the other, and the last for ever."""

    NAME = "enos.example"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.says: list[OSError | list[int]] = []
        self._honest = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._asked)

    def _asked(self, host: str, port: int, *more: Any, **named: Any) -> list[Any]:
        if host != self.NAME:
            return self._honest(host, port, *more, **named)
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, OSError):
            raise said
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", each)) for each in said]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


UNKNOWN_NAMES = {
    "NXDOMAIN": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "SERVFAIL": socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    "no address": socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"),
    "a broken resolver": OSError(5, "Input/output error"),
}


def test_while_its_name_is_not_known_nothing_is_charged(place: Place, resolver: Resolver) -> None:
    """Neither to a message that others overtake, nor at the probes; and when it is known again, everything arrives."""
    policy = Policy(max_failures=1, max_unknown=1, on_unknown="dead")
    hand = place.hand(named(place, policy))
    place.enqueue(hand.outbox, "before")
    resolver.says = [[place.receiver.port]]
    hand.turn()
    hand.transport.close()
    place.enqueue(hand.outbox, "a", {"photo": b"bytes"})
    place.enqueue(hand.outbox, "b")

    told = {}
    for name, error in UNKNOWN_NAMES.items():
        resolver.says = [error]
        for _ in range(3):
            hand.turn()
            place.clock.move(hours=1)
        told[name] = deliveries(place.database)[-1]
    resolver.says = [[place.receiver.port]]
    hand.turn_while_it_moves()

    assert {"not_sent"} == {each.outcome for each in told.values()}
    assert [] == [name for name, each in told.items() if str(UNKNOWN_NAMES[name].strerror) not in (each.text or "")]
    assert [] == charged(place)
    assert {State.DELIVERED} == set(states(place.database).values())
    assert 3 == len(place.receiver.accepted) == sum(each.stored * len(each.structs) for each in place.receiver.requests)
    place.check()


def test_a_name_that_leads_elsewhere_now_is_followed_there(place: Place, resolver: Resolver) -> None:
    """First to a port where nobody is, then to that and the right one, then only to the right one."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()[1]
    resolver.says = [[nobody], [nobody, place.receiver.port], [place.receiver.port]]
    hand = place.hand(named(place))
    for key in "abc":
        place.enqueue(hand.outbox, key)
        hand.turn()
        hand.transport.close()
        place.clock.move(hours=1)
    hand.turn_while_it_moves()

    assert {State.DELIVERED} == set(states(place.database).values())
    assert [("not_sent", None), ("delivered", None)] == outcomes(place.database, "a")
    assert [[("delivered", None)]] * 2 == [outcomes(place.database, key) for key in "bc"]
    place.check()


def named(place: Place, policy: Policy | None = None) -> Outbox:
    """An outbox whose destination has a name."""
    url = f"http://{Resolver.NAME}:9"
    outbox = an_outbox(place.url, place.spool, enos(url, policy=policy), ambient=place.clock.ambient)
    place._outboxes.append(outbox)
    return outbox


# When its tokens end all the time


@pytest.mark.full
def test_many_senders_ask_for_one_token_each_time_one_ends(database_url: str, tmp_path: Any) -> None:
    messages, ends = in_full(10_000, 1000), 50
    with Receiver(app_secret="s3cr3t") as receiver:
        place = Place(database_url, tmp_path, receiver)
        token = Token(receiver.token_url, "app-key", "s3cr3t", allow_plain_http=True)
        outbox = place.outbox(Policy(batch_messages=5, senders=8), token=token)
        with place.engine.begin() as connection:
            for number in range(messages):
                outbox.enqueue(connection, "enos", event(f"m{number}"), key=f"m{number}")
        for number in range(messages):
            place.acknowledge(f"m{number}", None)

        with Worker(outbox, poll=0.02):
            for number in range(1, ends + 1):
                wanted = number * messages // (ends + 1)
                receiver.wait_for(lambda receiver, wanted=wanted: len(receiver.accepted) >= wanted, 60)
                receiver.expire_tokens()
            receiver.wait_for(lambda receiver: len(receiver.accepted) >= messages, 60)
            eventually(lambda: {State.DELIVERED} == set(states(place.database).values()))

        assert [] == charged(place)
        asked = dict(receiver.token_requests)
        # The first token; and each time one ends a refresh, which may be refused, and then another one.
        assert asked["refresh"] <= ends
        assert asked["get"] <= 1 + ends
        place.check()
        place.close()
