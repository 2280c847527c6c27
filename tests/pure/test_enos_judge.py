"""What an answer of the EnOS service means: only its own success envelope delivers."""

from __future__ import annotations

import json
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outbox.destinations import EnosAttributes, EnosEvents, EnosMeasurePoints
from outbox.model import Reason
from outbox.transport import ANSWER_LIMIT, Answer
from outbox.verdict import TEXT_LIMIT, Delivered, Facts, NotSent, Reject, Retry, Verdict, cleaned
from tests.pure.making import NOW, batch

ENOS = EnosEvents(name="enos", url="https://integration.example", org_id="o1")


def judged(body: bytes | dict[str, Any] | str, status: int = 200, **fields: Any) -> Verdict:
    content = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    headers = fields.pop("headers", {})
    return ENOS.judge(Answer(status, headers, content, **fields), batch(), NOW)


# Success.


@pytest.mark.parametrize("code", [0, 200, "0", "200"], ids=repr)
@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_the_success_envelope_delivers(code: object, status: int) -> None:
    verdict = judged({"code": code, "msg": "OK", "requestId": "0b754708", "data": {}}, status)

    assert Delivered(Facts(status, int(str(code)), "OK", "0b754708")) == verdict


@pytest.mark.parametrize("destination", [EnosEvents, EnosMeasurePoints, EnosAttributes])
def test_the_sibling_apis_answer_alike(destination: type[EnosEvents]) -> None:
    sibling = destination(name="enos", url="https://integration.example", org_id="o1")

    assert isinstance(sibling.judge(Answer(200, {}, b'{"code":0}'), batch(), NOW), Delivered)


def test_a_success_that_came_before_the_body_was_out_confirms_nothing() -> None:
    assert NotSent(Facts(200, 0)) == judged({"code": 0}, sent_whole=False)


def test_a_success_that_was_not_heard_to_its_end_confirms_nothing() -> None:
    assert isinstance(judged(b'{"code":0}' + b" " * ANSWER_LIMIT, whole=False), Retry)


NO_SUCCESS: dict[str, bytes] = {
    "no code": b'{"msg":"OK","data":{}}',
    "empty": b"",
    "white space": b"  \r\n",
    "html": b"<html><body>Please log in</body></html>",
    "a redirecting page": b'<html><meta http-equiv="refresh" content="0;url=/login"></html>',
    "truncated": b'{"code":0,"msg":"O',
    "the number alone": b"0",
    "a string": b'"0"',
    "a list": b'[{"code":0}]',
    "null": b"null",
    "code inside data": b'{"data":{"code":0}}',
    "another spelling": b'{"Code":0}',
    "true": b'{"code":true}',
    "false": b'{"code":false}',
    "null code": b'{"code":null}',
    "a float": b'{"code":0.0}',
    "a float of 200": b'{"code":200.0}',
    "an exponent": b'{"code":2e2}',
    "a string of a float": b'{"code":"0.0"}',
    "an empty string": b'{"code":""}',
    "a padded string": b'{"code":" 0"}',
    "digits of another script": '{"code":"\u0660"}'.encode(),
    "a list of codes": b'{"code":[0]}',
    "NaN": b'{"code":NaN}',
    "NaN next to it": b'{"code":0,"data":NaN}',
    "infinity": b'{"code":0,"data":-Infinity}',
    "a name twice": b'{"code":0,"code":0}',
    "a name twice, the last one good": b'{"code":99400,"code":0}',
    "a name twice, deeper": b'{"code":0,"data":{"a":1,"a":2}}',
    "a huge number": b'{"code":' + b"9" * 40 + b"}",
    "a number no int takes": b'{"code":0,"data":' + b"1" * 5000 + b"}",
    "a huge string of digits": b'{"code":"' + b"0" * 5000 + b'"}',
    "too deep": b'{"code":0,"data":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "not UTF-8": b'{"code":0,"msg":"\xff"}',
    "UTF-16": '{"code":0}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"code":0}',
    "junk after it": b'{"code":0}{"code":0}',
    "junk before it": b')]}\',\n{"code":0}',
    "apim expired": b'{"apim_status":4011,"apim_refreshtoken":1}',
    "some other status member": b'{"status":0,"msg":"SUCCESS"}',
}


@pytest.mark.parametrize("body", NO_SUCCESS.values(), ids=NO_SUCCESS)
@pytest.mark.parametrize("status", [200, 500])
def test_what_is_not_the_success_envelope_is_the_destinations_fault(body: bytes, status: int) -> None:
    verdict = judged(body, status)

    assert isinstance(verdict, Retry)
    assert status == verdict.facts.status
    assert verdict.facts.code is None


