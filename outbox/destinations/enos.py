"""The EnOS "Upload Events" API and its two siblings: events, measure points and attributes, with files.

Sources: the vendor's API page and requests recorded from its Java SDK. One code answers for the whole request. Batching is
our choice: the page and its sample show several structs in one request, of several devices.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlencode

from outbox import payload
from outbox.destinations.base import Builder, Credentials, Destination, redirected, verdict_of
from outbox.destinations.enos_struct import ATTRIBUTE, EVENT, LOCAL, MEASURE_POINT, Action, struct_faults, with_plain_time
from outbox.destinations.table import ABSENT, Meaning, Reading, Rule, Verdicts, check_table, first
from outbox.destinations.token import Token
from outbox.errors import ConfigurationError, Fault
from outbox.exchange import Answer, Upload
from outbox.model import Attachment, Batch, Draft, Message
from outbox.multipart import FieldPart, FilePart, Part
from outbox.verdict import Facts, Verdict, cleaned

log = logging.getLogger("outbox.enos")

_PATH = "/connect-service/v2.1/integration"
_VERSION = "1.1"
#: What surrounds the messages and the files map in the text part, at most.
_ENVELOPE = 256
#: A safe extension is kept on the wire; the true one travels in the JSON.
_SAFE_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,16}")
_LONGEST_TRANSFER_NAME = "f" * 32 + "-" + "9" * 19 + "-" + "9" * 6 + "." + "x" * 16

#: What the rules below look at: the HTTP status, and two members of the body.
_READ = ("status", "code", "apim_status")
_OK = range(200, 300)
#: For an `apim_status` that is there and is no integer.
_ODD = -1

#: What an answer means: the first rule that fits decides. Only a code of the envelope, or a 413, may accuse a message.
VERDICTS: Verdicts = (
    Rule(Meaning.RETRY, "a redirect: it is never followed, set the final address", status=range(300, 400)),
    Rule(Meaning.TOO_LARGE, "the request is too large for the destination or for a server on the way", status=413),
    Rule(Meaning.TOO_LARGE, "the request body is too large", code=413),
    Rule(Meaning.TOO_LARGE, "a message is too large", code=1008),
    Rule(Meaning.DELIVERED, "success, as it is documented", status=_OK, code=0, apim_status=ABSENT),
    Rule(Meaning.DELIVERED, "success, as the documentation's sample has it", status=_OK, code=200, apim_status=ABSENT),
    Rule(Meaning.RENEW, "the access token has ended", apim_status=4011),
    Rule(Meaning.RENEW, "the access token has ended, and so has what would refresh it", apim_status=4012),
    Rule(Meaning.RENEW, "not authenticated, says a gateway", status=401, code=ABSENT),
    Rule(Meaning.RENEW, "not authenticated", code=401),
    Rule(Meaning.RENEW, "the application's timestamp or signature is not accepted", code=497),
    Rule(Meaning.CREDENTIALS, "permission denied", code=403),
    Rule(Meaning.CREDENTIALS, "permission denied to the application", code=498),
    Rule(Meaning.CREDENTIALS, "a permission is missing, for instance for this orgId", code=99403),
    Rule(Meaning.CREDENTIALS, "no permission to write", code=1009),
    Rule(Meaning.REJECT, "a request parameter is invalid", code=99400),
    Rule(Meaning.REJECT, "an object does not exist, for instance the device", code=99404),
    Rule(Meaning.REJECT, "the payload does not fit the device's model", code=1204),
    Rule(Meaning.REJECT, "a measure point's data has the wrong format", code=1206),
    Rule(Meaning.REJECT, "no permission for this sub-device", code=1212),
    Rule(Meaning.REJECT, "the payload is not JSON", code=1220),
    Rule(Meaning.REJECT, "the payload is empty", code=1251),
    Rule(Meaning.REJECT, "the device is not found", code=1257),
    Rule(Meaning.REJECT, "the method does not fit the address", code=1260),
    Rule(Meaning.REJECT, "the device cannot be found", code=11404),
    Rule(Meaning.RETRY, "success, but the HTTP status or an apim_status says otherwise", code={0, 200}),
    Rule(Meaning.RETRY, "an internal error", code=99500),
    Rule(Meaning.RETRY, "the gateway's own trouble: exhausted, broken, unavailable, too slow", code={429, 500, 501, 503, 504}),
    Rule(Meaning.RETRY, "not the destination's envelope: a proxy, a login page, a gateway being redeployed", code=ABSENT),
    Rule(Meaning.RETRY, "a code that nobody documents"),
)


class Reference(NamedTuple):
    """A place in a struct that stands for a file: `local://` and an attachment's name."""

    path: payload.Path
    name: str

    @property
    def feature(self) -> str:
        """The event, point or attribute that the file belongs to."""
        return str(self.path[1])


