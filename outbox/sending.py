"""Encode, send, judge: whatever happens to an upload, it ends as a verdict."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from outbox import payload
from outbox.ambient import Ambient
from outbox.destinations.base import Destination
from outbox.destinations.token import CredentialsRefused
from outbox.errors import ConfigurationError, FileChanged, FileMissing, NoAnswer, OutboxError, SpoolError, TransportError
from outbox.exchange import Answer, Transport, Upload, require_headers
from outbox.hooks import Middleware
from outbox.model import Batch, Draft, Message, Reason
from outbox.multipart import FieldPart
from outbox.policy import send_deadline
from outbox.spool.base import Spool
from outbox.verdict import ANSWER_KEPT, Delivered, Facts, NotSent, Reject, Retry, Unknown, Verdict, cleaned, fit_to_record

log = logging.getLogger("outbox.sending")


class Sender:
    """Sends batches, one request each; any number of threads may, at the same time."""

    def __init__(self, spool: Spool, ambient: Ambient, transport: Transport, middleware: Middleware | None = None) -> None:
        self._middleware = middleware
        self._spool = spool
        self._ambient = ambient
        self._transport = transport

    def send(
        self,
        destination: Destination,
        batch: Batch,
        held_back: Callable[[], str | None],
        headers: Mapping[str, str] | None = None,
    ) -> Verdict:
        """What became of a batch. Never raises: whatever happens to a claim must be recorded.

        Credentials that have run out are renewed once, and the same request is made again. `held_back` is asked just before
        the first byte would go out, and says why it must not. `headers` are added to the destination's own, which win.
        """
        if reason := held_back():
            return NotSent(Facts(text=reason), charged=False)
        for message in batch.messages:
            if len(message.attachments) != message.files:
                # Its transaction was committed although enqueue had failed in the middle of it.
                facts = Facts(text=f"message {message.id} has {len(message.attachments)} of its {message.files} files")
                return NotSent(facts, charged=False, accused=message.id, reason=Reason.FILE_MISSING)
        try:
            upload = destination.encode(batch)
            if headers:
                upload = replace(upload, headers={**headers, **upload.headers})
            _require_sendable(upload)
        except Exception as error:
            log.exception("destination %s cannot encode delivery %s", destination.name, batch.delivery, extra=_ids_of(batch))
            words = str(error) if isinstance(error, OutboxError) else type(error).__name__
            facts = Facts(text=cleaned(f"cannot be encoded: {words}"))
            # A bug, or a message that brings it out: halved like a refused batch, so that it is found without the others.
            if len(batch.messages) > 1:
                return Reject(facts)
            # One that came in another way than by our door, as plain SQL does, must not be charged to its destination; what is
            # configured wrong, such as a header, must not be charged to it.
            wrong = None if isinstance(error, ConfigurationError) else _refused_at_door(destination, batch.messages[0])
            return Reject(Facts(text=cleaned(f"cannot be encoded: {wrong}"))) if wrong else Retry(facts)
        verdict = self._once(destination, batch, upload, held_back)
        if isinstance(verdict, Retry) and verdict.renew and destination.credentials is not None:
            verdict = self._once(destination, batch, upload, held_back, renew=True)
        return verdict

    def _once(
        self,
        destination: Destination,
        batch: Batch,
        upload: Upload,
        held_back: Callable[[], str | None],
        *,
        renew: bool = False,
    ) -> Verdict:
        try:
            transport = destination.way(self._transport)
            self._look_at_files(batch)
            authorised = self._authorised(destination, upload, transport, renew=renew)
            if self._middleware is not None:
                changed = self._middleware(authorised, batch)
                if changed is not authorised:
                    require_headers(changed.headers)
                authorised = changed
            if reason := held_back():
                return NotSent(Facts(text=reason), charged=False)
        except Exception as error:  # noqa: BLE001 (each ends as a verdict, and a bug is logged there)
            return self._failed(error, destination, batch, began=False)
        deadline = send_deadline(upload.size, destination.policy)
        try:
            answer = transport.send(authorised, self._spool.open, deadline, destination.policy.connect_timeout)
        except Exception as error:  # noqa: BLE001 (each ends as a verdict, and a bug is logged there)
            return self._failed(error, destination, batch, began=True)
        return self._judged(answer, destination, batch)

    def _authorised(self, destination: Destination, upload: Upload, transport: Transport, *, renew: bool) -> Upload:
        """The upload with its signature and what lets it in, asked for only now."""
        headers = dict(destination.sign(upload))
        credentials = destination.credentials
        if credentials is not None:
            if renew:
                credentials.renew()
            headers |= credentials.headers(transport, self._ambient.now(), self._ambient.monotonic())
        if not headers:
            return upload
        require_headers(headers)
        return replace(upload, headers={**upload.headers, **headers})

    def _look_at_files(self, batch: Batch) -> None:
        """A file that is missing or of another length costs no upload; one that differs inside is found while it is sent."""
        for message in batch.messages:
            for attachment in message.attachments:
                file = attachment.file
                found = self._spool.size(file.name)
                if found != file.size:
                    raise FileChanged(file.name, f"it has {found} bytes instead of {file.size}")

    def _failed(self, error: Exception, destination: Destination, batch: Batch, *, began: bool) -> Verdict:
        """No answer: what that means depends on what stood in the way, and on whether a request may have gone out whole."""
        facts = Facts(text=cleaned(str(error)))
        match error:
            case FileMissing() | FileChanged():
                reason = Reason.FILE_MISSING if isinstance(error, FileMissing) else Reason.FILE_CHANGED
                owner = next(each.id for each in batch.messages if any(a.file.name == error.name for a in each.attachments))
                return NotSent(facts, charged=False, accused=owner, reason=reason)
            case CredentialsRefused() | ConfigurationError():
                return Retry(facts, credentials=True)
            case NoAnswer() if began:
                return Unknown(facts)
            case TransportError() | SpoolError() | OutboxError():
                return NotSent(facts, begun=began and getattr(error, "begun", True))
            case _:
                log.error(
                    "delivery %s to %s failed on our side",
                    batch.delivery,
                    destination.name,
                    exc_info=error,
                    extra=_ids_of(batch),
                )
                facts = Facts(text=cleaned(f"failed on our side: {type(error).__name__}"))
                return Unknown(facts) if began else NotSent(facts, begun=False)

    def _judged(self, answer: Answer, destination: Destination, batch: Batch) -> Verdict:
        try:
            verdict = destination.judge(answer, batch, self._ambient.now())
            try:
                verdict = fit_to_record(verdict)
            except (TypeError, AttributeError) as error:
                if not isinstance(verdict, Delivered):
                    raise
                # What it says stands, whatever its words are: once more would be a copy.
                self._log_judge(error, answer, destination, batch)
                verdict = Delivered(Facts(answer.status))
            kept = answer.body[: 4 * ANSWER_KEPT].decode("utf-8", "replace")
            return replace(verdict, facts=replace(verdict.facts, answer=kept))
        except Exception as error:  # noqa: BLE001 (it is logged)
            self._log_judge(error, answer, destination, batch)
            facts = Facts(answer.status, text=cleaned(f"the answer cannot be judged: {type(error).__name__}"))
            return Unknown(facts) if 200 <= answer.status < 300 else Retry(facts)

    @staticmethod
    def _log_judge(error: Exception, answer: Answer, destination: Destination, batch: Batch) -> None:
        log.error(
            "destination %s cannot judge an answer with status %s",
            destination.name,
            answer.status,
            exc_info=error,
            extra=_ids_of(batch) | {"status": answer.status},
        )


def _require_sendable(upload: Upload) -> None:
    """Raises what it raises for an upload of which nobody could say how long it is: before anything is sent."""
    require_headers(upload.headers)
    content: list[Any] = [part.body for part in upload.parts if isinstance(part, FieldPart)]
    if upload.json is not None:
        content.append(upload.json)
    if upload.size < 0 or not all(isinstance(each, bytes) for each in content):
        raise TypeError("expected the bytes of parts, or of a document")


def _refused_at_door(destination: Destination, message: Message) -> str | None:
    """What `enqueue` would have said against a message; None when nothing is wrong with it."""
    names = {each.name: each.filename for each in message.attachments}
    sizes = {each.name: each.file.size for each in message.attachments}
    try:
        found = json.loads(message.text)
        if endless := payload.unbounded(found):
            return str(endless)
        faults = [*payload.faults(found), *destination.check(Draft(found, message.text, names, sizes))]
    except (ValueError, RecursionError):
        return "payload: is no JSON, or nested too deep"
    except Exception:  # noqa: BLE001 (somebody else's `check`: then nobody knows)
        return None
    return "; ".join(map(str, faults)) or None


def _ids_of(batch: Batch) -> dict[str, Any]:
    return {"delivery_id": batch.delivery, "destination": batch.destination, "worker_id": batch.worker}
