"""Any endpoint that takes a `multipart/form-data` upload: which members of a payload are fields, and which files go along."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from outbox import payload
from outbox.destinations.bystatus import ByStatus, in_a_header, unfit_filenames, unfit_name
from outbox.errors import ConfigurationError, Fault, Refused
from outbox.exchange import OURS, Upload, require_headers
from outbox.model import Batch, Draft
from outbox.multipart import FieldPart, FilePart, Part

_MISSING = object()


class _Source(NamedTuple):
    """Where a part comes from: a path in the payload, or an attachment's name; written with a `?` if it may be missing.

    A name of attachments that ends in `*` is that of all that begin so.
    """

    place: str
    optional: bool

    @classmethod
    def of(cls, written: str) -> _Source:
        return cls(written.removesuffix("?"), written.endswith("?"))

    @property
    def beginning(self) -> str | None:
        """How the names of its attachments begin, if there may be several."""
        return self.place[:-1] if self.place.endswith("*") else None

    def found(self, document: Any) -> Any:
        """What stands there in a payload, or _MISSING. Where it may be missing, a null is as good as nothing."""
        for step in self.place.split("."):
            document = document.get(step, _MISSING) if isinstance(document, dict) else _MISSING
        return _MISSING if document is None and self.optional else document


@dataclass(frozen=True, kw_only=True)
class Form(ByStatus):
    """An upload form: each message is one request, with fields from its payload and its attachments as files.

    `fields` says which: `{"device": "assetId", "note": "meta.note?"}` sends the payload's `assetId` as the field `device`, and
    what stands in its `meta` under `note`, if it is there, as the field `note`. Strings are sent as they are, all else as
    JSON. Without `fields` each member of the payload, which is an object then, is a field of its own name.

    `files` says under which name a file goes: `{"picture": "photo", "log": "log?"}` sends the attachment `photo` as `picture`.
    Without it each attachment goes under its own name.

    `key_header` carries the message's key: the same on each try, so that the other side can tell a copy. None sends none.
    """

    fields: Mapping[str, str] | None = None  #: paths in the payload, by the names of the form's fields
    files: Mapping[str, str] | None = None  #: names of attachments, by the names that they go under
    key_header: str | None = "Idempotency-Key"  #: carries the message's key

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"destination {self.name}"
        given: tuple[tuple[str, Any], ...] = (("fields", self.fields or {}), ("files", self.files or {}))
        for what, mapping in given:
            if not isinstance(mapping, Mapping) or not all(isinstance(each, str) for pair in mapping.items() for each in pair):
                like = {"fields": "{'device': 'assetId'}", "files": "{'picture': 'photo'}"}[what]
                raise ConfigurationError(f"{owner}: expected {what} to be names and texts as in {like}, got {mapping!r}")
            for name, place in mapping.items():
                if words := unfit_name(name):
                    raise ConfigurationError(f"{owner}: {what}: the name {name!r} {words}")
                if not place.removesuffix("?") or (what == "fields" and not all(place.removesuffix("?").split("."))):
                    wanted = "a path in the payload such as meta.note?" if what == "fields" else "the name of an attachment"
                    raise ConfigurationError(f"{owner}: {what}.{name}: expected {wanted}, got {place!r}")
        if twice := sorted((self.fields or {}).keys() & (self.files or {}).keys()):
            raise ConfigurationError(f"{owner}: {', '.join(twice)}: a field and a file cannot have the same name")
        if self.key_header is not None:
            require_headers({self.key_header: "k"})
            if self.key_header.lower() in OURS | {"authorization"}:
                raise ConfigurationError(f"{owner}: key_header: {self.key_header} says something else; name another header")

    @property
    def _own_headers(self) -> frozenset[str]:
        return frozenset({self.key_header.lower()}) if self.key_header else frozenset()

    def check(self, draft: Draft) -> list[Fault]:
        faults = self._faults_of_fields(draft.payload)
        names = [name for name, _ in self._found(draft.payload)]
        sources, taken = self._sources_of_files(draft.files), self._taken(draft.files)
        faults += [
            Fault(f"files.{source.place}", f"is missing; {self.name} sends it as {name!r}; give it in files=")
            for name, source in sources.items()
            if not source.optional and name not in {field for field, _ in taken}
        ]
        sent = {attached for _, attached in taken}
        known = ", ".join(sorted({source.place for source in sources.values()})) or "none"
        faults += [
            Fault(f"files.{name}", f"is not sent to {self.name}, whose files= takes: {known}")
            for name in draft.files
            if name not in sent
        ]
        faults += [Fault(f"files.{name}", f"{name!r} is a field of this form as well") for name in sources if name in names]
        faults += unfit_filenames(draft.files)
        if self.files is None:
            unfit = ((name, unfit_name(name)) for name in draft.files)
            faults += [Fault(f"files.{name}", f"its name {words}") for name, words in unfit if words]
        if not faults and not names and not draft.files:
            faults.append(Fault("payload", f"makes a form for {self.name} without a single field or file"))
        return faults

    def _faults_of_fields(self, document: object) -> list[Fault]:
        """Whatever keeps a field from being sent."""
        if self.fields is not None:
            sources = {name: _Source.of(written) for name, written in self.fields.items()}
            return [
                Fault(source.place, f"is missing; {self.name} sends it as the field {name!r}")
                for name, source in sources.items()
                if not source.optional and source.found(document) is _MISSING
            ]
        if not isinstance(document, dict):
            return [Fault("payload", f"expected an object, of which each member is a field of {self.name}")]
        unfit = ((name, unfit_name(name)) for name in document if isinstance(name, str))
        return [Fault("payload", f"the name {payload.brief(name)} {words}") for name, words in unfit if words]

    def weigh(self, draft: Draft) -> int:
        return sum(len(name.encode()) + len(_as_text(value).encode()) for name, value in self._found(draft.payload))

    def encode(self, batch: Batch) -> Upload:
        (message,) = batch.messages
        found = self._found(json.loads(message.text))
        parts: list[Part] = [FieldPart(name, _as_text(value).encode()) for name, value in found]
        attached = {each.name: each for each in message.attachments}
        for name, place in self._taken(attached):
            each = attached[place]
            parts.append(FilePart(name, each.filename, each.file, each.content_type))
        if not parts:  # it did not come by our door, or that was another one then
            raise Refused([Fault("payload", f"makes a form for {self.name} without a single field or file")])
        key = {self.key_header: in_a_header(message.key)} if self.key_header else {}
        return Upload(self.url, parts, {**self.headers, **key})

    def _found(self, document: Any) -> list[tuple[str, Any]]:
        """The fields in order, as far as they are there."""
        if self.fields is None:
            return list(document.items()) if isinstance(document, dict) else []
        found = [(name, _Source.of(written).found(document)) for name, written in self.fields.items()]
        return [(name, value) for name, value in found if value is not _MISSING]

    def _sources_of_files(self, given: Collection[str]) -> dict[str, _Source]:
        """By the names that files go under, the attachments that they are."""
        if self.files is None:
            return {name: _Source(name, optional=False) for name in given}
        return {name: _Source.of(written) for name, written in self.files.items()}

    def _taken(self, given: Collection[str]) -> list[tuple[str, str]]:
        """Which attachment goes under which name, in order. One that is named is not taken as one of several, too."""
        sources = self._sources_of_files(given)
        named = {source.place for source in sources.values()}
        taken: list[tuple[str, str]] = []
        for name, source in sources.items():
            if (beginning := source.beginning) is None:
                mine = [source.place] if source.place in given else []
            else:
                mine = [each for each in given if each.startswith(beginning) and each not in named]
            named.update(mine)
            taken += [(name, each) for each in mine]
        return taken


def _as_text(value: Any) -> str:
    """A value as a field has it: a string as it is, all else as JSON."""
    return value if isinstance(value, str) else payload.text(value)
