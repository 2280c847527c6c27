"""S3: a destination whose URL somebody else chose reaches public addresses only, whatever name or spelling leads elsewhere."""

from __future__ import annotations

import errno
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import EnosEvents, Policy, State, Token
from outbox import transport as transport_module
from outbox.addresses import Reach, networks
from outbox.checkup import Doctor
from outbox.checkup.network import OutOfReach, reach
from outbox.errors import ConfigurationError, NoAnswer, NotSent
from outbox.multipart import FieldPart
from outbox.settings import build, load
from outbox.transport import RequestsTransport, Upload
from tests.factories import NOW, column, states
from tests.security.ear import Ear
from tests.story.conftest import Place

PUBLIC = Reach()
needs_other_loopbacks = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is no address of this machine there")


def send(transport: Any, url: str, **headers: str) -> Any:
    return transport.send(Upload(url, [FieldPart("a", b"{}")], headers), lambda name: None, 5.0, 0.5)


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name of somebody else's is looked up."""
    really = socket.getaddrinfo

    def getaddrinfo(host: str, *more: Any, **named: Any) -> list[Any]:
        if "invalid" in host or "example" in host:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return really(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every place that a socket was told to connect to; it is only done on this machine."""
    told: list[Any] = []
    really = socket.socket.connect

    def connect(self: socket.socket, place: Any) -> None:
        told.append(place)
        if not place[0].startswith("127."):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody is bothered by a test")
        really(self, place)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return told


def leads_to(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> None:
    """Let the resolver say these addresses, each time it is asked the next of them."""
    left = list(answers)

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        said = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in said
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


# Addresses.


def words(text: str) -> list[str]:
    return text.split()


REFUSED = words("""
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254 169.254.0.1
    169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8 192.0.0.170 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255
    198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16
    :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::8.8.8.8
    64:ff9b::7f00:1 64:ff9b:1::1 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1
    2001:db8::1 2002:7f00:1:: 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fe80::1%1 fec0::1
    ff02::1 ff0e::1
""")
TAKEN = words("""
    1.1.1.1 8.8.8.8 172.15.255.255 172.32.0.1 100.63.255.255 100.128.0.1 192.0.1.1 223.255.255.255 ::ffff:8.8.8.8
    2606:4700:4700::1111 2001:4860:4860::8888 2a00:1450:4001::1 2400:cb00::1 2001:200::1
""")
NO_ADDRESSES = ["", "localhost", "127.1", "0x7f.1", "8.8.8.8 ", "[::1]", "8.8.8.8:443", "/run/s", "\u0661.1.1.1"]


def test_an_address_that_is_not_public_is_out_of_reach() -> None:
    assert [] == [address for address in [*REFUSED, *NO_ADDRESSES] if PUBLIC.takes(address)]


def test_a_public_address_is_within_reach() -> None:
    assert [] == [address for address in TAKEN if not PUBLIC.takes(address)]


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6) | st.integers(0, 2**32 - 1).map(lambda low: IPv6Address(0xFFFF << 32 | low)))
def test_whatever_is_within_reach_is_global_for_python_too(address: IPv4Address | IPv6Address) -> None:
    if PUBLIC.takes(str(address)):
        inside = getattr(address, "ipv4_mapped", None) or address
        assert inside.is_global
        assert (False, False, False) == (inside.is_multicast, inside.is_private, inside.is_reserved)


@given(st.ip_addresses(v=4))
def test_an_address_does_not_change_its_nature_by_being_mapped(address: IPv4Address) -> None:
    assert PUBLIC.takes(str(address)) == PUBLIC.takes(f"::ffff:{address}")


def test_allowed_networks_are_within_reach_and_nothing_else_beside_them() -> None:
    reach = Reach(networks(["10.20.0.0/16", "fd00:1::/32", "127.0.0.9"], "x"))

    assert all(reach.takes(each) for each in ("10.20.3.4", "::ffff:10.20.3.4", "fd00:1::5", "127.0.0.9", "1.1.1.1"))
    assert not any(reach.takes(each) for each in ("10.21.0.1", "fd00:2::1", "127.0.0.1", "::1"))


@pytest.mark.parametrize("given_networks", ["10.0.0.0/8", ["10.0.0.1/8"], ["ten"], ["10.0.0.0/33"], ["*"], [""]])
def test_a_network_that_is_none_is_refused_when_it_is_said(given_networks: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected allowed_networks"):
        EnosEvents(name="e", url="https://x.example", org_id="o", public_only=True, allowed_networks=given_networks)


def test_exceptions_to_a_rule_that_does_not_hold_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="exceptions to public_only=True, which is not said"):
        EnosEvents(name="e", url="https://x.example", org_id="o", allowed_networks=["10.0.0.0/8"])


# Spellings: each of them leads to this machine where nobody minds, or is no address at all.

HOSTS = words("""
    127.0.0.1 127.1 127.0.1 127.255.255.254 0 0.0.0.0 2130706433 0x7f000001 0x7f.1 0X7F.0x0.0.1 0177.0.0.1 017700000001 0177.1
    127.0.0.1. 127.1. 0x7f000001. localhost LOCALHOST localhost. [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1]
    [0:0:0:0:0:ffff:127.0.0.1] [::127.0.0.1] [::1%25lo] [::1%lo] [::1%251] [fe80::1%25lo] [::ffff:127.0.0.1%25lo]
    %31%32%37.0.0.1 127.0.0.1%00.invalid loc%61lhost decoy.invalid@127.0.0.1 decoy.invalid:80@127.0.0.1 @127.0.0.1
    decoy.invalid%40127.0.0.1 127.0.0.1#@decoy.invalid
""")
#: Fullwidth digits, ideographic full stops, letters in circles: what IDNA may make of them.
HOSTS += [
    "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
    "127\u30020\u30020\u30021",
    "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3",
]
ODD_ENDS = ["http://decoy.invalid\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\.invalid/", "http:\\\\127.0.0.1:{port}/"]
ODD_ENDS += ["http://127.0.0.1:{port}?@decoy.invalid/", "HTTP://127.0.0.1:{port}/", "http://127.0.0.1\t:{port}/"]
SPELLINGS = [f"http://{host}:{{port}}/path" for host in HOSTS] + ODD_ENDS


def test_there_are_forty_spellings_of_this_machine_and_most_of_them_lead_there(ear: Ear, transport: RequestsTransport) -> None:
    arrived = 0
    for spelling in SPELLINGS:
        with suppress(NotSent, NoAnswer):
            send(transport, spelling.format(port=ear.port))
            arrived += 1

    assert 40 <= len(SPELLINGS)
    assert 20 <= arrived <= len(ear.conversations)


def test_no_spelling_of_this_machine_is_reached(ear: Ear, transport: RequestsTransport, subtests: pytest.Subtests) -> None:
    for spelling in SPELLINGS:
        with subtests.test(ascii(spelling)):
            with pytest.raises(NotSent):
                send(transport.within(PUBLIC), spelling.format(port=ear.port))

            assert ([], b"") == (ear.conversations, ear.heard)


# Names.


def test_a_name_that_leads_elsewhere_is_not_even_knocked_at(
    transport: RequestsTransport, monkeypatch: pytest.MonkeyPatch, connects: list[Any], subtests: pytest.Subtests
) -> None:
    for address in REFUSED:
        leads_to(monkeypatch, [address])
        with subtests.test(address):
            words_of_it = re.escape(f"hooks.example leads to {address}, which is no public address")
            with pytest.raises(NotSent, match=words_of_it) as caught:
                send(transport.within(PUBLIC), "https://hooks.example/in")

            assert [] == connects
            assert not caught.value.begun


@needs_other_loopbacks
def test_a_resolver_that_changes_its_answer_gains_nothing(
    ear: Ear, transport: RequestsTransport, monkeypatch: pytest.MonkeyPatch, connects: list[Any]
) -> None:
    reach = Reach(networks(["127.0.0.2"], "x"))
    leads_to(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])

    first = send(transport.within(reach), f"http://hooks.example:{ear.port}/in")
    with pytest.raises(NotSent, match=r"leads to 127\.0\.0\.1"):
        send(transport.within(reach), f"http://hooks.example:{ear.port}/in")

    assert 200 == first.status
    assert [("127.0.0.2", ear.port)] == connects
    assert 1 == len(ear.conversations)


@needs_other_loopbacks
def test_of_several_addresses_only_those_within_reach_are_tried(
    ear: Ear, transport: RequestsTransport, monkeypatch: pytest.MonkeyPatch, connects: list[Any]
) -> None:
    leads_to(monkeypatch, ["127.0.0.1", "::1", "10.0.0.1", "127.0.0.3", "127.0.0.1"])

    answer = send(transport.within(Reach(networks(["127.0.0.3"], "x"))), f"http://hooks.example:{ear.port}/in")

    assert (200, [("127.0.0.3", ear.port)]) == (answer.status, connects)


def test_what_counts_is_who_is_at_the_other_end(
    ear: Ear, transport: RequestsTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever turns a connection away on its way, the other end is asked who it is before it hears a byte."""
    leads_to(monkeypatch, ["93.184.216.34"])
    really = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, _place: really(self, ("127.0.0.1", ear.port)))

    with pytest.raises(NotSent, match=r"leads to 127\.0\.0\.1"):
        send(transport.within(PUBLIC), "http://hooks.example/in")

    ear.settle()
    assert (1, b"") == (len(ear.conversations), ear.heard)


