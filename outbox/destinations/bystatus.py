"""Destinations that have no envelope: one message a request, and the HTTP status says what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar
from urllib.parse import quote

from outbox.destinations.base import Credentials, Destination, redirected, verdict_of
from outbox.destinations.table import Meaning, Reading, Rule, Verdicts, check_table, first
from outbox.errors import ConfigurationError, Fault
from outbox.exchange import OURS, Answer, require_headers
from outbox.model import Batch
from outbox.payload import has_controls
from outbox.verdict import Facts, Verdict, cleaned

_OK = range(200, 300)
#: What the rules below look at: the HTTP status, and `html`, which is 1 where a page for people came back.
READ = ("status", "html")

#: What an answer means: the first rule that fits decides. A message is accused only by a status that speaks of what was sent
#: (RFC 9110): a gateway that is being redeployed answers 404 to everybody.
VERDICTS: Verdicts = (
    Rule(Meaning.RETRY, "a redirect: it is never followed, set the final address", status=range(300, 400)),
    Rule(Meaning.RETRY, "a page for people: of a captive portal, or to log in; see accept_html", status=_OK, html=1),
    Rule(Meaning.DELIVERED, "success", status=_OK),
    Rule(Meaning.REJECT, "the request makes no sense there", status=400),
    Rule(Meaning.REJECT, "it conflicts with what is there", status=409),
    Rule(Meaning.TOO_LARGE, "the request is too large for the destination or for a server on the way", status=413),
    Rule(Meaning.REJECT, "its media type is not taken there", status=415),
    Rule(Meaning.REJECT, "its content is not accepted", status=422),
    Rule(Meaning.RENEW, "not authenticated", status=401),
    Rule(Meaning.CREDENTIALS, "permission denied", status=403),
    Rule(Meaning.RETRY, "the destination's own trouble, or that of a server on the way"),
)

#: Headers that hold what nobody may see.
_SECRET = frozenset({"authorization", "proxy-authorization", "cookie"})
#: What a key may have in it and still be a header's value as it is; no %, so that decoding gives back every key.
_SAFE = "!#$&'()*+,/:;<=>?@[]^_`{|}~\"\\"


@dataclass(frozen=True, kw_only=True)
class ByStatus(Destination):
    """What Form and Webhook share: credentials, headers of one's own, and a table of statuses.

    `token` lets us in: a StaticToken, or anything else that gives headers. `headers` go with every request.

    `succeeded` has the last word on an answer with a 2xx status: True is delivered, False the destination's fault. Without it
    such a status is enough, unless the answer is an HTML page, as a captive portal or a login page is; `accept_html` takes that
    as well.
    """

    #: A subclass puts its own rules in front: `verdicts = (Rule(Meaning.RETRY, "...", status=409), *Form.verdicts)`.
    verdicts: ClassVar[Verdicts] = VERDICTS
    message_limit: ClassVar[int | None] = 1

    token: Credentials | None = None  #: what lets us in
    headers: Mapping[str, str] = field(default_factory=dict)  #: go with every request
    succeeded: Callable[[Answer], bool] | None = None  #: has the last word on an answer with a 2xx status
    accept_html: bool = False  #: a 2xx answer that is an HTML page is a success, too
    max_file_bytes: int | None = None  #: of one file; None for no limit

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"destination {self.name}"
        try:
            require_headers(self.headers)
        except ConfigurationError as error:
            raise ConfigurationError(f"{owner}: {error}") from None
        for name in self.headers:
            if name.lower() in _SECRET:
                raise ConfigurationError(f"{owner}: {name} is no plain header; say token=StaticToken(env(...)) instead")
            if name.lower() in OURS | self._own_headers:
                raise ConfigurationError(f"{owner}: the header {name} is set by outbox; leave it out")
        if self.token is not None and not callable(getattr(self.token, "headers", None)):
            kind = type(self.token).__name__
            raise ConfigurationError(f"{owner}: expected token to be as in token=StaticToken(env(...)), got a {kind}")
        if taken := sorted(OURS & {name.lower() for name in getattr(self.token, "header_names", ())}):
            raise ConfigurationError(f"{owner}: token: the header {taken[0]} is set by outbox; name another")
        if self.max_file_bytes is not None and self.max_file_bytes < 0:
            raise ConfigurationError(f"{owner}: expected max_file_bytes to be at least 0, got {self.max_file_bytes}")
        check_table(self.verdicts, READ, owner)

    @property
    def _own_headers(self) -> frozenset[str]:
        """Names, in lower case, of the headers that this type gives itself."""
        return frozenset()

    @property
    def credentials(self) -> Credentials | None:
        return self.token

    @property
    def file_limit(self) -> int | None:
        return self.max_file_bytes

    def judge(self, answer: Answer, batch: Batch, now: datetime) -> Verdict:
        reading = read(answer)
        if self.accept_html:
            reading = {**reading, "html": None}
        rule = first(self.verdicts, reading)
        meaning, why = rule.meaning, rule.note
        if self.succeeded is not None and answer.status in _OK:
            meaning = Meaning.DELIVERED if self.succeeded(answer) else Meaning.RETRY
            why = "no success, says `succeeded`"
        doubtful = answer.status in _OK and meaning is not Meaning.DELIVERED
        return verdict_of(meaning, _facts(answer, why if doubtful else ""), answer, now)


def read(answer: Answer) -> Reading:
    """The numbers that rules look at."""
    beginning = answer.body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return {"status": answer.status, "html": 1 if beginning.startswith((b"<!doctype html", b"<html")) else None}


def in_a_header(key: str) -> str:
    """A message's key as the value of a header: white space, % and what is not ASCII as percent-encoded UTF-8."""
    return quote(key, safe=_SAFE)


def unfit_name(name: str) -> str | None:
    """What keeps a part of a form, or a file in it, from being called so; None if nothing does.

    A backslash goes out as browsers send it, by itself. Werkzeug and python-multipart take it, and what is behind it, for
    something else: a name that ends in one would swallow what follows it.
    """
    if not name:
        return "is empty; what is in a form needs a name"
    if has_controls(name):
        return "holds control characters"
    return "holds a backslash, which not everybody who reads a form takes for one" if "\\" in name else None


def unfit_filenames(files: Mapping[str, str]) -> list[Fault]:
    """What is wrong with the names that the receiver shall see."""
    found = ((name, filename, unfit_name(filename)) for name, filename in files.items() if filename)
    return [Fault(f"files.{name}", f"its file name {filename!r} {words}") for name, filename, words in found if words]


def _facts(answer: Answer, why: str) -> Facts:
    """What an answer said; `why` it is no success although its status is one."""
    if 300 <= answer.status < 400:
        return redirected(answer)
    words = answer.body[:4096].decode("utf-8", "replace").strip()
    text = ": ".join(filter(None, (why, words))) or "an empty answer"
    return Facts(answer.status, None, cleaned(text, 500), cleaned(answer.headers.get("x-request-id", ""), 255) or None)
