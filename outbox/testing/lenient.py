"""A destination that takes anything: for a test of a producer that does not care to whom it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from outbox.destinations.base import Destination, verdict_of
from outbox.destinations.table import Meaning
from outbox.exchange import Answer, Upload
from outbox.model import Batch
from outbox.multipart import FieldPart, FilePart, Part
from outbox.verdict import Facts, Verdict

#: What says that a message is at fault, where an answer has nothing but its status.
_ACCUSING = frozenset({400, 409, 415, 422})


@dataclass(frozen=True, kw_only=True)
class Lenient(Destination):
    """Takes any payload and any files. Each message is a field `message`, each file a part by the name of its attachment."""

    url: str = "https://test.example"

    def encode(self, batch: Batch) -> Upload:
        parts: list[Part] = [FieldPart("message", each.text.encode()) for each in batch.messages]
        parts += [
            FilePart(file.name, file.filename, file.file, file.content_type)
            for each in batch.messages
            for file in each.attachments
        ]
        return Upload(self.url, parts)

    def judge(self, answer: Answer, batch: Batch, now: datetime) -> Verdict:
        facts = Facts(answer.status, text=answer.body[:200].decode("utf-8", "replace"))
        if 200 <= answer.status < 300:
            return verdict_of(Meaning.DELIVERED, facts, answer, now)
        if answer.status == 413:
            return verdict_of(Meaning.TOO_LARGE, facts, answer, now)
        return verdict_of(Meaning.REJECT if answer.status in _ACCUSING else Meaning.RETRY, facts, answer, now)
