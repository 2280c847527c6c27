"""Tells the log of deliveries that are over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from outbox.counting import counted
from outbox.telemetry import trace_id_of
from outbox.verdict import Delivered, Result, Settlement, outcome

log = logging.getLogger("outbox.dispatcher")


def of_delivery(result: Result, written: Mapping[int, Settlement]) -> None:
    """A line for a delivery, one more if its claim was lost, and those of its messages."""
    ids = ids_of(result)
    if lost := len(result.messages) - len(written):
        log.warning(
            "the claim on %s of delivery %s was lost; their outcome (%s) is kept as late",
            counted(lost, "message"),
            result.delivery,
            outcome(result.verdict),
            extra=ids,
        )
    level = logging.INFO if isinstance(result.verdict, Delivered) else logging.WARNING
    if not log.isEnabledFor(level):
        return
    facts = result.verdict.facts
    log.log(
        level,
        "%s: delivery %s to %s, %s%s",
        outcome(result.verdict),
        result.delivery,
        result.destination,
        counted(len(result.messages), "message"),
        f": {facts.text}" if facts.text and not isinstance(result.verdict, Delivered) else "",
        extra=ids
        | {
            "outcome": outcome(result.verdict).value,
            "status": facts.status,
            "code": facts.code,
            "request_id": facts.request_id,
            "message_ids": [message.id for message in result.messages],
        },
    )
    of_messages(result, written)


def of_messages(result: Result, written: Mapping[int, Settlement]) -> None:
    """A line for each message, for whoever looks for one; each with the trace that it was enqueued in."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    ids = ids_of(result)
    for message in result.messages:
        became = written.get(message.id)
        own = {
            "message_id": message.id,
            "message_key": message.key,
            "trace_id": trace_id_of(message.traceparent),
            "outcome": (became.outcome if became else outcome(result.verdict)).value,
        }
        state = f"is {became.state.value}" if became else "is not ours any more"
        log.debug("message %s (%s) %s: %s", message.id, message.key, state, own["outcome"], extra=ids | own)


def ids_of(result: Result) -> dict[str, Any]:
    return {
        "delivery_id": result.delivery,
        "destination": result.destination,
        "worker_id": result.worker,
        "trace_id": result.trace_id,
    }
