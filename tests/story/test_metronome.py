"""The metronome: a loop runs when it is time, whatever the round before it is still at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from outbox.metronome import Loop, Metronome


@dataclass(eq=False)
class Reluctant(Loop):
    """A loop whose first round, once it has armed the next one, does not end before that has come."""

    ended: threading.Event = field(default_factory=threading.Event)

    def rests(self, pause: float | None) -> None:
        if not self.ended.is_set():
            self.ended.wait(10)


@pytest.fixture
def metronome() -> Iterator[Metronome]:
    stop = threading.Event()
    made = Metronome(stop, lambda loop: None, lambda loop, error: None)
    yield made
    stop.set()
    made.shut_down()


def test_a_round_that_is_due_before_the_last_one_has_ended_is_not_lost(metronome: Metronome) -> None:
    rounds: list[int] = []

    def take() -> float:
        rounds.append(len(rounds))
        if len(rounds) == 2:
            loop.ended.set()
        return 0.001

    loop = Reluctant("loop", take, 60, 60)
    other = Loop("other", lambda: None, None, 60)  # a thread more
    metronome.start([loop, other])

    assert loop.ended.wait(5), "nobody watches here: a firing that is lost stays lost"
