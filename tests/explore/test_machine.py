"""Random lives of an outbox go as the model says, on each kind of database; and mistakes made on purpose are found in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase

from outbox import migrate
from outbox.database import Database
from outbox.model import FINAL, State
from outbox.store import acting, claiming, recording
from tests.explore.breaking import FENCE, broken
from tests.explore.machine import live
from tests.explore.world import Place
from tests.factories import in_full

#: What is found is not made small here, which may take minutes: `machine(seed=...)` of machine.py does that.
FOUND: dict[str, Any] = {"derandomize": True, "phases": [Phase.generate]}
EVERY_DAY = FOUND | {"max_examples": 12, "stateful_step_count": 40}
ON_MERGE = FOUND | {"max_examples": in_full(100, 5), "stateful_step_count": 50}
#: A mistake is found, and not made small.
WANTED: dict[str, Any] = {"max_examples": 100, "stateful_step_count": 40, "phases": [Phase.generate]}


@pytest.fixture
def place(migrated_sqlite_url: str, tmp_path: Path) -> Iterator[Place]:
    with closing(Place(migrated_sqlite_url, tmp_path / "spool")) as place:
        yield place


def test_no_life_goes_wrong(place: Place) -> None:
    print(live(place, **EVERY_DAY))


@pytest.mark.merge
def test_no_life_goes_wrong_without_wal(migrated_sqlite_url: str, tmp_path: Path) -> None:
    with closing(Place(migrated_sqlite_url, tmp_path / "spool", journal="TRUNCATE")) as place:
        print(live(place, **ON_MERGE))

        with place.caller.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "truncate"


@pytest.mark.merge
def test_no_life_goes_wrong_on_postgres(postgres_url: str, tmp_path: Path) -> None:
    with closing(Database(postgres_url)) as database:
        migrate.upgrade(database)
    with closing(Place(postgres_url, tmp_path / "spool")) as place:
        print(live(place, **ON_MERGE))


# Mistakes that are made on purpose.


def _goes_wrong(place: Place, words: str, seed: int = 1) -> None:
    with pytest.raises(BaseException, match=words):
        live(place, seed=seed, **WANTED)


def test_a_message_that_does_not_wait_for_the_one_before_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, claiming._queue, "pending, loose)", "pending)")

    _goes_wrong(place, "of its stream is (pending|claimed)|two of one stream|although a person has paused it")


@pytest.mark.full  # it takes many lives
def test_a_worker_that_looks_only_behind_the_last_id_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    last = [0]
    waiting, mark_claimed = claiming.waiting, claiming.mark_claimed

    def behind(*given: Any, **more: Any) -> Any:
        found, instants = waiting(*given, **more)
        return [each for each in found if each.attempt or each.id > last[0]], instants

    def moving(connection: Any, worker: str, begun: Any, *given: Any) -> Any:
        last[0] = max(last[0], *(each.id for taken in begun.values() for each in taken))
        return mark_claimed(connection, worker, begun, *given)

    monkeypatch.setattr(claiming, "waiting", behind)
    monkeypatch.setattr(claiming, "mark_claimed", moving)

    _goes_wrong(place, "nothing stands in the way|is still pending")


@pytest.mark.full  # as the explorer finds every day
def test_a_replay_of_a_message_under_way_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(acting.FROM, "replay", FINAL | {State.CLAIMED})

    _goes_wrong(place, "IntegrityError|CheckViolation")


@pytest.mark.full  # as the explorer finds every day
def test_a_record_that_does_not_ask_for_its_claim_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, recording._settle, FENCE)

    _goes_wrong(place, "IntegrityError|messages, as they are")
