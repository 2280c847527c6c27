"""What the other side of an upload, or a token service, may say, byte for byte, and what each of it has to mean."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from outbox.model import Reason
from outbox.transport import ANSWER_LIMIT
from outbox.verdict import Delivered, NotSent, Reject, Retry, Unknown, Verdict


class Meaning(StrEnum):
    """A verdict in a word; the only one that delivers is the first."""

    DELIVERED = "delivered"
    RETRY = "the destination's fault"
    RENEW = "the token has ended"
    CREDENTIALS = "we are refused"
    REJECTED = "a message's fault"
    TOO_LARGE = "too large"
    UNKNOWN = "nobody knows"
    NOT_SENT = "not sent"


DELIVERED, RETRY, RENEW, CREDENTIALS, REJECTED, TOO_LARGE, UNKNOWN, NOT_SENT = Meaning


def meaning_of(verdict: Verdict) -> Meaning:
    """The word for a verdict."""
    match verdict:
        case Delivered():
            return DELIVERED
        case Retry(renew=True):
            return RENEW
        case Retry(credentials=True):
            return CREDENTIALS
        case Retry():
            return RETRY
        case Reject(reason=Reason.TOO_LARGE):
            return TOO_LARGE
        case Reject():
            return REJECTED
        case Unknown():
            return UNKNOWN
        case NotSent():
            return NOT_SENT


class Cell(NamedTuple):
    """The bytes of an answer, after which the connection ends, and their meaning."""

    said: bytes
    meaning: Meaning


YES = b'{"code":0}'
HTML = b"<html><body>Please log in</body></html>"


def http(body: bytes | str = b"", status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """An answer; its length as it is, unless another is given, or none at all where a header frames it."""
    body = body.encode() if isinstance(body, str) else body
    framed = any(each.lower().startswith(("transfer-encoding", "content-length")) for each in headers)
    lines = [
        f"HTTP/1.1 {status}",
        *headers,
        *([] if framed else [f"Content-Length: {len(body) if length is None else length}"]),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks) + last


def packed(body: bytes, encoding: str, status: str = "200 OK") -> bytes:
    return http(body, status, f"Content-Encoding: {encoding}")


def _raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def _said(meaning: Meaning, cells: Mapping[str, bytes]) -> dict[str, Cell]:
    return {name: Cell(said, meaning) for name, said in cells.items()}


def _code(code: Any, status: str = "200 OK", **members: Any) -> bytes:
    return http(json.dumps({"code": code, "msg": "as told", "requestId": "r", "data": {}} | members), status)


_CHUNKED = "Transfer-Encoding: chunked"

ANSWERS: dict[str, Cell] = {
    # The envelope of success, however it is wrapped.
    **_said(
        DELIVERED,
        {
            "code 0": _code(0),
            "code 200": _code(200),
            "code '0'": _code("0"),
            "code '200'": _code("200"),
            "201": _code(0, "201 Created"),
            "202": _code(0, "202 Accepted"),
            "206": _code(0, "206 Partial Content"),
            "299": _code(0, "299 Odd"),
            "nothing but the code": http(YES),
            "white space around it": http(b"\r\n " + YES + b"\n\n"),
            "as HTML": http(YES, "200 OK", "Content-Type: text/html"),
            "as Latin-1": http(YES, "200 OK", "Content-Type: application/json; charset=iso-8859-1"),
            "without a length": b"HTTP/1.1 200 OK\r\n\r\n" + YES,
            "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + YES,
            "without a reason": b"HTTP/1.1 200\r\nContent-Length: 10\r\n\r\n" + YES,
            "lines that end with a line feed": b"HTTP/1.1 200 OK\nContent-Length: 10\n\n" + YES,
            "chunked": http(chunked(YES[:4], YES[4:]), "200 OK", _CHUNKED),
            "chunked, with an extension": http(b'a;x="y"\r\n' + YES + b"\r\n0\r\n\r\n", "200 OK", _CHUNKED),
            "chunked, with a trailer": http(chunked(YES, last=b"0\r\nX-Sum: 1\r\n\r\n"), "200 OK", _CHUNKED),
            "chunked, and a length that is none": http(chunked(YES), "200 OK", _CHUNKED, "Content-Length: 3"),
            "gzip": packed(gzip.compress(YES), "gzip"),
            "x-gzip": packed(gzip.compress(YES), "X-GZip"),
            "deflate": packed(zlib.compress(YES), "deflate"),
            "raw deflate": packed(_raw_deflate(YES), "deflate"),
            "gzip in chunks": http(
                chunked(gzip.compress(YES)[:9], gzip.compress(YES)[9:]), "200 OK", _CHUNKED, "Content-Encoding: gzip"
            ),
            "identity": packed(YES, "identity"),
            "the same length twice": http(YES, "200 OK", "Content-Length: 10", "Content-Length: 10"),
            "a length that is no number": http(YES, "200 OK", "Content-Length: ten"),
            "a length below zero": http(YES, "200 OK", "Content-Length: -1"),
            "more than it declared": http(YES + HTML, length=len(YES)),
            "a second answer behind it": http(YES) + http(b"", "500 Oops"),
            "a folded header": http(YES, "200 OK", "X-Folded: one\r\n two"),
            "ninety headers": http(YES, "200 OK", *(f"X-{number}: y" for number in range(90))),
            "100 before it": b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + http(YES),
            "102 before it": b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + http(YES),
            "103 before it": b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n" + http(YES),
            "all of them before it": b"".join(b"HTTP/1.1 %d X\r\n\r\n" % each for each in (100, 103, 102, 100, 199))
            + http(YES),
            "as much as is read": http(YES + b" " * (ANSWER_LIMIT - len(YES))),
        },
    ),
    # 200, and no success.
    **_said(
        RETRY,
        {
            "empty": http(),
            "white space": http(b"  \r\n"),
            "204": http(b"", "204 No Content"),
            "205": http(b"", "205 Reset Content"),
            "a login page": http(HTML, "200 OK", "Content-Type: text/html"),
            "a login page that says it is JSON": http(HTML, "200 OK", "Content-Type: application/json"),
            "a page that mentions success": http(b'<script>x = {"code":0}</script>'),
            "no code": http(b'{"msg":"OK","data":{}}'),
            "null": _code(None),
            "true": _code(True),
            "false": _code(False),
            "0.0": _code(0.0),
            "200.0": _code(200.0),
            "'0.0'": _code("0.0"),
            "' 0'": _code(" 0"),
            "''": _code(""),
            "[0]": _code([0]),
            "-0.0": http(b'{"code":-0.0}'),
            "0e0": http(b'{"code":0e0}'),
            "a code that is too long": http(b'{"code":' + b"9" * 5000 + b"}"),
            "another name": http(b'{"Code":0}'),
            "a code in the data": http(b'{"data":{"code":0}}'),
            "the number alone": http(b"0"),
            "the string alone": http(b'"0"'),
            "null alone": http(b"null"),
            "a list": http(b'[{"code":0}]'),
            "NaN": http(b'{"code":0,"data":NaN}'),
            "code twice": http(b'{"code":99400,"code":0}'),
            "code twice, the same": http(b'{"code":0,"code":0}'),
            "ten thousand deep": http(b'{"code":0,"data":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
            "a byte order mark": http(b"\xef\xbb\xbf" + YES),
            "UTF-16": http('{"code":0}'.encode("utf-16")),
            "not UTF-8": http(b'{"code":0,"msg":"\xff"}'),
            "NUL behind it": http(YES + b"\0"),
            "junk behind it": http(YES + b"}"),
            "junk before it": http(b")]}'\n" + YES),
            "lines of JSON": http(YES + b"\n" + YES),
            "cut, and nobody can see it": b'HTTP/1.1 200 OK\r\n\r\n{"code":0',
            "packed and cut, and nobody can see it": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
            + gzip.compress(YES)[:16],
            "cut by its length": http(YES, length=9),
            "gzip twice": packed(gzip.compress(gzip.compress(YES)), "gzip, gzip"),
            "Brotli": packed(b"\x0b\x04\x80" + YES + b"\x03", "br"),
            "an unknown packing": packed(YES[::-1], "rot13"),
            "more than is read": http(YES + b" " * ANSWER_LIMIT),
            "a gigabyte": http(YES + b" " * ANSWER_LIMIT, length=10**9),
            "an apim_status as well": _code(0, apim_status=0),
            "an apim_status that is none": _code(0, apim_status="ended"),
            "an internal error": _code(99500),
            "exhausted": _code(429),
            "a code that nobody documents": _code(7),
            "a code below zero": _code(-1),
            "the token service's envelope": http(b'{"status":0,"msg":"SUCCESS"}'),
        },
    ),
    # Another status: not even the envelope of success helps.
    **_said(
        RETRY,
        {
            **{
                f"{status} and a page": http(HTML, f"{status} X")
                for status in (
                    400,
                    402,
                    403,
                    404,
                    405,
                    406,
                    408,
                    409,
                    410,
                    411,
                    412,
                    414,
                    415,
                    418,
                    421,
                    422,
                    425,
                    426,
                    428,
                    429,
                    431,
                    451,
                    500,
                    501,
                    502,
                    503,
                    504,
                    505,
                    507,
                    508,
                    511,
                    520,
                    599,
                    600,
                    999,
                )
            },
            **{f"{status} and success": _code(0, f"{status} X") for status in (400, 404, 409, 422, 429, 500, 502, 503)},
            **{
                f"{status} to elsewhere": http(YES, f"{status} X", "Location: https://elsewhere.example/x?ticket=1")
                for status in (300, 301, 302, 303, 305, 307, 308)
            },
            "302 to nowhere": http(b"", "302 Found"),
            "302 to nonsense": http(b"", "302 Found", "Location: http://[::1"),
            "302 that accuses": _code(1204, "302 Found"),
            "304": http(b"", "304 Not Modified"),
            "101": http(b"", "101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"),
            "500, cut": http(b"{", "500 Oops", length=100),
            "503, badly packed": packed(b"abcd", "gzip", "503 Oops"),
            "400, cut in what accuses": http(b'{"code":1204,"msg":"', "400 Bad", length=100),
            "400, more than is read": http(b'{"code":1204}' + b" " * ANSWER_LIMIT, "400 Bad"),
        },
    ),
    # It knows who is to blame.
    **_said(
        REJECTED,
        {
            **{f"{code}": _code(code) for code in (99400, 99404, 1204, 1206, 1212, 1220, 1251, 1257, 1260, 11404)},
            "'1204'": _code("1204"),
            "1204 with 400": _code(1204, "400 Bad Request"),
            "99404 with 404": _code(99404, "404 Not Found"),
            "99400 with 500": _code(99400, "500 Oops"),
            "words that fit no row": _code(1204, msg="\0\x1b[31m\ud800 two\nlines " + "x" * 9000, requestId="\0" * 600),
            "words that are none": _code(1204, msg=["a"], requestId={"b": 1}),
        },
    ),
    **_said(
        TOO_LARGE,
        {
            "413 and a page": http(HTML, "413 Payload Too Large"),
            "413 and nothing": http(b"", "413 Payload Too Large"),
            "413 and success": _code(0, "413 Payload Too Large"),
            "413, cut": http(HTML, "413 Payload Too Large", length=1000),
            "code 413": _code(413),
            "code 1008": _code(1008),
        },
    ),
    **_said(
        RENEW,
        {
            "401 and a page": http(HTML, "401 Unauthorized", "WWW-Authenticate: Basic"),
            "401 and nothing": http(b"", "401 Unauthorized"),
            "code 401": _code(401),
            "code 401 with 401": _code(401, "401 Unauthorized"),
            "code 497": _code(497),
            "apim_status 4011": http(b'{"apim_status":4011,"apim_refreshtoken":"x"}'),
            "apim_status 4012": http(b'{"apim_status":4012}'),
            "apim_status '4011'": http(b'{"apim_status":"4011"}'),
            "apim_status 4011 and success": _code(0, apim_status=4011),
        },
    ),
    **_said(CREDENTIALS, {f"code {code}": _code(code) for code in (403, 498, 1009, 99403)}),
    # All of it went out, and what came back is no answer.
    **_said(
        UNKNOWN,
        {
            "nothing": b"",
            "a line break": b"\r\n",
            "half a status": b"HTTP/1.1 2",
            "half a header": b"HTTP/1.1 200 OK\r\nContent-Le",
            "half a head": b"HTTP/1.1 200 OK\r\nX: y\r\n",
            "half the body": http(YES, length=20),
            "half a chunk": http(b"20\r\n" + YES, "200 OK", _CHUNKED),
            "no last chunk": http(b"a\r\n" + YES + b"\r\n", "200 OK", _CHUNKED),
            "a chunk of no size": http(b"ten\r\n" + YES + b"\r\n0\r\n\r\n", "200 OK", _CHUNKED),
            "badly packed": packed(b"abcd", "gzip"),
            "not packed at all": packed(YES, "gzip"),
            "two lengths": http(YES, "200 OK", "Content-Length: 10", "Content-Length: 4"),
            "two hundred headers": http(YES, "200 OK", *(f"X-{number}: y" for number in range(200))),
            "a header that is too long": http(YES, "200 OK", "X: " + "y" * 200_000),
            "nothing but 100": b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
            "nothing but 103": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20,
            "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n" + YES,
            "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n" + YES,
            "a status that is no number": b"HTTP/1.1 OK\r\n\r\n" + YES,
            "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
            "a mail server": b"220 mail.example ESMTP\r\n",
            "HTTP/2": b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0d",
            "the head of HTTP/2": b"HTTP/2 200 OK\r\n\r\n" + YES,
            "TLS": b"\x15\x03\x03\0\x02\x02\x46",
            "a blank line before it": b"\r\n" + http(YES),
            "the answer without its head": YES,
            "zeros": bytes(1000),
        },
    ),
}


class Given(StrEnum):
    """What a token service's answer comes to."""

    TOKEN = "a token"
    LATER = "none now"
    REFUSED = "none for us"


