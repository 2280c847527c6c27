"""The receiver takes what the vendor's client sends, notices every fault, and misbehaves exactly as told."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import urllib3

from outbox.testing import (
    Answer,
    ApimExpired,
    Behaviour,
    BlackHole,
    Body,
    Drip,
    EarlyStatus,
    Expired,
    GzipBomb,
    HangUp,
    Hold,
    Receiver,
    Silence,
    Slow,
    SlowRead,
    Status,
    Truncated,
    parse_behaviour,
    peak_of,
    rate_of,
    read_ledger,
    refused_url,
)

CAPTURES = Path(__file__).parent.parent / "captures"
UPLOADS = sorted(CAPTURES.glob("[0-9]*.http"))
ADDRESS = "/connect-service/v2.1/integration"
CONTENT = b"some bytes\r\n--not-a-boundary\r\n\x00\xff"

Form = list[tuple[str, Any]]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def message_with_a_file(content: bytes = CONTENT) -> dict[str, Any]:
    md5 = hashlib.md5(content).hexdigest()
    device = {"productKey": "pump", "deviceKey": "pump-1"}
    return {
        "id": 7,
        "version": "1.1",
        "method": "integration.event.post",
        "params": [{**device, "time": 1579580182824, "events": {"leak": {"litres": 1.5, "photo": "local://a.bin"}}}],
        "files": {
            "a.bin": {
                **device,
                "featureId": "leak",
                "md5": md5,
                "fileLength": len(content),
                "originalFilename": "Ölfleck.bin",
                "fileExt": ".bin",
            }
        },
    }


def message_about(*assets: str) -> dict[str, Any]:
    struct = message_without_files()["params"][0]
    return {**message_without_files(), "params": [{**struct, "assetId": asset} for asset in assets]}


def assets(structs: Iterable[dict[str, Any]]) -> list[str]:
    return [struct["assetId"] for struct in structs]


def is_poison(struct: dict[str, Any]) -> bool:
    return str(struct["assetId"]).startswith("poison")


def message_without_files() -> dict[str, Any]:
    struct = {"assetId": "pump-1", "time": 1579580182824, "events": {"leak": {"litres": 2}}}
    return {"id": "8", "version": "1.1", "method": "integration.event.post", "params": [struct], "files": {}}


def form(message: Any, content: bytes | None = None) -> Form:
    text = message if isinstance(message, str | bytes) else json.dumps(message)
    parts: Form = [("enos-message", (None, text, None, {}))]
    if content is not None:
        length = {"Content-Length": str(len(content))}
        parts.append(("enos-file", ("a.bin", content, "application/octet-stream", length)))
    return parts


def upload(
    session: requests.Session,
    receiver: Receiver,
    parts: Form | None = None,
    *,
    query: str = "action=postEvent&orgId=o1",
    headers: dict[str, str] | None = None,
    timeout: float = 10,
) -> requests.Response:
    token = {"apim-accesstoken": receiver.issue_token()}
    return session.post(
        f"{receiver.url}{ADDRESS}?{query}",
        files=form(message_without_files()) if parts is None else parts,
        headers=token if headers is None else headers,
        timeout=timeout,
        allow_redirects=False,
    )


def connect(receiver: Receiver) -> socket.socket:
    parts = urlsplit(receiver.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def say(receiver: Receiver, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send these bytes, read one answer."""
    with connect(receiver) as connection, connection.makefile("rb") as reader:
        connection.sendall(request)
        status = int(reader.readline().split()[1])
        length = 0
        while (line := reader.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, json.loads(reader.read(length))


def token_request(**changes: Any) -> dict[str, Any]:
    stamp = str(changes.pop("timestamp", 1579580182824))
    key, secret = changes.get("appKey", "app-key"), changes.pop("secret", "app-secret")
    encryption = hashlib.sha256(f"{key}{stamp}{secret}".encode()).hexdigest()
    return {"appKey": key, "timestamp": stamp, "encryption": encryption, **changes}


def token_url(receiver: Receiver) -> str:
    return f"{receiver.token_url}/apim-token-service/v2.0/token/get"


def ask_for_token(session: requests.Session, receiver: Receiver, operation: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"{receiver.token_url}/apim-token-service/v2.0/token/{operation}"
    answer: dict[str, Any] = session.post(url, json=body, timeout=10).json()
    return answer


# What the vendor's own client sends.


@pytest.mark.parametrize("capture", UPLOADS, ids=lambda path: path.stem)
def test_a_request_of_the_vendors_client_passes_as_it_is(capture: Path) -> None:
    manifest = json.loads((CAPTURES / "manifest.json").read_text("utf-8"))
    [expected] = [entry for entry in manifest["captures"] if entry["file"] == capture.name]

    with Receiver(check_token=False) as receiver:
        status, answer = say(receiver, capture.read_bytes())

        [record] = receiver.requests
        assert (status, answer["code"]) == (200, 0)
        assert receiver.violations == []
        assert record.message == expected["enos_message"]
        assert [accepted.struct for accepted in receiver.accepted] == expected["enos_message"]["params"]
        file_parts = expected["parts"][1:]
        assert [file.sha256 for file in record.files.values()] == [part["sha256"] for part in file_parts]


def test_there_are_eight_captured_uploads() -> None:
    assert len(UPLOADS) == 8


def test_the_vendors_token_requests_pass_as_they_are() -> None:
    with Receiver(app_key="app-key-0001", app_secret="app-secret-0002") as receiver:
        _, got = say(receiver, (CAPTURES / "token-get.http").read_bytes())
        refresh = (CAPTURES / "token-refresh.http").read_bytes()
        _, refused = say(receiver, refresh)

        assert got["status"] == 0
        assert got["data"]["expire"] in (7199, 7200)
        # It refreshes a token of its own time, which this receiver never issued.
        assert refused["status"] == 1203
        assert receiver.violations == []


def test_a_capture_passes_in_chunks_of_one_byte_too() -> None:
    head, _, body = (CAPTURES / "02-event-one-file.http").read_bytes().partition(b"\r\n\r\n")
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body) + b"0\r\nTrailer: yes\r\n\r\n"

    with Receiver(check_token=False) as receiver:
        _, answer = say(receiver, head + b"\r\n\r\n" + chunks)

        assert answer["msg"] == "OK"
        assert receiver.requests[0].wire_bytes == len(body)


# What is accepted, and how it is recorded.


def test_a_file_arrives_byte_for_byte(receiver: Receiver, session: requests.Session) -> None:
    answer = upload(session, receiver, form(message_with_a_file(), CONTENT))

    [accepted] = receiver.accepted
    assert answer.json()["code"] == 0
    assert accepted.struct == message_with_a_file()["params"][0]
    assert accepted.files["a.bin"].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert accepted.files["a.bin"].size == len(CONTENT)
    assert accepted.files["a.bin"].original_filename == "Ölfleck.bin"
    assert accepted.files_by_path == {"events/leak/photo": accepted.files["a.bin"]}


def test_an_empty_file_is_taken(receiver: Receiver, session: requests.Session) -> None:
    upload(session, receiver, form(message_with_a_file(b""), b""))

    assert receiver.violations == []
    assert receiver.accepted[0].files["a.bin"].size == 0


def test_requests_follow_each_other_on_one_connection(receiver: Receiver) -> None:
    capture = (CAPTURES / "01-event-no-file.http").read_bytes()
    capture = capture.replace(b"TOKEN-REFRESHED-0002", receiver.issue_token().encode())

    with connect(receiver) as connection, connection.makefile("rb") as reader:
        connection.sendall(capture * 3)
        receiver.wait_for(lambda r: len(r.accepted) == 3)

        assert reader.readline() == b"HTTP/1.1 200 OK\r\n"


def test_a_client_that_asks_to_continue_is_told_to(receiver: Receiver) -> None:
    head, _, body = (CAPTURES / "01-event-no-file.http").read_bytes().partition(b"\r\n\r\n")

    with connect(receiver) as connection, connection.makefile("rb") as reader:
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        told = reader.readline()
        connection.sendall(body)

        assert told == b"HTTP/1.1 100 Continue\r\n"
        receiver.wait_for(lambda r: r.requests[0].complete if r.requests else False)


def test_the_bytes_of_files_are_kept_when_asked(session: requests.Session, tmp_path: Path) -> None:
    with Receiver(keep_files=tmp_path / "kept") as receiver:
        upload(session, receiver, form(message_with_a_file(), CONTENT))

        [kept] = (tmp_path / "kept").iterdir()
        assert kept.name == hashlib.sha256(CONTENT).hexdigest()
        assert kept.read_bytes() == CONTENT


def test_the_ledger_tells_another_process_what_happened(session: requests.Session, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with Receiver(ledger=ledger) as receiver:
        receiver.misbehave(Status(503), HangUp("after_body"))
        upload(session, receiver)
        with pytest.raises(requests.ConnectionError):
            upload(session, receiver)
        upload(session, receiver, form(message_with_a_file(), CONTENT))
        records = receiver.requests
        token = receiver.issue_token()
    with ledger.open("ab") as file:
        file.write(b'{"number": 4, "torn')

    read = read_ledger(ledger)

    assert token not in ledger.read_text("ascii")
    assert [record.accepted for record in read] == [record.accepted for record in records]
    assert [(r.number, r.status, r.stored, r.answered, len(r.accepted)) for r in read] == [
        (1, 503, False, True, 0),
        (2, None, True, False, 0),
        (3, 200, True, True, 1),
    ]


def test_memory_stays_flat_however_large_the_file(receiver: Receiver) -> None:
    size, block = 300_000_000, bytes(1 << 20)
    message = message_with_a_file(b"")
    message["files"]["a.bin"] = {"featureId": "leak", "productKey": "pump", "deviceKey": "pump-1", "fileLength": size}
    prepared = requests.Request("POST", "http://x", files=form(message, b"")).prepare()
    assert isinstance(prepared.body, bytes)
    body = prepared.body.replace(b"Content-Length: 0", f"Content-Length: {size}".encode())
    first, last = body[: body.rindex(b"\r\n--")], body[body.rindex(b"\r\n--") :]
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with Receiver(max_file_bytes=size) as receiver, connect(receiver) as connection:
        head = [
            f"POST {ADDRESS}?action=postEvent&orgId=o HTTP/1.1",
            "Host: x",
            f"apim-accesstoken: {receiver.issue_token()}",
            f"Content-Type: {prepared.headers['Content-Type']}",
            f"Content-Length: {len(body) + size}",
        ]
        connection.sendall("\r\n".join([*head, "", ""]).encode() + first)
        for start in range(0, size, len(block)):
            connection.sendall(block[: size - start])
        connection.sendall(last)
        receiver.wait_for(lambda r: len(r.requests) == 1, timeout=60)

        assert receiver.violations == []
        assert receiver.accepted[0].files["a.bin"].size == size
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 30_000_000


def test_ten_thousand_structs_go_through_in_a_few_seconds(receiver: Receiver, session: requests.Session) -> None:
    parts = form(message_about(*(f"pump-{number}" for number in range(100))))
    before = time.monotonic()

    for _ in range(100):
        upload(session, receiver, parts)

    assert len(receiver.accepted) == 10_000
    assert time.monotonic() - before < 5


# What is wrong with a request. Each case breaks one rule of a good request.


Change = Callable[[dict[str, Any]], object]

WRONG_MESSAGES: dict[str, tuple[Change, str]] = {
    "another method": (lambda m: m.update(method="integration.attribute.post"), "method is"),
    "another version": (lambda m: m.update(version="1.0"), "version is '1.0'"),
    "an id that is no number": (lambda m: m.update(id="abc"), "id is 'abc'"),
    "an id that is a boolean": (lambda m: m.update(id=True), "id is True"),
    "an unknown member": (lambda m: m.update(extra=1), "unknown members extra"),
    "no params": (lambda m: m.pop("params"), "params is not a list"),
    "empty params": (lambda m: m.update(params=[]), "params is not a list"),
    "a param that is no struct": (lambda m: m["params"].append("x"), r"params\[1\] is not a struct"),
    "both forms of device": (lambda m: m["params"][0].update(assetId="x"), "the device is named by"),
    "half a device": (lambda m: m["params"][0].pop("deviceKey"), "the device is named by"),
    "an empty device": (lambda m: m["params"][0].update(deviceKey=""), "deviceKey is not a text"),
    "no time": (lambda m: m["params"][0].pop("time"), "time is None"),
    "time in seconds": (lambda m: m["params"][0].update(time=1579580182), "not milliseconds"),
    "time as a fraction": (lambda m: m["params"][0].update(time=1579580182824.5), "not milliseconds"),
    "no events": (lambda m: m["params"][0].update(events={}), "events is missing or empty"),
    "an event that is no object": (lambda m: m["params"][0]["events"].update(x=1), "event 'x' is not an object"),
    "measurepoints beside events": (lambda m: m["params"][0].update(measurepoints={"a": 1}), "unknown members"),
    "offline said with a text": (lambda m: m.update(isRealtimeIntegration="no"), "is not a boolean"),
    "files that are a list": (lambda m: m.update(files=[]), "files is not an object"),
    "no entry for the file": (lambda m: m.update(files={}), "sent, but not in files"),
    "an entry without a reference": (lambda m: m["params"][0]["events"]["leak"].pop("photo"), "nothing refers to it"),
    "a reference without a file": (
        lambda m: m["params"][0]["events"]["leak"].update(more="local://b.bin"),
        "'b.bin' is referenced, but not in files",
    ),
    "an entry without a part": (
        lambda m: m["files"].update({"b": m["files"]["a.bin"]}),
        "'b' is in files, but not sent",
    ),
    "a file deep in a value": (
        lambda m: m["params"][0]["events"]["leak"].update(photo={"of": "local://a.bin"}),
        "stands where the model has no file",
    ),
    "a list of files in an event": (
        lambda m: m["params"][0]["events"]["leak"].update(photo=["local://a.bin"]),
        "stands where the model has no file",
    ),
    "the parameter as featureId": (lambda m: m["files"]["a.bin"].update(featureId="photo"), "featureId is 'photo'"),
    "another device's file": (lambda m: m["files"]["a.bin"].update(deviceKey="pump-2"), "names another device"),
    "a wrong md5": (lambda m: m["files"]["a.bin"].update(md5="0" * 32), "md5 is 000"),
    "an md5 in base64": (lambda m: m["files"]["a.bin"].update(md5="1B2M2Y8AsgTpgAmY7PhCfg=="), "not 32 lower-case"),
    "a wrong length": (lambda m: m["files"]["a.bin"].update(fileLength="3"), "fileLength is 3"),
    "a length in words": (lambda m: m["files"]["a.bin"].update(fileLength="few"), "fileLength is 'few'"),
    "the misprinted produckKey": (lambda m: m["files"]["a.bin"].update(produckKey="pump"), "misprint"),
    "another fileName": (lambda m: m["files"]["a.bin"].update(fileName="b"), "fileName is 'b'"),
    "an extension without a dot": (lambda m: m["files"]["a.bin"].update(fileExt="bin"), "fileExt is 'bin'"),
    "an unknown member of a file": (lambda m: m["files"]["a.bin"].update(size=1), "unknown members size"),
}


@pytest.mark.parametrize("case", WRONG_MESSAGES)
def test_a_fault_in_the_message_is_refused(receiver: Receiver, session: requests.Session, case: str) -> None:
    change, words = WRONG_MESSAGES[case]
    message = copy.deepcopy(message_with_a_file())
    change(message)

    answer = upload(session, receiver, form(message, CONTENT))

    assert (answer.status_code, answer.json()["code"]) == (200, 99400)
    assert re.search(words, answer.json()["msg"])
    assert any(re.search(words, violation) for violation in receiver.violations)
    assert receiver.accepted == []


GOOD_TEXT = json.dumps(message_without_files())
WRONG_TEXTS = {
    "NaN": (GOOD_TEXT.replace(": 2}", ": NaN}"), "NaN is not JSON"),
    "too large a number": (GOOD_TEXT.replace(": 2}", ": 1e999}"), "too large a number"),
    "a member twice": (GOOD_TEXT.replace('"litres"', '"litres": 1, "litres"'), "'litres' appears twice"),
    "half a surrogate pair": (GOOD_TEXT.replace("pump-1", "\\ud800"), "surrogate"),
    "single quotes": (GOOD_TEXT.replace('"', "'"), "not JSON"),
    "a byte order mark": ("\ufeff" + GOOD_TEXT, "not JSON"),
    "Latin-1": (GOOD_TEXT.replace("pump-1", "ö").encode("latin-1"), "not UTF-8"),
    "a list": ("[]", "not a JSON object"),
    "depth without end": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", WRONG_TEXTS)
def test_a_message_that_is_not_strict_json_is_refused(receiver: Receiver, session: requests.Session, case: str) -> None:
    text, words = WRONG_TEXTS[case]

    answer = upload(session, receiver, form(text))

    assert answer.json()["code"] == 99400
    assert words in answer.json()["msg"]


LENGTH = {"Content-Length": str(len(CONTENT))}
BINARY = "application/octet-stream"
GOOD_FILE = ("enos-file", ("a.bin", CONTENT, BINARY, LENGTH))
GOOD_MESSAGE = form(message_with_a_file())[0]
TEXT = GOOD_MESSAGE[1][1]
WRONG_FORMS: dict[str, tuple[Form, str]] = {
    "the message last": ([GOOD_FILE, GOOD_MESSAGE], "not the first part"),
    "two messages": ([GOOD_MESSAGE, GOOD_MESSAGE, GOOD_FILE], "2 parts are named enos-message"),
    "no message": ([GOOD_FILE], "0 parts are named enos-message"),
    "a message with a filename": ([("enos-message", ("m", TEXT, None, {})), GOOD_FILE], "has no filename"),
    "a message with a type": (
        [("enos-message", (None, TEXT, "application/json", {})), GOOD_FILE],
        "the message has no Content-Type",
    ),
    "another field": ([GOOD_MESSAGE, GOOD_FILE, ("other", (None, b"", None, {}))], "only enos-message and enos-file"),
    "a file without a filename": ([GOOD_MESSAGE, ("enos-file", (None, CONTENT, BINARY, LENGTH))], "no filename"),
    "a file without a length": ([GOOD_MESSAGE, ("enos-file", ("a.bin", CONTENT, BINARY, {}))], "no Content-Length"),
    "a file longer than it says": (
        [GOOD_MESSAGE, ("enos-file", ("a.bin", CONTENT, BINARY, {"Content-Length": "3"}))],
        "part 2: Segment Content-Length exceeded",
    ),
    "a file shorter than it says": (
        [GOOD_MESSAGE, ("enos-file", ("a.bin", CONTENT, BINARY, {"Content-Length": "300"}))],
        "part 2: Segment size does not match",
    ),
    "a file of another type": (
        [GOOD_MESSAGE, ("enos-file", ("a.bin", CONTENT, "text/plain", LENGTH))],
        "not application/octet-stream",
    ),
    "a wrong Content-MD5": (
        [GOOD_MESSAGE, ("enos-file", ("a.bin", CONTENT, BINARY, {**LENGTH, "Content-MD5": "x"}))],
        "Content-MD5 is x",
    ),
    "one file twice": ([GOOD_MESSAGE, GOOD_FILE, GOOD_FILE], "two file parts share a filename"),
    "an unknown header": (
        [GOOD_MESSAGE, ("enos-file", ("a.bin", CONTENT, BINARY, {**LENGTH, "X-Mood": "good"}))],
        "unknown headers x-mood",
    ),
}


@pytest.mark.parametrize("case", WRONG_FORMS)
def test_a_fault_in_the_form_is_refused(receiver: Receiver, session: requests.Session, case: str) -> None:
    parts, words = WRONG_FORMS[case]

    answer = upload(session, receiver, parts)

    assert answer.json()["code"] == 99400
    assert words in answer.json()["msg"]
    assert words in "\n".join(receiver.violations)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("orgId=o1", "Invalid Argument action: 'missing'"),
        ("action=postNothing&orgId=o1", "Invalid Argument action: 'postNothing'"),
        ("action=postEvent", "orgId is missing"),
        ("action=postEvent&orgId=o1&orgId=o2", "names something twice"),
        ("action=postEvent&orgId=o2", "orgId 'o2' does not exist"),
        ("action=postEvent&orgId=o1&useLark=true", "unknown in the query: useLark"),
    ],
)
def test_a_fault_in_the_query_is_refused(session: requests.Session, query: str, words: str) -> None:
    with Receiver(org_id="o1") as receiver:
        answer = upload(session, receiver, query=query)

        assert answer.json()["code"] == 99400
        assert words in answer.json()["msg"]


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (b"--B--\r\nmore", "does not end with its closing boundary"),
        (b"--B", "part 1: Unexpected end of multipart stream"),
    ],
)
def test_a_form_must_end_where_it_ends(ending: bytes, words: str) -> None:
    text = GOOD_TEXT.encode()
    body = b'--B\r\nContent-Disposition: form-data; name="enos-message"\r\n\r\n' + text + b"\r\n" + ending
    head = f"POST {ADDRESS}?action=postEvent&orgId=o HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: multipart/form-data; boundary=B\r\n\r\n"

    with Receiver(check_token=False) as receiver:
        _, answer = say(receiver, head.encode() + body)

        assert words in answer["msg"]
        assert not receiver.requests[0].complete


