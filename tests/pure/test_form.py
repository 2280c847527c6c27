"""Any upload form: what of a message becomes a field, what a file, and what is refused at the door."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import payload
from outbox.destinations import (
    Answer,
    Delivered,
    Draft,
    FieldPart,
    FilePart,
    Form,
    Meaning,
    Reject,
    Retry,
    Rule,
    StaticToken,
    Verdict,
)
from outbox.errors import ConfigurationError
from outbox.model import Reason
from outbox.policy import Policy
from outbox.secret import env
from outbox.verdict import NotSent
from tests.pure.making import NOW, Crate, batch, carrying, event

USUAL = {"name": "archive", "url": "https://archive.example/upload"}
PAGE = b"\n <!doctype HTML><title>Log in</title>"


def form(**options: Any) -> Form:
    return Form(**(USUAL | options))


def fields(destination: Form, document: Any, *attachments: Any) -> dict[str, str]:
    upload = destination.encode(batch(carrying(1, document, *attachments)))
    return {part.name: part.body.decode() for part in upload.parts if isinstance(part, FieldPart)}


def files(destination: Form, document: Any, *attachments: Any) -> dict[str, tuple[str, str]]:
    upload = destination.encode(batch(carrying(1, document, *attachments)))
    return {part.name: (part.filename, part.content_type) for part in upload.parts if isinstance(part, FilePart)}


def faults(destination: Form, document: Any, *names: str) -> list[str]:
    draft = Draft(document, payload.written(document) or "", {name: f"{name.strip(chr(92))}.bin" for name in names})
    return [str(each) for each in destination.check(draft)]


def judged(destination: Form, status: int, body: bytes = b"", **more: Any) -> Verdict:
    return destination.judge(Answer(status, more.pop("headers", {}), body, **more), batch(), NOW)


# What is sent.


def test_without_a_word_about_fields_each_member_of_the_payload_is_one() -> None:
    document = {"name": "t-7", "n": 1, "x": 1.50, "yes": True, "no": None, "list": [1, "ü"], "meta": {"a": {}}}

    assert {
        "name": "t-7",
        "n": "1",
        "x": "1.5",
        "yes": "true",
        "no": "null",
        "list": '[1,"ü"]',
        "meta": '{"a":{}}',
    } == fields(form(), document)


def test_a_field_is_a_path_in_the_payload_and_may_be_missing_where_that_is_said() -> None:
    destination = form(fields={"device": "assetId", "note": "meta.note?", "deep": "meta.a.b"})

    full = fields(destination, {"assetId": "t-7", "meta": {"note": "hi", "a": {"b": [1]}}})
    bare = fields(destination, {"assetId": "t-7", "meta": {"note": None, "a": {"b": None}}})

    assert {"device": "t-7", "note": "hi", "deep": "[1]"} == full
    assert {"device": "t-7", "deep": "null"} == bare


def test_a_file_goes_under_its_own_name_or_the_one_that_is_said() -> None:
    crate = Crate()
    photo = replace(crate.attach("photo", "img ü.jpg", b"abc"), content_type="image/jpeg")
    log = crate.attach("log", "a.log", b"")

    assert {"photo": ("img ü.jpg", "image/jpeg"), "log": ("a.log", "application/octet-stream")} == files(
        form(), event(), photo, log
    )
    assert {"picture": ("img ü.jpg", "image/jpeg")} == files(form(files={"picture": "photo", "log": "log?"}), event(), photo)


def test_several_files_go_under_one_name() -> None:
    crate = Crate()
    attached = [crate.attach(name, f"{name}.bin", b"x") for name in ("photo-1", "log", "photo-2", "photo-first")]
    archive = form(fields={}, files={"first": "photo-first", "photos": "photo*", "others": "video*?", "log": "log"})

    upload = archive.encode(batch(carrying(1, {}, *attached)))

    sent = [(part.name, part.filename) for part in upload.parts if isinstance(part, FilePart)]
    assert [("first", "photo-first.bin"), ("photos", "photo-1.bin"), ("photos", "photo-2.bin"), ("log", "log.bin")] == sent


def test_of_several_files_one_must_be_there_and_others_are_not_taken() -> None:
    archive = form(fields={}, files={"photos": "photo*"})

    assert [] == faults(archive, {}, "photo-1", "photo")
    assert [
        "files.photo*: is missing; archive sends it as 'photos'; give it in files=",
        "files.log: is not sent to archive, whose files= takes: photo*",
    ] == faults(archive, {}, "log")


def test_the_key_goes_along_as_one_header_that_can_be_read_back() -> None:
    message = carrying(1, event())._replace(key="prüf 100%.1")

    assert {"Idempotency-Key": "pr%C3%BCf%20100%25.1"} == form().encode(batch(message)).headers
    assert {"X-Id": "pr%C3%BCf%20100%25.1"} == form(key_header="X-Id").encode(batch(message)).headers
    assert {"X-Site": "north"} == form(key_header=None, headers={"X-Site": "north"}).encode(batch(message)).headers


@given(st.text(min_size=1, max_size=255).filter(lambda key: not payload.has_controls(key)))
def test_two_keys_are_never_one_header(key: str) -> None:
    from urllib.parse import unquote

    said = form().encode(batch(carrying(1, event())._replace(key=key))).headers["Idempotency-Key"]

    assert key == unquote(said)
    assert said.isascii()
    assert said.isprintable()
    assert said == said.strip()


def test_one_message_travels_in_a_request_whatever_the_policy_says() -> None:
    generous = form(policy=Policy(batch_messages=50, senders=3))

    assert (1, 3) == (generous.policy.batch_messages, generous.policy.senders)
    assert 1 == replace(generous, policy=Policy()).policy.batch_messages


# What is refused at the door.


@pytest.mark.parametrize(
    ("options", "document", "names", "words"),
    [
        ({}, [1], (), "payload: expected an object, of which each member is a field of archive"),
        ({}, {"": 1}, (), "payload: the name '' is empty; what is in a form needs a name"),
        ({}, {}, (), "payload: makes a form for archive without a single field or file"),
        ({}, {"a\\": 1}, (), "payload: the name 'a\\\\' holds a backslash, which not everybody who reads a form takes for one"),
        ({}, {}, ("a\\",), "files.a\\: its name holds a backslash, which not everybody who reads a form takes for one"),
        ({}, {"photo": 1}, ("photo",), "files.photo: 'photo' is a field of this form as well"),
        ({"fields": {"device": "meta.id"}}, {"meta": 1}, (), "meta.id: is missing; archive sends it as the field 'device'"),
        (
            {"files": {"picture": "photo"}},
            {"a": 1},
            (),
            "files.photo: is missing; archive sends it as 'picture'; give it in files=",
        ),
        (
            {"files": {"picture": "photo?"}},
            {"a": 1},
            ("foto",),
            "files.foto: is not sent to archive, whose files= takes: photo",
        ),
    ],
)
def test_a_message_that_makes_no_form_is_refused(
    options: dict[str, Any], document: Any, names: tuple[str, ...], words: str
) -> None:
    assert [words] == faults(form(**options), document, *names)


def test_every_fault_comes_out_at_once() -> None:
    told = faults(form(fields={"a": "x", "b": "y"}, files={"p": "photo"}), {}, "log")

    assert 4 == len(told)


def test_what_is_well_has_no_faults() -> None:
    assert [] == faults(form(), {"a": 1}, "photo")
    assert [] == faults(form(), {}, "photo")
    assert [] == faults(form(fields={"d": "a", "q": "b?"}, files={"p": "photo", "l": "log?"}), {"a": 1}, "photo")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
_PATHS = st.lists(st.text("ab.", min_size=1, max_size=3).filter(lambda step: all(step.split("."))), min_size=1, max_size=3)


@given(document=_JSON, names=st.lists(st.sampled_from(["photo", "a", "ü"]), unique=True, max_size=2), paths=_PATHS | st.none())
def test_whatever_the_door_lets_in_makes_a_form_of_the_weight_it_had(
    document: Any, names: list[str], paths: list[str] | None
) -> None:
    destination = form(fields=None if paths is None else {f"f{number}": path for number, path in enumerate(paths)})
    text = payload.written(document) if isinstance(document, dict | list) else None
    if text is None or faults(destination, document, *names):
        return
    crate = Crate()
    message = carrying(1, document, *(crate.attach(name, f"{name}.bin", b"x") for name in names))

    upload = destination.encode(batch(message))

    parts = [part for part in upload.parts if isinstance(part, FieldPart)]
    drafted = Draft(document, text, dict.fromkeys(names, ""))
    assert destination.weigh(drafted) == sum(len(part.name.encode()) + part.size for part in parts)
    assert sorted(names) == sorted(part.name for part in upload.parts if isinstance(part, FilePart))
    if paths is None:
        assert {
            name: value if isinstance(value, str) else json.loads(payload.text(value)) for name, value in document.items()
        } == {
            part.name: part.body.decode() if isinstance(document[part.name], str) else json.loads(part.body) for part in parts
        }


# What is refused when it is set up.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fields": {"": "a"}}, "destination archive: fields: the name '' is empty; what is in a form needs a name"),
        ({"fields": {"a": "x..y"}}, "fields.a: expected a path in the payload such as meta.note?, got 'x..y'"),
        ({"files": {"a": "?"}}, "files.a: expected the name of an attachment, got '?'"),
        ({"fields": ["a"]}, "expected fields to be names and texts as in {'device': 'assetId'}, got ['a']"),
        ({"files": {"a": ["b"]}}, "expected files to be names and texts as in {'picture': 'photo'}, got {'a': ['b']}"),
        ({"fields": {"a": "x"}, "files": {"a": "photo"}}, "a: a field and a file cannot have the same name"),
        ({"headers": {"X-Site": "nörd"}}, "the header 'X-Site' holds what is not printable ASCII"),
        ({"headers": {"authorization": "Bearer x"}}, "say token=StaticToken(env(...)) instead"),
        ({"headers": {"Content-Type": "a/b"}}, "the header Content-Type is set by outbox; leave it out"),
        ({"headers": {"idempotency-key": "1"}}, "the header idempotency-key is set by outbox; leave it out"),
        ({"key_header": "no good"}, "the header 'no good' holds what is not"),
        ({"max_file_bytes": -1}, "expected max_file_bytes to be at least 0, got -1"),
    ],
)
def test_a_form_that_cannot_work_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        form(**options)


# What an answer means.


def test_a_status_that_speaks_of_the_message_accuses_it_and_no_other_does() -> None:
    meant = {status: judged(form(), status, b"no") for status in range(300, 600)}

    assert {400, 409, 413, 415, 422} == {status for status, verdict in meant.items() if isinstance(verdict, Reject)}
    assert all(isinstance(verdict, Retry) for status, verdict in meant.items() if status not in (400, 409, 413, 415, 422))
    assert {401, 403} == {status for status, verdict in meant.items() if isinstance(verdict, Retry) and verdict.credentials}
    assert [401] == [status for status, verdict in meant.items() if isinstance(verdict, Retry) and verdict.renew]
    assert Reason.TOO_LARGE == judged(form(), 413).reason


def test_a_2xx_answer_is_a_yes_unless_it_is_a_page_for_people() -> None:
    assert all(isinstance(judged(form(), status, b"thanks"), Delivered) for status in (200, 201, 202, 204, 299))
    assert isinstance(judged(form(), 200, PAGE), Retry)
    assert "a page for people" in (judged(form(), 200, PAGE).facts.text or "")
    assert isinstance(judged(form(accept_html=True), 200, PAGE), Delivered)


def test_an_answer_that_came_too_early_confirms_nothing() -> None:
    assert isinstance(judged(form(), 200, b"ok", sent_whole=False), NotSent)
    assert isinstance(judged(form(succeeded=lambda _: True), 200, b"ok", sent_whole=False), NotSent)


def test_a_predicate_has_the_last_word_on_a_2xx_answer_and_on_no_other() -> None:
    destination = form(succeeded=lambda answer: b"stored" in answer.body)

    assert isinstance(judged(destination, 200, PAGE + b"stored"), Delivered)
    assert isinstance(judged(destination, 200, b"queue is full"), Retry)
    assert "no success, says `succeeded`: queue is full" == judged(destination, 200, b"queue is full").facts.text
    assert isinstance(judged(destination, 500, b"stored"), Retry)


def test_a_wish_to_wait_is_heard_and_a_redirect_is_named() -> None:
    busy = judged(form(), 503, headers={"retry-after": "7", "x-request-id": "r-1"})
    moved = judged(form(), 302, headers={"location": "https://login.example/?ticket=1"})

    assert isinstance(busy, Retry)
    assert (7.0, "r-1") == (busy.wait, busy.facts.request_id)
    assert "redirected to https://login.example/; redirects are not followed: set the final address" == moved.facts.text


def test_a_subclass_puts_its_own_rules_in_front() -> None:
    class Patient(Form):
        verdicts = (Rule(Meaning.RETRY, "two of ours met", status=409), *Form.verdicts)

    assert isinstance(Patient(**USUAL).judge(Answer(409, {}, b""), batch(), NOW), Retry)
    assert isinstance(judged(form(), 409), Reject)


def test_a_table_that_looks_at_what_is_not_read_is_refused() -> None:
    class Wrong(Form):
        verdicts = (Rule(Meaning.RETRY, "", code=1), *Form.verdicts)

    with pytest.raises(ConfigurationError, match="looks at 'code'; known: status, html"):
        Wrong(**USUAL)


# What lets us in.


class _NoTransport:
    """Nothing is asked of it."""


def test_a_static_token_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from outbox import env

    token = StaticToken(env("FORM_TOKEN"), header="X-Api-Key", scheme="")

    with pytest.raises(ConfigurationError, match="environment variable FORM_TOKEN is not set"):
        token.headers(_NoTransport(), NOW, 0.0)  # type: ignore[arg-type]
    monkeypatch.setenv("FORM_TOKEN", "first-one")
    before = token.headers(_NoTransport(), NOW, 0.0)  # type: ignore[arg-type]
    monkeypatch.setenv("FORM_TOKEN", "second-one")
    token.renew()

    assert ({"X-Api-Key": "first-one"}, {"X-Api-Key": "second-one"}) == (
        before,
        token.headers(_NoTransport(), NOW, 0.0),  # type: ignore[arg-type]
    )
    assert ("X-Api-Key",) == token.header_names


def test_a_static_token_is_a_bearer_and_shows_itself_to_nobody() -> None:
    token = StaticToken("hunter2hunter2")

    assert {"Authorization": "Bearer hunter2hunter2"} == token.headers(_NoTransport(), NOW, 0.0)  # type: ignore[arg-type]
    assert "hunter2" not in repr(form(token=token))
    with pytest.raises(ConfigurationError, match="the header 'X Key'"):
        StaticToken("x", header="X Key")


@pytest.mark.parametrize("name", ["Host", "transfer-encoding", "Content-Length", "Authorization"])
def test_a_key_is_in_no_header_that_says_something_else(name: str) -> None:
    """A producer chooses keys, and would say then where a request goes and how long it is."""
    with pytest.raises(ConfigurationError, match=f"key_header: {name} says something else; name another header"):
        Form(name="f", url="https://f.example", key_header=name)


def test_a_token_is_in_no_header_that_is_set_anyhow() -> None:
    with pytest.raises(ConfigurationError, match="token: the header content-type is set by outbox; name another"):
        Form(name="f", url="https://f.example", token=StaticToken("hunter2hunter2", header="Content-Type"))


@pytest.mark.parametrize("token", ["hunter2hunter2", env("ARCHIVE_TOKEN")])
def test_a_secret_is_not_yet_a_token(token: Any) -> None:
    """It would be found out with the first request, and with each after that."""
    with pytest.raises(
        ConfigurationError, match=r"expected token to be as in token=StaticToken\(env\(...\)\), got a (Secret|str)$"
    ) as raised:
        Form(name="f", url="https://f.example", token=token)

    assert "hunter2" not in str(raised.value)
