"""Two transactions that may happen at the same time, and what must have come of both; what has not is told in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from outbox import Lane, Outbox, Selection
from outbox.claims import Claims, WorkerGone
from outbox.dispatcher import Dispatcher
from outbox.store import breaker, living
from outbox.store.acting import Action
from outbox.verdict import Delivered, Result
from tests.explore.weaving import Pair, Rows, Weaver
from tests.factories import NOW, Claimed, claim, event, put

LANES = (Lane.NORMAL,)


def some(count: int = 2, **place: Any) -> Callable[[Weaver], Any]:
    """Two workers, and so many messages."""

    def prepare(on: Weaver) -> list[int]:
        with on.plain.begin() as connection:
            breaker.declare(connection, ["enos"])
            for each in ("w0", "w1"):
                living.register(connection, each, "host", 1, NOW)
            return [put(connection, f"m{number}", **place) for number in range(count)]

    return prepare


def claimed(*, gone: bool = False, **place: Any) -> Callable[[Weaver], Any]:
    """A claim of the first worker, who may have been declared gone since."""

    def prepare(on: Weaver) -> Claimed:
        some(**place)(on)
        with on.plain.begin() as connection:
            found = claim(connection, "w0")
            if gone:
                living.leave(connection, "w0")
        assert found is not None
        return found

    return prepare


def delivered(on: Weaver) -> list[int]:
    """Two messages that are over."""
    found = claimed()(on)
    record(on.outbox, found)()
    return found.ids


def claims(outbox: Outbox, _prepared: Any, number: int = 0) -> Callable[[], Any]:
    """The next batch for a worker, as a turn claims it."""
    mine = Claims(outbox.database, outbox.destinations, outbox.ambient, lambda: f"w{number}")
    return in_a_transaction(outbox, lambda connection: mine.claim(connection, "enos", LANES))


def record(outbox: Outbox, found: Claimed) -> Callable[[], Any]:
    """As the worker does that was told that all went well."""
    result = Result(found.delivery, found.worker, "enos", found.messages, len(found.messages), Delivered())
    return lambda: dispatcher(outbox, 0)._write(result)


def rescue(outbox: Outbox, _prepared: Any, number: int = 1) -> Callable[[], int]:
    return dispatcher(outbox, number).rescue


def dispatcher(outbox: Outbox, number: int) -> Dispatcher:
    transport: Any = None  # nothing is sent here
    identity = f"w{number}"
    return Dispatcher(outbox.database, outbox.spool_store, outbox.destinations, outbox.ambient, transport, lambda: identity)


def enqueue(outbox: Outbox, key: str, **place: Any) -> Callable[[], Any]:
    return in_a_transaction(outbox, lambda connection: outbox.enqueue(connection, "enos", event("m"), key=key, **place))


def enqueue_behind(outbox: Outbox, _prepared: Any, number: int = 9) -> Callable[[], Any]:
    return enqueue(outbox, f"m{number}", ordering_key="k")


def in_a_transaction(outbox: Outbox, do: Callable[[Connection], Any]) -> Callable[[], Any]:
    def take() -> Any:
        with outbox.database.begin() as connection:
            return do(connection)

    return take


def beat(outbox: Outbox, _prepared: Any) -> Callable[[], bool]:
    return in_a_transaction(outbox, lambda connection: living.beat(connection, "w0", NOW))


def declare_gone(outbox: Outbox, _prepared: Any) -> Callable[[], bool]:
    return in_a_transaction(outbox, lambda connection: living.declare_gone(connection, "w0", 0))


def act(outbox: Outbox, ids: Sequence[int], action: Action) -> Callable[[], int]:
    """The one transaction of an act that does it; what it looked up before may be outdated by then."""
    begun = outbox.begin(action, Selection(ids=tuple(ids)), "somebody")
    assert begun._walk.look_ahead(outbox.database, NOW)
    begun._open()

    def take() -> int:
        begun.step()
        return begun.messages

    return take


def cancel_the_first(outbox: Outbox, ids: Sequence[int]) -> Callable[[], int]:
    return act(outbox, ids[:1], "cancel")


def cancel_the_second(outbox: Outbox, found: Claimed) -> Callable[[], int]:
    return act(outbox, [found.ids[0] + 1], "cancel")


def together(*both: Callable[[Outbox, Any], Callable[[], Any]]) -> Callable[[Outbox, Any, int], Callable[[], Any]]:
    """One does the first, the other the second."""
    return lambda outbox, prepared, number: both[number](outbox, prepared)


def no_message_twice(_rows: Rows, _prepared: Any, batches: Sequence[Any]) -> list[str]:
    found = [message.id for batch in batches if batch for message in batch.messages]
    return [f"I6: claimed were {found}"] * (len(found) != len(set(found)))


def written_is_written(rows: Rows, _prepared: Any, results: Sequence[Any]) -> list[str]:
    over = {row["id"] for row in rows["message"] if row["state"] == "delivered"}
    return [f"I8: recorded was {sorted(results[0])}, delivered are {sorted(over)}"] * (over != set(results[0]))


def tried_once(rows: Rows, _prepared: Any, _results: Sequence[Any]) -> list[str]:
    tries = [(row["message_id"], row["outcome"]) for row in rows["attempt"]]
    return [f"I11: written down are {tries}"] * (sorted(row[1] for row in tries) != ["unknown", "unknown"])


def one_or_the_other(_rows: Rows, _prepared: Any, results: Sequence[Any]) -> list[str]:
    return [f"both happened: {results}"] * all(results)


def claimed_or_cancelled(_rows: Rows, ids: Any, results: Sequence[Any]) -> list[str]:
    many = len(results[0].messages) if results[0] else 0
    return [f"I6: {many} were claimed and {results[1]} cancelled of {len(ids)}"] * (many + results[1] > len(ids))


def replayed_or_purged(rows: Rows, ids: Any, results: Sequence[Any]) -> list[str]:
    replayed, purged = results
    left = [(row["state"], row["replays"]) for row in rows["message"]]
    wrong = sum(results) > len(ids) or len(left) != len(ids) - purged or left.count(("pending", 1)) != replayed
    return [f"I13: {replayed} were replayed, {purged} purged, left are {left}"] * wrong


def replayed_once(rows: Rows, ids: Any, results: Sequence[Any]) -> list[str]:
    replays = [row["replays"] for row in rows["message"]]
    return [f"I13: replayed were {results}, written down are {replays}"] * (sum(results) != len(ids) or max(replays) > 1)


def one_is_new(_rows: Rows, _prepared: Any, results: Sequence[Any]) -> list[str]:
    return [f"I2: {results}"] * (sorted(each.new for each in results) != [False, True])


def numbered(rows: Rows, _prepared: Any, _results: Sequence[Any]) -> list[str]:
    numbers = sorted(row["stream_number"] for row in rows["message"])
    return [f"I9: the numbers are {numbers}"] * (numbers != list(range(1, len(numbers) + 1)))


PAIRS = (
    Pair("claim × claim", some(3), claims, no_message_twice),
    Pair("claim × claim of a stream", some(ordering_key="k"), claims, no_message_twice),
    Pair("claim × claim of a share", some(3, ordering_key="k", ordered=False), claims, no_message_twice),
    Pair("claim × cancel", some(), together(claims, partial(act, action="cancel")), claimed_or_cancelled),
    Pair("claim × cancel in a stream", some(ordering_key="k"), together(claims, cancel_the_first), claimed_or_cancelled),
    Pair("claim × declare gone", some(), together(claims, declare_gone), may_raise=(WorkerGone,)),
    Pair("record × rescue", claimed(gone=True), together(record, rescue), written_is_written),
    Pair("record × rescue in a stream", claimed(gone=True, ordering_key="k"), together(record, rescue), written_is_written),
    Pair("record × cancel in a stream", claimed(ordering_key="k"), together(record, cancel_the_second), written_is_written),
    Pair("rescue × rescue", claimed(gone=True), rescue, tried_once),
    Pair("beat × declare gone", some(0), together(beat, declare_gone), one_or_the_other),
    Pair(
        "replay × purge", delivered, together(partial(act, action="replay"), partial(act, action="purge")), replayed_or_purged
    ),
    Pair("replay × replay", delivered, lambda outbox, ids, _: act(outbox, ids, "replay"), replayed_once),
    Pair("enqueue × claim on one stream", some(1, ordering_key="k"), together(enqueue_behind, claims), numbered),
    Pair("enqueue × record on one stream", claimed(count=1, ordering_key="k"), together(enqueue_behind, record), numbered),
    Pair(
        "enqueue × enqueue on a new stream", some(0), enqueue_behind, numbered, fills=frozenset({"message", "stream", "head"})
    ),
    Pair(
        "enqueue × enqueue of the same key",
        some(0),
        lambda outbox, _prepared, _number: enqueue(outbox, "m0"),
        one_is_new,
        fills=frozenset({"message"}),
    ),
)
BY_NAME = {pair.name: pair for pair in PAIRS}
