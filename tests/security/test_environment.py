"""S5 and S6: what the environment says changes no connection, and no connection is older or less sure than it may be.

Redirects (S4) are in tests/conformance/test_transport.py: six codes to another host and to the same, none followed.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from outbox.checkup import network
from outbox.errors import NotSent
from outbox.multipart import FieldPart
from outbox.testing import Receiver
from outbox.transport import RequestsTransport, Upload
from tests.pure.making import Crate
from tests.pure.recorder import http, read_request
from tests.security.ear import Ear

SAID = {
    **dict.fromkeys(["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "http_proxy", "https_proxy", "all_proxy"], "proxy"),
    **dict.fromkeys(["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"], "certificate"),
    **dict.fromkeys(["SSL_CERT_DIR", "HOME"], "folder"),
    **dict.fromkeys(["PYTHONHTTPSVERIFY", "NO_PROXY", "no_proxy"], ""),
}


class Secure(Ear):
    """An Ear behind TLS: of a conversation it hears only what came through a handshake."""

    def __init__(self, authority: trustme.CA) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self.context)
        super().__init__(self._answer, host="127.0.0.1")

    def _answer(self, connection: socket.socket, heard: bytearray) -> None:
        with suppress(OSError), self.context.wrap_socket(connection, server_side=True) as secure:
            heard += read_request(secure)
            secure.sendall(http(b'{"code":0}'))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/path"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Secure]:
    with Secure(authority) as server:
        yield server


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: trustme.CA) -> Iterator[Ear]:
    """An environment that leads everywhere else; the proxy that it names."""
    authority.cert_pem.write_to_path(tmp_path / "certificate.pem")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ada password canary-lovelace\ndefault login a password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    with Ear() as proxy:
        values = {"proxy": f"http://127.0.0.1:{proxy.port}", "certificate": tmp_path / "certificate.pem", "folder": tmp_path}
        for name, kind in SAID.items():
            monkeypatch.setenv(name, str(values.get(kind, "0")))
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.delenv("no_proxy")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        yield proxy


def send(transport: RequestsTransport, url: str) -> int:
    return transport.send(Upload(url, [FieldPart("a", b"{}")], {"token": "t"}), Crate().open, 5, 5).status


def test_traffic_is_the_same_in_a_poisoned_environment(poisoned: Ear, ear: Ear, transport: RequestsTransport) -> None:
    status = send(transport, ear.url)

    ear.settle()
    assert (200, []) == (status, poisoned.conversations)
    assert ear.heard.startswith(b"POST /path HTTP/1.1\r\n")
    assert b"authorization" not in ear.heard.lower()
    assert b"canary" not in ear.heard


def test_nobody_is_trusted_because_the_environment_says_so(poisoned: Ear, secure: Secure, transport: RequestsTransport) -> None:
    with pytest.raises(NotSent, match="certificate verify failed"):
        send(transport, secure.url)
    with pytest.raises(ssl.SSLCertVerificationError):
        network.reach(secure.url, 5, datetime.now(UTC))

    secure.settle(2)
    assert (b"", []) == (secure.heard, poisoned.conversations)
    assert 2 == len(secure.conversations)


def test_a_certificate_that_was_given_is_trusted_in_it_too(poisoned: Ear, secure: Secure, tmp_path: Path) -> None:
    transport = RequestsTransport(ca_file=str(tmp_path / "certificate.pem"))

    assert 200 == send(transport, secure.url)
    transport.close()


def test_a_doctor_goes_straight_to_where_it_looks(poisoned: Ear, receiver: Receiver) -> None:
    assert f"127.0.0.1:{receiver.port}" == network.reach(receiver.url, 5, datetime.now(UTC)).host
    assert [] == poisoned.conversations


def test_a_worker_takes_no_addresses_from_the_environment_of_others(poisoned: Ear) -> None:
    """So that the poison of this test is real: what others would do with it."""
    import requests

    with requests.Session() as session:
        taken = session.merge_environment_settings("http://192.0.2.1/", {}, None, None, None)

    assert f"http://127.0.0.1:{poisoned.port}" == taken["proxies"]["http"]
    assert os.environ["REQUESTS_CA_BUNDLE"] == taken["verify"]


def test_what_is_older_than_tls_1_2_is_not_offered(transport: RequestsTransport) -> None:
    """Said by us, whatever the libraries think; tests/conformance/test_tls.py has the servers that can do no better."""
    adapter = transport._roads().adapter

    for manager in (adapter.poolmanager, adapter.proxy_manager_for("http://127.0.0.1:9")):
        assert ssl.TLSVersion.TLSv1_2 == manager.connection_pool_kw["ssl_minimum_version"]
