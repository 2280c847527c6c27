"""Messages, files and batches for tests that need no database."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

from outbox import payload
from outbox.errors import FileMissing
from outbox.model import Attachment, Batch, Draft, Lane, Message, SpooledFile

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIME = 1579580182824


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def spooled(content: bytes, number: int = 1, **changes: Any) -> SpooledFile:
    """What the spool would say of these bytes."""
    sha256, md5 = hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest()
    return SpooledFile(**{"name": f"{number:032x}", "size": len(content), "sha256": sha256, "md5": md5, **changes})


def shelf(contents: Mapping[str, bytes]) -> Callable[[str], BinaryIO]:
    """Spooled files by name, as a form opens them."""

    def open_file(name: str) -> BinaryIO:
        try:
            return io.BytesIO(contents[name])
        except KeyError:
            raise FileMissing(name) from None

    return open_file


def message(number: int = 1, **changes: Any) -> Message:
    """A claimed message at its first try."""
    usual: dict[str, Any] = {
        "id": number,
        "key": f"key-{number}",
        "text": "{}",
        "attempt": 1,
        "failures": 0,
        "unknowns": 0,
        "batch_limit": None,
        "size": 2,
        "file_bytes": 0,
    }
    return Message(**(usual | changes))


def batch(*messages: Message) -> Batch:
    """One delivery of these messages."""
    return Batch(1, "w" * 32, "enos", Lane.NORMAL, messages or (message(),), NOW)


def event(**changes: Any) -> dict[str, Any]:
    """An event without files."""
    return {"assetId": "turbine-7", "time": TIME, "events": {"crack": {"severity": 3}}} | changes


class Crate:
    """Attachments as they are made: their bytes stay here to be opened."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def attach(self, name: str, filename: str, content: bytes) -> Attachment:
        """An attachment whose bytes rest here."""
        file = spooled(content, len(self.contents) + 1)
        self.contents[file.name] = content
        return Attachment(name, file, filename, "application/octet-stream")

    @property
    def open(self) -> Callable[[str], BinaryIO]:
        return shelf(self.contents)


def carrying(
    number: int, struct: Mapping[str, Any], *attachments: Attachment, weigh: Callable[[Draft], int] = lambda _: 0
) -> Message:
    """A claimed message with this payload and these files."""
    text = payload.text(struct)
    draft = Draft(struct, text, {each.name: each.filename for each in attachments})
    file_bytes = sum(each.file.size for each in attachments)
    return message(number, text=text, size=weigh(draft), file_bytes=file_bytes, attachments=attachments)
