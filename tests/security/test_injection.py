"""S1 and S2: whatever a producer, a person or a secret's keeper wrote, on the wire it is one value in one place.

The parts of a form are read back by three parsers that are not ours in tests/pure/test_multipart.py.
"""

from __future__ import annotations

import json
import random
import re
import string
import traceback
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox import EnosEvents, Token
from outbox.errors import ConfigurationError, TransportError
from outbox.intake import Offered, offer
from outbox.model import Batch, File
from outbox.multipart import FieldPart, FilePart, Form
from outbox.secret import Secret, literal
from outbox.sending import Sender
from outbox.transport import Answer, RequestsTransport, Upload
from outbox.verdict import Reject, Retry
from tests.pure.making import NOW, TIME, Crate, batch, carrying, event, message
from tests.pure.test_multipart import BOUNDARY, by_defnull, by_python_multipart, form, read
from tests.security.ear import Ear
from tests.story.conftest import Place

ENOS = EnosEvents(name="enos", url="https://integration.example", org_id="o1")
#: Letters that end a line, a string, a header, a part, or a parser's patience.
SHARP = '"\r\n\\;=:%-\x00\x7f\x85\u2028\u202e\ufeff\ud800' + BOUNDARY
HOSTILE = st.text(st.characters(exclude_categories=()) | st.sampled_from(SHARP), max_size=60)
WHOLE = [f"--{BOUNDARY}--", f"\r\n--{BOUNDARY}\r\n\r\n", "x" * 65_536, '"; filename="evil.exe', "a" * 255]
NAMES = HOSTILE | st.sampled_from(WHOLE)
TYPES = NAMES | st.sampled_from(["image/jpeg", "a/b;c=d", "a/b\r\nX: y"])


@settings(max_examples=200)
@given(filename=NAMES, content_type=TYPES, name=NAMES)
def test_of_a_producers_file_only_our_own_name_is_on_the_wire(filename: str, content_type: str, name: str) -> None:
    """What the door lets in travels under a name of ours; the producer's own is text in JSON, and its type stays at home."""
    found = offer(name, File(b"bytes", filename=filename, content_type=content_type), ())
    if not isinstance(found, Offered):
        return
    crate = Crate()
    struct = {"assetId": "a", "time": TIME, "events": {"e": {"photo": f"local://{name}"}}}
    upload = ENOS.encode(batch(carrying(1, struct, crate.attach(name, found.filename, b"bytes"))))
    body = read(form(list(upload.parts), crate.open))

    for parse in (by_defnull, by_python_multipart):
        text, file = parse(body, 1 << 20)
        assert re.fullmatch(r"[0-9a-f]{32}-1-0(\.[A-Za-z0-9]{1,16})?", file.filename or "")
        assert ("enos-file", b"bytes") == (file.name, file.content)
        assert "application/octet-stream" == file.headers["content-type"]
        assert {"content-disposition", "content-type", "content-md5", "content-length"} == file.headers.keys()
        assert found.filename == json.loads(text.content)["files"][file.filename]["originalFilename"]


def test_a_boundary_is_made_anew_for_each_request_and_of_enough_chance(transport: RequestsTransport, ear: Ear) -> None:
    for _ in range(20):
        transport.send(Upload(ear.url, [FieldPart("a", b"{}")]), Crate().open, 5, 5)

    ear.settle(20)
    boundaries = {re.findall(rb"boundary=([0-9a-f]{32})\r\n", bytes(each))[0] for each in ear.conversations}
    assert 20 == len(boundaries)


@pytest.mark.parametrize("where", ["name", "filename", "header", "bytes"])
def test_a_part_that_holds_a_boundary_like_ours_is_still_one_part(where: str) -> None:
    sharp = f"\r\n--{BOUNDARY[:-1]}" if where == "bytes" else f"x--{BOUNDARY}"
    crate = Crate()
    file = crate.attach("a", "a", sharp.encode() if where == "bytes" else b"").file
    fields: dict[str, Any] = {"name": "f", "filename": "n", "file": file}
    fields |= {"headers": {"X": sharp}} if where == "header" else {where: sharp} if where != "bytes" else {}

    body = b"".join(Form([FilePart(**fields)], BOUNDARY, crate.open))

    for parse in (by_defnull, by_python_multipart):
        assert [crate.contents[file.name]] == [each.content for each in parse(body, 1 << 20)]


# S2: headers.

