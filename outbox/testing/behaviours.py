"""The ways a receiver can misbehave, as frozen values, and the short spelling of each for the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

#: Business codes that mean success: 0 as the table of the documentation says, 200 as its sample shows.
SUCCESS_CODES: Final = frozenset({0, 200})


@dataclass(frozen=True)
class Status:
    """Reads the request, keeps nothing, answers with this HTTP status; without a body, with a small HTML page."""

    status: int
    body: bytes | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EarlyStatus:
    """Answers with this HTTP status before reading the body, then closes.

    A client in the middle of sending may see a reset instead of the answer; with ``drain`` the rest of the body is read
    and dropped after the answer, so that the client always gets to see it.
    """

    status: int = 413
    body: bytes | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drain: bool = False


@dataclass(frozen=True)
class Answer:
    """Answers HTTP 200 with this EnOS code. 0 and 200 are success: they deliver, unless the request is faulty."""

    code: int
    msg: str | None = None

    @property
    def succeeds(self) -> bool:
        """Whether the code says that the request was taken."""
        return self.code in SUCCESS_CODES


@dataclass(frozen=True)
class Body:
    """Takes the request and answers with these bytes, whatever they are."""

    content: bytes
    content_type: str = "application/json"
    status: int = 200


@dataclass(frozen=True)
class Expired:
    """Says HTTP 401, as for an access token that is missing, unknown or too old."""


@dataclass(frozen=True)
class ApimExpired:
    """Says the same in the gateway's words: HTTP 200, ``apim_status`` and no ``code``."""

    apim_status: int = 4011


@dataclass(frozen=True)
class Slow:
    """Answers correctly, but this many seconds late."""

    seconds: float


@dataclass(frozen=True)
class Hold:
    """Answers correctly, but only when ``receiver.release()`` is called."""


@dataclass(frozen=True)
class SlowRead:
    """Reads the body at this pace, so that a large upload crawls, then answers correctly."""

    bytes_per_second: float


@dataclass(frozen=True)
class Drip:
    """Takes the request and answers correctly, one byte at a time."""

    seconds_per_byte: float


@dataclass(frozen=True)
class Silence:
    """Takes the request and never answers, until the client hangs up or the receiver stops."""


@dataclass(frozen=True)
class Truncated:
    """Takes the request, promises a whole answer in Content-Length, sends half of its body and closes."""


@dataclass(frozen=True)
class HangUp:
    """Closes the connection, by reset (RST) or politely (FIN).

    ``when``: ``before_body`` reads no byte of it; ``in_body`` has read ``after_bytes`` of it (at least one);
    ``after_body`` has read and kept everything and says nothing; ``in_answer`` has written ``after_bytes`` of the
    answer; ``after_answer`` has answered in full without announcing the end, as a server does that tires of keep-alive.
    """

    when: Literal["before_body", "in_body", "after_body", "in_answer", "after_answer"] = "after_body"
    after_bytes: int = 0
    reset: bool = True


@dataclass(frozen=True)
class GzipBomb:
    """Takes the request and answers with a few kilobytes of gzip that unpack to this many megabytes."""

    megabytes: int = 64


Behaviour: TypeAlias = (
    Status
    | EarlyStatus
    | Answer
    | Body
    | Expired
    | ApimExpired
    | Slow
    | Hold
    | SlowRead
    | Drip
    | Silence
    | Truncated
    | HangUp
    | GzipBomb
)


def keeps(behaviour: Behaviour | None) -> bool:
    """Whether a good request counts as taken under this behaviour, however badly the answer goes afterwards."""
    match behaviour:
        case Status() | EarlyStatus() | Expired() | ApimExpired():
            return False
        case Answer():
            return behaviour.succeeds
        case Body():
            return 200 <= behaviour.status < 300
        case HangUp(when="before_body" | "in_body"):
            return False
        case _:
            return True


#: Statuses that travel with a header of their own.
_USUAL_HEADERS: Final[Mapping[int, Mapping[str, str]]] = {
    302: {"Location": "/elsewhere"},
    429: {"Retry-After": "1"},
}

_FIXED: Final[Mapping[str, Behaviour]] = {
    "hangup-before": HangUp("before_body"),
    "hangup-in-body": HangUp("in_body"),
    "hangup-after": HangUp("after_body"),
    "hangup-in-answer": HangUp("in_answer", after_bytes=20),
    "hangup-quietly": HangUp("after_answer", reset=False),
    "silence": Silence(),
    "truncated": Truncated(),
    "expired": Expired(),
    "apim-expired": ApimExpired(),
    "empty": Body(b""),
    "garbage": Body(b'\x00\xff{"code":'),
    "html": Body(b"<html><body>Please log in</body></html>", content_type="text/html"),
    "no-code": Body(b'{"msg":"OK","data":{}}'),
    "gzip-bomb": GzipBomb(),
}

_WITH_NUMBER: Final[Mapping[str, Callable[[float], Behaviour]]] = {
    "code": lambda number: Answer(int(number)),
    "early": lambda number: EarlyStatus(int(number)),
    "slow": Slow,
    "slow-read": SlowRead,
    "drip": Drip,
}

#: One line that explains :func:`parse_behaviour`'s spelling to a person.
SPELLING: Final = (
    "NAME[:PROBABILITY], where NAME is an HTTP status (503), one of "
    + ", ".join(_FIXED)
    + ", or one of "
    + ", ".join(f"{name}=NUMBER" for name in _WITH_NUMBER)
)


def parse_behaviour(spec: str) -> tuple[Behaviour, float]:
    """The behaviour and probability (0 to 1, default 1) that ``503:0.1`` or ``slow=2:0.05`` spell; else ValueError."""
    name, colon, chance = spec.partition(":")
    try:
        probability = float(chance) if colon else 1.0
    except ValueError:
        raise ValueError(f"{spec!r}: {chance!r} is not a probability; write for instance {name}:0.1") from None
    if not 0 <= probability <= 1:
        raise ValueError(f"{spec!r}: a probability lies between 0 and 1")
    return _named(name.strip(), spec), probability


def _named(name: str, spec: str) -> Behaviour:
    if name in _FIXED:
        return _FIXED[name]
    if name.isascii() and name.isdigit() and 200 <= int(name) <= 599:
        return Status(int(name), headers=_USUAL_HEADERS.get(int(name), {}))
    word, equals, number = name.partition("=")
    if equals and word in _WITH_NUMBER:
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"{spec!r}: {number!r} is not a number") from None
        if not 0 <= value < 1e9 or (value == 0 and word == "slow-read"):
            raise ValueError(f"{spec!r}: {number} is out of range")
        return _WITH_NUMBER[word](value)
    raise ValueError(f"{spec!r}: no such behaviour; expected {SPELLING}")
