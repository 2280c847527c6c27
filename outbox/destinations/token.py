"""An EnOS access token: fetched when it is needed, renewed before it ends, never written down.

Source: the vendor's page on access tokens and its Java SDK. `get` gives the same token while it lives, with the time that is
left; `encryption` is the lower-case hexadecimal SHA-256 of appKey + timestamp + appSecret, and may be used once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, assert_never

from outbox.destinations.base import check_url, seconds_until
from outbox.destinations.table import ABSENT, Rule, first
from outbox.errors import NotSent, OutboxError, TransportError
from outbox.exchange import Answer, Transport
from outbox.secret import Secret, as_secret, remember
from outbox.verdict import cleaned

log = logging.getLogger("outbox.token")

HEADER = "apim-accesstoken"
_GET = "/apim-token-service/v2.0/token/get"
_REFRESH = "/apim-token-service/v2.0/token/refresh"


class Reaction(StrEnum):
    """What follows from an answer of the token service."""

    KEEP = "keep"  #: here is a token
    SIGN_AGAIN = "sign_again"  #: with a later timestamp
    GET = "get"  #: it cannot be refreshed: get one
    CREDENTIALS = "credentials"  #: we are refused: a person must mend the key, the secret or the clock
    LATER = "later"  #: the service is in trouble


_WRONG_SECRET = "the app secret is wrong, or this machine's clock is"  # noqa: S105 (words about one)

#: What the service's answers mean: the first rule that fits decides. `status` is the member of that name, `refresh` the same
#: member where a token was to be refreshed, `http` the HTTP status. The same numbers mean something else in an upload's answer.
ANSWERS: tuple[Rule[Reaction], ...] = (
    Rule(Reaction.KEEP, "success", http=range(200, 300), status=0),
    Rule(Reaction.SIGN_AGAIN, "a repeated request: somebody else signed at the same millisecond", status=1001),
    Rule(Reaction.CREDENTIALS, "the app key does not exist", status=1002),
    Rule(Reaction.CREDENTIALS, _WRONG_SECRET, status=1003),
    Rule(Reaction.CREDENTIALS, "a parameter is invalid", status=1004),
    Rule(Reaction.LATER, "the service has internal trouble", status=1005),
    Rule(Reaction.CREDENTIALS, "a parameter is empty", status=1202),
    Rule(Reaction.GET, "the token has ended", refresh=1203),
    Rule(Reaction.GET, "the token could not be refreshed", refresh=1204),
    Rule(Reaction.LATER, "not the service's envelope: a proxy, a login page, a gateway being redeployed", status=ABSENT),
    Rule(Reaction.LATER, "a status that nobody documents, or one that does not fit the HTTP status"),
)

#: How often a call is signed before the service counts as in trouble.
SIGNATURES = 5
#: Milliseconds by which the next signature is later, at most: processes that began together must not meet again and again.
_SPREAD = 1000
#: Seconds that a token is believed to live at most, whatever the service says.
_LONGEST_LIFE = 86_400
#: Seconds before its end at which a token is renewed, at most.
_MARGIN = 600.0
#: Seconds between two tries to renew a token that still lives.
_PATIENCE = 60.0
#: Seconds by which two clocks may differ without a word about it.
_SKEW = 60.0
_DEADLINE = 30.0
_CONNECT = 10.0


class CredentialsRefused(OutboxError):
    """The token service does not know us: a person must mend the key, the secret or the clock."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A token and its times on the monotonic clock."""

    value: str = field(repr=False)
    ends: float
    renew_at: float


@dataclass(frozen=True, slots=True)
class _Said:
    """One answer of the service. `skew` is by how many seconds its clock is ahead of ours, where it tells the time."""

    rule: Rule[Reaction]
    status: int | None
    words: str
    skew: float | None
    data: Mapping[str, Any] = field(repr=False)


