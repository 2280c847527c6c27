"""A transport without a network: what is sent is kept, and answered as a test has said."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

from outbox.addresses import Reach
from outbox.errors import NoAnswer, TransportError
from outbox.exchange import Answer, Upload
from outbox.model import Batch
from outbox.multipart import Form
from outbox.route import Route
from outbox.testing.sent import Sent, parsed

#: What every destination takes for a success, unless it has an envelope of its own.
_SUCCESS = b'{"code":0,"msg":"OK","data":{}}'
#: What the token service of EnOS says; a test's requests are let in.
_TOKEN = {"status": 0, "msg": "SUCCESS", "data": {"accessToken": "token-of-a-test", "expire": 7200}}
_JSON = {"content-type": "application/json"}
_BOUNDARY = "of-a-test-3f9a1c5e7b2d4860"


@dataclass(frozen=True)
class Reply:
    """An answer, or an exception in the place of one; for requests that `when` holds for."""

    what: Answer | Exception
    when: Callable[[Sent], bool]


def reply(
    error: Exception | None,
    status: int,
    document: Any,
    body: bytes | str | None,
    headers: Mapping[str, str] | None,
    when: Callable[[Sent], bool] | None,
) -> Reply:
    """What a test has said that the answer shall be. Raises ValueError or TypeError when it has said two things, or none."""
    if error is not None and not isinstance(error, Exception):
        raise TypeError(f"an answer is an exception, or is said by name: answer(status=503); got {error!r}")
    if status not in range(200, 600):  # which a text is not, either
        raise ValueError(f"expected an HTTP status from 200 to 599, got {status!r}")
    if sum(each is not None for each in (error, document, body)) > 1:
        raise ValueError("an answer is an exception, or has json, or has a body; say one of them")
    if body is None and document is not None:
        body = json.dumps(document)
    if body is None:
        body = _SUCCESS if 200 <= status < 300 else b""
    content = body.encode() if isinstance(body, str) else body
    said = {**_JSON, **{name.lower(): value for name, value in (headers or {}).items()}}
    return Reply(error or Answer(status, said, content), when or (lambda _: True))


class MemoryTransport:
    """Keeps what is sent in `sent`, and reaches nobody. `batch` is what the next request carries."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.batch: Batch | None = None
        self.standing: list[Reply] = []  #: the latest goes before those that were said earlier
        self.queued: list[Reply] = []  #: for one request each, in their order

    def send(self, upload: Upload, open_file: Callable[[str], BinaryIO], deadline: float, connect: float) -> Answer:
        sent = self._read(upload, open_file)
        self.sent.append(sent)
        answer = self._answer(sent)
        if isinstance(answer, TransportError):
            raise answer
        if isinstance(answer, Exception):
            raise NoAnswer(f"{type(answer).__name__}: {answer}")
        return answer

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        """A token, whoever asks."""
        return Answer(200, _JSON, json.dumps(_TOKEN).encode())

    def cut(self) -> None:
        """Nothing is ever under way."""

    def within(self, reach: Reach) -> Self:
        return self

    def through(self, route: Route) -> Self:
        return self

    def _read(self, upload: Upload, open_file: Callable[[str], BinaryIO]) -> Sent:
        """Raises FileMissing or FileChanged, as the real one does, for a file that is not what was enqueued."""
        form = Form(upload.parts, _BOUNDARY, open_file) if upload.json is None else None
        body = b"".join(form) if form is not None else upload.json or b""
        own = {
            "content-type": form.content_type if form is not None else "application/json",
            "content-length": str(len(body)),
        }
        batch = self.batch
        assert batch is not None, "nothing is sent without a claim"
        return Sent(
            destination=batch.destination,
            keys=[each.key for each in batch.messages],
            payloads=[json.loads(each.text) for each in batch.messages],
            url=upload.url,
            headers={**{name.lower(): value for name, value in upload.headers.items()}, **own},
            parts=parsed(body, _BOUNDARY) if form is not None else [],
            document=upload.json,
        )

    def _answer(self, sent: Sent) -> Answer | Exception:
        for at, each in enumerate(self.queued):
            if each.when(sent):
                return self.queued.pop(at).what
        said = next((each.what for each in reversed(self.standing) if each.when(sent)), None)
        return said if said is not None else Answer(200, _JSON, _SUCCESS)
