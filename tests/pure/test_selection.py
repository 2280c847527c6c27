"""A selection in words, and as the text that an interrupted act goes on with."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import Reason, Refused, Selection, State

INSTANTS = st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
SPANS = st.tuples(INSTANTS, INSTANTS).filter(lambda span: None in span or span[0] <= span[1])  # type: ignore[operator]
SELECTIONS = st.builds(
    lambda span, **said: Selection(since=span[0], until=span[1], **said),
    span=SPANS,
    ids=st.lists(st.integers(1, 2**63 - 1)).map(tuple),
    keys=st.lists(st.text()).map(tuple),
    destination=st.none() | st.text(min_size=1),
    states=st.lists(st.sampled_from(State)).map(tuple),
    reasons=st.lists(st.sampled_from(Reason)).map(tuple),
    ordering_key=st.none() | st.text(min_size=1),
    text=st.none() | st.text(min_size=1),
    limit=st.none() | st.integers(1, 10**9),
)


@given(SELECTIONS)
def test_it_comes_back_as_it_was_kept(selection: Selection) -> None:
    assert selection == Selection.from_json(selection.as_json())


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"what": 1}', '{"ids": 7}', '{"states": ["lost"]}', '{"limit": Infinity}'])
def test_what_nobody_kept_is_refused_in_one_of_a_few_ways(text: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError, OverflowError)):
        Selection.from_json(text)


@given(SELECTIONS)
def test_it_says_something_of_everything_that_narrows_it(selection: Selection) -> None:
    assert (str(selection) == "everything") == (not selection.narrows and selection.limit is None)


def test_a_span_the_wrong_way_round_is_refused() -> None:
    one, two = datetime(2026, 11, 22, 18, tzinfo=UTC), datetime(2026, 11, 22, 19, tzinfo=UTC)

    with pytest.raises(Refused, match=r"since: 2026-11-22 19:00.* is later than until, 2026-11-22 18:00"):
        Selection(since=two, until=one)

    assert (one, one) == (Selection(since=one, until=one).since, Selection(since=one, until=one).until)


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
