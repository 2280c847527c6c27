"""What can be wrong with the verdicts that a destination's `judge` gives, each in a sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from outbox import payload
from outbox.destinations import Answer, Batch, Delivered, Destination, Meaning, Reject, Verdict
from outbox.exchange import ANSWER_LIMIT
from outbox.verdict import Facts, NotSent, Retry, Unknown, fit_for_a_row

_PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>Welcome to our network. Please log in.</body></html>"
_HTML = {"content-type": "text/html; charset=utf-8"}
#: Bodies that come back from servers, proxies and worse.
_BODIES: tuple[tuple[str, bytes], ...] = (
    ("an empty body", b""),
    ("the body ok", b"ok"),
    ("an HTML page", _PAGE),
    ("a body that is not UTF-8", b"\xff\xfe\x00\x80"),
    ("the JSON {}", b"{}"),
    ("the JSON []", b"[]"),
    ("the JSON null", b"null"),
    ("the JSON 0", b"0"),
    ("JSON with success in it", b'{"code": 0, "ok": true, "success": true, "status": "ok"}'),
    ("JSON with odd members", b'{"code": "x", "status": [1], "success": "no", "error": {"message": null}, "data": 1e999}'),
    ("JSON with half a surrogate pair", b'{"message": "\\ud800", "msg": "\\u0000"}'),
    ("JSON that is nested too deep", b"[" * 20_000),
    ("a huge body", b"a" * ANSWER_LIMIT),
)
#: So many of them come with every status, and all with those that a destination is likely to look at.
_EVERYWHERE = 4
_TELLING = frozenset(
    {100, 200, 201, 202, 204, 206, 301, 302, 307, 400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504}
)
_HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"content-type": "text/html; charset=klingon", "retry-after": "soon", "location": "http://[", "date": "yesterday"},
)
_VERDICTS = (Delivered, Retry, Reject, Unknown, NotSent)
#: Statuses of which a gateway speaks for itself, or that say something of us and of how much we send ...
_GATEWAY = (404, 500, 401, 429, 502, 503, 504)
#: ... and those that a destination may use for a message in spite of that, if its table says so.
_ON_PURPOSE = (404, 500)


def faults(
    destination: Destination, batch: Batch, now: datetime, success: Answer | None, *, html_is_success: bool
) -> Iterator[str]:
    """All that is wrong with what `judge` makes of every status with every body."""
    said: dict[str, str] = {}  # the first example of each
    for status in range(100, 600):
        for number, (what, body) in enumerate(_BODIES if status in _TELLING else _BODIES[:_EVERYWHERE]):
            headers = _HEADERS[(status + number) % len(_HEADERS)]
            answer = Answer(status, headers, body, len(body) < ANSWER_LIMIT)
            verdict = _total(destination, answer, batch, now, what)
            if isinstance(verdict, str):
                yield verdict
                return
            if isinstance(verdict, Delivered) and not 200 <= status < 300:
                said.setdefault("status", f"judge says delivered to HTTP {status} with {what}; only a 2xx status may confirm")
    yield from said.values()
    confirming = [
        answer for answer, what in _confirming(success) if isinstance(destination.judge(answer, batch, now), Delivered)
    ]
    if success is not None and success not in confirming:
        words = type(destination.judge(success, batch, now)).__name__.lower()
        yield f"judge says {words} to the answer given as success; it must say delivered"
    if any(isinstance(destination.judge(_early(each), batch, now), Delivered) for each in confirming):
        yield (
            "judge says delivered to an answer that came before the request was sent whole (answer.sent_whole is False), and "
            "the other side cannot have it all; return verdict_of(Meaning.DELIVERED, facts, answer, now), which minds that"
        )
    page = Answer(200, _HTML, _PAGE)
    if not html_is_success and isinstance(destination.judge(page, batch, now), Delivered):
        yield (
            "judge says delivered to an HTML page with HTTP 200, as a captive portal or a login page answers; ask the body for "
            "something that only the destination says, or say html_is_success=True if it answers with pages"
        )
    for status in _GATEWAY:
        accused = isinstance(destination.judge(Answer(status, _HTML, _PAGE), batch, now), Reject)
        if accused and not (status in _ON_PURPOSE and _in_the_table(destination, status)):
            why = {401: "a token that has ended", 429: "being many"}.get(status, "a redeployment")
            yield (
                f"judge accuses the message when a gateway answers HTTP {status} with an HTML page, and all messages would die "
                f"of {why}; return Retry unless the destination itself says that the message is wrong"
            )
            break


def _total(destination: Destination, answer: Answer, batch: Batch, now: datetime, what: str) -> Verdict | str:
    """The verdict, if there is one, twice the same, and one that a row can keep; else what is wrong."""
    about = f"HTTP {answer.status} with {what}"
    try:
        verdict: Any
        verdict, again = destination.judge(answer, batch, now), destination.judge(answer, batch, now)
    except Exception as error:  # noqa: BLE001 (whatever somebody else's code raises)
        return (
            f"judge raised {type(error).__name__} for {about}; it must have a verdict for every answer, and for what it does "
            "not understand that is Retry"
        )
    if not isinstance(verdict, _VERDICTS):
        return f"judge returned {payload.brief(verdict)} for {about}; it must return Delivered, Retry, Reject or Unknown"
    if verdict != again:
        return (
            f"judge has two different verdicts for {about}; it must depend on the answer alone: no clock but `now`, no counter"
        )
    facts: Any = verdict.facts
    try:
        if not isinstance(facts, Facts):
            raise TypeError
        fit_for_a_row(facts)
    except Exception:  # noqa: BLE001 (as above)
        return f"judge keeps {repr(facts)[:200]} of {about}, which no row can; Facts are an int status and code, and strings"
    wait: object = getattr(verdict, "wait", None)
    if not isinstance(wait, int | float | None):
        words = f"judge returned the wait {payload.brief(wait)} for {about}"
        return f"{words}; it is a number of seconds: say retry_after(answer, now)"
    judged: Verdict = verdict
    return judged


def _confirming(success: Answer | None) -> Iterator[tuple[Answer, str]]:
    """Answers that a destination might take for a yes."""
    if success is not None:
        yield success, "success"
    for status in (200, 201, 202, 204):
        for what, body in _BODIES:
            yield Answer(status, {}, body), what


def _early(answer: Answer) -> Answer:
    return Answer(answer.status, answer.headers, answer.body, answer.whole, sent_whole=False)


def _in_the_table(destination: Destination, status: int) -> bool:
    """Whether the destination's table says so on purpose."""
    for rule in destination.verdicts:
        when: Mapping[str, Collection[int | None]] = rule.when
        if rule.meaning in (Meaning.REJECT, Meaning.TOO_LARGE) and status in when.get("status", ()):
            return True
    return False
