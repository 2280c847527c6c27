"""A signed webhook: its body, its form, and the signature that Standard Webhooks' own library takes."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from outbox import Webhook, env, payload
from outbox.destinations import Draft, FieldPart, FilePart, Upload
from outbox.errors import ConfigurationError
from outbox.model import Batch, Lane, Message
from tests.pure.making import NOW, Crate, batch, carrying, event

USUAL: dict[str, Any] = {"name": "hook", "url": "https://hooks.example/outbox"}
OLD, NEW, OTHER = (f"whsec_{base64.b64encode(letter * 32).decode()}" for letter in (b"o", b"n", b"x"))


def hook(**options: Any) -> Webhook:
    return Webhook(**(USUAL | {"secrets": [NEW]} | options))


def now(*messages: Message) -> Batch:
    """A batch that begins in this moment: who verifies a signature looks at the time, too."""
    return Batch(1, "w" * 32, "hook", Lane.NORMAL, messages, datetime.now(UTC))


def signed(destination: Webhook, upload: Upload) -> dict[str, str]:
    return {**upload.headers, **destination.sign(upload)}


def verified(secret: str, body: bytes, headers: dict[str, str]) -> Any:
    return standardwebhooks.Webhook(secret).verify(body, headers)


# What is sent.


def test_a_message_without_files_is_its_own_text_as_json() -> None:
    message = carrying(1, {"b": 1, "a": [1.0, "ü"]})

    upload = hook().encode(batch(message))

    assert (message.text.encode(), ()) == (upload.json, tuple(upload.parts))
    assert {"webhook-id": "key-1", "webhook-timestamp": str(int(NOW.timestamp()))} == upload.headers


def test_a_message_with_files_is_a_form_whose_first_part_says_what_they_are() -> None:
    crate = Crate()
    photo = crate.attach("photo", 'img "ü".jpg', b"abc")

    upload = hook().encode(batch(carrying(1, {"a": 1}, photo)))

    first, second = upload.parts
    assert isinstance(first, FieldPart)
    assert isinstance(second, FilePart)
    assert ("event", {"Content-Type": "application/json"}) == (first.name, first.headers)
    assert {
        "payload": {"a": 1},
        "files": {
            "photo": {
                "filename": 'img "ü".jpg',
                "size": 3,
                "sha256": photo.file.sha256,
                "content_type": "application/octet-stream",
            }
        },
    } == json.loads(first.body)
    assert ("photo", 'img "ü".jpg', photo.file) == (second.name, second.filename, second.file)
    assert upload.json is None


def test_a_form_can_be_asked_for_always() -> None:
    (part,) = hook(format="multipart", event_field="data").encode(batch(carrying(1, {"a": 1}))).parts

    assert isinstance(part, FieldPart)
    assert ("data", b'{"payload":{"a":1},"files":{}}') == (part.name, part.body)


def test_the_id_is_the_key_with_what_no_id_may_hold_encoded() -> None:
    upload = hook().encode(batch(carrying(1, {})._replace(key="prüf 1.2%")))

    assert "pr%C3%BCf%201%2E2%25" == upload.headers["webhook-id"]


# What is refused.


def test_json_alone_takes_no_files() -> None:
    draft = Draft({}, "{}", {"photo": "a.jpg", "log": "b.log"})

    assert [
        'files.photo: hook takes no files: its format is "json"',
        'files.log: hook takes no files: its format is "json"',
    ] == [str(each) for each in hook(format="json").check(draft)]


def test_a_file_cannot_be_called_like_the_part_that_holds_the_payload() -> None:
    draft = Draft({}, "{}", {"event": "a.jpg"})

    assert ["files.event: is the name of the part that holds the payload; use another"] == [str(f) for f in hook().check(draft)]
    assert [] == hook(event_field="data").check(draft)


def test_a_name_that_not_everybody_reads_alike_is_refused() -> None:
    draft = Draft({}, "{}", {"a\\": "a.jpg", "b": "b\\"})

    assert [
        "files.b: its file name 'b\\\\' holds a backslash, which not everybody who reads a form takes for one",
        "files.a\\: its name holds a backslash, which not everybody who reads a form takes for one",
    ] == [str(each) for each in hook().check(draft)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"secrets": NEW}, "expected secrets to be a list"),
        ({"format": "xml"}, "expected format to be 'auto', 'json' or 'multipart', got 'xml'"),
        ({"event_field": ""}, "event_field: the name '' is empty; what is in a form needs a name"),
        ({"headers": {"Webhook-Id": "1"}}, "the header Webhook-Id is set by outbox; leave it out"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        hook(**options)

    assert NEW not in str(raised.value)


# The signature.


@pytest.mark.parametrize("files", [False, True])
def test_each_secret_of_a_rotation_verifies_it_and_no_other_does(files: bool) -> None:
    crate = Crate()
    destination = hook(secrets=[NEW, OLD])
    upload = destination.encode(now(carrying(1, {"a": "ü"}, *([crate.attach("photo", "a.jpg", b"abc")] if files else []))))
    part = upload.parts[0] if files else None
    body = part.body if isinstance(part, FieldPart) else upload.json or b""

    headers = signed(destination, upload)

    assert json.loads(body) == verified(NEW, body, headers) == verified(OLD, body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verified(OTHER, body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verified(NEW, body + b" ", headers)


def test_the_newest_secret_signs_first() -> None:
    destination = hook(secrets=[NEW, OLD])
    upload = destination.encode(batch(carrying(1, {})))

    first, second = destination.sign(upload)["webhook-signature"].split(" ")

    assert (first, second) == tuple(hook(secrets=[each]).sign(upload)["webhook-signature"] for each in (NEW, OLD))


_KEYS = st.text(min_size=1, max_size=255).filter(lambda key: not payload.has_controls(key))
_TEXTS = st.text(max_size=30).filter(lambda text: text.encode("utf-8", "replace").decode() == text)


@given(key=_KEYS, text=_TEXTS, member=_TEXTS)
def test_whatever_the_key_and_the_payload_hold_the_signature_is_taken(key: str, text: str, member: str) -> None:
    destination = hook()
    upload = destination.encode(now(carrying(1, {member: text})._replace(key=key)))

    assert {member: text} == verified(NEW, upload.json or b"", signed(destination, upload))
    assert "." not in upload.headers["webhook-id"]


def test_the_same_batch_is_the_same_upload_and_holds_no_secret() -> None:
    destination = hook(secrets=[env("NOT_THERE")])

    assert destination.encode(batch(carrying(1, event()))) == destination.encode(batch(carrying(1, event())))


@pytest.mark.parametrize(
    "value",
    [
        "hunter2hunter2hunter2hunter2hunter2hunter2",
        "whsec_",
        "whsec_not/base64!",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whsk_" + base64.b64encode(b"x" * 32).decode(),
    ],
)
def test_a_malformed_secret_is_named_by_its_place_and_never_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HOOK_SECRET", value)
    destination = hook(secrets=[env("HOOK_SECRET")])

    with pytest.raises(ConfigurationError) as raised:
        destination.sign(destination.encode(batch()))

    assert str(raised.value) == (
        "the secret from environment variable HOOK_SECRET is no webhook secret: expected whsec_ and base64 of 24 to 64 bytes"
    )
    assert value not in repr(destination)


def test_a_secret_without_padding_is_one() -> None:
    unpadded = "whsec_" + base64.b64encode(b"n" * 32).decode().rstrip("=")
    upload = hook().encode(batch())

    assert hook().sign(upload) == hook(secrets=[unpadded]).sign(upload)


def test_a_secret_given_as_text_is_not_shown() -> None:
    assert NEW not in repr(hook(secrets=[NEW]))


def test_without_secrets_nothing_is_signed() -> None:
    assert {} == hook(secrets=[]).sign(hook().encode(batch()))


@given(names=st.lists(st.text(min_size=1, max_size=20).filter(lambda n: not payload.has_controls(n)), unique=True, max_size=3))
def test_it_weighs_at_least_what_the_text_part_has(names: list[str]) -> None:
    crate = Crate()
    files = [crate.attach(name, f"ü{name}", b"x") for name in names]
    message = carrying(1, {"a": "ü"}, *files)
    upload = hook(format="multipart").encode(batch(message))

    draft = Draft({"a": "ü"}, message.text, {each.name: each.filename for each in files})

    assert hook().weigh(draft) >= sum(part.size for part in upload.parts if isinstance(part, FieldPart))
