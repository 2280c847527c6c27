"""What we put on the wire equals what the vendor's own client put there, but for the differences listed here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from outbox.destinations import EnosAttributes, EnosEvents, EnosMeasurePoints, Token
from outbox.model import Batch
from outbox.transport import RequestsTransport, Upload
from tests.pure.making import Crate, batch, carrying
from tests.pure.recorder import Recorder, http

CAPTURES = Path(__file__).parent.parent / "captures"
UPLOADS = sorted(CAPTURES.glob("[0-9]*.http"))
DESTINATIONS = {"postEvent": EnosEvents, "postMeasurepoint": EnosMeasurePoints, "postAttribute": EnosAttributes}
OUR_SECRET = "app-secret-0002"

#: Headers of a request that name the client's library and not what it says.
LIBRARY = {"host", "connection", "accept", "accept-encoding", "user-agent", "content-length"}


@dataclass(frozen=True)
class Part:
    headers: list[str]
    content: bytes


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def parts(self) -> list[Part]:
        """The parts of the form, split strictly: nothing before the first boundary, nothing after the last."""
        boundary = b"--" + self.headers["content-type"].removeprefix("multipart/form-data; boundary=").encode()
        before, *pieces, after = (b"\r\n" + self.body).split(b"\r\n" + boundary)
        assert (b"", b"--\r\n") == (before, after)
        parts = []
        for piece in pieces:
            head, _, content = piece.partition(b"\r\n\r\n")
            empty, *lines = head.decode().split("\r\n")
            assert empty == ""
            parts.append(Part(lines, content))
        return parts

    @property
    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.parts[0].content)
        return message

    @property
    def transfer_names(self) -> list[str]:
        """The names of the file parts, in their order."""
        return [line.partition('filename="')[2].removesuffix('"') for part in self.parts[1:] for line in part.headers[:1]]


def parsed(raw: bytes) -> Request:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, target, version = first.split(" ")
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert version == "HTTP/1.1"
    assert len(headers) == len(pairs)
    return Request(method, target, headers, body)


def normalised(request: Request) -> dict[str, Any]:
    """What may not differ: all of it but boundary, transfer names and the order of JSON members."""
    numbered = {name: f"file-{number}" for number, name in enumerate(request.transfer_names)}
    text = json.dumps(request.message, sort_keys=True)
    heads = "\n".join(line for part in request.parts for line in part.headers if not line.startswith("Content-Length"))
    for name, number in numbered.items():
        text, heads = text.replace(name, number), heads.replace(name, number)
    return {
        "method": request.method,
        "target": request.target,
        "headers": {name: value for name, value in request.headers.items() if name not in LIBRARY | {"content-type"}},
        "part heads": heads.split("\n"),
        # As text, so that 2 and 2.0, or 1 and true, are not the same.
        "message": json.dumps(json.loads(text), sort_keys=True),
        "files": [part.content for part in request.parts[1:]],
    }


def our_batch(theirs: Mapping[str, Any], crate: Crate) -> Batch:
    """The producers' messages that make this request: one for each struct, with the files by the names they had on disk."""
    messages = []
    for number, struct in enumerate(theirs["params"]):
        text = json.dumps(struct)
        attached = []
        for name, entry in theirs["files"].items():
            if f'"local://{name}"' in text:
                original = entry["originalFilename"]
                text = text.replace(f"local://{name}", f"local://{original}")
                attached.append(crate.attach(original, original, (CAPTURES / "inputs" / original).read_bytes()))
        messages.append(carrying(int(theirs["id"]) + number, json.loads(text), *attached))
    return batch(*messages)


def ours(theirs: Request, *, sdk_lengths: bool) -> Request:
    """The same upload, made by us and read off a real connection."""
    message = theirs.message
    make = DESTINATIONS[theirs.target.partition("action=")[2].partition("&")[0]]
    crate = Crate()
    with Recorder([http(b"{}")]) as recorder:
        destination = make(
            name="enos",
            url=recorder.url,
            allow_plain_http=True,
            org_id="o15724268424841",
            realtime=message["isRealtimeIntegration"],
            file_length_as_string=sdk_lengths,
        )
        upload = destination.encode(our_batch(message, crate))
        token = {"apim-accesstoken": theirs.headers["apim-accesstoken"]}
        RequestsTransport().send(Upload(upload.url, upload.parts, token), crate.open, 10, 10)
    (raw,) = recorder.requests
    return parsed(raw)


