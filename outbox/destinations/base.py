"""What every destination is: an address, limits, how to speak to it and how to read its answers."""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Protocol, assert_never
from urllib.parse import urlsplit

from outbox.addresses import Reach, networks
from outbox.destinations.table import Meaning, Verdicts
from outbox.errors import ConfigurationError, Fault, Refused
from outbox.exchange import Answer, Transport, Upload
from outbox.model import Batch, Draft, Reason
from outbox.policy import Policy
from outbox.route import Route
from outbox.verdict import Delivered, Facts, NotSent, Reject, Retry, Verdict, cleaned

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")


class Credentials(Protocol):
    """What lets us in. Asked for when a request is about to be sent, so nothing of it is ever kept in a row."""

    def headers(self, transport: Transport, now: datetime, monotonic: float) -> Mapping[str, str]:
        """The headers that authorise a request.

        Raises TransportError when a service they come from does not answer, CredentialsRefused when it says no.
        """

    def renew(self) -> None:
        """The destination did not accept them: get new ones next time."""


class Builder:
    """A payload that is built with names and types. It knows which destinations it is for, and its plain values."""

    __slots__ = ()

    made_for: ClassVar[str] = ""  #: the type of destination that takes it

    def plain(self) -> dict[str, Any]:
        """What is enqueued for it; files may stand in that."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Destination(ABC):
    """A place that takes uploads. Subclasses say two things, both pure: `encode` and `judge`.

    Where somebody else chooses the address, `public_only` keeps what is sent, and what its credentials ask for, away from this
    machine and its neighbours: a connection to an address that is not public is given up before a byte goes out, whatever name
    led to it. `allowed_networks` are taken all the same: ["10.20.0.0/16"].
    """

    #: What stands in a payload for an attachment, before its name: there a File may stand. "": files come in `files=` alone.
    reference: ClassVar[str] = ""
    #: What its answers mean, for a `judge` that looks it up in a table; `outbox verdicts` prints it.
    verdicts: ClassVar[Verdicts] = ()
    #: Messages that one request can carry, at most, whatever the policy says; None for no limit but the policy's.
    message_limit: ClassVar[int | None] = None
    #: The headers that `sign` gives: `outbox show --curl` names them, and hides what they say.
    signature_headers: ClassVar[Sequence[str]] = ()

    name: str  #: what producers and people call it: 1 to 100 of a-z 0-9 _ . -, beginning with a letter or digit
    url: str  #: where uploads go, https:// and without a user name or query
    policy: Policy = field(default_factory=Policy)  #: how it is treated: limits, waits and patience
    allow_plain_http: bool = False  #: http:// is refused without it: tokens and data would travel in the clear
    public_only: bool = False  #: connect to no address of this machine or its neighbours: for when others choose the URL
    allowed_networks: Sequence[str] = ()  #: but to these all the same, such as 10.20.0.0/16
    #: a proxy, authorities to trust, a certificate to show; None for what the worker's transport has
    route: Route | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                "expected a destination's name to be 1 to 100 of a-z 0-9 _ . -, beginning with a letter or digit, "
                f"got {self.name!r}"
            )
        check_url(self.url, self.allow_plain_http, f"destination {self.name}")
        if self.message_limit is not None and self.policy.batch_messages > self.message_limit:
            object.__setattr__(self, "policy", replace(self.policy, batch_messages=self.message_limit))
        owner = f"destination {self.name}"
        if networks(self.allowed_networks, owner) and not self.public_only:
            raise ConfigurationError(f"{owner}: allowed_networks are exceptions to public_only=True, which is not said")

    @property
    def reach(self) -> Reach | None:
        """Which addresses it may be at, and its token service; None for any."""
        return Reach(networks(self.allowed_networks, f"destination {self.name}")) if self.public_only else None

    def way(self, transport: Transport) -> Transport:
        """A transport as this destination may be reached with it, and its token service."""
        if self.route is not None:
            transport = transport.through(self.route)
        return transport if self.reach is None else transport.within(self.reach)

    @property
    def credentials(self) -> Credentials | None:
        """What lets us in, if anything is needed."""
        return None

    @property
    def text_limit(self) -> int | None:
        """Bytes that the messages of one request may add to its text part together; None for no limit."""
        return None

    @property
    def file_limit(self) -> int | None:
        """Bytes of one file, at most; None for no limit."""
        return None

    def unfold(self, payload: Any) -> tuple[Any, list[Fault]]:
        """A payload that is not beyond doubt JSON as plain values, in which files may stand, and what is wrong with it.

        For what producers may write more comfortably: a builder, a datetime. What it is given it must leave as it is. `check`
        looks at what it returns. Raises Refused when nothing more can be told.
        """
        if isinstance(payload, Builder):
            kinds = f"this {type(payload).__name__} is for a destination of type {payload.made_for}"
            raise Refused([Fault("payload", f"{kinds}; {self.name} is of type {type(self).__name__}")])
        return payload, []

    def check(self, draft: Draft) -> list[Fault]:
        """Everything that is wrong with a message, found at the door; empty when it may be enqueued."""
        return []

    def weigh(self, draft: Draft) -> int:
        """Bytes that a message adds to the text part of a request, at most."""
        return len(draft.text.encode())

    @abstractmethod
    def encode(self, batch: Batch) -> Upload:
        """The request that carries a batch: the same for the same batch, whenever and wherever it is made."""

    def sign(self, upload: Upload) -> Mapping[str, str]:
        """Headers that prove an upload to be ours. Asked for when it is about to be sent: the place to read secrets.

        Raises ConfigurationError when there is no usable secret: it stops the destination and charges no message.
        """
        return {}

    @abstractmethod
    def judge(self, answer: Answer, batch: Batch, now: datetime) -> Verdict:
        """What an answer means for the batch."""


def check_url(url: str, allow_plain_http: bool, owner: str) -> None:
    """Raises ConfigurationError unless `url` is an address that uploads may go to."""
    wanted = f"{owner}: expected a URL that begins with https:// and names a host"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its words repeat the address, which may hold a password
        raise ConfigurationError(wanted) from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ConfigurationError(wanted)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(f"{owner}: the URL must hold no user name, password, query or fragment")
    if parts.scheme == "http" and not allow_plain_http:
        raise ConfigurationError(
            f"{owner}: {url!r} would send data and token in the clear; use https://, or say allow_plain_http=True"
        )


def verdict_of(meaning: Meaning, facts: Facts, answer: Answer, now: datetime) -> Verdict:
    """The verdict for an answer, once a table has said what it means."""
    match meaning:
        case Meaning.DELIVERED:
            return Delivered(facts) if answer.sent_whole else NotSent(facts)
        case Meaning.REJECT:
            return Reject(facts)
        case Meaning.TOO_LARGE:
            return Reject(facts, Reason.TOO_LARGE)
        case Meaning.RENEW:
            return Retry(facts, renew=True, credentials=True)
        case Meaning.CREDENTIALS:
            return Retry(facts, credentials=True)
        case Meaning.RETRY:
            return Retry(facts, retry_after(answer, now))
        case _:
            assert_never(meaning)


def retry_after(answer: Answer, now: datetime) -> float | None:
    """The wait an answer asks for, in seconds: the Retry-After header as a number or as a date."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(min(int(value[:9]), 10**8))
    seconds = seconds_until(value, now)
    return None if seconds is None else max(0.0, seconds)


def seconds_until(date: str, now: datetime) -> float | None:
    """Seconds from now to a date as HTTP headers write it, negative for one that has passed; None for what is none."""
    try:
        return (parsedate_to_datetime(date) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None


def redirected(answer: Answer) -> Facts:
    """What a redirect says. It is never followed: a POST would turn into a GET, or our token would go to another host."""
    where = ""
    with contextlib.suppress(ValueError):  # an address that is none
        target = urlsplit(answer.headers.get("location", ""))
        # Without the query: it may hold a ticket to somewhere.
        where = cleaned(f" to {target.scheme}://{target.hostname}{target.path}", 500) if target.hostname else ""
    return Facts(answer.status, text=f"redirected{where}; redirects are not followed: set the final address")
