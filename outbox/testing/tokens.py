"""The token service of a receiver: it hands out access tokens and knows which of them are alive."""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any, Final

from outbox.testing.wire import strict_json

TOKEN_PATHS: Final[Mapping[str, str]] = {
    "/apim-token-service/v2.0/token/get": "get",
    "/apim-token-service/v2.0/token/refresh": "refresh",
}

_TIMESTAMP: Final = re.compile(r"[0-9]{1,16}")


class TokenDesk:
    """Answers ``get`` and ``refresh``; safe to ask from many threads. Lifetimes are in seconds."""

    def __init__(
        self,
        *,
        app_key: str,
        app_secret: str,
        lifetime: float,
        refresh_revokes: bool,
        max_skew: float | None,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._app_key = app_key
        self._app_secret = app_secret
        self._lifetime = lifetime
        self._refresh_revokes = refresh_revokes
        self._max_skew = max_skew
        self._monotonic = monotonic
        self._wall = wall
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}
        self._current: str | None = None
        self._spent: set[str] = set()
        self._requests: Counter[str] = Counter(get=0, refresh=0)

    @property
    def requests(self) -> Counter[str]:
        """How often ``get`` and ``refresh`` were asked for, refusals included."""
        with self._lock:
            return self._requests.copy()

    def is_alive(self, token: str | None) -> bool:
        """Whether this token was issued here, has not ended and was not revoked."""
        with self._lock:
            return token is not None and self._ends.get(token, self._monotonic()) > self._monotonic()

    def issue(self) -> str:
        """A living token, the current one if there is one."""
        with self._lock:
            return self._living()[0]

    def expire_all(self) -> None:
        """End every token at once."""
        with self._lock:
            self._ends.clear()
            self._current = None

    def rotate_secret(self, new: str) -> None:
        """Know only this secret from now on; tokens live on."""
        with self._lock:
            self._app_secret = new

    def date(self) -> str:
        """What time it is here, as the HTTP header Date says it."""
        return formatdate(self._wall(), usegmt=True)

    def answer(self, operation: str, body: bytes) -> dict[str, Any]:
        """The token service's answer to one request body: ``status`` 0 and a token, or the status that refuses it."""
        with self._lock:
            self._requests[operation] += 1
            return self._answer(operation, body)

    def _answer(self, operation: str, body: bytes) -> dict[str, Any]:
        try:
            fields = strict_json(body)
        except ValueError as error:
            return _refusal(1004, f"invalid parameter: {error}")
        wanted = ["appKey", "encryption", "timestamp"] + ["accessToken"] * (operation == "refresh")
        if not isinstance(fields, dict) or any(fields.get(name) in (None, "") for name in wanted):
            return _refusal(1202, f"parameter empty: {', '.join(wanted)} are needed")
        timestamp = fields["timestamp"]
        if isinstance(timestamp, bool) or not isinstance(timestamp, int | str) or not _is_time(timestamp):
            return _refusal(1004, "invalid parameter: timestamp is not milliseconds since 1970")
        if unknown := sorted(fields.keys() - set(wanted)):
            return _refusal(1004, f"invalid parameter: {', '.join(unknown)}")
        if fields["appKey"] != self._app_key:
            return _refusal(1002, "appKey does not exist")
        expected = hashlib.sha256(f"{self._app_key}{timestamp}{self._app_secret}".encode()).hexdigest()
        if not hmac.compare_digest(str(fields["encryption"]).encode(), expected.encode()):
            return _refusal(1003, "encryption is not valid")
        if self._max_skew is not None and abs(int(timestamp) / 1000 - self._wall()) > self._max_skew:
            return _refusal(1003, f"encryption is not valid: timestamp {timestamp} is too far from {self.date()}")
        if expected in self._spent:
            return _refusal(1001, "repeated request with duplicated encryption")
        self._spent.add(expected)

        if operation == "refresh":
            old = str(fields["accessToken"])
            if self._ends.get(old, 0.0) <= self._monotonic():
                return _refusal(1203, "access token has expired")
            if self._refresh_revokes:
                del self._ends[old]
            self._current = None
        token, seconds = self._living()
        return {
            "status": 0,
            "msg": "SUCCESS",
            "business": "apim-token-service",
            "data": {"accessToken": token, "expire": seconds},
        }

    def _living(self) -> tuple[str, int]:
        now = self._monotonic()
        if self._current is None or self._ends.get(self._current, now) - now < 1:
            # A token of less than a second would be announced with ``expire`` 0, which no client can use.
            self._current = f"token-{uuid.uuid4()}"
            self._ends[self._current] = now + self._lifetime
        return self._current, int(self._ends[self._current] - now)


def _is_time(timestamp: int | str) -> bool:
    return _TIMESTAMP.fullmatch(str(timestamp)) is not None


def _refusal(status: int, msg: str) -> dict[str, Any]:
    return {"status": status, "msg": msg, "business": "apim-token-service", "data": None}
