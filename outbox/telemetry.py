"""The names of metrics, spans and log fields, and the form of a trace's context."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A metric by name, with its help and its labels."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


_BY_DESTINATION = ("destination",)

# Gauges, read from the database: every worker says the same.
DATABASE_UP = Metric("outbox_database_up", "gauge", "1 when the database answers with the schema of this code, else 0.")
PENDING = Metric("outbox_messages_pending", "gauge", "Messages that wait: due, put off, or behind a stop.", _BY_DESTINATION)
DUE = Metric("outbox_messages_due", "gauge", "Messages whose time has come.", _BY_DESTINATION)
CLAIMED = Metric("outbox_messages_claimed", "gauge", "Messages that a worker is trying.", _BY_DESTINATION)
DEAD = Metric("outbox_messages_dead", "gauge", "Messages given up, by reason.", ("destination", "reason"))
OLDEST_DUE = Metric("outbox_oldest_due_age_seconds", "gauge", "How long the oldest due message has been due.", _BY_DESTINATION)
STOPPED = Metric("outbox_destination_stopped", "gauge", "1 when stopped for this reason, else 0.", ("destination", "reason"))
BREAKER = Metric("outbox_breaker_open", "gauge", "1 while only probes pass, else 0.", _BY_DESTINATION)
WORKERS = Metric("outbox_workers_alive", "gauge", "Workers that beat.")
SPOOL_FILES = Metric("outbox_spool_files", "gauge", "Files at rest in the spool.")
SPOOL_BYTES = Metric("outbox_spool_bytes", "gauge", "Their bytes.")
SPOOL_FREE = Metric("outbox_spool_free_bytes", "gauge", "Bytes that the spool's disk has free, as this worker sees it.")
SPOOL_FULL_IN = Metric(
    "outbox_spool_full_in_seconds", "gauge", "Until disk or quota is full at the present rate; absent while it is not filling."
)

# Counters and histograms, of this process since it began.
DELIVERIES = Metric("outbox_deliveries_total", "counter", "Uploads that ended, by outcome.", ("destination", "outcome"))
ATTEMPTS = Metric("outbox_attempts_total", "counter", "Messages' parts in them, by outcome.", ("destination", "outcome"))
SENT_BYTES = Metric("outbox_sent_bytes_total", "counter", "Bytes of text and files in requests that went out.", _BY_DESTINATION)
UPLOAD_SECONDS = Metric("outbox_upload_seconds", "histogram", "From the claim's end to the answer.", _BY_DESTINATION)
BATCH_MESSAGES = Metric("outbox_batch_messages", "histogram", "Messages in an upload.", _BY_DESTINATION)
CLAIMS_LOST = Metric(
    "outbox_claims_lost_total", "counter", "Messages whose claim was lost before it was recorded.", _BY_DESTINATION
)
RESCUES = Metric("outbox_rescues_total", "counter", "Deliveries taken over from workers that were gone.", _BY_DESTINATION)
LOOP_ERRORS = Metric("outbox_loop_errors_total", "counter", "Rounds of a loop, or steps of the pulse, that failed.", ("loop",))

METRICS = (
    DATABASE_UP,
    PENDING,
    DUE,
    CLAIMED,
    DEAD,
    OLDEST_DUE,
    STOPPED,
    BREAKER,
    WORKERS,
    SPOOL_FILES,
    SPOOL_BYTES,
    SPOOL_FREE,
    SPOOL_FULL_IN,
    DELIVERIES,
    ATTEMPTS,
    SENT_BYTES,
    UPLOAD_SECONDS,
    BATCH_MESSAGES,
    CLAIMS_LOST,
    RESCUES,
    LOOP_ERRORS,
)

#: Upper ends of the histograms' buckets: seconds, and messages.
UPLOAD_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

# Spans. OpenTelemetry's names for messaging are still on their way, so they are written down here and nowhere else.
TRACER = "outbox"
SPAN = "send"
SYSTEM = "messaging.system"
OPERATION = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION_NAME = "messaging.destination.name"
MESSAGE_ID = "messaging.message.id"
BATCH_COUNT = "messaging.batch.message_count"
BODY_SIZE = "messaging.message.body.size"
HTTP_STATUS = "http.response.status_code"
ERROR_TYPE = "error.type"
DELIVERY_ID = "outbox.delivery.id"
WORKER_ID = "outbox.worker.id"
LANE = "outbox.lane"
OUTCOME = "outbox.outcome"
CODE = "outbox.answer.code"
REQUEST_ID = "outbox.answer.request_id"

#: Log fields, as keys of `extra` and of a line of JSON.
FIELDS = (
    "message_id",
    "message_ids",
    "message_key",
    "delivery_id",
    "destination",
    "worker_id",
    "trace_id",
    "outcome",
    "status",
    "code",
    "request_id",
)

#: The header of a trace's context, which is also the column's name.
TRACEPARENT = "traceparent"
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LENGTH = 55


def context_of(text: str) -> str | None:
    """A traceparent in the W3C's form, version 00; None for what is none.

    Of a later version, the part that will not change is kept, as the W3C wants it.
    """
    begins = _TRACEPARENT.match(text)
    if begins is None or (len(text) > _LENGTH and (text.startswith("00") or text[_LENGTH] != "-")):
        return None
    return f"00{text[2:_LENGTH]}"


def trace_id_of(context: str | None) -> str | None:
    """The trace that a context belongs to."""
    return context[3:35] if context else None