@pytest.mark.parametrize("status", [100, 199, 400, 401, 404, 409, 422, 429, 500, 502, 503, 599, 999])
def test_a_success_envelope_with_another_status_delivers_nothing(status: int) -> None:
    assert isinstance(judged({"code": 0, "msg": "OK"}, status), Retry)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
@pytest.mark.parametrize("body", [b"", b'{"code":0}', b'{"code":1204}'])
def test_no_redirect_delivers_or_accuses(status: int, body: bytes) -> None:
    verdict = judged(body, status, headers={"location": "https://login.example/start?ticket=secret#x"})

    words = "redirected to https://login.example/start; redirects are not followed: set the final address"
    assert Retry(Facts(status, text=words)) == verdict


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/elsewhere",
        "//",
        "http://[",
        "http://[::1",
        "https://a\x00b/c",
        "https://a/\x1b[31m",
        "https://a/" + "x" * 60_000,
        "\udc80",
    ],
    ids=lambda location: ascii(location)[:30],
)
def test_whatever_a_redirect_points_to_its_words_fit_a_row(location: str) -> None:
    verdict = judged(b"", 302, headers={"location": location})

    assert isinstance(verdict, Retry)
    assert fits_a_row(verdict.facts.text)


# Every documented code.

ACCUSES = [99400, 99404, 1204, 1206, 1212, 1220, 1251, 1257, 1260, 11404]
REFUSES_US = [403, 498, 99403, 1009]
#: What the gateway says of itself, and what nobody documents: never a reason to give up on a message.
BLAMES_NOBODY = [1, -1, 99500, 429, 500, 501, 503, 504, 24500, 404, 405, 1000, 1099, 4011, 99999, 2**62]


@pytest.mark.parametrize("code", ACCUSES)
@pytest.mark.parametrize("status", [200, 400, 404, 500])
@pytest.mark.parametrize("form", [int, str])
def test_a_message_code_rejects(code: int, status: int, form: type) -> None:
    verdict = judged({"code": form(code), "msg": "Model validate failed"}, status)

    assert Reject(Facts(status, code, "Model validate failed")) == verdict


@pytest.mark.parametrize("code", [413, 1008])
def test_a_code_for_too_large_rejects_as_too_large(code: int) -> None:
    assert Reject(Facts(200, code), Reason.TOO_LARGE) == judged({"code": code})


@pytest.mark.parametrize("body", [b"", b"<html>413</html>", b'{"code":0}', b'{"code":413}'])
def test_status_413_accuses_without_any_envelope(body: bytes) -> None:
    verdict = judged(body, 413, sent_whole=False)

    assert isinstance(verdict, Reject)
    assert Reason.TOO_LARGE is verdict.reason


@pytest.mark.parametrize("code", REFUSES_US)
def test_a_code_that_refuses_us_stops_the_destination(code: int) -> None:
    assert Retry(Facts(200, code), credentials=True) == judged({"code": code})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"code":401}', 200),
        (b'{"code":497}', 200),
        (b'{"code":"401"}', 401),
        (b'{"apim_status":4011,"apim_refreshtoken":"x"}', 200),
        (b'{"apim_status":4012}', 200),
        (b'{"apim_status":"4011"}', 200),
        (b"", 401),
        (b"<html>401</html>", 401),
        (b'{"msg":"no code"}', 401),
    ],
)
def test_an_ended_token_is_renewed_first(body: bytes, status: int) -> None:
    verdict = judged(body, status)

    assert isinstance(verdict, Retry)
    assert (True, True) == (verdict.renew, verdict.credentials)


@pytest.mark.parametrize("code", BLAMES_NOBODY)
def test_any_other_code_is_the_destinations_fault(code: int) -> None:
    assert Retry(Facts(200, code)) == judged({"code": code})


@pytest.mark.parametrize("status", [400, 403, 404, 405, 408, 409, 415, 422, 425, 429, 500, 501, 502, 503, 504, 599])
def test_a_status_without_the_envelope_accuses_no_message(status: int) -> None:
    """A gateway that is being redeployed answers 404 to everybody."""
    verdict = judged(b"<html>no such page</html>", status)

    assert Retry(Facts(status, text="no answer in the EnOS envelope: <html>no such page</html>")) == verdict