def test_over_tls_not_even_a_greeting_goes_out(ear: Ear, transport: RequestsTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    leads_to(monkeypatch, ["93.184.216.34"])
    really = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, _place: really(self, ("127.0.0.1", ear.port)))

    with pytest.raises(NotSent, match="no public address"):
        send(transport.within(PUBLIC), f"https://hooks.example:{ear.port}/in")

    ear.settle()
    assert (1, b"") == (len(ear.conversations), ear.heard)


def test_a_connection_that_others_made_is_not_used(transport: RequestsTransport) -> None:
    def kept_open(connection: socket.socket, heard: bytearray) -> None:
        while block := connection.recv(1 << 16):
            heard += block
            if heard.endswith(b"--\r\n"):  # the end of a request
                connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"code":0}')

    with Ear(kept_open) as ear:
        send(transport, ear.url)
        before = ear.heard
        with pytest.raises(NotSent):
            send(transport.within(PUBLIC), ear.url)
        send(transport, ear.url)

        assert 1 == len(ear.conversations)
        assert 2 * len(before) == len(ear.heard)


def test_where_nobody_asked_for_it_every_address_is_taken(ear: Ear, transport: RequestsTransport) -> None:
    assert 200 == send(transport, ear.url).status


def test_the_cut_of_a_worker_that_stops_holds_for_it_too(ear: Ear, transport: RequestsTransport) -> None:
    narrow = transport.within(Reach(networks(["127.0.0.0/8"], "x")))
    transport.cut()

    with pytest.raises(NotSent, match="not begun because the worker stops"):
        send(narrow, ear.url)


