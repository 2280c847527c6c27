"""Threads that ask for the same at the same time are served together, by the first of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
Made = TypeVar("Made")


class _Place(Generic[Ask, Answer]):
    """One who waits in the queue."""

    __slots__ = ("answer", "ask", "error", "served")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.served = False
        self.answer: Answer
        self.error: BaseException | None = None


class Together(Generic[Ask, Answer]):
    """What is asked while others are being served waits, and is then served as a whole: many commits become one.

    `serve` answers the first of those that ask, as many as it likes but one at least, in their order; what it raises is raised
    for all of them.
    """

    def __init__(self, serve: Callable[[Sequence[Ask]], Sequence[Answer]]) -> None:
        self._serve = serve
        self._queue: list[_Place[Ask, Answer]] = []
        self._changed = threading.Condition()
        self._busy = False

    def ask(self, ask: Ask) -> Answer:
        """The answer, from whoever serves first."""
        mine: _Place[Ask, Answer] = _Place(ask)
        with self._changed:
            self._queue.append(mine)
        while self._must_serve(mine):
            self._serve_all()
        if mine.error is not None:
            raise mine.error
        return mine.answer

    def _must_serve(self, mine: _Place[Ask, Answer]) -> bool:
        """Wait for the answer, or for nobody to be serving."""
        with self._changed:
            self._changed.wait_for(lambda: mine.served or not self._busy)
            if mine.served:
                return False
            self._busy = True
            return True

    def _serve_all(self) -> None:
        with self._changed:
            places = self._queue[:]
        answers: Sequence[Answer] = ()
        error = None
        try:
            answers = self._serve([each.ask for each in places])
        except BaseException as raised:  # noqa: BLE001 (it is raised for each of them)
            error = raised
        with self._changed:
            for each in places if error is not None else places[: len(answers)]:
                each.error, each.served = error, True
            for each, answer in zip(places, answers, strict=False):
                each.answer = answer
            self._queue = [each for each in self._queue if not each.served]
            self._busy = False
            self._changed.notify_all()


class ForEach(dict[str, Made]):
    """One for each name, made when it is first asked for."""

    def __init__(self, make: Callable[[str], Made]) -> None:
        super().__init__()
        self._make = make
        self._lock = threading.Lock()

    def __missing__(self, name: str) -> Made:
        with self._lock:
            if name not in self:
                self[name] = self._make(name)
            return self[name]