def test_a_body_that_is_no_form_is_refused(receiver: Receiver, session: requests.Session) -> None:
    token = {"apim-accesstoken": receiver.issue_token()}

    answer = session.post(f"{receiver.url}{ADDRESS}?action=postEvent&orgId=o", json={}, headers=token, timeout=10)

    assert "not multipart/form-data" in answer.json()["msg"]


@pytest.mark.parametrize("framing", [b"Content-Length: 1x\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"])
def test_a_body_without_a_readable_length_is_a_bad_request(receiver: Receiver, framing: bytes) -> None:
    status, _ = say(receiver, b"POST " + ADDRESS.encode() + b"?action=postEvent&orgId=o HTTP/1.1\r\n" + framing)

    assert status == 400
    assert len(receiver.violations) == 1


def test_another_address_is_not_found_and_noted(receiver: Receiver, session: requests.Session) -> None:
    answer = session.get(f"{receiver.url}/elsewhere", timeout=10)

    assert answer.status_code == 404
    assert receiver.violations == ["GET /elsewhere: there is nothing at this address"]


def test_a_message_at_its_limit_is_too_large(session: requests.Session) -> None:
    with Receiver(max_message_bytes=len(GOOD_TEXT)) as receiver:
        at_the_limit = upload(session, receiver, form(GOOD_TEXT))
        below = upload(session, receiver, form(GOOD_TEXT.replace("pump-1", "pump")))

        assert (at_the_limit.status_code, below.status_code) == (413, 200)
        assert receiver.requests[0].message is None
        assert receiver.violations == []
        assert len(receiver.accepted) == 1


