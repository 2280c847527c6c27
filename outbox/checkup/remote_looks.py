"""What a doctor looks at on the other side: whether each destination is there, and lets us in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from outbox.addresses import Reach
from outbox.app import Outbox
from outbox.checkup import network
from outbox.checkup.findings import Check, Finding, compared, ok, problem
from outbox.destinations.base import Destination, seconds_until
from outbox.destinations.token import CredentialsRefused
from outbox.errors import ConfigurationError, OutboxError, TransportError
from outbox.route import Route
from outbox.transport import Answer, RequestsTransport, Transport, Upload
from outbox.units import in_words as length_in_words

#: Seconds that a connection, or an answer of the token service, may take.
_CONNECT = 5.0


class RemoteLooks:
    """Destinations and their token services: nothing is sent to them but a HEAD request and the request for a token."""

    def __init__(self, outbox: Outbox, transport: Transport) -> None:
        self._outbox = outbox
        self._transport = transport

    def checks(self) -> list[Check]:
        """Two looks for each destination."""
        return [
            Check(name, _bound(look, destination), network=True)
            for destination in self._outbox.destinations.values()
            for name, look in (("reach", self._reach), ("token", self._token))
        ]

    def _reach(self, destination: Destination) -> Iterator[Finding]:
        if destination.route is not None and destination.route.proxy is not None:
            yield ok(f"{destination.name} is reached through a proxy, which is not tried from here")
            return
        try:
            reached = network.reach(destination.url, _CONNECT, datetime.now(UTC), destination.reach, destination.route)
        except OSError as error:
            why, remedy = network.in_words(error)
            yield problem(f"{destination.name} cannot be reached at {destination.url}: {why}", remedy)
            return
        yield ok(f"{destination.name} is reached at {reached.host} in {length_in_words(reached.seconds)}")
        if reached.ahead is not None:
            yield compared(f"that of {destination.name}", reached.ahead)

    def _token(self, destination: Destination) -> Iterator[Finding]:
        credentials = destination.credentials
        if destination.signature_headers:
            yield from _signature(destination)
        if credentials is None:
            if not destination.signature_headers:
                yield ok(f"{destination.name} needs no credentials")
            return
        listening = _Listening(self._transport)
        ambient = self._outbox.ambient
        try:
            listening = _Listening(destination.way(self._transport))
            credentials.headers(listening, ambient.now(), ambient.monotonic())
        except CredentialsRefused as error:
            yield problem(f"{destination.name}: {error}", "mend the app key or the secret, or set this machine's clock")
        except ConfigurationError as error:
            yield problem(f"{destination.name}: {error}", "give the secret where the settings say it is")
        except TransportError as error:
            yield problem(f"{destination.name}: {error}", "look at the token service's address, and at the network")
        except OutboxError as error:
            yield problem(f"{destination.name}: {error}", "look at the settings of its token")
        else:
            yield ok(f"{destination.name} gives us a token")
        finally:
            if isinstance(self._transport, RequestsTransport):
                self._transport.close()  # this thread makes no other request
        ahead = seconds_until(listening.date, ambient.now())
        if ahead is not None:
            yield compared(f"that of {destination.name}'s token service", ahead)


def _signature(destination: Destination) -> Iterator[Finding]:
    """Whether there are the secrets that requests are signed with."""
    try:
        signed = destination.sign(Upload(destination.url, json=b"{}"))
    except ConfigurationError as error:
        yield problem(f"{destination.name}: {error}", "give the secret where the settings say it is")
    except Exception:  # noqa: BLE001 (a destination of somebody's own may sign nothing but what it made itself)
        return
    else:
        yield ok(f"{destination.name} signs its requests" if signed else f"{destination.name} signs nothing: it has no secrets")


class _Listening:
    """A transport that remembers what time the last answer said it is."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.date = ""

    def send(self, *request: Any, **named: Any) -> Answer:
        return self._transport.send(*request, **named)

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        answer = self._transport.post_json(url, body, min(deadline, _CONNECT), min(connect, _CONNECT))
        self.date = answer.headers.get("date", "")
        return answer

    def cut(self) -> None:
        self._transport.cut()

    def within(self, reach: Reach) -> Transport:
        return self._transport.within(reach)

    def through(self, route: Route) -> Transport:
        return self._transport.through(route)


def _bound(look: Callable[[Destination], Iterable[Finding]], destination: Destination) -> Callable[[], Iterable[Finding]]:
    return lambda: look(destination)
