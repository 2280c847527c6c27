"""Two transactions at the same time, in every order of their statements: no deadlock, and no invariant is broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from outbox import Lane, Outbox, Policy, Selection
from outbox.claims import Claims
from outbox.database import Database
from outbox.dispatcher import Dispatcher
from outbox.store import breaker, living
from outbox.verdict import Delivered, Result
from tests.explore.weaving import Pair, Weaver, weaver
from tests.factories import NOW, Claimed, Clock, an_outbox, claim, enos, put

LANES = (Lane.NORMAL, Lane.BULK)


@pytest.fixture
def sqlite_url(migrated_sqlite_url: str) -> str:
    return migrated_sqlite_url


@pytest.fixture
def postgres_url(migrated_postgres_url: str) -> str:
    return migrated_postgres_url


@pytest.fixture
def woven(database_url: str, tmp_path: Path) -> Iterator[Weaver]:
    def make(database: Database) -> Outbox:
        outbox = an_outbox(database_url, tmp_path / "spool", enos(policy=Policy(breaker_after=100)), ambient=Clock().ambient)
        outbox.database = database
        return outbox

    with weaver(database_url, make) as made:
        yield made


def _some(on: Weaver, count: int = 2, **place: Any) -> list[int]:
    """Two workers, and so many messages."""
    with on.plain.begin() as connection:
        breaker.declare(connection, ["enos"])
        for each in ("w0", "w1"):
            living.register(connection, each, "host", 1, NOW)
        return [put(connection, f"m{number}", **place) for number in range(count)]


def _claims(outbox: Outbox, worker: str) -> Any:
    """The next batch for this worker, as a turn claims it."""
    with outbox.database.begin() as connection:
        return Claims(outbox.database, outbox.destinations, outbox.ambient, lambda: worker).claim(connection, "enos", LANES)


def _dispatcher(outbox: Outbox, worker: str) -> Dispatcher:
    return Dispatcher(
        outbox.database,
        outbox.spool_store,
        outbox.destinations,
        outbox.ambient,
        None,
        lambda: worker,  # type: ignore[arg-type]
    )


def _claimed(on: Weaver, **options: Any) -> Claimed:
    with on.plain.begin() as connection:
        claimed = claim(connection, "w0", **options)
    assert claimed is not None
    return claimed


def _record(outbox: Outbox, claimed: Claimed) -> Any:
    """As the worker does that was told that all went well."""
    result = Result(claimed.delivery, claimed.worker, "enos", claimed.messages, len(claimed.messages), Delivered())
    return _dispatcher(outbox, "w0")._write(result)


def _gone(on: Weaver) -> Claimed:
    """A claim whose worker was declared gone."""
    _some(on)
    claimed = _claimed(on)
    with on.plain.begin() as connection:
        living.leave(connection, "w0")
    return claimed


def _dead(on: Weaver) -> list[int]:
    """Two messages that were delivered."""
    ids = _some(on)
    _record(on.outbox, _claimed(on))
    return ids


def _states(on: Weaver) -> Mapping[str, str]:
    return {row["key"]: row["state"] for row in on.rows()["message"]}


def _no_message_twice(on: Weaver, _prepared: Any, batches: Sequence[Any]) -> list[str]:
    claimed = [message.id for batch in batches if batch for message in batch.messages]
    empty = [batch.delivery for batch in batches if batch and not batch.messages]
    return [f"I6: claimed were {claimed}"] * (len(claimed) != len(set(claimed))) + [
        f"I6: nothing is in {each}" for each in empty
    ]


def _both_alone(name: str, check: Any, **place: Any) -> Pair:
    return Pair(name, lambda on: _some(on, **place), lambda outbox, _, number: lambda: _claims(outbox, f"w{number}"), check)


CLAIMS = _both_alone("claim × claim", _no_message_twice)
CLAIMS_OF_A_STREAM = _both_alone("claim × claim of a stream", _no_message_twice, ordering_key="k")


def _cancelled_or_claimed(on: Weaver, ids: Any, results: Sequence[Any]) -> list[str]:
    batch, cancelled = results
    claimed = len(batch.messages) if batch else 0
    return [f"{claimed} were claimed and {cancelled} cancelled of {len(ids)}"] * (claimed + cancelled > len(ids))


PAIRS = [
    CLAIMS,
    CLAIMS_OF_A_STREAM,
    Pair(
        "claim × cancel",
        _some,
        lambda outbox, ids, number: (
            (lambda: outbox.cancel(Selection(ids=tuple(ids)), "somebody")) if number else (lambda: _claims(outbox, "w0"))
        ),
        _cancelled_or_claimed,
    ),
]


@pytest.mark.skip(reason="not bounded yet: of some pairs there are more orders than anybody can wait for")
@pytest.mark.merge
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_no_order_of_the_statements_of_two_breaks_a_law(woven: Weaver, pair: Pair) -> None:
    found = woven.weave(pair)

    print(found)
    assert not found.violations, found.violations[0]