def test_a_file_above_its_limit_is_too_large(session: requests.Session) -> None:
    with Receiver(max_file_bytes=len(CONTENT)) as receiver:
        at_the_limit = upload(session, receiver, form(message_with_a_file(), CONTENT))
        above = upload(session, receiver, form(message_with_a_file(CONTENT + b"x"), CONTENT + b"x"))

        assert (at_the_limit.status_code, above.status_code) == (200, 413)


@pytest.mark.parametrize("early", [False, True])
def test_a_request_above_its_limit_is_too_large(session: requests.Session, early: bool) -> None:
    with Receiver() as receiver:
        upload(session, receiver)
        size = receiver.requests[0].wire_bytes
    with Receiver(max_request_bytes=size, early_413=early) as receiver:
        at_the_limit = upload(session, receiver)
        above = upload(session, receiver, form(GOOD_TEXT.replace("pump-1", "pump-10")))

        assert (at_the_limit.status_code, above.status_code, above.json()["code"]) == (200, 413, 413)
        assert [(each.stored, len(each.kept)) for each in receiver.requests] == [(True, 1), (False, 0)]
        assert [each.wire_bytes for each in receiver.requests] == [size, 0 if early else size + 1]
        assert receiver.violations == []


@pytest.mark.parametrize("early", [False, True])
def test_a_client_that_is_still_sending_sees_that_its_request_is_too_large(session: requests.Session, early: bool) -> None:
    with Receiver(max_request_bytes=1_000_000, early_413=early) as receiver:
        answer = upload(session, receiver, form(message_with_a_file(bytes(20_000_000)), bytes(20_000_000)))

        assert answer.json()["code"] == 413
        assert receiver.accepted == []
        assert receiver.requests[0].complete is not early