# Behind a proxy the proxy decides, and only if that was said.


def test_behind_a_proxy_nothing_is_sent_as_if_the_rule_held(ear: Ear) -> None:
    transport = RequestsTransport(proxies={"http": ear.url, "https": ear.url}).within(PUBLIC)

    for url in ("http://hooks.example/in", "https://hooks.example/in", "http://127.0.0.1/in"):
        with pytest.raises(NotSent, match="let the proxy refuse all others, and say proxy_decides=True"):
            send(transport, url)

    assert [] == ear.conversations


def test_a_proxy_that_decides_is_used_wherever_it_is(ear: Ear) -> None:
    transport = RequestsTransport(proxies={"http": ear.url}, proxy_decides=True)

    assert 200 == send(transport.within(PUBLIC), "http://hooks.example/in").status
    assert ear.heard.startswith(b"POST http://hooks.example/in HTTP/1.1\r\n")
    transport.close()


def test_where_a_proxy_decides_what_goes_past_it_is_looked_at_all_the_same(ear: Ear) -> None:
    transport = RequestsTransport(proxies={"https": "http://127.0.0.1:9"}, proxy_decides=True)

    with pytest.raises(NotSent, match="no public address"):
        send(transport.within(PUBLIC), ear.url)

    assert [] == ear.conversations


# From the destination's own words to the books.


def test_what_may_not_be_reached_is_charged_to_the_destination_and_said(place: Place) -> None:
    outbox = place.outbox(public_only=True, policy=Policy(batch_messages=1))
    place.enqueue(outbox, "a", {"photo": b"bytes"})

    hand = place.hand(outbox)
    hand.turn()

    assert {"a": State.PENDING} == states(place.database)
    assert (0, 0) == (column(place.database, "a", "failures"), column(place.database, "a", "unknowns"))
    assert 1 == hand.breaker().failures
    (told,) = outbox.deliveries()
    assert "not_sent" == told.outcome
    assert "127.0.0.1 leads to 127.0.0.1, which is no public address" in (told.text or "")
    assert (0, []) == (place.receiver.begun, place.begun())


