"""A token that somebody gives us: it is read when it is used, so that a new one is seen without a restart."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from outbox.errors import ConfigurationError
from outbox.exchange import Transport, require_headers
from outbox.secret import Secret, as_secret


class StaticToken:
    """An API key or token in a header: `StaticToken(env("API_TOKEN"))` sends `Authorization: Bearer ...`.

    `scheme` is the word before it, "" for none: `StaticToken(env("API_KEY"), header="X-Api-Key", scheme="")`. Raises
    ConfigurationError for what cannot stand in a header.
    """

    def __init__(self, secret: Secret | str, header: str = "Authorization", scheme: str = "Bearer") -> None:
        require_headers({header: scheme})
        if scheme != scheme.strip():
            raise ConfigurationError(f"expected the scheme to be a word such as Bearer, got {scheme!r}")
        self._secret = as_secret(secret)
        self._header = header
        self._scheme = scheme

    @property
    def header_names(self) -> tuple[str, ...]:
        """The headers it gives."""
        return (self._header,)

    def headers(self, transport: Transport, now: datetime, monotonic: float) -> Mapping[str, str]:
        """The header. Raises ConfigurationError when the secret cannot be read."""
        return {self._header: f"{self._scheme} {self._secret.reveal()}".lstrip()}

    def renew(self) -> None:
        """It was not accepted: `headers` reads it anew each time, and so gives the new one where there is one."""

    def __repr__(self) -> str:
        return f"StaticToken({self._secret!r}, header={self._header!r}, scheme={self._scheme!r})"
