"""Threads that ask at the same moment are served together, each with its own answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from outbox.together import ForEach, Together


class Served:
    """Doubles numbers; the first call waits until it is let go, so that others come together behind it."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.calls: list[list[int]] = []
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, asks: Sequence[int]) -> list[int]:
        self.calls.append(list(asks))
        self.begun.set()
        assert self.go.wait(10)
        if -1 in asks:
            raise LookupError("nobody doubles that")
        return [2 * each for each in asks][: self.most]


def ask_together(served: Served, *numbers: int) -> list[int | BaseException]:
    """The first asks alone, the others while it is being served; what each got."""
    together = Together(served)
    waiting = threading.Barrier(len(numbers))

    def ask(number: int) -> int:
        waiting.wait(10)
        return together.ask(number)

    with ThreadPoolExecutor(len(numbers)) as pool:
        first = pool.submit(together.ask, numbers[0])
        assert served.begun.wait(10)
        others = [pool.submit(ask, each) for each in numbers[1:]]
        waiting.wait(10)
        while len(together._queue) < len(numbers) - 1:  # they are on their way
            pass
        served.go.set()
        return [each.exception(10) or each.result(10) for each in (first, *others)]


def test_who_comes_while_another_is_served_is_served_with_all_who_came() -> None:
    served = Served()

    assert [2, 4, 6, 8] == ask_together(served, 1, 2, 3, 4)

    assert [[1], [2, 3, 4]] == [sorted(each) for each in served.calls]


def test_who_is_not_answered_is_served_with_the_next() -> None:
    served = Served(most=1)

    assert [2, 4, 6, 8] == ask_together(served, 1, 2, 3, 4)

    assert [1, 3, 2, 1] == [len(each) for each in served.calls]


def test_an_error_is_raised_for_all_whom_it_concerns_and_for_nobody_else() -> None:
    answers = ask_together(Served(), 1, -1, 3)

    assert answers[0] == 2
    assert [LookupError, LookupError] == [type(each) for each in answers[1:]]


def test_after_an_error_the_next_one_is_served() -> None:
    served = Served()
    served.go.set()
    together = Together(served)
    with pytest.raises(LookupError):
        together.ask(-1)

    assert together.ask(4) == 8


def test_there_is_one_for_each_name() -> None:
    made: list[str] = []
    each: ForEach[list[str]] = ForEach(lambda name: made.append(name) or [name])  # type: ignore[func-returns-value]

    assert each["a"] is each["a"]
    assert each["b"] is not each["a"]
    assert ["a", "b"] == made