@pytest.mark.parametrize("capture", UPLOADS, ids=lambda path: path.stem)
def test_an_upload_equals_the_vendors(capture: Path) -> None:
    theirs = parsed(capture.read_bytes())

    mine = ours(theirs, sdk_lengths=True)

    assert normalised(theirs) == normalised(mine)


@pytest.mark.parametrize("capture", UPLOADS, ids=lambda path: path.stem)
def test_as_it_is_set_up_by_default_only_the_file_length_differs(capture: Path) -> None:
    """The vendor's page says that fileLength is a number, its client sends a string; both are taken."""
    theirs = parsed(capture.read_bytes())
    expected = theirs.message
    for entry in expected["files"].values():
        entry["fileLength"] = int(entry["fileLength"])

    mine = ours(theirs, sdk_lengths=False)

    as_numbers = json.dumps(expected, sort_keys=True)
    for number, name in enumerate(theirs.transfer_names):
        as_numbers = as_numbers.replace(name, f"file-{number}")
    assert normalised(theirs) | {"message": json.dumps(json.loads(as_numbers), sort_keys=True)} == normalised(mine)


@pytest.mark.parametrize("capture", UPLOADS, ids=lambda path: path.stem)
def test_lengths_are_said_where_the_vendor_says_them_and_are_true(capture: Path) -> None:
    mine = ours(parsed(capture.read_bytes()), sdk_lengths=False)

    assert str(len(mine.body)) == mine.headers["content-length"]
    assert "transfer-encoding" not in mine.headers
    assert [f"Content-Length: {len(part.content)}" for part in mine.parts] == [part.headers[-1] for part in mine.parts]


@pytest.mark.parametrize("capture", UPLOADS, ids=lambda path: path.stem)
def test_only_accept_is_a_header_that_the_vendor_does_not_send(capture: Path) -> None:
    theirs = parsed(capture.read_bytes())

    mine = ours(theirs, sdk_lengths=False)

    assert {"accept"} == mine.headers.keys() ^ theirs.headers.keys()


def test_all_eight_captured_uploads_were_compared() -> None:
    actions = [parsed(path.read_bytes()).target.partition("?")[2] for path in UPLOADS]

    assert 8 == len(UPLOADS)
    assert 3 == len(set(actions))


# The token service.


def token_answer(value: str, expire: int) -> bytes:
    data = {"accessToken": value, "expire": expire}
    return http(json.dumps({"status": 0, "msg": "SUCCESS", "business": "apim-token-service", "data": data}).encode())


def instant(request: Request) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(json.loads(request.body)["timestamp"]))


def test_the_two_token_requests_equal_the_vendors() -> None:
    get = parsed((CAPTURES / "token-get.http").read_bytes())
    refresh = parsed((CAPTURES / "token-refresh.http").read_bytes())
    transport = RequestsTransport()

    with Recorder([token_answer("TOKEN-GET-0001", 1000), token_answer("TOKEN-REFRESHED-0002", 7200)]) as service:
        token = Token(service.url, "app-key-0001", OUR_SECRET, allow_plain_http=True)
        first = token.headers(transport, instant(get), 0.0)
        second = token.headers(transport, instant(refresh), 600.0)

    assert {"apim-accesstoken": "TOKEN-GET-0001"} == first
    assert {"apim-accesstoken": "TOKEN-REFRESHED-0002"} == second
    assert [said(get), said(refresh)] == [said(parsed(raw)) for raw in service.requests]


def said(request: Request) -> tuple[str, str, str, str]:
    """All that a token request says: its timestamp is a string, its signature the vendor's own."""
    return request.method, request.target, request.headers["content-type"], json.dumps(json.loads(request.body), sort_keys=True)
