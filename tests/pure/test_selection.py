"""A selection in words, and as the text that an interrupted act goes on with."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from outbox import Reason, Selection, State

INSTANTS = st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
SELECTIONS = st.builds(
    Selection,
    ids=st.lists(st.integers(1, 2**63 - 1)).map(tuple),
    keys=st.lists(st.text()).map(tuple),
    destination=st.none() | st.text(min_size=1),
    states=st.lists(st.sampled_from(State)).map(tuple),
    reasons=st.lists(st.sampled_from(Reason)).map(tuple),
    ordering_key=st.none() | st.text(min_size=1),
    since=INSTANTS,
    until=INSTANTS,
    text=st.none() | st.text(min_size=1),
    limit=st.none() | st.integers(1, 10**9),
)


@given(SELECTIONS)
def test_it_comes_back_as_it_was_kept(selection: Selection) -> None:
    assert selection == Selection.from_json(selection.as_json())


@given(SELECTIONS)
def test_it_says_something_of_everything_that_narrows_it(selection: Selection) -> None:
    assert (str(selection) == "everything") == (not selection.narrows and selection.limit is None)


def test_a_limit_alone_narrows_nothing() -> None:
    assert not Selection(limit=10).narrows
    assert Selection(keys=("a",)).narrows


def test_an_empty_list_narrows_nothing() -> None:
    assert not Selection(ids=[], states=[]).narrows  # type: ignore[arg-type]


def test_it_reads_as_a_person_would_say_it() -> None:
    since = datetime(2026, 11, 22, 18, tzinfo=UTC)
    selection = Selection(
        destination="enos", states=(State.DEAD,), reasons=(Reason.REJECTED,), since=since, text="quota", limit=5
    )

    assert (
        "destination enos; state dead; reason rejected; since 2026-11-22 18:00:00Z; with 'quota' in its answer; at most 5"
        == str(selection)
    )
