"""Promises, rows and what arrived, held against each other: I1 to I5, and I8 to I11."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from outbox.testing import Received
from outbox.testing.ledger import ReceivedFile
from tests.ledger.evidence import Arrived, Evidence, attempts_told
from tests.ledger.fate import Fate
from tests.ledger.history import digest, masked

LOCAL = "local://"
NOTHING = Arrived()


def nothing_lost(evidence: Evidence) -> Iterator[str]:
    """I1: what a COMMIT said yes to has a row or was purged; at the end it arrived, is dead, or was cancelled."""
    for key in evidence.promises.acknowledged:
        fate = evidence.fates.get(key)
        if (fate is None or fate.purged) and not evidence.may_be_purged(key):
            yield f"{key} was committed and is lost"
        elif evidence.drained and fate is not None and fate.state not in {"dead", "cancelled"} and not evidence.copies(key):
            yield f"{key} was committed and never arrived"
    for change in evidence.trail.changes if evidence.trail is not None else ():
        if (
            change.about == "message"
            and change.new_state is None
            and change.old_state not in {"delivered", "dead", "cancelled"}
        ):
            yield f"{change.key} was deleted while it was {change.old_state}"


def nothing_invented(evidence: Evidence) -> Iterator[str]:
    """I2: what is there, or arrived, somebody enqueued."""
    said = evidence.promises
    known = said.acknowledged.keys() | said.unknown.keys() | said.rolled_back.keys()
    yield from (f"{key} is there and nobody committed it" for key in evidence.fates.keys() - known)
    for request in evidence.requests:
        for key in sorted({str(struct.get("assetId")) for struct in request.structs} - known):
            yield f"request {request.number} carried {key}, which nobody committed"


def nothing_rolled_back(evidence: Evidence) -> Iterator[str]:
    """I3: of what was rolled back nothing is there, and nothing arrived."""
    for key in evidence.promises.rolled_back:
        if key in evidence.fates:
            yield f"{key} was rolled back and is there"
        if key in evidence.arrived:
            yield f"{key} was rolled back and was sent"


def recovered(evidence: Evidence) -> list[str]:
    """I4, for information: messages that are there, or arrived, although their producer was told nothing."""
    return sorted(key for key in evidence.promises.unknown if key in evidence.fates or evidence.copies(key))


def copies_explained(evidence: Evidence) -> Iterator[str]:
    """I5: each copy beyond the first is explained by an attempt whose outcome nobody knows, or by a replay.

    A copy that the receiver took out of a request which it refused is explained by that refusal, and not counted here.
    """
    for key, arrived in evidence.arrived.items():
        fate = evidence.fates.get(key)
        allowed = 0 if fate is None else fate.unknown_attempts + fate.replays + fate.lives - 1
        unexplained = arrived.copies - 1 - allowed
        if unexplained > 0 and (fate is not None or not evidence.may_be_purged(key)):
            yield f"{key} arrived {arrived.copies} times, {unexplained} without an explanation"


def delivered_was_received(evidence: Evidence) -> Iterator[str]:
    """I8: for each attempt that counts as delivered a whole copy arrived, and an answer that said so left in full."""
    for key, fate in evidence.fates.items():
        arrived = evidence.arrived.get(key, NOTHING)
        claimed = sum("delivered" in (each.outcome, each.late_outcome) for each in fate.attempts)
        if fate.state == "delivered" and not arrived.told:
            yield f"{key} counts as delivered and no confirmation of it was ever sent"
        elif claimed > arrived.told:
            yield f"{key} counts as delivered {claimed} times, and {arrived.told} confirmations of it were sent"


def in_order(evidence: Evidence) -> Iterator[str]:
    """I9: of one ordering key the first copies arrive in the order of the commits, each after the one before was confirmed.

    One that is dead or cancelled, or was replayed, holds up nobody: a copy of it that was under way may come late.
    """
    streams: dict[int, list[Fate]] = defaultdict(list)
    for fate in evidence.fates.values():
        if fate.stream_id is not None and evidence.copies(fate.key) and fate.replays == 0 and fate.state == "delivered":
            streams[fate.stream_id].append(fate)
    for fates in streams.values():
        fates.sort(key=lambda fate: fate.stream_number or 0)
        for one, other in pairwise(fates):
            before, after = evidence.arrived[one.key], evidence.arrived[other.key]
            if before.first is not None and after.first is not None and after.first < before.first:
                yield f"{other.key} arrived before {one.key}, which stands before it"
            elif before.confirmed is not None and after.begun is not None and after.begun < before.confirmed:
                yield f"{other.key} was sent before {one.key}, which stands before it, was confirmed"


def bytes_agree(evidence: Evidence) -> Iterator[str]:
    """I10: what arrived is what was given: files, what is said of them, and the payload; and every request keeps the rules."""
    for key, fate in evidence.fates.items():
        meant = evidence.promises.get(key)
        kept = {name: each.sha256 for name, each in fate.attached.items()}
        if meant is not None and not fate.purged and kept != dict(meant.files):
            yield f"{key} has other files than were given: {kept}"
    payloads: dict[str, Any] = {}
    for request in evidence.requests:
        if request.faults:
            yield f"request {request.number} broke the rules: {'; '.join(request.faults)}"
        if request.complete:
            for struct in request.structs:
                yield from _wrong_struct(evidence, request, struct, payloads)


def _wrong_struct(evidence: Evidence, request: Received, struct: dict[str, Any], payloads: dict[str, Any]) -> Iterator[str]:
    key = str(struct.get("assetId"))
    fate, meant = evidence.fates.get(key), evidence.promises.get(key)
    came = _files(request, struct)
    if {name: each.sha256 for name, each in came.items()} != dict(meant.files if meant is not None else {}):
        yield f"request {request.number} brought other bytes for {key} than were enqueued"
    if meant is not None and meant.payload is not None and digest(struct) != meant.payload:
        yield f"request {request.number} brought another payload for {key} than was enqueued"
    if fate is None or fate.payload is None:
        return
    if key not in payloads:
        payloads[key] = json.loads(fate.payload)
    if payloads[key] != struct and masked(payloads[key]) != masked(struct):
        yield f"request {request.number} brought another payload for {key} than is kept"
    for name, each in came.items():
        attached = fate.attached.get(name)
        if attached is not None and each.original_filename not in (None, attached.filename):
            yield f"request {request.number} calls {name} of {key} {each.original_filename}, and not {attached.filename}"


def _files(request: Received, struct: Mapping[str, Any]) -> dict[str, ReceivedFile]:
    """The files of a struct by the last name on the way to each: the producer's name for it, in our stories."""
    found: dict[str, ReceivedFile] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for each, inner in value.items():
                walk(inner, each)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, name)
        elif isinstance(value, str) and value.startswith(LOCAL) and value.removeprefix(LOCAL) in request.files:
            found[name] = request.files[value.removeprefix(LOCAL)]

    walk(struct, "")
    return found


