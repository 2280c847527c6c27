"""The kit for those who write destinations: ours keep all of its rules, and each that is broken is told in one sentence."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from email.utils import formatdate
from typing import Any

import pytest

from outbox import EnosAttributes, EnosEvents, EnosMeasurePoints, Form, Policy, StaticToken, Token, Webhook, env
from outbox.destinations import (
    Answer,
    Batch,
    Delivered,
    Destination,
    Draft,
    Facts,
    Fault,
    FieldPart,
    FilePart,
    Meaning,
    Reject,
    Retry,
    Rule,
    Upload,
    Verdict,
    verdict_of,
)
from outbox.testing import check_destination

URL = "https://depot.example/in"
FILES = {"photo": b"abc"}


# Those there are.

ENOS = {"name": "enos", "url": "https://enos.example", "org_id": "o1"}
TOKEN = Token("https://gateway.example", "an-app-key", "an-app-secret")
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
PHOTO = {"photo": "local://photo", "n": 1}
EVENT = {"assetId": "t-7", "time": 1, "events": {"crack": PHOTO}}


@pytest.mark.parametrize(
    ("destination", "payload", "success"),
    [
        (EnosEvents(**ENOS, token=TOKEN), EVENT, b'{"code":0}'),
        (EnosMeasurePoints(**ENOS), {"assetId": "t-7", "time": 1, "measurepoints": {"crack": PHOTO}}, b'{"code":0}'),
        (EnosAttributes(**ENOS), {"assetId": "t-7", "attributes": {"crack": PHOTO}}, b'{"code":0}'),
        (Form(name="f", url=URL, token=StaticToken("hunter2hunter2")), EVENT, b""),
        (Form(name="f", url=URL, fields={"d": "assetId", "n": "meta.n?"}, files={"p": "photo"}), EVENT, b""),
        (Form(name="f", url=URL, succeeded=lambda answer: answer.body == b"stored"), EVENT, b"stored"),
        (Webhook(name="h", url=URL, secrets=[SECRET, env("NOT_SET")]), EVENT, b"ok"),
        (Webhook(name="h", url=URL, format="multipart", headers={"X-Site": "north"}), EVENT, b""),
    ],
)
def test_ours_keep_every_rule(destination: Destination, payload: Any, success: bytes) -> None:
    check_destination(destination, payload=payload, files=FILES, success=Answer(200, {}, success))


def test_a_webhook_of_json_alone_keeps_them_too() -> None:
    check_destination(Webhook(name="h", url=URL, secrets=[SECRET], format="json"), payload={"a": 1})


# One that is well, and what can go wrong with it.


@dataclass(frozen=True, kw_only=True)
class Depot(Destination):
    """Takes any number of messages, and answers {"stored": true}."""

    def check(self, draft: Draft) -> list[Fault]:
        return [] if isinstance(draft.payload, dict) and "id" in draft.payload else [Fault("id", "is missing")]

    def encode(self, batch: Batch) -> Upload:
        parts: list[Any] = [FieldPart("messages", f"[{','.join(each.text for each in batch.messages)}]".encode())]
        for number, message in enumerate(batch.messages):
            parts += [FilePart(f"{number}-{each.name}", each.filename, each.file) for each in message.attachments]
        return Upload(self.url, parts)

    def judge(self, answer: Answer, batch: Batch, now: datetime) -> Verdict:
        stored = answer.status == 200 and answer.body == b'{"stored": true}'
        return verdict_of(Meaning.DELIVERED if stored else Meaning.RETRY, Facts(answer.status), answer, now)


STORED = Answer(200, {}, b'{"stored": true}')


def told(destination: Destination, payload: Any = {"id": 1}, **options: Any) -> list[str]:  # noqa: B006 (it is not changed)
    """What is wrong, each sentence by itself."""
    with pytest.raises(AssertionError) as raised:
        check_destination(destination, payload=payload, files=options.pop("files", FILES), **options)
    first, *rest = str(raised.value).split("\n- ")
    assert first.startswith(("1 thing is wrong", f"{len(rest)} things are wrong"))
    assert len(rest) == len(set(rest))
    return rest


def broken(**methods: Any) -> Destination:
    """A Depot in which these are written wrongly."""
    return type("Broken", (Depot,), methods)(name="depot", url=URL)


def edited(change: Callable[[Upload, Batch], Upload]) -> Destination:
    """A Depot whose uploads are changed by this."""
    return broken(encode=lambda self, batch: change(Depot.encode(self, batch), batch))


def test_one_that_is_well_has_nothing_told_of_it() -> None:
    check_destination(Depot(name="depot", url=URL), payload={"id": 1}, files=FILES, success=STORED)


def test_a_sample_that_may_not_be_enqueued_is_told_with_its_faults() -> None:
    (fault,) = told(Depot(name="depot", url=URL), {"name": 1})

    assert "the payload and files given to check_destination cannot be enqueued: id: is missing" == fault


counter = itertools.count()

ENCODINGS: dict[str, Destination] = {
    "encode, asked again, gives another upload; it must depend on the batch alone: no clock, no dice and no counter "
    "(time is batch.started_at, a name is message.key)": edited(lambda u, b: replace(u, headers={"X-N": str(next(counter))})),
    "encode, asked of a copy of the batch, gives another upload; it must depend on the batch alone: no clock, no dice and no "
    "counter (time is batch.started_at, a name is message.key)": edited(lambda u, b: replace(u, headers={"X-N": str(id(b))})),
    "encode asks the clock (time.time), and a later try would be another request; the time is batch.started_at": edited(
        lambda u, b: replace(u, headers={"X-At": str(int(time.time()) // 3600)})
    ),
    "encode asks the clock (datetime.now), and a later try would be another request; the time is batch.started_at": edited(
        lambda u, b: replace(u, url=f"{u.url}/{datetime.now(UTC):%Y}")
    ),
    "encode asks the clock (date.today), and a later try would be another request; the time is batch.started_at": edited(
        lambda u, b: replace(u, url=f"{u.url}/{date.today()}")  # noqa: DTZ011 (it is what people write)
    ),
    "encode asks the clock (time.time), and a later try would be another request; the time is batch.started_at ": edited(
        lambda u, b: replace(u, headers={"X-Date": formatdate(usegmt=True)})
    ),
    "encode makes the same request of 3 messages as of 2, so that one is lost; put every message of the batch in, or say "
    "message_limit = 1": edited(lambda u, b: Upload(u.url, json=b.messages[0].text.encode())),
    "the attachment 'photo' travels 0 times in a request; each must once, as a FilePart": edited(
        lambda u, b: replace(u, parts=u.parts[:1])
    ),
    "the attachment 'photo' travels 2 times in a request; each must once, as a FilePart": edited(
        lambda u, b: replace(u, parts=[*u.parts, *(replace(each, name=f"again-{each.name}") for each in u.parts[1:])])
    ),
    "the file of the part '0-photo' is not the attachment's own: give FilePart attachment.file as it is": edited(
        lambda u, b: replace(u, parts=[u.parts[0], *(replace(p, file=replace(p.file, size=9)) for p in u.parts[1:])])
    ),
    "two files of one form are called 'photo' ('photo'), and nobody could tell them apart; put message.key into the name, or "
    "say message_limit = 1": edited(
        lambda u, b: replace(u, parts=[u.parts[0], *(replace(p, name="photo") for p in u.parts[1:])])
    ),
    "the header 'X-Key' cannot be sent: 'schlüssel 1' is not printable ASCII without white space at its ends; a key may hold "
    "any letter: percent-encode it (urllib.parse.quote)": edited(lambda u, b: replace(u, headers={"X-Key": b.messages[0].key})),
    "the header 'X-N' is 1; names and values must be strings": edited(lambda u, b: replace(u, headers={"X-N": 1})),
    "encode sets the header content-type; leave it out, outbox says it of the body it sends": edited(
        lambda u, b: replace(u, headers={"content-type": "a/b"})
    ),
    "encode sets the header Transfer-Encoding; leave it out, outbox says it of the body it sends": edited(
        lambda u, b: replace(u, headers={"Transfer-Encoding": "chunked"})
    ),
    "encode sends to 'https://depot.example/in/schlüssel 1'; expected an address below https://depot.example/in, with what is "
    "not plain in it percent-encoded (urllib.parse.quote)": edited(lambda u, b: replace(u, url=f"{u.url}/{b.messages[0].key}")),
    "encode sends to 'http://depot.example/in'; expected an address below https://depot.example/in, with what is not plain in "
    "it percent-encoded (urllib.parse.quote)": edited(lambda u, b: replace(u, url="http://depot.example/in")),
    "the part 'a' holds 'text'; a FieldPart's body is bytes: encode it": edited(
        lambda u, b: replace(u, parts=[FieldPart("a", "text"), *u.parts])  # type: ignore[arg-type]
    ),
    "('a', b'b') is no part of a form; use FieldPart and FilePart": edited(
        lambda u, b: replace(u, parts=[("a", b"b"), *u.parts])  # type: ignore[list-item]
    ),
    "the part 'a' cannot be sent: a part header must not hold control characters": edited(
        lambda u, b: replace(u, parts=[FieldPart("a", b"", headers={"X": "a\r\nb"}), *u.parts])
    ),
    "Upload.parts is {1}; expected a list, which can be read more than once": edited(
        lambda u, b: replace(u, parts={1})  # type: ignore[arg-type]
    ),
    "Upload.json is 'text'; expected bytes, such as message.text.encode()": edited(
        lambda u, b: Upload(u.url, json="text")  # type: ignore[arg-type]
    ),
    "encode makes an upload without parts and without json: nothing would be sent": edited(lambda u, b: Upload(u.url)),
    "encode returned 'text'; it must return an Upload": edited(lambda u, b: "text"),  # type: ignore[arg-type,return-value]
    "encode raised KeyError for what check lets in: 'x'; let check refuse it, or encode it": edited(lambda u, b: {}["x"]),
    "encode raised ValueError for a batch of 3 messages: too many values to unpack (expected 1); if a request carries one "
    "message, say message_limit = 1": edited(lambda u, b: next(u for (_,) in [b.messages])),
}


@pytest.mark.parametrize("sentence", ENCODINGS)
def test_what_is_wrong_with_an_upload_is_told(sentence: str) -> None:
    files = {} if "is lost" in sentence else FILES
    assert sentence.strip() in told(ENCODINGS[sentence], files=files)


def test_a_logger_and_a_stopwatch_may_ask_the_clock_while_a_batch_is_encoded(caplog: pytest.LogCaptureFixture) -> None:
    def talking(self: Depot, batch: Batch) -> Upload:
        began = time.perf_counter()
        logging.getLogger("depot").warning("%s messages", len(batch.messages))
        assert time.perf_counter() >= began
        return Depot.encode(self, batch)

    check_destination(broken(encode=talking), payload={"id": 1}, files=FILES, success=STORED)

    assert caplog.messages


def test_what_fails_without_files_alone_says_so() -> None:
    destination = edited(lambda u, b: replace(u, parts=[u.parts[0], u.parts[1], *u.parts[2:]]))

    (fault,) = told(destination)

    assert fault.startswith("encode raised IndexError for what check lets in without files: ")


def test_a_destination_that_one_request_changes_is_told_so() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Counting(Depot):
        seen: dict[str, int] = field(default_factory=dict)

        def encode(self, batch: Batch) -> Upload:
            self.seen["n"] = self.seen.get("n", 0) + 1
            return Depot.encode(self, batch)

    assert ["encode changes seen of the destination; several threads call it at a time: build something new"] == told(
        Counting(name="depot", url=URL)
    )


def test_one_message_a_request_may_be_said_by_class_or_by_policy() -> None:
    def one(self: Depot, batch: Batch) -> Upload:
        (_,) = batch.messages
        return Depot.encode(self, batch)

    check_destination(broken(encode=one, message_limit=1), payload={"id": 1}, files=FILES)
    check_destination(replace(broken(encode=one), policy=Policy(batch_messages=1)), payload={"id": 1}, files=FILES)


def test_a_weight_that_is_less_than_what_is_added_is_told_where_there_is_a_limit() -> None:
    def padded(self: Depot, batch: Batch) -> Upload:
        return replace(Depot.encode(self, batch), parts=[FieldPart("m", b"x" * 100 * len(batch.messages))])

    limit = property(lambda self: 1000)

    (fault,) = told(broken(encode=padded, text_limit=limit), files={})

    assert fault == (
        "one more message adds 100 bytes of text to a request, and weigh says 8; let weigh return at least what encode "
        "adds, or requests will be larger than text_limit"
    )
    check_destination(broken(encode=padded), payload={"id": 1})
    check_destination(broken(encode=padded, text_limit=limit, weigh=lambda self, draft: 100), payload={"id": 1})


@pytest.mark.parametrize("weight", [None, "10", 1.5, -1])
def test_a_weight_that_is_no_number_of_bytes_is_told(weight: Any) -> None:
    assert [f"weigh returned {weight!r}; it must return a number of bytes, an int that is not negative"] == told(
        broken(weigh=lambda self, draft: weight)
    )


# The door.


def test_a_check_that_stumbles_over_a_payload_is_told_so() -> None:
    destination = broken(check=lambda self, draft: [] if draft.payload["id"] else [Fault("id", "is missing")])

    (fault,) = told(destination)

    assert fault == (
        "check raised TypeError for the payload None; it must return Faults, whatever comes: look at the payload's type "
        "before its members"
    )


def test_a_check_that_returns_no_faults_but_words_is_told_so() -> None:
    destination = broken(check=lambda self, draft: [] if draft.payload == {"id": 1} else ["id is missing"])

    assert (
        "check returned ['id is missing']; it must return a list of Fault(path, text), empty if none is" == told(destination)[0]
    )


def test_what_is_let_in_and_cannot_be_encoded_is_told() -> None:
    def encode(self: Depot, batch: Batch) -> Upload:
        _ = [json.loads(message.text)["id"] for message in batch.messages]
        return Depot.encode(self, batch)

    destination = broken(encode=encode, check=lambda self, draft: [])

    assert [
        "check lets in the payload None, and encode raises TypeError for it; let check return a Fault for what cannot be sent"
    ] == told(destination)


def test_a_member_that_may_be_missing_for_the_check_and_not_for_encode_is_told() -> None:
    def encode(self: Depot, batch: Batch) -> Upload:
        _ = [json.loads(message.text)["device"] for message in batch.messages]
        return Depot.encode(self, batch)

    (fault,) = told(broken(encode=encode), {"id": 1, "device": "t-7"})

    assert "check lets in the payload {'id': 1}, and encode raises KeyError for it; let check return" in fault


# Secrets.


def test_a_secret_in_a_plain_field_is_told() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Keyed(Depot):
        api_key: str = "hunter2hunter2"

    found = told(Keyed(name="depot", url=URL))

    assert ["repr shows the secret in api_key; keep it in a Secret, such as env('NAME'), or say field(repr=False)"] == found


def test_a_secret_in_an_upload_is_told_and_never_shown() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Keyed(Depot):
        token: StaticToken = field(default_factory=lambda: StaticToken("hunter2hunter2"))

        def encode(self, batch: Batch) -> Upload:
            return replace(Depot.encode(self, batch), headers={"X-Key": "hunter2hunter2"})

    assert ["encode puts a secret into the upload, which people are shown; give it in `credentials` or in `sign`"] == told(
        Keyed(name="depot", url=URL)
    )


@pytest.mark.parametrize(("key", "secret"), [("key", "secret"), ("app_key", "app_secret"), ("token", "token"), ("k", "s")])
def test_a_word_that_stands_in_for_a_secret_in_a_test_is_not_found_in_other_words(key: str, secret: str) -> None:
    token = Token("https://gateway.example", key, secret)

    check_destination(EnosEvents(**ENOS, token=token), payload=EVENT, files=FILES)
    check_destination(Form(name="f", url=URL, token=StaticToken(secret)), payload={"k": "s", "secret": 1})


@pytest.mark.parametrize(
    ("credentials", "words"),
    [
        (property(lambda self: "Bearer hunter2"), "credentials is a str; expected None"),
        (property(lambda self: {}["x"]), "credentials raised KeyError; expected None"),
    ],
)
def test_credentials_that_are_none_are_told(credentials: Any, words: str) -> None:
    (fault,) = told(broken(credentials=credentials))

    assert fault.startswith(words)
    assert "hunter2" not in fault


def signing(sign: Callable[[Any, Upload], Any], *names: str) -> Destination:
    return broken(sign=sign, signature_headers=names)


SIGNATURES: dict[str, Destination] = {
    "sign raised KeyError; without a usable secret it must raise ConfigurationError, which stops the destination, and else "
    "return headers": signing(lambda self, upload: {"X-Sum": upload.headers["X-None"]}, "X-Sum"),
    "sign gives what cannot be sent: the header 'X-Sum' holds what is not printable ASCII, or white space at an end; set it "
    "without that": signing(lambda self, upload: {"X-Sum": "ü"}, "X-Sum"),
    "sign returned a NoneType; it must return headers, a dict of strings, empty if there are none": signing(
        lambda self, upload: None
    ),
    "sign returned what is no string; it must return headers, a dict of strings, empty if there are none": signing(
        lambda self, upload: {"X-Sum": 1}, "X-Sum"
    ),
    "sign gives the header x-sum; name it in signature_headers, so that people are told of it": signing(
        lambda self, upload: {"X-Sum": "1"}
    ),
}


@pytest.mark.parametrize("sentence", SIGNATURES)
def test_a_signature_that_nobody_can_send_or_hear_of_is_told(sentence: str) -> None:
    assert [sentence] == told(SIGNATURES[sentence])


def test_a_signature_that_is_well_is_not() -> None:
    check_destination(signing(lambda self, upload: {"X-Sum": "1"}, "x-sum"), payload={"id": 1})


# Verdicts.

OK = Delivered()


def judging(verdict: Callable[[Answer, datetime], Any]) -> Destination:
    return broken(judge=lambda self, answer, batch, now: verdict(answer, now))


VERDICTS: dict[str, Destination] = {
    "judge raised JSONDecodeError for HTTP 100 with an empty body; it must have a verdict for every answer, and for what it "
    "does not understand that is Retry": judging(lambda a, now: OK if json.loads(a.body) else Retry()),
    "judge returned None for HTTP 100 with an empty body; it must return Delivered, Retry, Reject or Unknown": judging(
        lambda a, now: None
    ),
    "judge has two different verdicts for HTTP 100 with an empty body; it must depend on the answer alone: no clock but `now`, "
    "no counter": judging(lambda a, now: Retry(wait=next(counter))),
    "judge keeps Facts(status=100, code='E1', text=None, request_id=None, answer=None) of HTTP 100 with an empty body, which "
    "no row can; Facts are an int status and code, and strings": judging(
        lambda a, now: Retry(Facts(a.status, "E1"))  # type: ignore[arg-type]
    ),
    "judge keeps Facts(status='100', code=None, text=None, request_id=None, answer=None) of HTTP 100 with an empty body, which "
    "no row can; Facts are an int status and code, and strings": judging(
        lambda a, now: Retry(Facts(str(a.status)))  # type: ignore[arg-type]
    ),
    "judge returned the wait '60' for HTTP 100 with an empty body; it is a number of seconds: say retry_after(answer, now)": (
        judging(lambda a, now: Retry(Facts(a.status), "60"))  # type: ignore[arg-type]
    ),
    "judge says delivered to HTTP 300 with an empty body; only a 2xx status may confirm": judging(
        lambda a, now: OK if 200 <= a.status < 400 else Retry()
    ),
    "judge says delivered to HTTP 500 with the body ok; only a 2xx status may confirm": judging(
        lambda a, now: OK if a.body == b"ok" and a.status in (200, 500) else Retry()
    ),
    "judge says delivered to an answer that came before the request was sent whole (answer.sent_whole is False), and the other "
    "side cannot have it all; return verdict_of(Meaning.DELIVERED, facts, answer, now), which minds that": judging(
        lambda a, now: OK if a.status == 200 and a.body == b"ok" else Retry()
    ),
    "judge says delivered to an HTML page with HTTP 200, as a captive portal or a login page answers; ask the body for "
    "something that only the destination says, or say html_is_success=True if it answers with pages": judging(
        lambda a, now: verdict_of(Meaning.DELIVERED if a.status == 200 else Meaning.RETRY, Facts(), a, now)
    ),
    "judge accuses the message when a gateway answers HTTP 404 with an HTML page, and all messages would die of a "
    "redeployment; return Retry unless the destination itself says that the message is wrong": judging(
        lambda a, now: Reject() if 400 <= a.status < 500 else Retry()
    ),
}


@pytest.mark.parametrize("sentence", VERDICTS)
def test_what_is_wrong_with_a_verdict_is_told(sentence: str) -> None:
    assert sentence in told(VERDICTS[sentence])


def test_an_answer_that_is_a_success_must_be_one() -> None:
    assert ["judge says retry to the answer given as success; it must say delivered"] == told(
        Depot(name="depot", url=URL), success=Answer(200, {}, b'{"stored": 1}')
    )


def test_a_table_may_accuse_on_purpose_and_pages_may_be_answers() -> None:
    class Strict(Form):
        verdicts = (Rule(Meaning.REJECT, "no such device", status=404), *Form.verdicts)

    check_destination(Strict(name="f", url=URL), payload={"a": 1})
    check_destination(Form(name="f", url=URL, accept_html=True), payload={"a": 1}, html_is_success=True)
    assert 1 == len(told(Form(name="f", url=URL, accept_html=True), {"a": 1}))


@pytest.mark.parametrize(("status", "why"), [(401, "a token that has ended"), (429, "being many"), (503, "a redeployment")])
def test_no_table_may_accuse_a_message_of_what_is_never_its_fault(status: int, why: str) -> None:
    class Harsh(Form):
        verdicts = (Rule(Meaning.REJECT, "no", status=status), *Form.verdicts)

    (fault,) = told(Harsh(name="f", url=URL), {"a": 1})

    assert fault.startswith(f"judge accuses the message when a gateway answers HTTP {status} with an HTML page")
    assert f"all messages would die of {why};" in fault


def test_all_that_is_wrong_is_told_at_once() -> None:
    destination = broken(
        check=lambda self, draft: [Fault("", "")] if draft.payload["id"] is None else [],
        encode=lambda self, batch: replace(Depot.encode(self, batch), headers={"content-length": str(next(counter))}),
        judge=lambda self, answer, batch, now: OK,
    )

    found = told(destination)

    starts = ("check raised", "encode, asked again", "encode sets the header", "judge says delivered to HTTP 100")
    assert [True] * 4 == [fault.startswith(start) for fault, start in zip(found, starts, strict=False)]
