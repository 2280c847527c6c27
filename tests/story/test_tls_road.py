"""Over TLS: a server that must be refused costs nothing and hears nothing, and every copy that arrives is explained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from outbox import Policy, State, Token, Worker
from outbox.testing import Receiver
from outbox.transport import RequestsTransport
from tests.certificates import Authority
from tests.factories import an_outbox, column, enos, outcomes, states
from tests.road import Cut, Fate, Road, dice
from tests.scripted import Server, leading_to, proxying
from tests.story.conftest import Place
from tests.story.roadside import PATIENT, make_bench

SECRET = "s3cr3t-0f-the-test"
#: Where every failure that counts, and every doubt, would be a message's last.
STRICT = Policy(max_failures=1, max_unknown=1, on_unknown="dead", batch_messages=2)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(check_token=False, app_secret=SECRET) as receiver:
        yield receiver


@pytest.fixture
def door(receiver: Receiver, authority: Authority) -> Iterator[Server]:
    """Leads to the receiver: TLS ends here."""
    door = Server(leading_to(receiver.port), authority.server())
    yield door
    door.close()


@pytest.mark.parametrize(
    "guarded", [pytest.param(False, id="no token"), pytest.param(True, id="with a token", marks=pytest.mark.long)]
)
def test_servers_that_must_be_refused_cost_nothing_and_hear_nothing(
    place: Place, door: Server, authority: Authority, guarded: bool
) -> None:
    with Road(door.port, tls=True) as road:
        token = Token(road.url, "app-key", SECRET) if guarded else None
        bench = make_bench(place, road, STRICT, ca_file=authority.ca_file, token=token)
        bench.enqueue("before")
        bench.turn()
        bench.hand.transport.close()
        for key in "abc":
            bench.enqueue(key)
        if token:
            bench.place.receiver.expire_tokens()
            bench.place.clock.move(hours=3)
        begun, asked, seen = place.receiver.begun, place.receiver.token_requests.total(), b""

        for make in authority.refused.values():
            door.context = make()
            bench.turn()
            seen += road.request

        assert (begun, asked) == (place.receiver.begun, place.receiver.token_requests.total())
        assert len(authority.refused) == len(door.refused)
        tried = [each for key in "abc" for each, _ in outcomes(place.database, key)]
        assert len(tried) >= len(authority.refused)
        assert {"not_sent"} == set(tried)
        counters = ("state", "failures", "unknowns")
        assert {(State.PENDING, 0, 0)} == {tuple(column(place.database, key, each) for each in counters) for key in "abc"}
        assert not any(each in seen for each in (b"POST", b"enos-message", SECRET.encode(), b"first file"))
        door.context = authority.server()
        bench.turn()
        bench.turn()
        bench.end()
        bench.hand.transport.close()


@pytest.mark.long
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.full)])
@pytest.mark.parametrize("way", ["direct", "through a proxy"])
def test_a_road_that_breaks_anywhere_doubles_nothing_without_an_explanation(
    place: Place, door: Server, authority: Authority, way: str, number: int
) -> None:
    chance = dice(number)

    def fate() -> Fate:
        # A connection brings a few requests before it ends.
        how = chance.choices(["reset", "close", "stall"], [12, 12, 1])[0]
        if chance.random() < 0.5:
            return Cut(request=chance.randrange(30_000), how=how)
        return Cut(answer=chance.randrange(4000), how=how)

    with ExitStack() as stack:
        proxy = Server(proxying)
        stack.callback(proxy.close)
        road = stack.enter_context(Road(door.port if way == "direct" else proxy.port, tls=True))
        road.chance = fate
        proxies = {} if way == "direct" else {"https": road.url.replace("https:", "http:")}
        waits = {"backoff_first": 0.01, "backoff_cap": 0.02, "probe_first": 0.01, "probe_cap": 0.02, "send_base": 1.0}
        url = road.url if way == "direct" else door.url.removesuffix("/path")
        outbox = an_outbox(place.url, place.spool, enos(url, policy=replace(PATIENT, batch_messages=2, **waits)))
        place._outboxes.append(outbox)
        for each in range(40):
            files = {"photo": bytes([each]) * chance.randrange(3000)} if each % 2 else {}
            place.enqueue(outbox, f"m{each}", files, ordering_key=f"s{each % 3}" if each % 4 == 0 else None)

        transport = RequestsTransport(ca_file=authority.ca_file, proxies=proxies)
        Worker(outbox, poll=0.02, transport=transport).run(until_idle=True)

        assert {State.DELIVERED} == set(states(place.database).values())
        assert road.connections > 1
        place.check()


@pytest.mark.long
def test_a_large_upload_that_is_cut_in_the_middle_is_not_sent(place: Place, door: Server, authority: Authority) -> None:
    big = 12_000_000
    with Road(door.port, tls=True) as road:
        bench = make_bench(place, road, ca_file=authority.ca_file)
        bench.enqueue("a", {"photo": os.urandom(big)})

        bench.turn(Cut(request=big // 2))

        assert [("not_sent", None)] == outcomes(place.database, "a")
        bench.end()
        assert 1 == bench.stored("a")
        bench.hand.transport.close()