class Token:
    """The access token of one application.

    `url` is the API gateway (not the integration address), `app_secret` a Secret or a string. One instance asks once, however
    many threads want the token; several processes need not share, since the service gives them the same one.
    """

    #: What `headers` gives, for whoever shows a request without asking for a token.
    header_names = (HEADER,)

    def __init__(self, url: str, app_key: Secret | str, app_secret: Secret | str, *, allow_plain_http: bool = False) -> None:
        check_url(url, allow_plain_http, "token")
        self._url = url.rstrip("/")
        self._app_key = as_secret(app_key)
        self._app_secret = as_secret(app_secret)
        # Held for moments only, never while the service is asked.
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._refused = False
        self._asking: Future[str] | None = None
        self._given = threading.local()
        self._last_stamp = 0

    def __repr__(self) -> str:
        return f"Token({self._url!r}, app_key={self._app_key!r}, app_secret={self._app_secret!r})"

    def __reduce__(self) -> str:
        raise TypeError("a Token is not pickled")

    def headers(self, transport: Transport, now: datetime, monotonic: float) -> Mapping[str, str]:
        """The header with a live token; see Credentials.

        One thread asks the service at a time. While the token lives, nobody waits for it; when there is none, the others wait
        and share its result, be it a token or a failure.
        """
        with self._lock:
            living = self._living(monotonic)
            if living is not None and (self._asking is not None or monotonic < living.renew_at):
                return self._give(living.value)
            ours = self._asking is None
            asking = self._asking = self._asking or Future()
        return self._give(self._ask(asking, transport, now, monotonic) if ours else asking.result())

    def renew(self) -> None:
        """The token was not accepted: ask for another one next time.

        Only if it is the one that this thread was given last: when several uploads are refused at once, one of them renews, and
        the others must not end its new token by renewing that as well.
        """
        with self._lock:
            value = self._held.value if self._held is not None else None
            if getattr(self._given, "value", value) == value:
                self._refused = True

    def _living(self, monotonic: float) -> _Held | None:
        usable = self._held is not None and monotonic < self._held.ends and not self._refused
        return self._held if usable else None

    def _give(self, value: str) -> Mapping[str, str]:
        self._given.value = value
        return {HEADER: value}

    def _ask(self, asking: Future[str], transport: Transport, now: datetime, monotonic: float) -> str:
        """Ask for everybody. A failure is everybody's too, but for those who hold a token that lives."""
        try:
            new = self._renewed(transport, now, monotonic)
        except BaseException as error:
            with self._lock:
                self._asking = None
                living = self._living(monotonic)
                if living is not None:
                    self._held = replace(living, renew_at=monotonic + _PATIENCE)
            ours = isinstance(error, Exception)  # an interrupt belongs to this thread alone
            asking.set_exception(error if ours else TransportError("whoever asked for the token was interrupted"))
            if living is None or not isinstance(error, OutboxError):
                raise
            # Renewing early is a courtesy: while the token lives, nothing that keeps us from another one stops an upload.
            log.warning("the access token is not renewed yet, and used until it ends: %s", error)
            return living.value
        with self._lock:
            self._asking, self._held, self._refused = None, new, False
        asking.set_result(new.value)
        return new.value

    def _renewed(self, transport: Transport, now: datetime, monotonic: float) -> _Held:
        old = self._held
        if old is not None and monotonic < old.ends:
            said = self._call(transport, _REFRESH, now, old.value)
            if said.rule.meaning is not Reaction.GET:
                return _understood(said, monotonic)
        return _understood(self._call(transport, _GET, now), monotonic)

    def _call(self, transport: Transport, path: str, now: datetime, old: str | None = None) -> _Said:
        """One answer of the service. A call that it takes for a repetition is signed again, later by chance."""
        said = self._signed(transport, path, now, old)
        for _ in range(SIGNATURES - 1):
            if said.rule.meaning is not Reaction.SIGN_AGAIN:
                break
            self._last_stamp += secrets.randbelow(_SPREAD)
            said = self._signed(transport, path, now, old)
        return said

    def _signed(self, transport: Transport, path: str, now: datetime, old: str | None) -> _Said:
        # Never the same millisecond twice, or the service takes the second call for a replay.
        stamped = int(now.timestamp() * 1000)
        # Further ahead than our own spread: the clock was wrong then, and must not be followed for as long as it was ahead.
        ahead = 0 <= self._last_stamp - stamped <= SIGNATURES * _SPREAD
        self._last_stamp = self._last_stamp + 1 if ahead else stamped
        stamp = str(self._last_stamp)
        key, secret = self._app_key.reveal(), self._app_secret.reveal()
        signature = hashlib.sha256(f"{key}{stamp}{secret}".encode()).hexdigest()
        body = {"appKey": key, "encryption": signature, "timestamp": stamp}
        if old is not None:
            body["accessToken"] = old
        try:
            answer = transport.post_json(self._url + path, json.dumps(body).encode(), _DEADLINE, _CONNECT)
        except TransportError as error:
            # Whatever went out, nothing of the upload did: its outcome is not in doubt.
            raise NotSent(f"the token service did not answer: {error}") from None
        return _read(answer, now, refreshing=old is not None, hidden=(secret, signature, old or secret))


