"""Whether an address can be reached, and what time it is there: a connection and a HEAD request, never an upload."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import certifi

from outbox.addresses import Reach
from outbox.destinations.base import seconds_until
from outbox.route import Route


class Reached(NamedTuple):
    """A connection that was made. `ahead` is by how many seconds the other side's clock is ahead of ours, if it tells."""

    host: str
    seconds: float
    ahead: float | None


class OutOfReach(OSError):
    """A destination that takes public addresses only is at another."""


def reach(url: str, deadline: float, now: datetime, within: Reach | None = None, route: Route | None = None) -> Reached:
    """Connect to the host of a URL, with TLS where it says so. Raises OSError, in words; OutOfReach without a connection."""
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    connection: http.client.HTTPConnection
    if secure:
        # The certificates that uploads trust, which are not always the machine's.
        trusted = ssl.create_default_context(cafile=(route and route.ca_file) or certifi.where())
        if route is not None and route.certificate is not None:
            trusted.load_cert_chain(*route.certificate)
        connection = http.client.HTTPSConnection(host, port, timeout=deadline, context=trusted)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=deadline)
    began = time.monotonic()
    try:
        raw = connection.sock = _connected(host, port, deadline, within)
        if secure:
            connection.sock = trusted.wrap_socket(raw, server_hostname=host)
        seconds = time.monotonic() - began
        return Reached(f"{host}:{port}", seconds, _ahead(connection, now))
    finally:
        connection.close()


def _connected(host: str, port: int, deadline: float, within: Reach | None) -> socket.socket:
    """As uploads do it: an address that they may not go to is not even asked whether it answers."""
    failed = OSError("the host has no address")
    for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if within is not None and not within.takes(str(place[0])):
            failed = OutOfReach(place[0])
            continue
        try:
            return socket.create_connection((str(place[0]), port), deadline)
        except OSError as error:
            failed = error
    raise failed


def in_words(error: OSError) -> tuple[str, str]:
    """Why no connection was made, and what to do about it."""
    match error:
        case OutOfReach():
            return (
                f"it is at {error}, and it takes public addresses only",
                "name its network in allowed_networks if that is meant; nothing was sent there",
            )
        case socket.gaierror():
            return (
                "its name is not known to this machine's resolver",
                "look at the name in the settings, and at /etc/resolv.conf",
            )
        case ssl.SSLCertVerificationError():
            said = f"its certificate is not trusted: {error.verify_message}"
            return said, "look for a proxy that puts itself between, and at this machine's clock; uploads refuse it too"
        case ssl.SSLError():
            return (
                f"TLS failed: {error.reason or error}",
                "look for a proxy that puts itself between, and at the port in the settings",
            )
        case TimeoutError():
            return "no answer in time", "look at the network, the firewall and the address in the settings"
        case ConnectionRefusedError():
            return "the connection was refused", "look whether it is up, and at the port in the settings"
        case _:
            return error.strerror or type(error).__name__, "look at the network and at the address in the settings"


def _ahead(connection: http.client.HTTPConnection, now: datetime) -> float | None:
    asked = time.monotonic()
    try:
        connection.request("HEAD", "/", headers={"User-Agent": "durable-outbox doctor"})
        told = connection.getresponse().headers.get("Date", "")
    except (OSError, http.client.HTTPException, ValueError):
        return None  # it is there; what time it is there, it keeps for itself
    seconds = seconds_until(told, now)
    return None if seconds is None else seconds - (time.monotonic() - asked) / 2