class TokenCell(NamedTuple):
    """The bytes of an answer, after which the connection ends, and what they come to."""

    said: bytes
    given: Given


TOKEN_VALUE = "t0k3n-0f-the-table"


def _token(status: Any = 0, http_status: str = "200 OK", **data: Any) -> bytes:
    given = {"accessToken": TOKEN_VALUE, "expire": 7200} | data
    return http(json.dumps({"status": status, "msg": "as told", "business": "x", "data": given}), http_status)


def _envelope(**members: Any) -> bytes:
    return http(json.dumps(members))


_TOKEN = _token().partition(b"\r\n\r\n")[2]

TOKEN_ANSWERS: dict[str, TokenCell] = {
    name: TokenCell(said, given)
    for given, cells in {
        Given.TOKEN: {
            "as documented": _token(),
            "201": _token(0, "201 Created"),
            "as HTML": http(_TOKEN, "200 OK", "Content-Type: text/html"),
            "without a length": b"HTTP/1.1 200 OK\r\n\r\n" + _TOKEN,
            "chunked": http(chunked(_TOKEN[:9], _TOKEN[9:]), "200 OK", _CHUNKED),
            "gzip": packed(gzip.compress(_TOKEN), "gzip"),
            "103 before it": b"HTTP/1.1 103 Early Hints\r\n\r\n" + _token(),
            "no lifetime": _token(expire=None),
            "a lifetime without an end": _token(expire=10**30),
            "a lifetime that is over": _token(expire=-5),
            "more than is read": http(_TOKEN + b" " * ANSWER_LIMIT),
            "a gigabyte, of which it comes first": http(_TOKEN + b" " * ANSWER_LIMIT, length=10**9),
        },
        Given.REFUSED: {
            "an unknown key": _token(1002),
            "a wrong secret": _token(1003),
            "a wrong parameter": _token(1004),
            "an empty parameter": _token(1202),
            "a wrong secret with 401": _token(1003, "401 Unauthorized"),
            "a wrong secret with 500": _token(1003, "500 Oops"),
        },
        Given.LATER: {
            "nothing": b"",
            "half a status": b"HTTP/1.1 2",
            "half the body": http(_TOKEN, length=len(_TOKEN) + 1),
            "cut, and nobody can see it": b"HTTP/1.1 200 OK\r\n\r\n" + _TOKEN[:-1],
            "badly packed": packed(b"abcd", "gzip"),
            "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
            "nothing but 103": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20,
            "empty": http(),
            "204": http(b"", "204 No Content"),
            "a login page": http(HTML, "200 OK", "Content-Type: text/html"),
            "null": http(b"null"),
            "a list": http(b"[" + _TOKEN + b"]"),
            "a string": http(json.dumps(TOKEN_VALUE)),
            "junk behind it": http(_TOKEN + b"}"),
            "NUL behind it": http(_TOKEN + b"\0"),
            "not UTF-8": http(_TOKEN.replace(b"as told", b"\xff")),
            "ten thousand deep": http(b'{"status":0,"data":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
            "the envelope of an upload": http(YES),
            "no status": _envelope(data={"accessToken": TOKEN_VALUE, "expire": 7200}),
            "status '0'": _token("0"),
            "status null": _token(None),
            "status false": _token(False),
            "status 0.0": _token(0.0),
            "trouble": _token(1005),
            "always a repetition": _token(1001),
            "what only a refresh may hear": _token(1203),
            "a status that nobody documents": _token(7),
            "no data": _envelope(status=0),
            "data that are none": _envelope(status=0, data=[TOKEN_VALUE]),
            "no token": _envelope(status=0, data={"expire": 7200}),
            "an empty token": _token(accessToken=""),
            "a gigabyte of nothing": http(b" " * 2 * ANSWER_LIMIT, length=10**9),
            "a number for a token": _token(accessToken=5),
            "a token that breaks a header": _token(accessToken="x\r\nEvil: yes"),
            "a token that is not ASCII": _token(accessToken="é"),
            "a token with a NUL": _token(accessToken="x\0"),
            **{
                f"{status} and a page": http(HTML, f"{status} X")
                for status in (400, 401, 403, 404, 405, 413, 429, 500, 502, 503)
            },
            **{f"{status} and a token": _token(0, f"{status} X") for status in (400, 401, 403, 404, 429, 500, 503)},
            **{f"{status} to a thief": http(_TOKEN, f"{status} X", "Location: THIEF") for status in (301, 302, 303, 307, 308)},
            "302 to nonsense": http(b"", "302 Found", "Location: http://[::1"),
        },
    }.items()
    for name, said in cells.items()
}
