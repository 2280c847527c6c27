"""Every order of steps from one moment, breadth first: equal moments are explored once, and what is found is shortest."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from outbox.store import breaker, living
from tests.explore import laws
from tests.explore.acts import Player, Scope, offered
from tests.explore.moment import Moment, Named, Order, Process, Step
from tests.explore.stage import Memory, Rows, Stage
from tests.factories import NOW


@dataclass(frozen=True)
class Violation:
    """A law that was broken, and how it came to that."""

    law: str
    trace: tuple[Step, ...]

    def __str__(self) -> str:
        return f"after {len(self.trace)} steps: {self.law}\n" + "\n".join(f"  {each}" for each in self.trace)


@dataclass
class Explored:
    """What an exploration came to."""

    scope: str
    states: int = 0
    transitions: int = 0
    schedules: int = 0  #: orders of steps that the states stand for
    played: int = 0  #: transactions that were really taken
    depth: int = 0
    whole: bool = False  #: nothing new can come, however many steps follow
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)

    def __str__(self) -> str:
        ends = ", and no further step leads to a new one" if self.whole else ""
        return (
            f"{self.scope}: explored {self.states:,} states, {self.transitions:,} transitions ({self.schedules:,} schedules) "
            f"to depth {self.depth}{ends}: {len(self.violations)} violations; "
            f"{self.played:,} transactions, {self.seconds:.1f} s"
        )


@dataclass
class _Seen:
    moment: Moment
    ways: int
    came_by: tuple[_Seen, Step] | None = None
    were: tuple[int, ...] = (0, 1)  #: which of the workers of the moment before each worker was

    @property
    def trace(self) -> tuple[tuple[Step, ...], tuple[int, ...]]:
        """How it came to this, and which of the workers of the beginning each worker is."""
        if self.came_by is None:
            return (), self.were
        steps, who = self.came_by[0].trace
        return (*steps, told(self.came_by[1], who)), tuple(who[each] for each in self.were)

    def followed_by(self, step: Step) -> tuple[Step, ...]:
        steps, who = self.trace
        return (*steps, told(step, who))


def told(step: Step, who: tuple[int, ...]) -> Step:
    """A step as it is told to whoever knows the workers from the beginning."""
    return step if step.who < 0 else step._replace(who=who[step.who])


def explore(stage: Stage, scope: Scope, depth: int, *, seconds: float = math.inf) -> Explored:
    """Take every order of so many steps; ends at the first violation, or when its time is over."""
    search = _Search(stage, scope)
    with stage.playing(), _silence():
        return search.run(depth, time.process_time() + seconds)


class Names:
    """The rows of a database with the names of their columns, made once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._known: dict[Rows, Named] = {}

    def __call__(self, rows: Rows) -> Named:
        found = self._known.get(rows)
        if found is None:
            found = self._known[rows] = self._stage.named(rows)
        return found


class _Search:
    """One exploration: layer by layer, so that whatever is found is found by the fewest steps."""

    def __init__(self, stage: Stage, scope: Scope) -> None:
        self._stage = stage
        self._scope = scope
        self._named = Names(stage)
        self._player = Player(stage, scope, self._named)
        self._order = Order(stage.columns, self._named)
        self._seen: set[Any] = set()
        self._found = Explored(scope.name)

    def run(self, depth: int, until: float) -> Explored:
        began, found = time.process_time(), self._found
        moment, key, were = self._order.put(_beginning(self._stage, self._scope))
        self._seen.add(key)
        layer = {key: _Seen(moment, 1, None, were)}
        while layer and found.depth < depth and not found.violations and time.process_time() < until:
            found.depth += 1
            layer = self._next(layer.values(), until)
            self._seen.update(layer)
        found.whole = not layer and not found.violations
        found.states, found.played, found.seconds = len(self._seen), self._player.played, time.process_time() - began
        return found

    def _next(self, layer: Iterable[_Seen], until: float) -> dict[Any, _Seen]:
        """The moments that are one step further, and new."""
        found, following = self._found, dict[Any, _Seen]()
        for each in layer:
            for step in offered(each.moment, self._named(each.moment.rows), self._scope):
                found.transitions += 1
                found.schedules += each.ways
                after, laws_broken = self._take(each.moment, step)
                if laws_broken:
                    found.violations = [Violation(law, each.followed_by(step)) for law in laws_broken]
                    return following
                if after == each.moment:
                    continue
                after, key, were = self._order.put(after)
                if key in following:
                    following[key].ways += each.ways
                elif key not in self._seen:
                    following[key] = _Seen(after, each.ways, (each, step), were)
            if time.process_time() > until:
                break
        return following

    def _take(self, moment: Moment, step: Step) -> tuple[Moment, list[str]]:
        try:
            after = self._player.take(moment, step)
        except SQLAlchemyError as error:  # such as a CHECK, which is a law too
            return moment, [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
        if after == moment:
            return after, []
        return after, laws.broken(moment, self._named(moment.rows), step, after, self._named(after.rows))


def _beginning(stage: Stage, scope: Scope) -> Moment:
    """Two workers that have just arrived, and what there is for them to do."""
    stage.load(tuple(() for _ in stage.rows()))
    with stage.begin() as connection:
        breaker.declare(connection, ["enos"])
        for number in range(scope.workers):
            living.register(connection, f"w{number}", "host", 1, NOW)
    scope.prepare(stage)
    processes = tuple(Process(Memory(f"w{number}")) for number in range(scope.workers))
    return Moment(stage.rows(), processes)


@contextmanager
def _silence() -> Iterator[None]:
    """What the product would tell its operator a thousand times."""
    logger = logging.getLogger("outbox")
    level, logger.level = logger.level, logging.CRITICAL + 1
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    collects = gc.isenabled()
    gc.disable()  # it would look at millions of tuples, again and again, of which none is rubbish
    try:
        yield
    finally:
        logger.setLevel(level)
        if collects:
            gc.enable()
