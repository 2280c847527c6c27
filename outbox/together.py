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

    __slots__ = ("answer", "ask", "error", "served", "turn")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.served = False
        self.answer: Answer
        self.error: BaseException | None = None
        self.turn = threading.Lock()  #: held until it is served, or is the one to serve
        self.turn.acquire()


class Together(Generic[Ask, Answer]):
    """What is asked while others are being served waits, and is then served as a whole: many commits become one.

    `serve` answers the first of those that ask, as many as it likes but one at least, in their order; what it raises is raised
    for all of them. `at_once` is how many may serve at the same time, each those that waited when it began.
    """

    def __init__(self, serve: Callable[[Sequence[Ask]], Sequence[Answer]], at_once: int = 1) -> None:
        self._serve = serve
        self._queue: list[_Place[Ask, Answer]] = []
        self._lock = threading.Lock()
        self._free = at_once

    def ask(self, ask: Ask) -> Answer:
        """The answer, from whoever serves first."""
        mine: _Place[Ask, Answer] = _Place(ask)
        with self._lock:
            first = self._free > 0
            if first:
                self._free -= 1
            else:
                self._queue.append(mine)
        if not first:
            mine.turn.acquire()
        if not mine.served:
            self._serve_all(mine)
        if mine.error is not None:
            raise mine.error
        return mine.answer

    def _serve_all(self, mine: _Place[Ask, Answer]) -> None:
        """Serve those who wait by now, of whom the first does it, and hand over to the next."""
        with self._lock:
            places, self._queue = [mine, *self._queue], []
        answers: Sequence[Answer] = ()
        error = None
        try:
            answers = self._serve([each.ask for each in places])
        except BaseException as raised:  # noqa: BLE001 (it is raised for each of them)
            error = raised
        served = places if error is not None else places[: len(answers)]
        for each, answer in zip(places, answers, strict=False):
            each.answer = answer
        for each in served:
            each.error, each.served = error, True
        with self._lock:
            waiting = places[len(served) :] + self._queue
            next_up, self._queue = waiting[:1], waiting[1:]
            if not next_up:
                self._free += 1
        for each in (*next_up, *served[1:]):
            each.turn.release()


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
