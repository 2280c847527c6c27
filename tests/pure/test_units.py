"""Durations and sizes, as people write and read them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("2h", 7200),
        ("7d", 604_800),
        ("1w", 604_800),
        ("1h30m", 5400),
        ("0.5h", 1800),
        (" 2 H ", 7200),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert timedelta(seconds=seconds) == units.duration(text)


@pytest.mark.parametrize("text", ["", "5", "m", "5 minutes", "h2", "-5m", "5m,", "1e3s", "٣h", "9999999999999w"])
def test_what_is_no_duration_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        units.duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1 KiB", 1024),
        ("20 GiB", 20 * 2**30),
        ("1.5MB", 1_500_000),
        ("2 kB", 2000),
        ("1TiB", 2**40),
        ("7b", 7),
    ],
)
def test_a_size_is_read(text: str, count: int) -> None:
    assert count == units.size(text)


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 PiB", "1 K", "1,5 MB", "ten"])
def test_what_is_no_size_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        units.size(text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (273_600, "3 d 4 h"),
        (-61, "-1 min 1 s"),  # two clocks that do not agree
    ],
)
def test_a_length_of_time_is_told_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert words == units.in_words(timedelta(seconds=seconds)) == units.in_words(seconds)


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**51, "2048.0 TiB")]
)
def test_bytes_are_told_in_a_unit_that_can_be_read(count: int, words: str) -> None:
    assert words == units.bytes_in_words(count)


@given(st.integers(0, 10**9))
def test_whole_seconds_survive(seconds: int) -> None:
    assert timedelta(seconds=seconds) == units.duration(f"{seconds}s")