@dataclass(frozen=True, kw_only=True)
class EnosEvents(Destination):
    """Events of devices. A message is one struct: `assetId`, or `productKey` and `deviceKey`; `time`; `events`.

    A file stands in the struct as `File(path)`, the value of an event's parameter; or as `local://name`, and
    `files={"name": path}` gives it. What is said of each file, and the names they travel under, are filled in here. A `time` is
    milliseconds since 1970, or a datetime with a time zone. `Event` builds such a struct.
    """

    action: ClassVar[Action] = EVENT
    reference: ClassVar[str] = LOCAL
    #: A subclass puts its own rules in front: `verdicts = (Rule(Meaning.RETRY, "...", code=11404), *EnosEvents.verdicts)`.
    verdicts: ClassVar[Verdicts] = VERDICTS

    org_id: str  #: the organisation's id, as the console shows it
    token: Token | None = None  #: None sends no token: for a receiver that wants none
    realtime: bool = True  #: False marks data that is integrated late
    max_message_bytes: int = 512_000  #: of the text part; documented as "512 KB", and 524,288 is refused
    max_file_bytes: int = 100_000_000  #: of one file; documented as "100 MB"
    file_length_as_string: bool = False  #: as the vendor's SDK writes it; its page says a number

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.org_id or payload.has_controls(self.org_id):
            raise ConfigurationError(
                f"destination {self.name}: expected org_id to be the organisation's id, got {self.org_id!r}"
            )
        token: object = self.token
        if token is not None and not callable(getattr(token, "headers", None)):
            wanted = "expected token to be as in token=Token(url, env(...), env(...))"
            raise ConfigurationError(f"destination {self.name}: {wanted}, got a {type(token).__name__}")
        if self.max_message_bytes <= _ENVELOPE or self.max_file_bytes < 0:
            raise ConfigurationError(
                f"destination {self.name}: max_message_bytes or max_file_bytes is too small to send anything"
            )
        check_table(self.verdicts, _READ, f"destination {self.name}")

    @property
    def credentials(self) -> Credentials | None:
        return self.token

    @property
    def text_limit(self) -> int:
        return self.max_message_bytes - _ENVELOPE

    @property
    def file_limit(self) -> int:
        return self.max_file_bytes

    def unfold(self, payload: Any) -> tuple[Any, list[Fault]]:
        if isinstance(payload, Builder) and payload.made_for == self.action.made_for:
            payload = payload.plain()
        payload, faults = super().unfold(payload)
        return with_plain_time(self.action, payload) if isinstance(payload, dict) else (payload, faults)

    def check(self, draft: Draft) -> list[Fault]:
        struct = draft.payload
        if not isinstance(struct, dict):
            return [Fault("payload", f"expected an object with a device, a time and {self.action.member}")]
        faults: list[Fault] = []
        if not self._is_usual(struct):
            faults += struct_faults(self.action, struct)
        references = _references_of(draft)
        if references or draft.files:
            faults += self._reference_faults(draft, references)
        return faults

    def weigh(self, draft: Draft) -> int:
        entries = 0
        for reference in _references_of(draft):
            attached = draft.files.get(reference.name, "")
            entry = self._entry(draft.payload, reference, _LONGEST_TRANSFER_NAME, attached, 10**18, "0" * 32)
            # Once as the entry's name, once in place of the producer's name, and the marks between.
            entries += len(payload.text(entry).encode()) + 2 * len(_LONGEST_TRANSFER_NAME) + 4
        return (len(draft.text) if draft.text.isascii() else len(draft.text.encode())) + 1 + entries

    def encode(self, batch: Batch) -> Upload:
        entries: dict[str, dict[str, Any]] = {}
        files: list[Part] = []
        structs = [self._struct(message, entries, files) if message.attachments else message.text for message in batch.messages]
        head = {
            "method": self.action.method,
            # Correlation only: the answer does not repeat it, and nothing is recognised by it.
            "id": str(batch.messages[0].id),
            "version": _VERSION,
            "isRealtimeIntegration": self.realtime,
            "files": entries,
        }
        body = f'{payload.text(head)[:-1]},"params":[{",".join(structs)}]}}'.encode()
        query = urlencode({"action": self.action.query, "orgId": self.org_id})
        return Upload(f"{self.url.rstrip('/')}{_PATH}?{query}", [FieldPart("enos-message", body), *files])

    def judge(self, answer: Answer, batch: Batch, now: datetime) -> Verdict:
        moved = 300 <= answer.status < 400
        # The envelope must be heard to its end, and whoever redirects us is not the one who speaks in it.
        document = payload.believed(answer.body) if answer.whole and not moved else None
        reading = _read(answer.status, document or {})
        facts = redirected(answer) if moved else _facts(answer, document, reading["code"])
        rule = first(self.verdicts, reading)
        if rule.meaning is Meaning.DELIVERED and reading["code"] == 200:
            _note_code_200()
        return verdict_of(rule.meaning, facts, answer, now)

    def _is_usual(self, struct: dict[Any, Any]) -> bool:
        """Whether a struct has nothing but what most have, and none of the faults below: told in half of their time."""
        action = self.action
        asset, time, features = struct.get("assetId"), struct.get("time"), struct.get(action.member)
        # Three members that are there, of three, and so no others.
        if len(struct) != 3 or not action.timed or not isinstance(features, dict) or not features:
            return False
        if type(time) is not int or not 0 <= time < 2**63:
            return False
        if not isinstance(asset, str) or not asset.isprintable() or not asset.strip():
            return False
        for name, value in features.items():
            if not isinstance(name, str) or not name.strip() or (action is EVENT and not isinstance(value, dict)):
                return False
        return True

    def _reference_faults(self, draft: Draft, references: list[Reference]) -> Iterator[Fault]:
        used = set()
        for reference in references:
            where = payload.shown(reference.path)
            if not self.action.may_hold_file(reference.path):
                yield Fault(where, self.action.no_file_here)
            elif reference.name not in draft.files:
                yield Fault(where, f"refers to a file {reference.name!r} that is not given in files=")
            used.add(reference.name)
        for name in draft.files.keys() - used:
            yield Fault(f"files.{name}", f"is not referred to; put {LOCAL}{name} where it belongs in the payload")

    def _struct(self, message: Message, entries: dict[str, dict[str, Any]], files: list[Part]) -> str:
        """A message's struct with the names its files travel under; the files and what is said of them are added."""
        struct = json.loads(message.text)
        attached = {each.name: each for each in message.attachments}
        for number, reference in enumerate(_references(struct)):
            attachment = attached[reference.name]
            name = _transfer_name(message, number, attachment)
            file = attachment.file
            entries[name] = self._entry(struct, reference, name, attachment.filename, file.size, file.md5)
            files.append(FilePart("enos-file", name, file, headers={"Content-MD5": file.md5}))
            container = struct
            for step in reference.path[:-1]:
                container = container[step]
            container[reference.path[-1]] = LOCAL + name
        return payload.text(struct)

    def _entry(
        self, struct: dict[str, Any], reference: Reference, name: str, filename: str, size: int, md5: str
    ) -> dict[str, Any]:
        device = ("assetId",) if "assetId" in struct else ("productKey", "deviceKey")
        extension = filename.rpartition(".")[2] if "." in filename else ""
        return {
            "featureId": reference.feature,
            **{key: struct.get(key) for key in device},
            "fileName": name,
            "originalFilename": filename,
            "fileExt": f".{extension}" if extension else "",  # none behind a dot at the end
            "fileLength": str(size) if self.file_length_as_string else size,
            "md5": md5,
        }


