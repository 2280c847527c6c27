"""A destination is reached by its own route: through a proxy, with its own authorities, and showing a certificate."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox import ConfigurationError, Lane, Outbox, Route, env, settings
from outbox.checkup.remote_looks import RemoteLooks
from outbox.transport import RequestsTransport
from tests.certificates import Authority
from tests.factories import an_outbox, column, enos, event, outcomes, states
from tests.pure.recorder import http
from tests.scripted import KEPT_ALIVE, Script, Server, leading_to, proxying
from tests.story.conftest import Hand, Place

PASSWORD = "hunter2-of-the-proxy"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(script: Script, context: Any = None) -> Server:
        made.append(Server(script, context))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def door(sqlite_place: Place, authority: Authority, serve: Callable[..., Server]) -> Server:
    """Leads to the receiver, and lets nobody in who shows no certificate."""
    return serve(leading_to(sqlite_place.receiver.port), authority.wants_a_certificate())


def by(place: Place, url: str, route: Route | None, **options: Any) -> Hand:
    """A worker for one destination that is reached by that route, with one message for it."""
    outbox = an_outbox(place.url, place.spool, enos(url.removesuffix("/path"), route=route, **options))
    place._outboxes.append(outbox)
    place.enqueue(outbox, "a", {"photo": b"bytes"})
    return place.hand(outbox)


def test_a_server_that_wants_a_certificate_lets_in_whoever_shows_it(
    sqlite_place: Place, authority: Authority, door: Server
) -> None:
    certificate, key = authority.client()
    hand = by(sqlite_place, door.url, Route(ca_file=authority.ca_file, client_cert=certificate, client_key=key))

    hand.turn()

    assert {"a": "delivered"} == states(sqlite_place.database)


def test_and_nobody_else(sqlite_place: Place, authority: Authority, door: Server) -> None:
    hand = by(sqlite_place, door.url, Route(ca_file=authority.ca_file))

    hand.turn()

    assert ([("not_sent", None)], []) == (outcomes(sqlite_place.database, "a"), sqlite_place.receiver.requests)


def test_a_certificate_and_its_key_may_be_in_one_file(
    sqlite_place: Place, authority: Authority, door: Server, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_text("".join(each.read_text() for each in authority.client()))
    hand = by(sqlite_place, door.url, Route(ca_file=authority.ca_file, client_cert=both))

    hand.turn()

    assert {"a": "delivered"} == states(sqlite_place.database)


def test_a_transport_shows_one_to_every_destination(sqlite_place: Place, authority: Authority, door: Server) -> None:
    certificate, key = map(str, authority.client())
    hand = by(sqlite_place, door.url, None)
    hand.dispatcher._sender._transport = RequestsTransport(ca_file=authority.ca_file, client_cert=(certificate, key))

    hand.turn()

    assert {"a": "delivered"} == states(sqlite_place.database)


def test_authorities_of_one_destination_are_trusted_for_no_other(
    sqlite_place: Place, authority: Authority, serve: Callable[..., Server]
) -> None:
    theirs = serve(leading_to(sqlite_place.receiver.port), authority.server()).url.removesuffix("/path")
    trusting, doubting = enos(theirs, route=Route(ca_file=authority.ca_file)), enos(theirs, name="doubting")
    outbox = an_outbox(sqlite_place.url, sqlite_place.spool, trusting, doubting)
    sqlite_place._outboxes.append(outbox)
    with sqlite_place.engine.begin() as connection:
        for name in ("enos", "doubting"):
            outbox.enqueue(connection, name, event("a"), key=name)
    hand = sqlite_place.hand(outbox)

    hand.turn()
    hand.dispatcher.turn("doubting", [Lane.NORMAL])

    assert {"enos": "delivered", "doubting": "pending"} == states(sqlite_place.database)
    assert 1 == len(sqlite_place.receiver.requests)


@pytest.mark.parametrize("missing", ["client_cert", "client_key", "ca_file"])
def test_a_file_that_is_not_there_costs_the_message_nothing_and_is_named(
    sqlite_place: Place, authority: Authority, door: Server, tmp_path: Path, missing: str
) -> None:
    certificate, key = authority.client()
    there = {"ca_file": authority.ca_file, "client_cert": certificate, "client_key": key}
    hand = by(sqlite_place, door.url, Route(**(there | {missing: tmp_path / "nowhere.pem"})))

    hand.turn()

    assert [("not_sent", None)] == outcomes(sqlite_place.database, "a")
    (attempt,) = hand.outbox.message("a").attempts
    assert "nowhere.pem" in str(attempt)
    assert 0 == column(sqlite_place.database, "a", "failures")


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a client_key without a client_cert"):
        Route(client_key="key.pem")


# Proxies.


class Heard:
    """A proxy that notes the first lines it hears; behind it, CONNECT leads on, and anything else is answered by itself."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        first = connection.recv(1 << 16, socket.MSG_PEEK)
        while b"\r\n\r\n" not in first:
            first = connection.recv(1 << 16, socket.MSG_PEEK)
        self.heads.append(first.partition(b"\r\n\r\n")[0])
        if first.startswith(b"CONNECT"):
            proxying(connection)
            return
        body = first
        while not body.endswith(b"--\r\n"):
            body += connection.recv(1 << 16)
        connection.sendall(KEPT_ALIVE)