def test_the_rest_of_a_request_too_large_is_read_so_that_the_answer_is_seen() -> None:
    rest = 10_000_000
    head = f"POST {ADDRESS}?action=postEvent&orgId=o HTTP/1.1\r\nHost: x\r\nContent-Length: {rest + 1000}\r\n\r\n"

    with Receiver(max_request_bytes=100, early_413=True) as receiver, connect(receiver) as connection:
        connection.sendall(head.encode() + bytes(1000))
        receiver.wait_for(lambda r: len(r.requests) == 1)
        connection.sendall(bytes(rest))

        assert connection.recv(12) == b"HTTP/1.1 413"


def test_a_request_too_large_is_refused_before_its_body_is_sent() -> None:
    head = f"POST {ADDRESS}?action=postEvent&orgId=o HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n"

    with Receiver(max_request_bytes=100, early_413=True) as receiver:
        status, answer = say(receiver, head.encode() + b"Expect: 100-continue\r\n\r\n")

        assert (status, answer["code"]) == (413, 413)


@pytest.mark.parametrize("early", [False, True])
def test_a_request_in_chunks_is_measured_as_it_comes(session: requests.Session, early: bool) -> None:
    with Receiver(max_request_bytes=100_000, early_413=early) as receiver:
        url = f"{receiver.url}{ADDRESS}?action=postEvent&orgId=o"
        headers = {"Content-Type": "multipart/form-data; boundary=B"}

        answer = session.post(url, data=(bytes(50_000) for _ in range(100)), headers=headers, timeout=10)

        assert answer.status_code == 413
        assert (receiver.requests[0].wire_bytes < 1_000_000) is early


# Tokens.


def test_a_token_is_the_same_while_it_lives_and_says_how_long(session: requests.Session) -> None:
    now = 1000.0
    with Receiver(monotonic=lambda: now) as receiver:
        first = ask_for_token(session, receiver, "get", token_request(timestamp=1))["data"]
        now += 100
        second = ask_for_token(session, receiver, "get", token_request(timestamp=2))["data"]
        now += 7200
        third = ask_for_token(session, receiver, "get", token_request(timestamp=3))["data"]

        assert (first["expire"], second["expire"], third["expire"]) == (7200, 7100, 7200)
        assert first["accessToken"] == second["accessToken"] != third["accessToken"]
        assert receiver.token_requests == {"get": 3, "refresh": 0}


def test_a_refresh_gives_a_new_token_and_ends_the_old_one(receiver: Receiver, session: requests.Session) -> None:
    old = receiver.issue_token()

    new = ask_for_token(session, receiver, "refresh", token_request(accessToken=old))["data"]["accessToken"]

    assert new == receiver.issue_token() != old
    assert receiver.token_requests == {"get": 0, "refresh": 1}
    assert upload(session, receiver, headers={"apim-accesstoken": new}).status_code == 200
    assert upload(session, receiver, headers={"apim-accesstoken": old}).status_code == 401


@pytest.mark.parametrize(
    ("operation", "body", "status"),
    [
        ("get", token_request(appKey="nobody"), 1002),
        ("get", token_request(secret="wrong"), 1003),
        ("get", {**token_request(), "timestamp": "soon"}, 1004),
        ("get", {**token_request(), "extra": 1}, 1004),
        ("get", {**token_request(), "encryption": ""}, 1202),
        ("refresh", token_request(), 1202),
        ("refresh", token_request(accessToken="unknown"), 1203),
        ("get", {**token_request(), "timestamp": 1579580182824}, 0),
    ],
)
def test_a_token_request_is_checked(
    receiver: Receiver, session: requests.Session, operation: str, body: dict[str, Any], status: int
) -> None:
    assert ask_for_token(session, receiver, operation, body)["status"] == status


