"""Names: what is new each time, and in the order of time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from uuid import UUID

import pytest

from outbox.ambient import several, uuid7


@pytest.mark.parametrize("count", [0, 1, 2, 500])
def test_several_ids_are_what_as_many_by_themselves_would_be(count: int) -> None:
    began = time.time_ns() // 1_000_000

    found = several(uuid7, count)

    ended = time.time_ns() // 1_000_000
    assert count == len(set(found))
    for each in (UUID(text) for text in found):
        assert (7, "specified in RFC 4122") == (each.version, each.variant)
        assert began <= each.int >> 80 <= ended


@pytest.mark.parametrize(
    "make", [lambda: [uuid7(5) for _ in range(2000)], lambda: several(uuid7, 2000)], ids=["each", "together"]
)
def test_every_bit_of_an_id_that_tells_nothing_is_thrown_anew(make: Callable[[], list[str]]) -> None:
    found = [int(text, 16) for text in make()]

    thrown = sum(1 << at for at in range(80) if len({each >> at & 1 for each in found}) == 2)

    assert 0x0FFF_3FFF_FFFF_FFFF_FFFF == thrown


def test_ids_of_somebody_elses_are_asked_for_one_by_one() -> None:
    numbers = itertools.count()

    assert ["0", "1", "2"] == several(lambda: str(next(numbers)), 3)
