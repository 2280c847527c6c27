"""An EnOS access token: fetched when it is needed, renewed before it ends, never written down.

Source: the vendor's page on access tokens and its Java SDK. `get` gives the same token while it lives, with the time that is
left; `encryption` is the lower-case hexadecimal SHA-256 of appKey + timestamp + appSecret, and may be used once.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from outbox.destinations.base import check_url
from outbox.errors import NotSent, OutboxError, TransportError
from outbox.secret import Secret, as_secret
from outbox.transport import Answer, Transport
from outbox.verdict import cleaned

HEADER = "apim-accesstoken"
_GET = "/apim-token-service/v2.0/token/get"
_REFRESH = "/apim-token-service/v2.0/token/refresh"

#: The service's own codes (member `status`); the same numbers mean something else in an integration answer.
_REPEATED = 1001
_TRY_LATER = frozenset({1005})
_REFRESH_REFUSED = frozenset({1203, 1204})
_MEANING = {
    1002: "the app key does not exist",
    1003: "the app secret is wrong, or this machine's clock is",
    1004: "a parameter is invalid",
    1202: "a parameter is empty",
}
#: Seconds that a token is believed to live at most, whatever the service says.
_LONGEST_LIFE = 86_400
#: Seconds between two tries to renew a token that still lives.
_PATIENCE = 60.0
_DEADLINE = 30.0
_CONNECT = 10.0


class CredentialsRefused(OutboxError):
    """The token service does not know us: a person must mend the key, the secret or the clock."""


class Token:
    """The access token of one application.

    `url` is the API gateway (not the integration address), `app_secret` a Secret or a string. One instance asks once, however
    many threads want the token; several processes need not share, since the service gives them the same one.
    """

    def __init__(self, url: str, app_key: Secret | str, app_secret: Secret | str, *, allow_plain_http: bool = False) -> None:
        check_url(url, allow_plain_http, "token")
        self._url = url.rstrip("/")
        self._app_key = as_secret(app_key)
        self._app_secret = as_secret(app_secret)
        self._lock = threading.Lock()
        self._value: str | None = None
        self._ends = 0.0
        self._renew_at = 0.0
        self._refused = False
        self._given = threading.local()
        self._last_stamp = 0

    def __repr__(self) -> str:
        return f"Token({self._url!r}, app_key={self._app_key!r}, app_secret={self._app_secret!r})"

    def __reduce__(self) -> str:
        raise TypeError("a Token is not pickled")

    def headers(self, transport: Transport, now: datetime, monotonic: float) -> Mapping[str, str]:
        """The header with a live token; see Credentials."""
        with self._lock:
            if self._value is None or monotonic >= self._ends:
                self._get(transport, now, monotonic)
            elif self._refused:
                self._refresh(transport, now, monotonic)
            elif monotonic >= self._renew_at:
                try:
                    self._refresh(transport, now, monotonic)
                except TransportError:
                    # Renewing early is a courtesy: while the token lives, an outage of its service stops nothing.
                    self._renew_at = monotonic + _PATIENCE
            self._given.value = self._value
            return {HEADER: self._value or ""}

    def renew(self) -> None:
        """The token was not accepted: ask for another one next time.

        Only if it is the one that this thread was given last: when several uploads are refused at once, one of them renews, and
        the others must not end its new token by renewing that as well.
        """
        with self._lock:
            if getattr(self._given, "value", self._value) == self._value:
                self._refused = True

    def _get(self, transport: Transport, now: datetime, monotonic: float) -> None:
        status, data, words = self._call(transport, _GET, now, {})
        if status == 0:
            self._keep(data, monotonic)
            return
        raise _failure(status, words)

    def _refresh(self, transport: Transport, now: datetime, monotonic: float) -> None:
        status, data, words = self._call(transport, _REFRESH, now, {"accessToken": self._value or ""})
        if status == 0:
            self._keep(data, monotonic)
        elif status in _REFRESH_REFUSED:
            self._get(transport, now, monotonic)
        else:
            raise _failure(status, words)

    def _call(
        self, transport: Transport, path: str, now: datetime, more: Mapping[str, str]
    ) -> tuple[int | None, dict[str, Any], str]:
        """One answer of the service: its code, its data and its words. A repeated signature is signed again, twice at most."""
        for _ in range(3):
            # Never the same millisecond twice, or the service takes the second call for a replay.
            self._last_stamp = max(int(now.timestamp() * 1000), self._last_stamp + 1)
            stamp = str(self._last_stamp)
            key = self._app_key.reveal()
            signature = hashlib.sha256(f"{key}{stamp}{self._app_secret.reveal()}".encode()).hexdigest()
            body = {"appKey": key, "encryption": signature, "timestamp": stamp, **more}
            try:
                answer = transport.post_json(self._url + path, json.dumps(body).encode(), _DEADLINE, _CONNECT)
            except TransportError as error:
                # Whatever went out, nothing of the upload did: its outcome is not in doubt.
                raise NotSent(f"the token service did not answer: {error}") from None
            status, data, words = _read(answer)
            if status != _REPEATED:
                break
        return status, data, words

    def _keep(self, data: Mapping[str, Any], monotonic: float) -> None:
        value, seconds = data.get("accessToken"), data.get("expire")
        if not isinstance(value, str) or not value or not (value.isascii() and value.isprintable()):
            raise TransportError("the token service answered without a usable token")
        lifetime = 0.0
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds > 0:
            lifetime = float(min(seconds, _LONGEST_LIFE))
        self._value = value
        self._refused = False
        self._ends = monotonic + lifetime
        # Half of a short rest of life: a fixed margin would renew before every single call.
        self._renew_at = self._ends - min(600.0, lifetime / 2)


def _read(answer: Answer) -> tuple[int | None, dict[str, Any], str]:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return None, {}, f"HTTP {answer.status} without the token service's envelope"
    status, data = document.get("status"), document.get("data")
    words = cleaned(str(document.get("msg") or ""), 200)
    known = status if isinstance(status, int) and not isinstance(status, bool) else None
    return known, data if isinstance(data, dict) else {}, words


def _failure(status: int | None, words: str) -> OutboxError:
    if status is None or status in _TRY_LATER or status == _REPEATED:
        return TransportError(f"the token service gave no token: {words}" + (f" ({status})" if status else ""))
    return CredentialsRefused(f"the token service refused us: {_MEANING.get(status, words)} ({status})")
