"""What can be wrong with an upload that a destination's `encode` makes, each in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from outbox import payload
from outbox.destinations import Batch, Destination, FieldPart, FilePart, Upload
from outbox.errors import ConfigurationError, FileChanged, Refused
from outbox.exchange import OURS, require_headers
from outbox.multipart import Form, head
from outbox.secret import SHORTEST
from outbox.testing import purity
from outbox.testing.samples import Sample

#: Of a batch of several, so many: two neighbours may be alike by chance.
_SEVERAL = 3


def faults(sample: Sample, secrets: Sequence[str], what: str = "") -> Iterator[str]:
    """All that is wrong with a batch of one message, and of several where a request may carry them; `what` is in them."""
    destination = sample.destination
    alone = sample.batch(1)
    try:
        one: Any = destination.encode(alone)
    except Exception as error:  # noqa: BLE001 (whatever somebody else's code raises)
        yield f"encode raised {type(error).__name__} for what check lets in{what}: {error}; let check refuse it, or encode it"
        return
    if not isinstance(one, Upload):
        yield f"encode returned {payload.brief(one)}; it must return an Upload"
        return
    if found := [*_of(sample, alone, one, secrets)]:
        yield from found
        return
    most = min(destination.policy.batch_messages, _SEVERAL)
    if most == 1:
        yield from _weight(sample, "a message alone", _text_of(one))
        return
    try:
        fewer, more = destination.encode(sample.batch(most - 1)), destination.encode(several := sample.batch(most))
    except Exception as error:  # noqa: BLE001 (as above)
        yield (
            f"encode raised {type(error).__name__} for a batch of {most} messages: {error}; "
            "if a request carries one message, say message_limit = 1"
        )
        return
    found = [*_of(sample, several, more, secrets)]
    if not found and purity.comparable(fewer) == purity.comparable(more):
        found.append(
            f"encode makes the same request of {most} messages as of {most - 1}, so that one is lost; put every message of the "
            "batch in, or say message_limit = 1"
        )
    yield from found or _weight(sample, "one more message", _text_of(more) - _text_of(fewer))


def _of(sample: Sample, batch: Batch, upload: Upload, secrets: Sequence[str]) -> Iterator[str]:
    if wrong := [*_parts(upload)]:
        yield from wrong
        return
    yield from purity.faults(sample.destination, batch, upload)
    if wrong := [*_head(sample.destination, upload)]:
        yield from wrong
        return
    yield from _files(sample, batch, upload)
    yield from _signature(sample.destination, upload)
    everything = [upload.url.encode(), *(value.encode() for value in upload.headers.values()), upload.json or b""]
    everything += [part.body for part in upload.parts if isinstance(part, FieldPart)]
    if any(secret.encode() in each for secret in secrets if len(secret) >= SHORTEST for each in everything):
        yield "encode puts a secret into the upload, which people are shown; give it in `credentials` or in `sign`"


def _head(destination: Destination, upload: Upload) -> Iterator[str]:
    """Address and headers."""
    ours, theirs = urlsplit(destination.url), urlsplit(upload.url)
    plain = upload.url.isascii() and upload.url.isprintable() and " " not in upload.url
    if not plain or (ours.scheme, ours.hostname) != (theirs.scheme, theirs.hostname):
        yield (
            f"encode sends to {repr(upload.url)[:200]}; expected an address below {destination.url}, "
            "with what is not plain in it percent-encoded (urllib.parse.quote)"
        )
    headers: Mapping[Any, Any] = upload.headers
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            yield f"the header {payload.brief(name)} is {payload.brief(value)}; names and values must be strings"
            continue
        if name.lower() in OURS:
            yield f"encode sets the header {name}; leave it out, outbox says it of the body it sends"
        try:
            require_headers({name: value})
        except ConfigurationError:
            yield (
                f"the header {payload.brief(name)} cannot be sent: {payload.brief(value)} is not printable ASCII without white "
                "space at its ends; a key may hold any letter: percent-encode it (urllib.parse.quote)"
            )


def _signature(destination: Destination, upload: Upload) -> Iterator[str]:
    """What `sign` gives, as far as its secrets are here."""
    try:
        given: Any = destination.sign(upload)
        if not isinstance(given, Mapping) or not all(isinstance(each, str) for pair in given.items() for each in pair):
            kind = f"a {type(given).__name__}" if not isinstance(given, Mapping) else "what is no string"
            yield f"sign returned {kind}; it must return headers, a dict of strings, empty if there are none"
            return
        require_headers(given)
    except ConfigurationError as error:
        if str(error).startswith("the header"):
            yield f"sign gives what cannot be sent: {error}"
    except Exception as error:  # noqa: BLE001 (as above)
        yield (
            f"sign raised {type(error).__name__}; without a usable secret it must raise ConfigurationError, which stops the "
            "destination, and else return headers"
        )
    else:
        if strange := sorted({name.lower() for name in given} - {name.lower() for name in destination.signature_headers}):
            yield f"sign gives the header {strange[0]}; name it in signature_headers, so that people are told of it"


def _parts(upload: Upload) -> Iterator[str]:
    """The parts themselves, and their names."""
    document: Any = upload.json
    if document is not None and not isinstance(document, bytes):
        yield f"Upload.json is {payload.brief(document)}; expected bytes, such as message.text.encode()"
    parts: Any = upload.parts
    if not isinstance(parts, Sequence):
        yield f"Upload.parts is {payload.brief(parts)}; expected a list, which can be read more than once"
        return
    for part in parts:
        if not isinstance(part, FieldPart | FilePart):
            yield f"{payload.brief(part)} is no part of a form; use FieldPart and FilePart"
            return
        body: Any = getattr(part, "body", b"")
        if not isinstance(body, bytes):
            yield f"the part {part.name!r} holds {payload.brief(body)}; a FieldPart's body is bytes: encode it"
            return
        try:
            head(part)
        except Refused as refused:
            yield f"the part {part.name!r} cannot be sent: {refused.faults[0].text}"
    if not upload.parts and upload.json is None:
        yield "encode makes an upload without parts and without json: nothing would be sent"
    twice = [
        each
        for each, count in Counter((p.name, p.filename) for p in upload.parts if isinstance(p, FilePart)).items()
        if count > 1
    ]
    if twice:
        name, filename = twice[0]
        yield (
            f"two files of one form are called {name!r} ({filename!r}), and nobody could tell them apart; put message.key into "
            "the name, or say message_limit = 1"
        )


def _files(sample: Sample, batch: Batch, upload: Upload) -> Iterator[str]:
    """Whether each attachment travels once, as it was enqueued, and the body is as long as it says."""
    parts = [part for part in upload.parts if isinstance(part, FilePart)]
    sent = Counter(part.file.name for part in parts)
    wanted = {each.file.name: each for message in batch.messages for each in message.attachments}
    for name, attachment in wanted.items():
        if sent[name] != 1:
            yield f"the attachment {attachment.name!r} travels {sent[name]} times in a request; each must once, as a FilePart"
            break
    if strange := next((part for part in parts if part.file != getattr(wanted.get(part.file.name), "file", None)), None):
        yield f"the file of the part {strange.name!r} is not the attachment's own: give FilePart attachment.file as it is"
        return
    try:
        form = Form(upload.parts, "b", sample.open_file)
        true = sum(map(len, form))
    except (FileChanged, Refused, TypeError, AttributeError):
        return  # and has been told of above
    if true != len(form):
        yield f"the form is {true} bytes long and says {len(form)}; a part's size must be the bytes that it holds"


def _text_of(upload: Upload) -> int:
    if upload.json is not None:
        return len(upload.json)
    return sum(len(part.body) for part in upload.parts if isinstance(part, FieldPart))


def _weight(sample: Sample, what: str, added: int) -> Iterator[str]:
    """Whether `weigh` is an upper bound, where one is needed to keep to a limit."""
    destination, weight = sample.destination, sample.request.size
    if destination.text_limit is not None and added > weight:
        yield (
            f"{what} adds {added} bytes of text to a request, and weigh says {weight}; let weigh return at least what encode "
            "adds, or requests will be larger than text_limit"
        )