# What it asks for, and what it says.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("9" * 50, 1e8),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=90), usegmt=True), 0.0),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("\u0663", None),
        ("Wed, 21 Oct 2015 07:28:00", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", None),
        ("Wed, 99 Foo 2015 77:28:00 GMT", None),
        ("\x00", None),
    ],
)
@pytest.mark.parametrize("body", [b"", b'{"code":99500}'])
def test_a_wish_to_wait_is_heard_in_seconds_or_as_a_date(value: str, expected: float | None, body: bytes) -> None:
    verdict = judged(body, 503, headers={"retry-after": value})

    assert isinstance(verdict, Retry)
    assert expected == verdict.wait


def test_a_redirects_wish_to_wait_is_heard_too() -> None:
    verdict = judged(b"", 307, headers={"retry-after": "7", "location": "https://elsewhere.example/"})

    assert isinstance(verdict, Retry)
    assert 7.0 == verdict.wait


@pytest.mark.parametrize("status", [200, 429, 503])
def test_without_a_wish_it_waits_as_it_likes(status: int) -> None:
    verdict = judged(b"", status)

    assert isinstance(verdict, Retry)
    assert verdict.wait is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("no\u0000thing", "no thing"),
        ("half \ud83d", "half ?"),
        ("two\nlines", "two lines"),
        ("x" * 5000, "x" * (TEXT_LIMIT - 1) + "…"),
        (17, None),
        (None, None),
        (["a"], None),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_its_words_are_cleaned_before_they_are_kept(said: object, expected: str | None) -> None:
    verdict = judged({"code": 1204, "msg": said, "requestId": said})

    assert expected == verdict.facts.text
    assert (None if expected is None else cleaned(expected, 255)) == verdict.facts.request_id


@pytest.mark.parametrize("code", ["9223372036854775807", "9223372036854775808", "-9223372036854775808"])
def test_a_code_always_fits_its_column(code: str) -> None:
    for form in (code, f'"{code}"'):
        kept = judged(f'{{"code":{form}}}').facts.code

        assert kept is None or abs(kept) < 2**63


# Anything at all.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CODES = st.sampled_from([0, 200, "0", "200", 401, 413, 1204, 99400, 99500]) | VALUES
ENVELOPES = st.fixed_dictionaries(
    {"code": CODES}, optional={"msg": VALUES, "requestId": VALUES, "data": VALUES, "apim_status": VALUES}
)
BODIES = st.binary(max_size=60) | ENVELOPES.map(lambda value: json.dumps(value).encode())
STATUSES = st.sampled_from([200, 200, 204, 302, 401, 413, 500]) | st.integers(100, 999)
WORDS = st.text(st.characters(exclude_categories=()) | st.sampled_from("[]:/0123456789 +,"), max_size=40)
HEADERS = st.fixed_dictionaries({}, optional={"location": WORDS.map("http://".__add__) | WORDS, "retry-after": WORDS})


@given(body=BODIES, status=STATUSES, headers=HEADERS, whole=st.booleans(), sent_whole=st.booleans())
@example(body=b"", status=302, headers={"location": "http://[::1"}, whole=True, sent_whole=True)
@example(body=b'{"code":0}', status=200, headers={}, whole=True, sent_whole=True)
def test_no_answer_surprises_it_and_only_the_success_envelope_delivers(
    body: bytes, status: int, headers: dict[str, str], whole: bool, sent_whole: bool
) -> None:
    verdict = judged(body, status, headers=headers, whole=whole, sent_whole=sent_whole)

    assert isinstance(verdict, Delivered | Retry | Reject | NotSent)
    assert isinstance(verdict, Delivered) == (status // 100 == 2 and whole and sent_whole and says_success(body))
    assert fits_a_row(verdict.facts.text)
    assert fits_a_row(verdict.facts.request_id, 255)
    assert status == verdict.facts.status
    if isinstance(verdict, Retry) and verdict.wait is not None:
        assert 0 <= verdict.wait < float("inf")


def says_success(body: bytes) -> bool:
    """The same question, asked in another way: names twice, NaN and the like cannot come from `BODIES`' own dumps."""
    try:
        document = json.loads(body.decode())
    except (ValueError, RecursionError):
        return False
    sane = "NaN" not in json.dumps(document) and "Infinity" not in json.dumps(document)
    told = isinstance(document, dict) and document.get("apim_status") is None
    return sane and told and repr(document.get("code")) in ("0", "200", "'0'", "'200'")


def fits_a_row(text: str | None, limit: int = TEXT_LIMIT) -> bool:
    return text is None or (len(text) <= limit and text.isprintable() and text == text.encode().decode())