@dataclass(frozen=True, kw_only=True)
class EnosMeasurePoints(EnosEvents):
    """Measure points of devices: like EnosEvents, with `measurepoints` in place of `events`.

    A file may be a point's value, one level inside a struct, or an element of an array.
    """

    action: ClassVar[Action] = MEASURE_POINT


@dataclass(frozen=True, kw_only=True)
class EnosAttributes(EnosEvents):
    """Attributes of devices: like EnosMeasurePoints, with `attributes` and without a `time`."""

    action: ClassVar[Action] = ATTRIBUTE


def _references(struct: object) -> list[Reference]:
    """Every `local://` in a struct, in the order of the JSON."""
    return [Reference(path, text.removeprefix(LOCAL)) for path, text in payload.strings(struct) if text.startswith(LOCAL)]


def _references_of(draft: Draft) -> list[Reference]:
    """The same for a draft: where its text does not hold the word, no string does."""
    return _references(draft.payload) if not draft.text or LOCAL in draft.text else []


def _transfer_name(message: Message, number: int, attachment: Attachment) -> str:
    """The name a file travels under: the same on every try, and unique although two producers attach `image.jpg`.

    The first part keeps it unique across outboxes, as the vendor's random names are; the rest within a request, where one
    spooled file may travel for several messages or twice in one.
    """
    extension = _SAFE_EXTENSION.fullmatch("." + attachment.filename.rpartition(".")[2]) if "." in attachment.filename else None
    return f"{attachment.file.name}-{message.id}-{number}{extension.group() if extension else ''}"


def _read(status: int, document: dict[str, Any]) -> Reading:
    code, told = payload.integer(document.get("code")), document.get("apim_status")
    apim_status = payload.integer(told)
    return {"status": status, "code": code, "apim_status": _ODD if apim_status is None and told is not None else apim_status}


def _facts(answer: Answer, document: dict[str, Any] | None, code: int | None) -> Facts:
    if document is None or code is None:
        words = cleaned(answer.body.decode("utf-8", "replace").strip(), 500)
        return Facts(answer.status, None, f"no answer in the EnOS envelope: {words}" if words else "an empty answer")
    text, request_id = document.get("msg"), document.get("requestId")
    return Facts(
        answer.status,
        code,
        cleaned(text) if isinstance(text, str) else None,
        cleaned(request_id, 255) if isinstance(request_id, str) else None,
    )


@functools.cache
def _note_code_200() -> None:
    log.info("the destination confirms with code 200 where its documentation says 0; both count as delivered")
