"""The trail, change by change: I6, I7, I13, and the claims of a stream for I9. What these say is true in database order."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tests.ledger.evidence import RESCUED, Evidence
from tests.ledger.fate import FINAL
from tests.ledger.trail import Change

#: What may become of a message without a claim.
FREELY = {("pending", "claimed"), ("pending", "dead"), ("pending", "cancelled"), ("dead", "cancelled")}


def along_the_trail(evidence: Evidence) -> Mapping[str, list[str]]:
    """Everything that is against the trail, by the number of the invariant."""
    rescued = {each.id for each in evidence.deliveries.values() if each.text == RESCUED}
    walk = _Walk(rescued)
    for change in evidence.trail.changes if evidence.trail is not None else ():
        walk.take(change)
    return walk.found


@dataclass
class _Message:
    """How far a message has come."""

    claimed_by: str | None = None
    closed: tuple[int | None, int | None, str | None] | None = None  #: attempt, delivery and state of a claim that just ended


class _Stream:
    """Messages of a stream that are not over, and the one that is claimed."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.waiting: dict[int, str] = {}
        self.claimed: dict[int, str] = {}

    def add(self, number: int, key: str) -> None:
        heapq.heappush(self.numbers, number)
        self.waiting[number] = key

    def first(self) -> tuple[int, str] | None:
        while self.numbers and self.numbers[0] not in self.waiting:
            heapq.heappop(self.numbers)
        return (self.numbers[0], self.waiting[self.numbers[0]]) if self.numbers else None


class _Walk:
    """Goes along the trail and says what must not have happened."""

    def __init__(self, rescued: set[int]) -> None:
        self.found: dict[str, list[str]] = defaultdict(list)
        self._rescued = rescued
        self._messages: dict[int | None, _Message] = defaultdict(_Message)
        self._streams: dict[int, _Stream] = defaultdict(_Stream)
        self._here: dict[str | None, bool] = {}

    def take(self, change: Change) -> None:
        if change.about == "worker":
            if change.new_state is None:
                self._here[change.old_worker] = False
            else:
                self._here[change.new_worker] = change.new_state == "here"
        elif change.about == "attempt":
            self._attempt(change, self._messages[change.message_id])
        else:
            self._in_stream(change)
            if change.old_state is None or change.new_state is None:
                self._messages[change.message_id] = _Message()
            else:
                self._changed(change, self._messages[change.message_id])

    def _say(self, number: str, sentence: str) -> None:
        self.found[number].append(sentence)

    def _changed(self, change: Change, mine: _Message) -> None:
        key, old, new = change.key, change.old_state, change.new_state
        before, after = change.old_attempt or 0, change.new_attempt or 0
        claims, closes = new == "claimed" and old != "claimed", old == "claimed" and new != "claimed"
        if after < before:
            self._say("I7", f"the attempt of {key} fell from {before} to {after}")
        elif claims and after != before + 1:
            self._say("I7", f"{key} was claimed as attempt {after} after attempt {before}")
        elif not claims and old != "claimed" and after != before:
            self._say("I7", f"the attempt of {key} rose from {before} to {after} without a claim")
        if claims:
            if mine.closed is not None:
                self._say("I6", f"{key} was claimed again before its attempt {mine.closed[0]} was recorded or rescued")
            mine.closed = None
        elif closes:
            mine.closed = (change.old_attempt, change.old_delivery, new)
            taken = change.old_delivery in self._rescued and self._here.get(change.old_worker, False)
            if taken:
                self._say("I6", f"attempt {before} of {key} was taken from {change.old_worker}, which was not gone")
        elif old == new == "claimed":
            holder, other = (change.old_worker, before, change.old_delivery), (change.new_worker, after, change.new_delivery)
            if holder != other:
                self._say(
                    "I6", f"{key} was claimed by {other[0]} (attempt {after}) while {holder[0]} held it (attempt {before})"
                )
        if old in FINAL and new != old and (old, new) not in FREELY:
            replayed = new == "pending" and change.new_replays == (change.old_replays or 0) + 1
            if not replayed:
                self._say("I13", f"{key} was {old} and became {new} without a replay")
        elif old == "pending" and new != old and (old, new) not in FREELY:
            self._say("I7", f"{key} went from {old} to {new} without a claim")

    def _attempt(self, change: Change, mine: _Message) -> None:
        name = f"attempt {change.new_attempt} of message {change.message_id}"
        if change.new_state is None:
            return  # forgotten, or purged with its message
        if change.old_state is not None:
            before, after = (
                (change.old_state, change.old_attempt, change.old_delivery),
                (change.new_state, change.new_attempt, change.new_delivery),
            )
            if before != after:
                self._say("I7", f"{name} was written again: {before[0]} became {after[0]}")
            return
        if mine.closed is None or mine.closed[:2] != (change.new_attempt, change.new_delivery):
            last = "none had ended" if mine.closed is None else f"attempt {mine.closed[0]} had ended"
            self._say("I7", f"{name} was written although {last}")
        elif (mine.closed[2] == "delivered") != (change.new_state == "delivered"):
            self._say("I7", f"{name} ended as {change.new_state}, and the message became {mine.closed[2]}")
        mine.closed = None

    def _in_stream(self, change: Change) -> None:
        number = change.stream_number
        if change.stream_id is None or number is None:
            return
        stream, key = self._streams[change.stream_id], str(change.key)
        if change.new_state == "claimed" != change.old_state:
            first = stream.first()
            if stream.claimed:
                self._say("I9", f"{key} was claimed while {next(iter(stream.claimed.values()))} of the same stream was")
            elif first is not None and first[0] < number:
                self._say("I9", f"{key} was claimed before {first[1]}, which stands before it, was over")
        if change.new_state == "claimed":
            stream.claimed[number] = key
        else:
            stream.claimed.pop(number, None)
        if change.new_state is None or change.new_state in FINAL or change.new_replays:
            stream.waiting.pop(number, None)
        elif change.old_state is None:
            stream.add(number, key)
