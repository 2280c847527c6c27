"""What must hold after every step, whatever happened: the invariants of the ledger, for an observer who sees everything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from outbox.model import FINAL
from tests.explore.moment import Moment, Named, Step


def broken(before: Moment, was: Named, step: Step, after: Moment, now: Named) -> list[str]:
    """The laws that a step broke, in words."""
    return [
        *_of_messages(before, was, step, after, now),
        *_of_history(was, now, after),
        *_of_deliveries(now, after),
        *_of_streams(before, was, step, now),
        *_of_workers(before, was, step, now),
    ]


def _of_messages(before: Moment, was: Named, step: Step, after: Moment, now: Named) -> Iterator[str]:
    rows = {row["id"]: row for row in now["message"]}
    workers = {row["id"]: row for row in was["worker"]}
    deliveries = {row["id"]: row for row in now["delivery"]}
    for old in was["message"]:
        number = old["id"]
        new = rows.get(number)
        if new is None:
            yield f"I1: message {number} is gone"
            continue
        if new["attempt"] < old["attempt"]:
            yield f"I7: the attempt of message {number} fell from {old['attempt']} to {new['attempt']}"
        claim, then = (old["claimed_by"], old["delivery_id"]), (new["claimed_by"], new["delivery_id"])
        if old["state"] in FINAL and new["state"] != old["state"] and not _by_a_person(step, before, old, new):
            yield f"I13: message {number} was {old['state']} and is {new['state']}"
        if old["state"] != "claimed" and new["state"] == "claimed":
            yield from _of_claim(old, new, step, deliveries, workers)
        if old["state"] == "claimed" and then != claim:
            if new["state"] == "claimed":
                yield f"I6: message {number} was claimed, and was claimed once more"
            elif not _may_end(claim, before, step, workers):
                yield f"I7: the claim on message {number} was ended by one who had no right to"
        if old["state"] == "claimed" and then == claim and new != old:
            yield f"I7: message {number} was changed while it was claimed"
        if new["state"] == "delivered" != old["state"] and (
            old["delivery_id"] not in before.truth.confirmed | after.truth.confirmed
            and not (step.answer == "ok" and old["delivery_id"] == before.processes[step.who].hand.batch.delivery)
        ):
            yield f"I8: message {number} counts as delivered, and nobody said yes to delivery {old['delivery_id']}"
        if old["state"] == "pending" and new["state"] not in ("pending", "claimed") and step.who >= 0:
            yield f"I6: message {number} is {new['state']} without a claim"


def _of_claim(old: Any, new: Any, step: Step, deliveries: Any, workers: Any) -> Iterator[str]:
    number = old["id"]
    if step.what != "claims":
        yield f"I6: message {number} was claimed by what is no claim"
    if old["state"] != "pending":
        yield f"I6: message {number} was {old['state']} when it was claimed"
    if new["attempt"] != old["attempt"] + 1:
        yield f"I7: attempt {new['attempt']} of message {number} comes after attempt {old['attempt']}"
    delivery = deliveries.get(new["delivery_id"])
    if delivery is None or delivery["finished_at"] is not None or delivery["worker"] != new["claimed_by"]:
        yield f"I11: message {number} is claimed for no delivery of its worker that is under way"
    if new["claimed_by"] not in workers or workers[new["claimed_by"]]["gone"]:
        yield f"I6: message {number} was claimed by one who is gone"


def _by_a_person(step: Step, before: Moment, old: Any, new: Any) -> bool:
    """Whether a person took a message out of its final state, as a person may."""
    if step.who >= 0 or before.desk is None:
        return False
    act = before.desk.operation.split()[0]
    return (act == "replays" and new["state"] == "pending") or (
        act == "cancels" and (old["state"], new["state"]) == ("dead", "cancelled")
    )


def _may_end(claim: tuple[str, int], before: Moment, step: Step, workers: Mapping[str, Any]) -> bool:
    """Whether a step may end this claim: whoever has it records or releases it, and a rescue takes it from one who is gone."""
    if step.who < 0:
        return False
    worker, delivery = claim
    process = before.processes[step.who]
    if step.what == "hears":
        return process.hand is not None and (process.hand.batch.worker, process.hand.batch.delivery) == claim
    if any((each.worker, each.delivery) == claim for each in process.memory.unrecorded):
        return True
    match process.pulse.operation if process.pulse else "":
        case "rescue":
            return worker not in workers or bool(workers[worker]["gone"])
        case "release":
            mine = process.pulse is not None and process.pulse.parts[0].memory.identity == worker
            return mine and delivery not in process.in_hand
        case "leftovers":
            return True
        case _:
            return False


def _of_history(was: Named, now: Named, after: Moment) -> Iterator[str]:
    """Counters equal history, and every copy is explained by it."""
    tries = {(row["message_id"], row["number"]): row for row in was["attempt"]}
    new: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in now["attempt"]:
        old = tries.pop((row["message_id"], row["number"]), None)
        if old is None:
            new[row["message_id"]].append(row)
        elif (old["outcome"], old["delivery_id"]) != (row["outcome"], row["delivery_id"]):
            which = f"attempt {row['number']} of message {row['message_id']}"
            yield f"I11: {which} ended as {old['outcome']}, then as {row['outcome']}"
    yield from (f"I11: attempt {number} of message {message} is gone" for message, number in tries)
    before = {row["id"]: row for row in was["message"]}
    for row in now["message"]:
        copies, explained = after.truth.copies_of(row["id"])
        if copies > 1 + explained:
            yield f"I5: message {row['id']} came {copies} times, of which {explained} are explained"
        old = before[row["id"]]
        written = [(each["number"], each["delivery_id"]) for each in new[row["id"]]]
        ended = [(old["attempt"], old["delivery_id"])] if old["delivery_id"] not in (None, row["delivery_id"]) else []
        if written != ended:
            yield f"I11: message {row['id']} ended attempts {ended} (with their deliveries), written down are {written}"
        elif ended:
            yield from _of_counters(old, row, new[row["id"]][-1]["outcome"])


def _of_counters(old: dict[str, Any], row: dict[str, Any], outcome: str) -> Iterator[str]:
    """What an attempt that ended so is charged with."""
    if row["unknowns"] - old["unknowns"] not in ((0, 1) if outcome == "unknown" else (0,)):
        yield f"I11: message {row['id']} has {row['unknowns']} unknowns after an attempt that ended as {outcome}"
    if row["failures"] - old["failures"] not in ((0, 1) if outcome in ("retry", "not_sent") else (0,)):
        yield f"I11: message {row['id']} has {row['failures']} failures after an attempt that ended as {outcome}"
    if (row["state"] == "delivered") != (outcome == "delivered"):
        yield f"I11: message {row['id']} is {row['state']}, and its last attempt ended as {outcome}"


def _of_deliveries(now: Named, after: Moment) -> Iterator[str]:
    """What is claimed is under way, in somebody's hand or known to be left behind."""
    held: dict[int, int] = defaultdict(int)
    for row in now["message"]:
        if row["state"] == "claimed":
            held[row["delivery_id"]] += 1
    gone = {row["id"] for row in now["worker"] if row["gone"]}
    minds = {each.memory.identity: each for each in after.processes}
    written = {row["id"] for row in now["delivery"]}
    yield from (
        f"I11: delivery {each} is in hand and nowhere written" for mind in minds.values() for each in mind.in_hand - written
    )
    for row in now["delivery"]:
        number, worker = row["id"], row["worker"]
        if row["finished_at"] is not None:
            if held[number]:
                yield f"I11: delivery {number} is over and has {held[number]} claimed messages"
            continue
        if held[number] != row["messages"]:
            yield f"I6: delivery {number} is of {row['messages']} messages and has claimed {held[number]}"
        mind = minds.get(worker)
        if mind is not None and worker not in gone and number in mind.memory.held and number not in mind.in_hand:
            yield f"I15: delivery {number} is stranded: its worker believes that it has it, and nobody there minds it"


