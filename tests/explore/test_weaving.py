"""Two transactions at the same time, in every order of their statements: no deadlock, and no law of the ledger is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from outbox import Outbox, Policy, database
from outbox.database import Database
from outbox.store import claiming, recording, streams
from outbox.tables import message
from tests.explore.breaking import FENCE, broken
from tests.explore.pairs import BY_NAME, PAIRS, in_a_transaction, some
from tests.explore.weaving import Pair, Weaver
from tests.factories import Clock, an_outbox, enos, in_full

#: So many orders of a pair at most; none has as many today.
MOST = in_full(2_000, 100)


@pytest.fixture
def sqlite_url(migrated_sqlite_url: str) -> str:
    return migrated_sqlite_url


@pytest.fixture
def postgres_url(migrated_postgres_url: str) -> str:
    return migrated_postgres_url


@pytest.fixture
def weaver(database_url: str, tmp_path: Path) -> Iterator[Weaver]:
    with Weaver(database_url, partial(_outbox, database_url, tmp_path)) as made:
        yield made


@pytest.fixture
def postgres_weaver(postgres_url: str, tmp_path: Path) -> Iterator[Weaver]:
    """For what only a database with many writers at a time can show."""
    with Weaver(postgres_url, partial(_outbox, postgres_url, tmp_path)) as made:
        yield made


def _outbox(url: str, folder: Path, on: Database) -> Outbox:
    policy = Policy(breaker_after=100, batch_messages=2)
    outbox = an_outbox(url, folder / "spool", enos(policy=policy), ambient=Clock().ambient)
    outbox.database = on
    return outbox


@pytest.mark.long
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name.replace(" × ", "-and-").replace(" ", "-"))
def test_no_order_of_the_statements_of_two_breaks_a_law(weaver: Weaver, pair: Pair) -> None:
    found = weaver.weave(pair, MOST)

    print(found)
    assert not found.violations, found.violations[0]


def _breaks(weaver: Weaver, name: str, words: str) -> None:
    found = weaver.weave(BY_NAME[name], MOST)

    print(found, *found.violations, sep="\n")
    assert any(words in each for each in found.violations), "no order of the statements broke a law"


@pytest.mark.merge
def test_claims_without_a_lock_are_seen(
    request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, database.connect, '_begin_with(engine, "BEGIN IMMEDIATE")', '_begin_with(engine, "BEGIN")')
    broken(monkeypatch, claiming._loose, "\n        .with_for_update(skip_locked=True)")

    weaver = request.getfixturevalue("weaver")  # only now: its engines are made with what is broken
    _breaks(weaver, "claim × claim", "database is locked" if database_url.startswith("sqlite") else "I6")


@pytest.mark.merge
def test_two_rescues_without_the_fence_are_seen(postgres_weaver: Weaver, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, recording._settle, FENCE)

    _breaks(postgres_weaver, "rescue × rescue", "IntegrityError")


@pytest.mark.merge
def test_a_stream_that_is_put_to_rest_while_somebody_writes_to_it_is_seen(
    postgres_weaver: Weaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_unwritten", lambda _connection, ids: set(ids))

    _breaks(postgres_weaver, "enqueue × record on one stream", "I15")


@pytest.mark.merge
def test_a_deadlock_is_seen(postgres_weaver: Weaver) -> None:
    def lock_one_by_one(outbox: Outbox, ids: list[int], number: int) -> Callable[[], object]:
        mine = [select(message.c.id).where(message.c.id == each).with_for_update() for each in sorted(ids, reverse=number == 1)]
        return in_a_transaction(outbox, lambda connection: [connection.execute(each).all() for each in mine])

    found = postgres_weaver.weave(Pair("one way × the other", some(2), lock_one_by_one), MOST)

    print(found, *found.violations, sep="\n")
    assert "deadlock detected" in found.violations[0]
    assert "waits for ever" in found.violations[0]
