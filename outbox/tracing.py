"""One span for each upload, linked to the traces its messages were enqueued in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import Token
from typing import TYPE_CHECKING, Any

from outbox import telemetry
from outbox.errors import ConfigurationError
from outbox.model import Batch
from outbox.verdict import Delivered, Verdict, fit_for_a_row, outcome
from outbox.watching import Watcher

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

_MISSING = "traces need OpenTelemetry; pip install 'durable-outbox[otel]', or start without --tracing"


def in_use() -> bool:
    """Whether this process has imported OpenTelemetry; whoever has not is asked nothing and pays nothing."""
    return "opentelemetry.trace" in sys.modules


def current_context() -> str | None:
    """The current span's context, if this program uses OpenTelemetry and is in one."""
    if not in_use():
        return None
    from opentelemetry import trace

    found = trace.get_current_span().get_span_context()
    return _written(found) if found.is_valid else None


class Tracing(Watcher):
    """Makes a span for each upload. It is linked to its messages' contexts, not a child of one: they are many, and days may lie
    between. While the span is recorded, its own context travels along in the header `traceparent`.

    Raises ConfigurationError when OpenTelemetry is not installed. Without an SDK set up, a span costs some microseconds.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError:
            raise ConfigurationError(_MISSING) from None
        self._tracer = trace.get_tracer(telemetry.TRACER, tracer_provider=provider)
        self._open: dict[int, tuple[Span, Token[Context]]] = {}

    def upload_begins(self, batch: Batch) -> Mapping[str, str]:
        from opentelemetry import context, trace

        span = self._tracer.start_span(
            f"{telemetry.SPAN} {batch.destination}",
            context=context.Context(),  # a root: whatever the thread was in before is not what this belongs to
            kind=trace.SpanKind.PRODUCER,
            links=[link for each in batch.messages if (link := _link(each.traceparent, each.id)) is not None],
            attributes={
                telemetry.SYSTEM: "outbox",
                telemetry.OPERATION: telemetry.SPAN,
                telemetry.OPERATION_TYPE: telemetry.SPAN,
                telemetry.DESTINATION_NAME: batch.destination,
                telemetry.BATCH_COUNT: len(batch.messages),
                telemetry.BODY_SIZE: batch.size,
                telemetry.DELIVERY_ID: batch.delivery,
                telemetry.WORKER_ID: batch.worker,
                telemetry.LANE: batch.lane.value,
            },
        )
        # Current while it lasts, so that an instrumented HTTP client below, and log lines, find it.
        self._open[batch.delivery] = (span, context.attach(trace.set_span_in_context(span)))
        return {telemetry.TRACEPARENT: _written(span.get_span_context())} if span.is_recording() else {}

    def upload_ended(self, batch: Batch, verdict: Verdict, seconds: float) -> None:
        from opentelemetry import context, trace

        begun = self._open.pop(batch.delivery, None)
        if begun is None:
            return
        span, token = begun
        context.detach(token)
        facts, word = fit_for_a_row(verdict.facts), outcome(verdict).value
        said: dict[str, Any] = {
            telemetry.OUTCOME: word,
            telemetry.HTTP_STATUS: facts.status,
            telemetry.CODE: facts.code,
            telemetry.REQUEST_ID: facts.request_id,
        }
        span.set_attributes({name: value for name, value in said.items() if value is not None})
        if not isinstance(verdict, Delivered):
            span.set_attribute(telemetry.ERROR_TYPE, str(facts.code or facts.status or word))
            span.set_status(trace.StatusCode.ERROR, facts.text)
        span.end()


def _link(traceparent: str | None, message_id: int) -> Any:
    from opentelemetry import trace

    written = telemetry.context_of(traceparent) if traceparent else None
    if written is None:
        return None
    _, trace_id, span_id, flags = written.split("-")
    found = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16)))
    return trace.Link(found, {telemetry.MESSAGE_ID: str(message_id)})


def _written(found: Any) -> str:
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"
