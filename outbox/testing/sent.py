"""What went out, as a server would see it: the body is encoded by the product's own form, and parsed again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multipart import PushMultipartParser  # type: ignore[import-untyped, unused-ignore]

from outbox.model import Outcome


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part of a form: its name and, if it is a file, the name and type it was sent with; its bytes."""

    name: str
    content: bytes
    filename: str | None = None
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  #: names in lower case

    @property
    def text(self) -> str:
        """The bytes as text."""
        return self.content.decode("utf-8", "replace")

    @property
    def json(self) -> Any:
        """The bytes as the JSON that they are."""
        return json.loads(self.content)


@dataclass(slots=True)
class Sent:
    """One request: which messages it carried, and all that a server would see of it."""

    destination: str
    keys: Sequence[str]  #: of the messages in it, as are the payloads
    payloads: Sequence[Any]
    url: str
    headers: Mapping[str, str]  #: names in lower case
    parts: Sequence[SentPart]  #: of the form, in their order
    document: bytes | None = None  #: the body of a request that is no form
    outcome: Outcome | None = None  #: what its answer was taken for; None before it is judged
    words: str | None = None  #: and what was said of it

    @property
    def fields(self) -> dict[str, str]:
        """The parts that are no files, as text by name; of a name that is there twice, the last."""
        return {part.name: part.text for part in self.parts if part.filename is None}

    @property
    def files(self) -> list[SentPart]:
        """The parts that are files."""
        return [part for part in self.parts if part.filename is not None]

    @property
    def json(self) -> Any:
        """The document of a request that is no form."""
        if self.document is None:
            raise ValueError(f"the request to {self.destination} is a form; look at its fields, files or parts")
        return json.loads(self.document)


def parsed(body: bytes, boundary: str) -> list[SentPart]:
    """The parts of a form."""
    found: list[SentPart] = []
    with PushMultipartParser(boundary, strict=True) as parser:
        segment: Any = None
        content = b""
        for event in parser.parse(body):
            if event is None:
                headers = {name.lower(): value for name, value in segment.headerlist}
                found.append(SentPart(segment.name, content, segment.filename, headers.get("content-type"), headers))
            elif isinstance(event, bytes | bytearray):
                content += event
            else:
                segment, content = event, b""
    return found