def test_a_repeated_token_request_is_refused(receiver: Receiver, session: requests.Session) -> None:
    ask_for_token(session, receiver, "get", token_request())

    assert ask_for_token(session, receiver, "get", token_request())["status"] == 1001


def test_an_upload_without_a_living_token_is_unauthorised(receiver: Receiver, session: requests.Session) -> None:
    ended = receiver.issue_token()
    receiver.expire_tokens()

    for headers in ({"apim-accesstoken": ended}, {"apim-accesstoken": "made up"}):
        assert upload(session, receiver, headers=headers).status_code == 401
    assert receiver.violations == []
    assert upload(session, receiver, headers={}).status_code == 401
    assert receiver.violations == ["request 3: no apim-accesstoken header"]
    assert receiver.accepted == []


def test_a_dead_token_can_be_refused_in_the_gateways_words(session: requests.Session) -> None:
    with Receiver(token_refusal=ApimExpired()) as receiver:
        answer = upload(session, receiver, headers={"apim-accesstoken": "made up"})

        assert (answer.status_code, answer.json()["apim_status"]) == (200, 4011)


def test_the_token_service_misbehaves_when_told(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave_for_tokens(Status(503, body="busy"), HangUp("before_body"))
    url = f"{receiver.token_url}/apim-token-service/v2.0/token/get"

    first = session.post(url, json=token_request(), timeout=10)
    with pytest.raises(requests.ConnectionError):
        session.post(url, json=token_request(timestamp=2), timeout=10)

    assert (first.status_code, first.text) == (503, "busy")
    assert ask_for_token(session, receiver, "get", token_request(timestamp=3))["status"] == 0


def test_the_token_service_misbehaves_until_it_is_told_to_stop(receiver: Receiver, session: requests.Session) -> None:
    receiver.always_for_tokens(Status(503))
    receiver.misbehave_for_tokens(Status(429))

    seen = [session.post(token_url(receiver), json=token_request(), timeout=10).status_code for _ in range(3)]
    uploaded = upload(session, receiver)
    receiver.always_for_tokens(None)

    assert seen == [429, 503, 503]
    assert uploaded.status_code == 200
    assert ask_for_token(session, receiver, "get", token_request(timestamp=2))["status"] == 0


def test_never_calms_the_token_service_too(receiver: Receiver, session: requests.Session) -> None:
    receiver.always_for_tokens(Status(503))
    receiver.never()

    assert ask_for_token(session, receiver, "get", token_request())["status"] == 0


def test_a_rotated_secret_replaces_the_old_one_and_tokens_live_on(receiver: Receiver, session: requests.Session) -> None:
    token = receiver.issue_token()
    receiver.rotate_secret("new")

    old = ask_for_token(session, receiver, "get", token_request(timestamp=1))
    new = ask_for_token(session, receiver, "get", token_request(timestamp=2, secret="new"))

    assert (old["status"], new["status"]) == (1003, 0)
    assert upload(session, receiver, headers={"apim-accesstoken": token}).status_code == 200


@pytest.mark.parametrize("behaviour", [None, Status(503), Answer(1), Expired()])
def test_an_answer_of_the_token_service_says_what_time_it_is(session: requests.Session, behaviour: Behaviour | None) -> None:
    with Receiver(wall=lambda: 1579580182.824, token_clock_skew=-3600) as receiver:
        receiver.always_for_tokens(behaviour)

        answer = session.post(token_url(receiver), json=token_request(), timeout=10)

        assert answer.headers["Date"] == "Tue, 21 Jan 2020 03:16:22 GMT"


def test_the_clock_of_the_token_service_is_right_unless_told_otherwise(receiver: Receiver, session: requests.Session) -> None:
    answer = session.post(token_url(receiver), json=token_request(), timeout=10)

    assert abs(parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()) < 5


@pytest.mark.parametrize(
    ("skew", "away", "status"),
    [(0, 300, 0), (0, -300, 0), (0, 301, 1003), (0, -301, 1003), (3600, 0, 1003), (3600, 3600, 0)],
)
def test_a_timestamp_far_from_the_services_clock_is_refused(
    session: requests.Session, skew: float, away: int, status: int
) -> None:
    with Receiver(wall=lambda: 1579580182.0, token_clock_skew=skew, max_skew=300) as receiver:
        request = token_request(timestamp=(1579580182 + away) * 1000)

        assert ask_for_token(session, receiver, "get", request)["status"] == status


# Refusing by content.


def test_one_unwanted_struct_refuses_the_whole_request(receiver: Receiver, session: requests.Session) -> None:
    receiver.refuse(lambda struct: struct["assetId"] == "poison", code=1257, msg="Device not found")
    message = message_without_files()
    message["params"].append({**message["params"][0], "assetId": "poison"})

    refused = upload(session, receiver, form(message))
    taken = upload(session, receiver)
    receiver.stop_refusing()
    upload(session, receiver, form(message))

    assert (refused.json()["code"], refused.json()["msg"]) == (1257, "Device not found")
    assert taken.json()["code"] == 0
    assert [accepted.request_number for accepted in receiver.accepted] == [2, 3, 3]


def test_a_refused_batch_can_be_stored_in_part(receiver: Receiver, session: requests.Session) -> None:
    receiver.refuse(is_poison, keep_good=True)

    refused = upload(session, receiver, form(message_about("pump-1", "poison", "pump-2")))
    taken = upload(session, receiver, form(message_about("pump-1", "pump-2")))

    assert (refused.json()["code"], taken.json()["code"]) == (1204, 0)
    assert [each.stored for each in receiver.requests] == [False, True]
    assert [assets(each.kept) for each in receiver.requests] == [["pump-1", "pump-2"], ["pump-1", "pump-2"]]
    assert [each.request_number for each in receiver.accepted] == [2, 2]


@pytest.mark.parametrize(
    ("behaviour", "kept"),
    [
        (None, ["pump-1"]),
        (Answer(0), ["pump-1"]),
        (HangUp("in_answer"), ["pump-1"]),
        (Status(503), []),
        (Answer(99500), []),
    ],
)
def test_a_part_is_stored_whenever_the_whole_would_be(
    receiver: Receiver, session: requests.Session, behaviour: Behaviour | None, kept: list[str]
) -> None:
    receiver.refuse(is_poison, keep_good=True)
    receiver.always(behaviour)

    with suppress(requests.ConnectionError):
        upload(session, receiver, form(message_about("pump-1", "poison")))

    receiver.wait_for(lambda r: len(r.requests) == 1)
    assert assets(receiver.requests[0].kept) == kept


def test_a_refusal_of_the_whole_batch_goes_over_one_that_keeps_a_part(receiver: Receiver, session: requests.Session) -> None:
    receiver.refuse(is_poison, code=1204, keep_good=True)
    receiver.refuse(lambda struct: struct["assetId"] == "nobody", code=1257)

    answer = upload(session, receiver, form(message_about("pump-1", "poison", "nobody")))

    assert answer.json()["code"] == 1204
    assert receiver.requests[0].kept == ()


def test_nothing_of_a_faulty_request_is_kept(receiver: Receiver, session: requests.Session) -> None:
    receiver.refuse(is_poison, keep_good=True)

    upload(session, receiver, form({**message_about("pump-1", "poison"), "version": "1.0"}))

    assert receiver.requests[0].kept == ()


def test_the_ledger_tells_which_structs_were_kept(session: requests.Session, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with Receiver(ledger=ledger) as receiver:
        receiver.refuse(is_poison, keep_good=True)
        for names in (["pump-1", "poison", "pump-2"], ["pump-1", "pump-2"], ["poison"]):
            upload(session, receiver, form(message_about(*names)))
        records = receiver.requests

    assert [assets(record.kept) for record in read_ledger(ledger)] == [["pump-1", "pump-2"], ["pump-1", "pump-2"], []]
    assert read_ledger(ledger) == [
        replace(record, headers={**record.headers, "apim-accesstoken": "(hidden)"}) for record in records
    ]


# Breaking by content.


@pytest.mark.parametrize("when", ["in_body", "after_body", "in_answer"])
def test_a_struct_can_break_every_connection_that_carries_it(receiver: Receiver, session: requests.Session, when: Any) -> None:
    receiver.break_on(is_poison, HangUp(when))

    good = upload(session, receiver)
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            upload(session, receiver, form(message_about("pump-1", "poison")))
    receiver.never()
    healed = upload(session, receiver, form(message_about("pump-1", "poison")))

    whole = when != "in_body"
    assert [(each.complete, each.stored, each.answered) for each in receiver.requests] == [
        (True, True, True),
        (whole, whole, False),
        (whole, whole, False),
        (True, True, True),
    ]
    assert (good.json()["code"], healed.json()["code"]) == (0, 0)
    assert assets(receiver.requests[1].structs) == ["pump-1", "poison"]


def test_a_break_in_the_body_comes_right_after_the_message(receiver: Receiver, session: requests.Session) -> None:
    receiver.break_on(lambda struct: struct["deviceKey"] == "pump-1", HangUp("in_body"))

    message = message_with_a_file()
    message["params"][0]["events"]["leak"]["note"] = "x" * 50_000

    with pytest.raises(requests.ConnectionError):
        upload(session, receiver, form(message, bytes(50_000_000)))

    receiver.wait_for(lambda r: len(r.requests) == 1)
    [record] = receiver.requests
    assert 50_000 < record.wire_bytes < 70_000
    assert (record.complete, record.stored, record.kept) == (False, False, ())


def test_a_break_does_not_need_the_rest_of_the_body(receiver: Receiver) -> None:
    receiver.break_on(is_poison, HangUp("in_body"))
    text = json.dumps(message_about("poison")).encode()
    start = b'--B\r\nContent-Disposition: form-data; name="enos-message"\r\n\r\n' + text + b"\r\n--B\r\n"
    head = f"POST {ADDRESS}?action=postEvent&orgId=o HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    head += "Content-Type: multipart/form-data; boundary=B\r\n\r\n"

    with connect(receiver) as connection:
        connection.sendall(head.encode() + start)

        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_an_early_status_for_a_struct_leaves_the_files_unread(receiver: Receiver, session: requests.Session) -> None:
    receiver.break_on(lambda struct: True, EarlyStatus(413, drain=True))

    answer = upload(session, receiver, form(message_with_a_file(), bytes(20_000_000)))

    assert answer.status_code == 413
    assert receiver.requests[0].wire_bytes < 50_000


def test_a_break_takes_the_place_of_any_other_behaviour(receiver: Receiver, session: requests.Session) -> None:
    receiver.always(Status(503))
    receiver.break_on(is_poison, Status(500))

    broken = upload(session, receiver, form(message_about("poison")))
    other = upload(session, receiver)

    assert (broken.status_code, other.status_code) == (500, 503)
    assert receiver.requests[0].behaviour == str(Status(500))


def test_a_struct_can_meet_silence(receiver: Receiver, session: requests.Session) -> None:
    receiver.break_on(is_poison, Silence())

    with pytest.raises(requests.ReadTimeout):
        upload(session, receiver, form(message_about("poison")), timeout=0.2)


@pytest.mark.parametrize("behaviour", [HangUp("before_body"), SlowRead(1000)])
def test_a_behaviour_that_begins_too_early_breaks_on_nothing(receiver: Receiver, behaviour: Behaviour) -> None:
    with pytest.raises(ValueError, match="choose one that begins later"):
        receiver.break_on(is_poison, behaviour)


# Misbehaviour.


@pytest.mark.parametrize(
    ("behaviour", "status", "code"),
    [
        (Status(503), 503, None),
        (Status(429, headers={"Retry-After": "7"}), 429, None),
        (Status(302, headers={"Location": "/elsewhere"}), 302, None),
        (Status(404, body="<html>"), 404, None),
        (Answer(99500), 200, 99500),
        (Expired(), 401, 401),
        (ApimExpired(4012), 200, None),
        (Body(b"", status=502), 502, None),
    ],
)
def test_an_answer_that_takes_nothing(
    receiver: Receiver, session: requests.Session, behaviour: Behaviour, status: int, code: int | None
) -> None:
    receiver.misbehave(behaviour)

    answer = upload(session, receiver)

    [record] = receiver.requests
    assert answer.status_code == status
    assert (record.status, record.code, record.complete, record.answered) == (status, code, True, True)
    assert not record.stored
    assert receiver.accepted == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b'{"msg":"OK"}',
        b'{"apim_status":4011}',
        b'\x00{"code":',
        b'{"code":1,"msg":"\\ud800\\u0000"}',
        b"[]",
    ],
)
def test_a_garbled_answer_leaves_the_request_stored_but_not_accepted(
    receiver: Receiver, session: requests.Session, content: bytes
) -> None:
    receiver.misbehave(Body(content, content_type="text/html"))

    answer = upload(session, receiver)

    assert (answer.content, answer.headers["Content-Type"]) == (content, "text/html")
    assert receiver.requests[0].stored
    assert receiver.accepted == []


