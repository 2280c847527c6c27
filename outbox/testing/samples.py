"""Messages as a destination may get them, made of what its author gives: what `check_destination` tries it with."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO

from outbox import intake
from outbox.ambient import uuid7
from outbox.destinations import Attachment, Batch, Destination, Message
from outbox.model import Entry, FileSource, Lane, SpooledFile

#: When the batches that are made here begin.
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Sample:
    """Messages that may be enqueued, made of what the caller gave, and their files' bytes by their names in the spool."""

    destination: Destination
    request: intake.Request
    contents: dict[str, bytes] = field(default_factory=dict)

    def message(self, number: int) -> Message:
        """One of them. Keys may hold any letter, and so those here do."""
        attached = tuple(self._attachment(each) for each in self.request.files)
        size = sum(each.file.size for each in attached)
        key = f"schlüssel {number}"
        return Message(number, key, self.request.text, 1, 0, 0, None, self.request.size, size, len(attached), attached)

    def batch(self, number: int) -> Batch:
        """So many of them."""
        messages = tuple(self.message(each) for each in range(1, number + 1))
        return Batch(1, "f" * 32, self.destination.name, Lane.NORMAL, messages, NOW)

    def open_file(self, name: str) -> BinaryIO:
        """The bytes of a file, as a spool gives them."""
        return io.BytesIO(self.contents[name])

    def _attachment(self, offered: intake.Offered) -> Attachment:
        name = uuid7()
        if not isinstance(offered.source, SpooledFile):
            with intake.open_source(offered) as source:
                content = source.read()
        else:
            content = b"\0" * offered.source.size
        self.contents[name] = content
        sha256, md5 = hashlib.sha256(content).hexdigest(), hashlib.md5(content, usedforsecurity=False).hexdigest()
        file = SpooledFile(name, len(content), sha256, md5, offered.filename)
        return Attachment(offered.name, file, offered.filename, offered.content_type)


def sample_of(destination: Destination, given: Any, files: Mapping[str, FileSource] | None) -> Sample:
    """Messages of a payload and files. Raises Refused for what may not be enqueued."""
    return Sample(destination, intake.examine(destination, Entry(given, files), [], NOW))