def _read(answer: Answer, now: datetime, *, refreshing: bool, hidden: tuple[str, ...]) -> _Said:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    document = document if isinstance(document, dict) else {}
    told, data = document.get("status"), document.get("data")
    status = told if isinstance(told, int) and not isinstance(told, bool) else None
    words = str(document.get("msg") or "")
    for each in hidden:  # a service may repeat what it was asked
        words = words.replace(each, "…")
    if status is None:
        words = f"HTTP {answer.status} without the token service's envelope"
    rule = first(ANSWERS, {"http": answer.status, "status": status, "refresh": status if refreshing else None})
    skew = seconds_until(answer.headers.get("date", ""), now)
    return _Said(rule, status, cleaned(words, 200), skew, data if isinstance(data, dict) else {})


def _understood(said: _Said, monotonic: float) -> _Held:
    """The token that was given; raises what was said instead."""
    match said.rule.meaning:
        case Reaction.KEEP:
            return _kept(said.data, monotonic)
        case Reaction.CREDENTIALS:
            raise CredentialsRefused(f"the token service refused us: {_in_words(said)}")
        case Reaction.SIGN_AGAIN | Reaction.LATER | Reaction.GET:
            raise TransportError(f"the token service gave no token: {_in_words(said)}")
        case _:
            assert_never(said.rule.meaning)


def _kept(data: Mapping[str, Any], monotonic: float) -> _Held:
    value, seconds = data.get("accessToken"), data.get("expire")
    if not isinstance(value, str) or not value or not (value.isascii() and value.isprintable()):
        raise TransportError("the token service answered without a usable token")
    remember(value)
    lifetime = 0.0
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0:
        lifetime = float(min(seconds, _LONGEST_LIFE))
    ends = monotonic + lifetime
    # Half of a short rest of life: a fixed margin would renew before every single call.
    return _Held(value, ends, ends - min(_MARGIN, lifetime / 2))


def _in_words(said: _Said) -> str:
    """What the table says of an answer, what the answer says itself, and what is wrong with our clock."""
    if said.status is None:
        text = said.words
    else:
        text = f"{said.rule.note} ({said.status}: {said.words})" if said.words else f"{said.rule.note} ({said.status})"
    if said.skew is None or abs(said.skew) <= _SKEW:
        return text
    clock = f"{_duration(abs(said.skew))} {'behind' if said.skew > 0 else 'ahead of'} the token service's"
    if said.rule.note == _WRONG_SECRET:
        return text.replace(_WRONG_SECRET, f"{_WRONG_SECRET}: it is {clock}", 1)
    return f"{text}; this machine's clock is {clock}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