def test_what_is_allowed_is_delivered(place: Place) -> None:
    outbox = place.outbox(public_only=True, allowed_networks=["127.0.0.0/8"])
    place.enqueue(outbox, "a", {"photo": b"bytes"})

    place.hand(outbox).turn_while_it_moves()

    assert {"a": State.DELIVERED} == states(place.database)
    place.check()


def test_the_token_service_is_held_to_the_same(place: Place, ear: Ear) -> None:
    """A key and its signature are worth as much to a neighbour as the upload."""
    token = Token(ear.url, "app-key", "app-secret-of-it", allow_plain_http=True)
    outbox = place.outbox(public_only=True, token=token)
    place.enqueue(outbox, "a")

    place.hand(outbox).turn()

    (told,) = outbox.deliveries()
    assert "the token service did not answer: not sent: 127.0.0.1 leads to 127.0.0.1" in (told.text or "")
    assert [] == ear.conversations


def test_the_doctor_keeps_away_as_well(place: Place, ear: Ear) -> None:
    token = Token(ear.url, "app-key", "app-secret-of-it", allow_plain_http=True)
    outbox = place.outbox(public_only=True, token=token)

    found = {each.check: each.text for each in Doctor(outbox).run() if each.check in ("reach", "token")}

    assert found["reach"].endswith("it is at 127.0.0.1, and it takes public addresses only")
    assert "no public address" in found["token"]
    assert (0, b"") == (place.receiver.begun, ear.heard)


def test_the_doctor_does_not_even_ask_whether_it_would_answer(ear: Ear, transport: RequestsTransport) -> None:
    with pytest.raises(OutOfReach):
        reach(ear.url, 5, NOW, PUBLIC)
    send(transport, ear.url)

    ear.settle()
    assert 1 == len(ear.conversations), "the first that came was ours"


def test_a_family_that_this_machine_does_not_speak_is_passed_over(
    ear: Ear, transport: RequestsTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads_to(monkeypatch, ["::1", "127.0.0.1"])

    class OnlyFour:
        """The module, without the one family."""

        def __getattr__(self, name: str) -> Any:
            return getattr(socket, name)

        def __call__(self, family: int, *more: Any) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            return socket.socket(family, *more)

    lame = OnlyFour()
    monkeypatch.setattr(transport_module, "socket", lame)
    lame.__dict__["socket"] = lame

    answer = send(transport, f"http://hooks.example:{ear.port}/in")

    assert 200 == answer.status


SETTINGS = """
[destinations.hook]
type = "enos-events"
url = "https://hooks.example"
org_id = "o"
"""


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    made: list[Any] = []

    def settle(more: str) -> Any:
        (tmp_path / "outbox.toml").write_text(SETTINGS + more)
        made.append(build(*load(tmp_path / "outbox.toml")))
        return made[-1].destination("hook").reach

    yield settle
    for each in made:
        each.close()


def test_it_is_set_in_the_file_or_by_the_environment(settled: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled("") is None
    assert Reach() == settled("public_only = true")
    assert Reach(networks(["10.0.0.0/8"], "x")) == settled('public_only = true\nallowed_networks = ["10.0.0.0/8"]')
    monkeypatch.setenv("OUTBOX_DESTINATIONS__HOOK__PUBLIC_ONLY", "true")
    assert Reach() == settled("")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('allowed_networks = ["10.0.0.0/8"]', "exceptions to public_only = true in [destinations.hook], which is not said"),
        ('public_only = true\nallowed_networks = ["ten"]', "networks such as 10.20.0.0/16 or 10.20.0.7, got 'ten'"),
        ('public_only = true\nallowed_networks = "10.0.0.0/8"', "allowed_networks: expected a list"),
        ('public_only = "perhaps"', "public_only: expected true or false"),
    ],
)
def test_a_wrong_setting_is_told_and_nothing_is_built(settled: Callable[[str], Any], more: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settled(more)

    assert words in str(refused.value)
    assert str(refused.value).startswith(("destinations.hook", "the settings"))
