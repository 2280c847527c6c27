"""What is sent, what comes back, and whoever carries it: as destinations speak of it, and producers need no more."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from outbox.addresses import Reach
from outbox.errors import ConfigurationError
from outbox.multipart import Part
from outbox.route import Route

#: Bytes of an answer that are read, after decompression; the rest is not worth a wait.
ANSWER_LIMIT = 64 * 1024

#: Headers, in lower case, that say where a request goes and how long it is: they are ours to say.
OURS = frozenset({"content-type", "content-length", "transfer-encoding", "host", "connection", "expect"})

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Upload:
    """What to send: where to, with which headers, and the parts of a form; or `json`, a document that is the whole body.

    Raises ValueError for one that has both: a body is one or the other.
    """

    url: str
    parts: Sequence[Part] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    json: bytes | None = None

    def __post_init__(self) -> None:
        if self.json is not None and self.parts:
            raise ValueError("an upload has parts or is a JSON document; not both")

    @property
    def size(self) -> int:
        """Bytes of content, without the form around them."""
        return len(self.json) if self.json is not None else sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: HTTP status, headers in lower case, and at most ANSWER_LIMIT bytes of body.

    `whole` is False when there was more of it. `sent_whole` is False when the answer came before the request's last byte went
    out: such an answer can refuse, but never confirm.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True
    sent_whole: bool = True


class Transport(Protocol):
    """Sends one request and reads one answer, within a deadline in seconds, following no redirect and repeating nothing.

    Raises NotSent when the declared length did not go out in full, NoAnswer when it did and no complete answer came back, and
    FileMissing or FileChanged, before the request is complete, when a spooled file is not what was enqueued.
    """

    def send(self, upload: Upload, open_file: Callable[[str], BinaryIO], deadline: float, connect: float) -> Answer:
        """Post a form, or a JSON document."""

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        """Post a small JSON document: what a token service takes."""

    def cut(self) -> None:
        """Break off every request in hand, now; those that follow are refused."""

    def within(self, reach: Reach) -> Transport:
        """The same, for requests that may go to these addresses alone: any other ends as NotSent before a byte goes out."""

    def through(self, route: Route) -> Transport:
        """The same, for requests that go by this route. Raises ConfigurationError when it cannot be had."""


def require_headers(headers: Mapping[str, str]) -> None:
    """Raises ConfigurationError for a header that no request may hold, without its value, which may be a secret."""
    for name, value in headers.items():
        if not (_HEADER.fullmatch(name) and value.isascii() and value.isprintable() and value == value.strip()):
            raise ConfigurationError(
                f"the header {name[:60]!r} holds what is not printable ASCII, or white space at an end; set it without that"
            )
