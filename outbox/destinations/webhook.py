"""Webhooks as Standard Webhooks has them: a message is one signed JSON request, or a form whose first part is signed.

Source: the Standard Webhooks specification 1.0.0. What is signed is `id.timestamp.body`, and no id shall hold a full stop.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from outbox import payload
from outbox.destinations.bystatus import ByStatus, in_a_header, unfit_filenames, unfit_name
from outbox.errors import ConfigurationError, Fault
from outbox.exchange import Upload
from outbox.model import Attachment, Batch, Draft, Message
from outbox.multipart import FieldPart, FilePart
from outbox.secret import Secret, as_secret

_ID, _TIMESTAMP, _SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
_PREFIX = "whsec_"
#: Bytes that a secret may have, by the specification.
_SHORTEST, _LONGEST = 24, 64
#: What surrounds the payload and the files in the signed part, at most.
_ENVELOPE = len('{"payload":,"files":}')
_LONGEST_SIZE, _ANY_DIGEST, _LONGEST_TYPE = 10**18, "f" * 64, "x" * 255


@dataclass(frozen=True, kw_only=True)
class Webhook(ByStatus):
    """A signed webhook: the payload is the body, as `application/json`.

    A message with attachments is a form. Its first part, `event`, is JSON:
    {"payload": ..., "files": {name: {"filename", "size", "sha256", "content_type"}}}; then comes each file, under the
    attachment's name. `format` is "json" to refuse attachments, or "multipart" for a form always.

    Signed is the body, or the bytes of the part `event`, which vouches for the files by their digests. `secrets` are those of
    the specification, `whsec_` and base64, and each of them signs: while one is exchanged for another, give the new one first
    and keep the old one until every receiver knows the new one. They are read when a request is sent; without a usable one the
    destination stops (`credentials`). With no secrets at all nothing is signed.

    `webhook-id` is the message's key, the same on each try; what is not ASCII in it, white space, % and full stops are
    percent-encoded as UTF-8. `webhook-timestamp` is when the try began.
    """

    signature_headers: ClassVar[Sequence[str]] = (_SIGNATURE,)

    secrets: Sequence[Secret | str] = ()  #: what signs, newest first
    format: Literal["auto", "json", "multipart"] = "auto"  #: whether a message is JSON, a form, or what it needs
    event_field: str = "event"  #: the part of a form that holds the payload

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"destination {self.name}"
        if isinstance(self.secrets, Secret | str):
            raise ConfigurationError(f"{owner}: expected secrets to be a list, such as [env('HOOK_SECRET')]")
        object.__setattr__(self, "secrets", tuple(as_secret(each) for each in self.secrets))  # no repr shows a string
        if self.format not in ("auto", "json", "multipart"):
            raise ConfigurationError(f"{owner}: expected format to be 'auto', 'json' or 'multipart', got {self.format!r}")
        if words := unfit_name(self.event_field):
            raise ConfigurationError(f"{owner}: event_field: the name {self.event_field!r} {words}")

    @property
    def _own_headers(self) -> frozenset[str]:
        return frozenset({_ID, _TIMESTAMP, _SIGNATURE})

    def check(self, draft: Draft) -> list[Fault]:
        if self.format == "json":
            wanted = 'takes no files: its format is "json"'
            return [Fault(f"files.{name}", f"{self.name} {wanted}") for name in draft.files]
        faults = unfit_filenames(draft.files)
        unfit = ((name, unfit_name(name)) for name in draft.files)
        faults += [Fault(f"files.{name}", f"its name {words}") for name, words in unfit if words]
        if self.event_field in draft.files:
            faults.append(Fault(f"files.{self.event_field}", "is the name of the part that holds the payload; use another"))
        return faults

    def weigh(self, draft: Draft) -> int:
        files = {name: _entry(filename, _LONGEST_SIZE, _ANY_DIGEST, _LONGEST_TYPE) for name, filename in draft.files.items()}
        return len(draft.text.encode()) + len(payload.text(files).encode()) + _ENVELOPE

    def encode(self, batch: Batch) -> Upload:
        (message,) = batch.messages
        headers = {
            **self.headers,
            _ID: in_a_header(message.key).replace(".", "%2E"),
            _TIMESTAMP: str(int(batch.started_at.timestamp())),
        }
        if self.format == "json" or (self.format == "auto" and not message.attachments):
            return Upload(self.url, headers=headers, json=message.text.encode())
        event = FieldPart(self.event_field, _event(message), headers={"Content-Type": "application/json"})
        files = [FilePart(each.name, each.filename, each.file, each.content_type) for each in message.attachments]
        return Upload(self.url, [event, *files], headers)

    def sign(self, upload: Upload) -> Mapping[str, str]:
        """The header that proves a request: for each secret a signature, the first one's first."""
        if not self.secrets:
            return {}
        part = upload.parts[0] if upload.parts else None
        body = part.body if isinstance(part, FieldPart) else upload.json or b""
        signed = f"{upload.headers.get(_ID, '')}.{upload.headers.get(_TIMESTAMP, '')}.".encode() + body
        return {_SIGNATURE: " ".join(f"v1,{_signature(_key(each), signed)}" for each in self.secrets)}


def _event(message: Message) -> bytes:
    """The signed part of a form: the payload as it was given, and what is to be known of the files."""
    files = {each.name: _entry_of(each) for each in message.attachments}
    return f'{{"payload":{message.text},"files":{payload.text(files)}}}'.encode()


def _entry_of(attachment: Attachment) -> dict[str, Any]:
    return _entry(attachment.filename, attachment.file.size, attachment.file.sha256, attachment.content_type)


def _entry(filename: str, size: int, sha256: str, content_type: str) -> dict[str, Any]:
    return {"filename": filename, "size": size, "sha256": sha256, "content_type": content_type}


def _signature(key: bytes, content: bytes) -> str:
    return base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def _key(secret: Secret | str) -> bytes:
    """The bytes of a secret. Raises ConfigurationError, without its value, when there is none or it is no such secret."""
    given = as_secret(secret)
    value = given.reveal()
    encoded = value.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        key = b""
    if not value.startswith(_PREFIX) or not _SHORTEST <= len(key) <= _LONGEST:
        wanted = f"expected {_PREFIX} and base64 of {_SHORTEST} to {_LONGEST} bytes"
        raise ConfigurationError(f"the secret from {given.source} is no webhook secret: {wanted}")
    return key
