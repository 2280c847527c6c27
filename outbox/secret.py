"""A value that is read when it is used and never shown."""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, urlsplit

from outbox.errors import ConfigurationError

#: Values in use in this process, the latest last: what is written down anywhere is searched for them.
_known: dict[str, None] = {}
_KNOWN_AT_MOST = 100
#: Those that are never asked for again, and so must not be pushed out by tokens that come and go.
_lasting: dict[str, None] = {}
#: Every form in which one of them may come back, the longest first: one may be a part of another.
_forms: tuple[str, ...] = ()
_lock = threading.Lock()
#: A shorter one would be found in half of all words.
SHORTEST = 6
_MASK = "***"


def remember(value: str, *, lasting: bool = False) -> None:
    """From now on `conceal` knows this value; one shorter than six characters is not looked for.

    Of those that are not `lasting`, the latest hundred are kept in mind.
    """
    global _forms  # noqa: PLW0603 (the one place that knows them)
    if len(value) < SHORTEST:
        return
    with _lock:
        known = _lasting if lasting else _known
        new = value not in known
        known.pop(value, None)
        known[value] = None
        if not new:
            return
        while len(_known) > _KNOWN_AT_MOST:
            _known.pop(next(iter(_known)))
        forms = {form for each in (*_lasting, *_known) for form in _forms_of(each)}
        _forms = tuple(sorted(forms, key=len, reverse=True))


def remember_password(address: str) -> None:
    """From now on `conceal` knows the password in an address of ours, also as a header carries it."""
    parts = urlsplit(address)
    if parts.password:
        user, password = unquote(parts.username or ""), unquote(parts.password)
        for each in (parts.password, password, base64.b64encode(f"{user}:{password}".encode()).decode()):
            remember(each, lasting=True)


def conceal(text: str) -> str:
    """The text with every secret that is in use here masked: an answer may echo what we sent."""
    for form in _forms:
        if form in text:
            text = text.replace(form, _MASK)
    return text


def learn() -> None:
    """Remember every secret there is in this process that can be read now, before it is used for the first time."""
    for each in tuple(_made):
        with contextlib.suppress(ConfigurationError):
            each.reveal()


def _forms_of(value: str) -> set[str]:
    """As it is, as it stands in a URL, in JSON, on a page and in Python's own words."""
    in_json = json.dumps(value)[1:-1]
    in_urls = {quote(value), quote(value, safe=""), quote_plus(value)}
    lower = {re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), each) for each in in_urls}
    return {value, *in_urls, *lower, in_json, in_json.replace("/", r"\/"), html.escape(value), repr(value)[1:-1]}


class Secret:
    """A late-bound secret: `reveal()` reads it anew each time, so a rotated one is seen without a restart.

    Its repr names the place it comes from, never the value.
    """

    __slots__ = ("__weakref__", "_read", "_source")

    def __init__(self, source: str, read: Callable[[], str]) -> None:
        self._source = source
        self._read = read
        _made.add(self)

    def reveal(self) -> str:
        """The value, stripped of surrounding white space.

        Raises ConfigurationError, naming the source and never the value, when it is absent, empty or not printable ASCII:
        such a value would break a header and show up in the error about it.
        """
        value = self._read().strip()
        if not value:
            raise ConfigurationError(f"the secret from {self._source} is empty")
        if not (value.isascii() and value.isprintable()):
            raise ConfigurationError(f"the secret from {self._source} holds characters that are not printable ASCII")
        remember(value)
        return value

    @property
    def source(self) -> str:
        """The place it comes from, in words."""
        return self._source

    def __repr__(self) -> str:
        return f"Secret({self._source})"

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


_made: weakref.WeakSet[Secret] = weakref.WeakSet()


def env(name: str) -> Secret:
    """A secret from an environment variable, read when it is used."""

    def read() -> str:
        try:
            return os.environ[name]
        except KeyError:
            raise ConfigurationError(f"environment variable {name} is not set; it should hold a secret") from None

    return Secret(f"environment variable {name}", read)


def secret_file(path: str | os.PathLike[str]) -> Secret:
    """A secret from a file (a mounted secret, systemd's LoadCredential), read when it is used."""

    def read() -> str:
        try:
            return Path(path).read_text("utf-8")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigurationError(f"cannot read the secret file {os.fspath(path)}: {reason}") from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"the secret file {os.fspath(path)} is not UTF-8 text") from None

    return Secret(f"file {os.fspath(path)}", read)


def literal(value: str) -> Secret:
    """A secret given in code; prefer `env` or `secret_file`."""
    return Secret("a literal", lambda: value)


def as_secret(value: Secret | str) -> Secret:
    """A string wrapped so that no repr or traceback shows it; a Secret as it is."""
    return literal(value) if isinstance(value, str) else value