def attempts_agree(evidence: Evidence) -> Iterator[str]:
    """I11: what arrived belongs to an attempt; each attempt that is over is written down, once, with the delivery it was in."""
    for fate in evidence.there:
        arrived = evidence.arrived.get(fate.key, NOTHING)
        numbers = [each.number for each in fate.attempts]
        if numbers != list(range(fate.forgotten + 1, fate.finished + 1)):
            yield f"{fate.key} was tried {fate.finished} times, written down are {numbers}"
        if arrived.copies > fate.attempt * fate.lives:
            yield f"{fate.key} arrived {arrived.copies} times in {fate.attempt} attempts"
        if fate.state == "delivered" and fate.attempts and fate.attempts[-1].outcome != "delivered":
            yield f"{fate.key} is delivered, yet its last attempt ended as {fate.attempts[-1].outcome}"
        for each in fate.attempts:
            if each.delivery_id not in evidence.deliveries:
                yield f"attempt {each.number} of {fate.key} belongs to no delivery"
    if evidence.drained:
        yield from (f"delivery {each.id} never ended" for each in evidence.deliveries.values() if each.finished_at is None)
        yield from (f"stream {each} is still claimed" for each in evidence.claimed_streams)
    yield from _requests_without_attempt(evidence)
    yield from _work_without_attempt(evidence)


def _requests_without_attempt(evidence: Evidence) -> Iterator[str]:
    """Of workers that keep a diary each request says which attempts it is."""
    by_id = {fate.id: fate for fate in evidence.fates.values()}
    for request in evidence.requests:
        told = attempts_told(request)
        if told is None:
            continue
        delivery_id, numbers = told
        if delivery_id not in evidence.deliveries:
            yield f"request {request.number} says it is delivery {delivery_id}, and there is none"
        for message_id, number in numbers.items():
            fate = by_id.get(message_id)
            if fate is None:
                continue  # purged, or invented: others tell
            written = {each.number: each.delivery_id for each in fate.attempts}
            under_way = fate.state == "claimed" and number == fate.attempt
            if written.get(number) != delivery_id and not under_way and number > fate.forgotten:
                yield f"request {request.number} says it is attempt {number} of {fate.key}, and no row says so"


def _work_without_attempt(evidence: Evidence) -> Iterator[str]:
    """What a worker recorded, by its own diary, is written down: a record that was committed is not lost either."""
    for line in evidence.work:
        if line.operation != "record":
            continue
        for key, number, outcome in line.more["messages"]:
            fate = evidence.fates.get(key)
            if fate is None or fate.purged or number <= fate.forgotten or fate.lives > 1:
                continue
            if (number, line.more["delivery"], outcome) not in {(e.number, e.delivery_id, e.outcome) for e in fate.attempts}:
                yield f"attempt {number} of {key} was recorded as {outcome}, and no row says so"