def test_an_upload_to_https_goes_through_the_proxys_tunnel(
    sqlite_place: Place, authority: Authority, door: Server, serve: Callable[..., Server]
) -> None:
    heard, (certificate, key) = Heard(), authority.client()
    proxy = serve(heard)
    address = f"http://ada:{PASSWORD}@127.0.0.1:{proxy.port}"
    hand = by(
        sqlite_place,
        door.url,
        Route(proxy=address, ca_file=authority.ca_file, client_cert=certificate, client_key=key),
    )

    hand.turn()

    assert {"a": "delivered"} == states(sqlite_place.database)
    (head,) = heard.heads
    assert head.startswith(f"CONNECT 127.0.0.1:{door.port} ".encode())
    assert base64.b64encode(f"ada:{PASSWORD}".encode()) in head


def test_an_upload_to_plain_http_is_asked_of_the_proxy(sqlite_place: Place, serve: Callable[..., Server]) -> None:
    heard = Heard()
    proxy = serve(heard)
    hand = by(sqlite_place, "http://enos.example", Route(proxy=f"http://127.0.0.1:{proxy.port}"))

    hand.turn()

    assert {"a": "delivered"} == states(sqlite_place.database)
    assert heard.heads[0].startswith(b"POST http://enos.example/connect-service/")


def test_a_proxy_that_refuses_says_so_and_not_its_password(
    sqlite_place: Place, authority: Authority, door: Server, serve: Callable[..., Server]
) -> None:
    def refusing(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(http(b"", f"403 Forbidden to {PASSWORD}"))

    proxy = serve(refusing)
    address = f"http://ada:{PASSWORD}@127.0.0.1:{proxy.port}"
    hand = by(sqlite_place, door.url, Route(proxy=address, ca_file=authority.ca_file))

    hand.turn()

    (attempt,) = hand.outbox.message("a").attempts
    assert "403" in str(attempt)
    assert PASSWORD not in str(attempt)
    assert PASSWORD not in repr(hand.outbox.destinations["enos"])


def test_an_address_that_is_not_where_it_should_be_stops_the_destination(sqlite_place: Place) -> None:
    hand = by(sqlite_place, sqlite_place.receiver.url, Route(proxy=env("NO_SUCH_PROXY")))

    hand.turn()

    told = hand.outbox.status().destinations["enos"]
    assert ("credentials", True) == (told.stop, "NO_SUCH_PROXY is not set" in (told.stop_text or ""))


def test_what_takes_public_addresses_only_sends_nothing_to_a_proxy_that_does_not_decide(
    sqlite_place: Place, serve: Callable[..., Server]
) -> None:
    heard = Heard()
    proxy = serve(heard)
    hand = by(sqlite_place, "http://enos.example", Route(proxy=f"http://127.0.0.1:{proxy.port}"), public_only=True)

    hand.turn()

    assert ([("not_sent", None)], []) == (outcomes(sqlite_place.database, "a"), heard.heads)


# Settings, and the doctor.


ROUTED = """
database = "sqlite:///outbox.db"
[destinations.enos]
type = "enos-events"
url = "https://enos.example"
org_id = "o1"
[destinations.enos.route]
proxy = "{proxy}"
ca_file = "ca.pem"
client_cert = "client.pem"
client_key = "/etc/keys/client.pem"
"""


def loaded(folder: Path, proxy: str) -> Outbox:
    (folder / "outbox.toml").write_text(ROUTED.format(proxy=proxy))
    return settings.build(*settings.load(folder / "outbox.toml"))


def test_settings_say_a_route_whose_paths_start_from_the_file(tmp_path: Path) -> None:
    outbox = loaded(tmp_path, "http://proxy.example:3128")

    route = outbox.destinations["enos"].route
    assert route is not None
    assert ("http://proxy.example:3128", str(tmp_path / "ca.pem")) == (route.proxy_address, route.ca_file)
    assert (str(tmp_path / "client.pem"), "/etc/keys/client.pem") == route.certificate


def test_a_proxy_with_a_password_comes_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_PROXY", f"http://ada:{PASSWORD}@proxy.example:3128")

    route = loaded(tmp_path, "env:THE_PROXY").destinations["enos"].route

    assert route is not None
    assert f"http://ada:{PASSWORD}@proxy.example:3128" == route.proxy_address
    with pytest.raises(ConfigurationError, match="without a password in it") as refused:
        loaded(tmp_path, f"http://ada:{PASSWORD}@proxy.example:3128")
    assert PASSWORD not in str(refused.value)


def test_the_doctor_trusts_whom_uploads_trust(tmp_path: Path, authority: Authority, serve: Callable[..., Server]) -> None:
    server = serve(lambda connection: None, authority.wants_a_certificate())
    certificate, key = authority.client()
    route = Route(ca_file=authority.ca_file, client_cert=certificate, client_key=key)
    outbox = an_outbox(f"sqlite:///{tmp_path}/none.db", tmp_path, enos(server.url.removesuffix("/path"), route=route))

    (look, *_) = RemoteLooks(outbox, RequestsTransport()).checks()

    assert "is reached at" in str(next(iter(look.look())))


def test_the_doctor_does_not_look_past_a_proxy(tmp_path: Path) -> None:
    outbox = an_outbox(f"sqlite:///{tmp_path}/none.db", tmp_path, enos(route=Route(proxy="http://proxy.example:3128")))

    (look, *_) = RemoteLooks(outbox, RequestsTransport()).checks()

    assert "enos is reached through a proxy, which is not tried from here" in str(next(iter(look.look())))