PRINTABLE = string.ascii_letters + string.digits + string.punctuation
BREAKING = "\r\n\x00\x0b\x0c\x1b\x7f\x80\x85\xa0\u0130\u2028\ud800\U0001f600"


def secrets_that_break(dice: random.Random, many: int) -> list[str]:
    """Each with something in it that no header may hold, and a canary at either end."""
    made = []
    for number in range(many):
        letters = [f"canary{number}", *dice.choices(PRINTABLE, k=dice.randrange(60)), "canary"]
        for _ in range(dice.randrange(1, 4)):
            letters.insert(dice.randrange(1, len(letters)), dice.choice(BREAKING))
        made.append("".join(letters))
    return made


class Listening:
    """A token service that would answer, and notes what it hears."""

    def __init__(self, said: bytes = b"") -> None:
        self.heard: list[bytes] = []
        self.said = said

    def post_json(self, _url: str, body: bytes, *_: Any) -> Answer:
        self.heard.append(body)
        return Answer(200, {}, self.said)


def test_of_a_thousand_secrets_that_would_break_a_header_none_is_used_and_none_is_shown(dice: random.Random) -> None:
    service: Any = Listening()
    for value in secrets_that_break(dice, 1000):
        token = Token("https://gateway.example", "key", Secret("the vault", lambda value=value: value))
        with pytest.raises(ConfigurationError) as caught:
            token.headers(service, NOW, 0.0)

        said = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value.args)
        assert "the secret from the vault holds characters that are not printable ASCII" in said
        assert "canary" not in said
        assert (None, None) == (caught.value.__cause__, caught.value.__context__)
    assert [] == service.heard


@dataclass(frozen=True, kw_only=True)
class Heading(EnosEvents):
    """A destination of one's own that puts something of a message into a header."""

    def encode(self, batch: Batch) -> Upload:
        return replace(super().encode(batch), headers={"X-Own": batch.messages[0].key})


class Careless:
    """Credentials of one's own, that come from somewhere."""

    def __init__(self, value: str) -> None:
        self.value = value

    def headers(self, *_: Any) -> dict[str, str]:
        return {"Authorization": self.value}

    def renew(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class LetIn(EnosEvents):
    given: Any = None

    @property
    def credentials(self) -> Any:
        return self.given


def test_no_header_that_a_request_may_not_hold_is_sent_or_shown(
    dice: random.Random, place: Place, transport: RequestsTransport, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    sender = Sender(place.outbox().spool_store, place.clock.ambient, transport)
    there: dict[str, Any] = {"name": "enos", "url": ear.url, "org_id": "o", "allow_plain_http": True}
    text = json.dumps(event())  # nothing is wrong with it but the header that is made of its key
    for value in secrets_that_break(dice, 200):
        alone = sender.send(Heading(**there), batch(message(key=value, text=text)), lambda: None)
        together = sender.send(Heading(**there), batch(message(key=value), message(2)), lambda: None)
        let_in = sender.send(LetIn(**there, given=Careless(value)), batch(), lambda: None)

        assert isinstance(alone, Retry), "charged to the destination; to the message once others are delivered"
        assert isinstance(together, Reject), "halved, until it is alone"
        assert isinstance(let_in, Retry)
        assert let_in.credentials
        assert "the header 'Authorization' holds what is not printable ASCII" in str(let_in.facts.text)
        assert not any("canary" in str(each.facts.text) for each in (alone, together, let_in))

    assert [] == ear.conversations
    assert "canary" not in caplog.text


@pytest.mark.parametrize("value", ["", "t\r\nX-Injected: yes", "t\x00", "t\u00e9", "t\n", 7, None, ["t"]])
def test_a_token_service_cannot_put_a_header_into_our_requests(value: Any) -> None:
    service: Any = Listening(json.dumps({"status": 0, "data": {"accessToken": value, "expire": 60}}).encode())
    token = Token("https://gateway.example", "key", literal("secret"))

    with pytest.raises(TransportError, match="without a usable token"):
        token.headers(service, NOW, 0.0)


@given(org_id=HOSTILE.filter(bool))
def test_an_org_id_is_one_value_of_the_query(org_id: str) -> None:
    try:
        destination = EnosEvents(name="enos", url="https://integration.example", org_id=org_id)
    except ConfigurationError:
        return
    url = destination.encode(batch()).url

    assert url.isascii()
    assert url.isprintable()
    assert " " not in url
    assert (1, 1, 0) == (url.count("&"), url.count("?"), url.count("#"))