def _of_streams(before: Moment, was: Named, step: Step, now: Named) -> Iterator[str]:
    """The first copies of a stream keep its order, and a stream that can go on says so."""
    streams: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in now["message"]:
        if row["stream_id"] is not None:
            streams[row["stream_id"]].append(row)
    for head in now["head"]:
        mine = sorted(streams[head["stream_id"]], key=lambda row: row["stream_number"])
        going = _going(step, before, was, mine)
        for position, row in enumerate(mine):
            for first in mine[:position] if row["id"] in going else ():
                settled = first["state"] in ("delivered", "cancelled") or first["replays"] > 0
                if not settled and not (first["state"] == "dead" and first["stream_number"] <= head["forgiven"]):
                    yield f"I9: message {row['id']} goes while message {first['id']}, before it, is {first['state']}"
        unfinished = [row for row in mine if row["state"] not in FINAL]
        tried = any(row["state"] == "claimed" for row in mine)
        if tried and head["claimed_by"] is None:
            yield f"I9: stream {head['stream_id']} has a message under way and says that it has none"
        if unfinished and not tried and head["claimed_by"] is None and head["blocked_by"] is None and head["due_at"] is None:
            yield f"I15: stream {head['stream_id']} rests although message {unfinished[0]['id']} waits"


def _going(step: Step, before: Moment, was: Named, rows: list[dict[str, Any]]) -> set[int]:
    """The messages that a step claims, or of which it brings the first copy to the receiver."""
    if step.what == "sends":
        return {each.id for each in before.processes[step.who].hand.batch.messages if not before.truth.copies_of(each.id)[0]}
    claimed = {row["id"] for row in was["message"] if row["state"] == "claimed"}
    return {row["id"] for row in rows if row["state"] == "claimed"} - claimed


def _of_workers(before: Moment, was: Named, step: Step, now: Named) -> Iterator[str]:
    """Only one who stood still is declared gone, and who is gone stays so and beats no more."""
    rows = {row["id"]: row for row in now["worker"]}
    for old in was["worker"]:
        new = rows.get(old["id"])
        if new is None:
            continue
        if old["gone"] and not new["gone"]:
            yield "a worker that was gone is here again"
        if old["gone"] and new["beat"] != old["beat"]:
            yield "a worker that is gone beats"
        if new["gone"] and not old["gone"]:
            pulse = before.processes[step.who].pulse if step.who >= 0 else None
            looking = pulse is not None and pulse.operation == "look"
            if not looking or pulse is None or pulse.parts[0].found[0].thawed.get(old["id"]) != old["beat"]:
                yield "a worker was declared gone although it has beaten since it was looked at"