@pytest.mark.parametrize("behaviour", [Answer(200), Answer(0), Body(b'{"code":"0"}'), Drip(0), Slow(0), SlowRead(1e9)])
def test_an_odd_success_delivers(receiver: Receiver, session: requests.Session, behaviour: Behaviour) -> None:
    receiver.misbehave(behaviour)

    answer = upload(session, receiver)

    assert int(answer.json()["code"]) in (0, 200)
    assert len(receiver.accepted) == 1


def test_no_success_is_feigned_for_a_faulty_request(receiver: Receiver, session: requests.Session) -> None:
    receiver.always(Answer(200))

    answer = upload(session, receiver, form({}))

    assert answer.json()["code"] == 99400
    assert receiver.accepted == []


def test_a_raw_success_accepts_nothing_of_a_faulty_request(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(Body(b'{"code":0}'))

    answer = upload(session, receiver, form({**message_without_files(), "version": "1.0"}))

    assert answer.json() == {"code": 0}
    assert receiver.accepted == []
    assert receiver.violations == ["request 1: version is '1.0', not '1.1'"]


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("when", ["before_body", "in_body", "after_body", "in_answer"])
def test_a_hang_up_leaves_the_client_without_an_answer(
    receiver: Receiver, session: requests.Session, when: Any, reset: bool
) -> None:
    receiver.misbehave(HangUp(when, after_bytes=10, reset=reset))

    with pytest.raises(requests.ConnectionError):
        upload(session, receiver)

    receiver.wait_for(lambda r: len(r.requests) == 1)
    [record] = receiver.requests
    whole = when in ("after_body", "in_answer")
    assert (record.complete, record.stored, record.answered) == (whole, whole, False)
    assert receiver.accepted == []
    assert receiver.violations == []


def test_a_hang_up_in_the_body_reads_no_further_than_told(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(HangUp("in_body", after_bytes=100_000))

    with pytest.raises(requests.ConnectionError):
        upload(session, receiver, form(message_with_a_file(), bytes(50_000_000)))

    receiver.wait_for(lambda r: len(r.requests) == 1)
    assert 100_000 <= receiver.requests[0].wire_bytes < 200_000


def test_a_reset_looks_different_from_a_polite_end(receiver: Receiver) -> None:
    receiver.misbehave(HangUp("before_body", reset=True), HangUp("before_body", reset=False))
    capture = (CAPTURES / "01-event-no-file.http").read_bytes()

    with connect(receiver) as connection:
        connection.sendall(capture)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(receiver) as connection:
        connection.sendall(capture)
        assert connection.recv(1) == b""


def test_a_head_that_breaks_off_is_no_request(receiver: Receiver) -> None:
    """The library would take its beginning for all of it, and its headers for all there were."""
    capture = (CAPTURES / "01-event-no-file.http").read_bytes()
    end = capture.index(b"\r\n\r\n") + 4

    for place in range(1, end, 7):
        with connect(receiver) as connection:
            connection.sendall(capture[:place])
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""

    assert (receiver.requests, receiver.begun, receiver.violations) == ([], 0, [])


def test_a_server_tired_of_keep_alive_has_still_taken_the_request(receiver: Receiver) -> None:
    receiver.misbehave(HangUp("after_answer"))
    capture = (CAPTURES / "01-event-no-file.http").read_bytes()

    with connect(receiver) as connection, connection.makefile("rb") as reader:
        connection.sendall(capture.replace(b"TOKEN-REFRESHED-0002", receiver.issue_token().encode()))
        answer = reader.read()

    assert b'"code":0' in answer
    assert b"Connection: close" not in answer
    assert len(receiver.accepted) == 1


def test_a_truncated_answer_is_not_an_answer(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(Truncated())

    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        upload(session, receiver)

    [record] = receiver.requests
    assert (record.complete, record.stored, record.answered, record.code) == (True, True, False, 0)


def test_an_early_status_comes_before_the_body_is_read(receiver: Receiver) -> None:
    receiver.misbehave(EarlyStatus(413))
    head = f"POST {ADDRESS}?action=postEvent&orgId=o HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"

    with connect(receiver) as connection, connection.makefile("rb") as reader:
        connection.sendall(head.encode())
        status = reader.readline()
        rest = reader.read()

        assert status.startswith(b"HTTP/1.1 413")
        assert b"Connection: close" in rest
    assert (receiver.requests[0].complete, receiver.requests[0].action) == (False, "postEvent")


def test_an_early_status_can_let_the_client_finish(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(EarlyStatus(413, drain=True))

    answer = upload(session, receiver, form(message_with_a_file(), bytes(20_000_000)))

    assert answer.status_code == 413


def test_silence_lasts_until_the_client_hangs_up(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(Silence())

    with pytest.raises(requests.ReadTimeout):
        upload(session, receiver, timeout=0.2)
    receiver.wait_for(lambda r: len(r.requests) == 1)

    [record] = receiver.requests
    assert (record.complete, record.stored, record.answered, record.status) == (True, True, False, None)


def test_an_answer_the_client_no_longer_awaits_is_no_answer(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(Hold())

    with pytest.raises(requests.ReadTimeout):
        upload(session, receiver, timeout=0.2)
    receiver.wait_for(lambda r: r.held == 1)
    session.close()
    receiver.release()
    receiver.wait_for(lambda r: len(r.requests) == 1)

    assert not receiver.requests[0].answered
    assert receiver.accepted == []


def test_a_slow_answer_is_late_and_correct(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(Slow(0.2))

    answer = upload(session, receiver)

    assert answer.json()["code"] == 0
    assert receiver.requests[0].seconds >= 0.2


def test_latency_is_added_to_every_answer(session: requests.Session) -> None:
    with Receiver(latency=0.1) as receiver:
        upload(session, receiver)

        assert receiver.requests[0].seconds >= 0.1


def test_a_slow_reader_holds_the_client_up(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(SlowRead(bytes_per_second=100_000))

    upload(session, receiver, form(message_with_a_file(bytes(30_000)), bytes(30_000)))

    assert receiver.requests[0].seconds >= 0.3
    assert len(receiver.accepted) == 1


def test_a_dripping_answer_comes_byte_by_byte(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(Drip(0.001))

    answer = upload(session, receiver)

    assert answer.json()["code"] == 0
    assert receiver.requests[0].seconds >= 0.1


def test_a_gzip_bomb_is_small_on_the_wire(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(GzipBomb(megabytes=8))

    answer = upload(session, receiver)

    assert int(answer.headers["Content-Length"]) < 20_000
    assert len(answer.content) == 8 << 20


def test_behaviours_go_queued_then_standing(receiver: Receiver, session: requests.Session) -> None:
    receiver.always(Status(503))
    receiver.misbehave(Status(429), Answer(99500))

    seen = [upload(session, receiver).status_code for _ in range(4)]
    receiver.always(None)
    seen.append(upload(session, receiver).status_code)

    assert seen == [429, 200, 503, 503, 200]


def test_chance_is_the_same_for_the_same_seed(session: requests.Session) -> None:
    def statuses() -> list[int]:
        with Receiver() as receiver:
            receiver.sometimes(Status(503), 0.3, seed=5)
            receiver.sometimes(Status(500), 0.3, seed=6)
            return [upload(session, receiver).status_code for _ in range(30)]

    first = statuses()

    assert first == statuses()
    assert set(first) == {200, 500, 503}


# Its life.


def test_requests_in_flight_are_counted(receiver: Receiver, session: requests.Session) -> None:
    receiver.always(Hold())
    token = {"apim-accesstoken": receiver.issue_token()}
    url = f"{receiver.url}{ADDRESS}?action=postEvent&orgId=o"

    with urllib3.PoolManager(maxsize=5) as pool, ThreadPoolExecutor(5) as threads:
        fields = {"enos-message": GOOD_TEXT}
        answers = [threads.submit(pool.request, "POST", url, fields=fields, headers=token) for _ in range(5)]
        receiver.wait_for(lambda r: r.held == 5)
        in_flight = receiver.in_flight
        receiver.release()

        assert [answer.result().status for answer in answers] == [200] * 5
    assert (in_flight, receiver.in_flight, receiver.concurrent_peak) == (5, 0, 5)


def test_the_rate_is_that_of_the_busiest_window(session: requests.Session) -> None:
    now = 0.0
    with Receiver(monotonic=lambda: now, token_lifetime=1e6) as receiver:
        for now in (0.0, 1.0, 1.25, 1.5, 1.75, 9.0):  # noqa: B007 (the receiver's clock)
            upload(session, receiver)

        rates = [receiver.rate_over(window) for window in (0.25, 0.75, 1, 2, 100)]

        assert rates == [1, 3, 4, 5, 6]
        assert rate_of((each.started for each in receiver.requests), 1) == 4


def test_a_request_counts_for_the_rate_when_it_begins(receiver: Receiver, session: requests.Session) -> None:
    receiver.misbehave(Hold())
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(upload, session, receiver)
        receiver.wait_for(lambda r: r.held == 1)
        rate = receiver.rate_over(1)
        receiver.release()

        assert answer.result().status_code == 200
    assert rate == 1


def test_a_window_of_no_length_is_refused(receiver: Receiver) -> None:
    assert receiver.rate_over(1) == 0
    with pytest.raises(ValueError, match="give more than 0"):
        receiver.rate_over(0)


def test_the_peak_of_records_counts_what_overlaps(receiver: Receiver, session: requests.Session) -> None:
    upload(session, receiver)
    [record] = receiver.requests
    spans = [(0, 10), (1, 3), (3, 5), (4, 6), (20, 21)]

    assert peak_of(replace(record, started=first, finished=last) for first, last in spans) == 3
    assert peak_of([]) == 0


def test_waiting_in_vain_says_what_happened_instead(receiver: Receiver, session: requests.Session) -> None:
    upload(session, receiver)

    with pytest.raises(TimeoutError, match="1 requests are over, 0 in flight, 1 structs accepted"):
        receiver.wait_for(lambda r: len(r.accepted) == 2, timeout=0.01)


@pytest.mark.parametrize("behaviour", [Silence(), Hold(), Slow(600), Drip(600), SlowRead(0.01)])
def test_closing_ends_every_misbehaviour_at_once(session: requests.Session, behaviour: Behaviour) -> None:
    receiver = Receiver().start()
    receiver.misbehave(behaviour)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(upload, session, receiver)
        receiver.wait_for(lambda r: r.in_flight == 1)
        before = time.monotonic()
        receiver.close()
        took = time.monotonic() - before

        assert isinstance(answer.exception(), requests.ConnectionError)
    assert took < 2
    assert len(receiver.requests) == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("receiver")]


def test_a_closed_receiver_refuses_connections_and_comes_back_on_its_port(session: requests.Session) -> None:
    with Receiver() as receiver:
        upload(session, receiver)
        address = receiver.url
    with pytest.raises(requests.ConnectionError):
        upload(session, receiver)
    with receiver:
        upload(session, receiver)

        assert receiver.url == address
        assert len(receiver.accepted) == 2


def test_closing_takes_no_time_when_connections_are_idle(receiver: Receiver) -> None:
    capture = (CAPTURES / "01-event-no-file.http").read_bytes()
    took = []
    for _ in range(3):
        with ExitStack() as stack:
            connections = [stack.enter_context(connect(receiver)) for _ in range(10)]
            for connection in connections:
                connection.sendall(capture)
            assert {connection.recv(1) for connection in connections} == {b"H"}
            before = time.monotonic()
            receiver.close()
            receiver.start()
            took.append(time.monotonic() - before)

    assert min(took) < 0.05


# Addresses that nobody answers.


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets connections hang")
def test_a_black_hole_lets_every_connection_hang(session: requests.Session) -> None:
    with BlackHole() as hole:
        for _ in range(3):
            with pytest.raises(requests.ConnectTimeout):
                session.get(hole.url, timeout=0.2)
        port = hole.port

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)


def test_a_black_hole_without_an_address_says_so() -> None:
    with pytest.raises(RuntimeError, match="before it is started"):
        _ = BlackHole().url


def test_an_address_that_refuses_stays_ours() -> None:
    parts = urlsplit(refused_url())

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((parts.hostname, parts.port), timeout=10)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((parts.hostname, parts.port))
    assert refused_url() == f"http://127.0.0.1:{parts.port}"


def test_a_receiver_without_an_address_says_so() -> None:
    with pytest.raises(RuntimeError, match="before it is started"):
        _ = Receiver().url


# Its spelling on the command line, and the command itself.


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("503:0.1", (Status(503), 0.1)),
        ("hangup-after:0.05", (HangUp("after_body"), 0.05)),
        ("silence", (Silence(), 1.0)),
        ("code=99500:1", (Answer(99500), 1.0)),
        ("slow=2.5:0.5", (Slow(2.5), 0.5)),
        ("early=413", (EarlyStatus(413), 1.0)),
    ],
)
def test_a_behaviour_can_be_spelled(spec: str, expected: tuple[Behaviour, float]) -> None:
    assert parse_behaviour(spec) == expected


@pytest.mark.parametrize("spec", ["", "teapot", "503:2", "503:often", "slow=", "slow-read=0", "999", "drip=-1"])
def test_a_misspelled_behaviour_is_explained(spec: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(spec))):
        parse_behaviour(spec)


RUN = [sys.executable, "-c", "from outbox.cli.receiver import receiver; receiver()"]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_end(session: requests.Session, tmp_path: Path, end: signal.Signals) -> None:
    ledger, secret = tmp_path / "ledger.jsonl", tmp_path / "secret"
    secret.write_text("from a file\n")
    options = ["--json", "--ledger", str(ledger), "--keep-files", str(tmp_path / "kept"), "--refuse", "poison"]
    command = [*RUN, *options, "--app-secret-file", str(secret), "--misbehave", "apim-expired:0"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = json.loads(process.stdout.readline())
        elsewhere = Receiver(port=address["port"])
        token = ask_for_token(session, elsewhere, "get", token_request(secret="from a file"))["data"]["accessToken"]
        headers = {"apim-accesstoken": token}
        upload(session, elsewhere, headers=headers)
        poison = form(GOOD_TEXT.replace("pump-1", "poison"))
        refused = upload(session, elsewhere, poison, headers=headers)
        process.send_signal(end)
        lines = [json.loads(line) for line in process.stderr]

        assert process.wait(timeout=10) == 0
    assert address["url"] == address["token_url"] == elsewhere.url
    assert refused.json()["code"] == 1204
    assert [line["code"] for line in lines] == [0, 1204]
    assert [record.code for record in read_ledger(ledger)] == [0, 1204]


def test_a_ledger_of_another_process_tells_the_time_of_the_same_clock(session: requests.Session, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"

    with subprocess.Popen([*RUN, "--json", "--ledger", str(ledger)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        elsewhere = Receiver(port=json.loads(process.stdout.readline())["port"])
        before = time.monotonic()
        upload(session, elsewhere)
        # It says so once the record is written.
        process.stderr.readline()
        after = time.monotonic()
        process.kill()

    [record] = read_ledger(ledger)
    assert before < record.started < record.finished < after


def test_the_command_refuses_a_misspelled_behaviour() -> None:
    done = subprocess.run([*RUN, "--misbehave", "teapot"], capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "no such behaviour" in done.stderr


def test_the_command_explains_a_taken_port(receiver: Receiver) -> None:
    done = subprocess.run([*RUN, "--port", str(receiver.port)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "cannot start" in done.stderr
