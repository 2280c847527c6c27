"""Every order of what two workers and an operator may do, up to a bound: none of them breaks an invariant of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from outbox.dispatcher import Dispatcher
from outbox.model import State
from outbox.store import acting, claiming, living, recording
from tests.explore import scopes
from tests.explore.acts import Scope
from tests.explore.breaking import FENCE, broken
from tests.explore.explorer import Explored, explore
from tests.explore.stage import Stage
from tests.factories import in_full


@pytest.fixture(scope="module")
def stage(migrated_sqlite: Path) -> Iterator[Stage]:
    with scopes.staged(migrated_sqlite) as stage:
        yield stage


def test_no_order_of_two_workers_and_one_message_breaks_a_law(stage: Stage) -> None:
    _none_breaks_a_law(explore(stage, scopes.CRASHES, 10))


def test_no_order_with_a_database_that_goes_away_breaks_a_law(stage: Stage) -> None:
    _none_breaks_a_law(explore(stage, scopes.TROUBLES, 8))


def test_no_order_with_an_operator_breaks_a_law(stage: Stage) -> None:
    _none_breaks_a_law(explore(stage, scopes.PEOPLE, 7))


def test_no_order_of_two_messages_of_a_stream_breaks_a_law(stage: Stage) -> None:
    _none_breaks_a_law(explore(stage, scopes.STREAM, 5))


def test_no_order_of_a_batch_of_two_breaks_a_law(stage: Stage) -> None:
    _none_breaks_a_law(explore(stage, scopes.BATCH, 5))


def test_no_order_of_the_two_threads_of_a_worker_breaks_a_law(stage: Stage) -> None:
    found = explore(stage, scopes.THREADS, 100)

    _none_breaks_a_law(found)
    assert found.whole, "there are more orders than expected"


@pytest.mark.merge
@pytest.mark.parametrize(
    ("scope", "depth"),
    [
        (scopes.EVERYTHING, in_full(9, 5)),
        pytest.param(scopes.CRASHES, 13, marks=pytest.mark.full),
        pytest.param(scopes.TROUBLES, 12, marks=pytest.mark.full),
        (scopes.STREAM, in_full(9, 6)),
        pytest.param(scopes.BATCH, 9, marks=pytest.mark.full),
    ],
    ids=lambda value: value.name if isinstance(value, Scope) else str(value),
)
def test_no_order_breaks_a_law_much_deeper(stage: Stage, scope: Scope, depth: int) -> None:
    _none_breaks_a_law(explore(stage, scope, depth))


def _none_breaks_a_law(found: Explored) -> None:
    print(found)
    assert not found.violations, found.violations[0]


# Each law is broken on purpose, and the explorer says how it came to that.


def _breaks_a_law(stage: Stage, scope: Scope, steps: str, law: str, within: int = 12) -> None:
    found = explore(stage, replace(scope, steps=frozenset(steps.split(", ")), most={}), within)

    print(found, *found.violations, sep="\n")
    assert found.violations, "no order of the steps broke a law"
    assert any(law in each.law for each in found.violations)


def test_without_the_fence_a_worker_writes_over_its_successors_claim(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, recording._settle, FENCE)

    _breaks_a_law(stage, scopes.CRASHES, "claims, ok, lost, looks around, rescues, crashes, beats", "IntegrityError")


@pytest.mark.full
@pytest.mark.parametrize("whose", [each for each in FENCE.splitlines()[1:] if "#" not in each])
def test_half_a_fence_is_enough_as_long_as_identities_and_deliveries_are_new(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    broken(monkeypatch, recording._settle, whose)

    _none_breaks_a_law(explore(stage, scopes.CRASHES, in_full(9, 8)))


def test_a_rescue_of_the_living_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, living.deliveries_of_the_gone, "delivery.c.worker.not_in(alive), ")

    _breaks_a_law(stage, scopes.CRASHES, "claims, ok, rescues", "I7")


def test_a_replay_of_a_claimed_message_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(acting.FROM, "replay", frozenset(State))

    _breaks_a_law(stage, scopes.PEOPLE, "claims, ok, replays", "IntegrityError")


def test_a_cancelled_claim_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(acting.FROM, "cancel", frozenset(State))

    _breaks_a_law(stage, scopes.PEOPLE, "claims, ok, cancels", "CHECK")


def test_a_worker_that_is_declared_gone_after_it_has_beaten_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, living.declare_gone, "worker.c.beat == seen, ")

    _breaks_a_law(stage, scopes.CRASHES, "claims, looks around, beats", "has beaten since")


def test_a_beat_of_one_who_is_gone_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, living._raise_beat, ", worker.c.gone.is_(False)")

    _breaks_a_law(stage, scopes.CRASHES, "claims, looks around, beats", "that is gone beats")


def test_a_claim_of_one_who_is_gone_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, claiming._outlook, ", worker.c.gone.is_(False)")

    _breaks_a_law(stage, scopes.CRASHES, "claims, looks around", "I6")


def test_a_message_that_does_not_wait_for_the_one_before_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, claiming._queue, "pending, loose)", "pending)")

    _breaks_a_law(stage, scopes.STREAM, "claims, sends, ok", "I9")


def test_an_outcome_that_is_forgotten_since_it_could_not_be_recorded_is_seen(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, Dispatcher._record_or_keep, "self._unrecorded.append(result)", "pass")

    _breaks_a_law(stage, scopes.TROUBLES, "claims, ok, trouble, releases, records what is left", "I15")


def test_a_release_of_what_is_in_hand_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, Dispatcher.release_unheld, "[each for each in ours if each not in self._held]", "ours")

    _breaks_a_law(stage, scopes.TROUBLES, "claims, ok, releases", "I7")


def test_a_release_between_a_commit_and_the_news_of_it_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, Dispatcher.release_unheld, "[] if self._claiming else [", "[")

    _breaks_a_law(stage, scopes.THREADS, "claims, ok, releases", "I7")


def test_a_request_before_its_claim_is_committed_is_seen(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = """\
    batch = self._claiming_for[name].ask(lanes)
    if batch is None:
        return False
    verdict, trace_id = self._deliver(batch, began)
"""
    late = """\
    with self._claim_under_way() as hold, self._database.begin() as connection:
        batch = self._claims.claim_for(connection, name, [lanes])[0]
        if batch is None:
            return False
        hold.append(batch.delivery)
        verdict, trace_id = self._deliver(batch, began)
"""
    broken(monkeypatch, Dispatcher.turn, usual, late)

    _breaks_a_law(stage, scopes.CRASHES, "claims, ok", "I11")
