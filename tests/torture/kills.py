"""SIGKILL of producers, workers and operators, at any moment, again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.torture.course import Course
from tests.torture.ground import Ground, Template
from tests.torture.knobs import Knobs
from tests.torture.victim import Victim

GONE_AFTER = 1.0
#: Kills until everything is looked at and begun afresh. The first round is long, so that its database grows.
ROUND, LONG_ROUND = 60, 250
#: How many strikes are at all of them.
ALL_AT_ONCE = 0.04
#: How many kills wait for a moment at which something is at stake, for how long, and how much later they strike, in seconds.
AIMED, PATIENCE, JITTER = 0.6, 0.5, 0.003
#: The last line of somebody at such a moment: an upload, a commit, an act has begun.
AT_STAKE = {
    "work": ('"kind": "invoke", "operation": "send"',),
    "produce": ('"operation": "commit"',),
    "operate": ('"kind": "invoke"',),
}


@dataclass(frozen=True)
class Scene:
    """Who is there, how often each kind is struck, and the seconds between two strikes, on average."""

    crew: Mapping[str, int]
    struck: Mapping[str, float]
    pause: float


WHOLE = Scene({"produce": 2, "work": 2, "operate": 1}, {"produce": 45, "work": 45, "operate": 10}, 0.05)
#: What takes a few seconds.
BRIEF = Scene({"produce": 1, "work": 1}, {"produce": 60, "work": 40}, 0.02)


def run(course: Course, kind: str, server: str | None = None, scene: Scene = WHOLE) -> None:
    """Rounds of kills until there were enough of them."""
    with Template.of(kind, course.folder, server) as template:
        first = True
        while course.goes_on:
            one_round(course, template, scene, LONG_ROUND if first else ROUND)
            first = False


def one_round(course: Course, template: Template, scene: Scene, kills: int) -> None:
    """Kills, then peace, then the balance."""
    with course.round(template, lambda dice: Knobs.draw(dice, GONE_AFTER)) as ground:
        for program, many in scene.crew.items():
            for number in range(many):
                ground.start(program, f"{program}-{number}")
        while ground.counts["kills"] < kills and course.goes_on_with(ground):
            strike(ground, scene)
        ground.drain()


def strike(ground: Ground, scene: Scene) -> None:
    """Kill one of them who is at work, whatever it does at that moment; its next life begins at once."""
    time.sleep(ground.dice.expovariate(1 / scene.pause))
    ground.look_after()
    if ground.dice.random() < ALL_AT_ONCE:
        strike_all(ground)
        return
    program = ground.dice.choices(list(scene.struck), list(scene.struck.values()))[0]
    victim = ground.dice.choice(ground.those(program))
    ground.wait_for_work(victim)
    if ground.dice.random() < AIMED:
        aim(victim)
        time.sleep(ground.dice.uniform(0, JITTER))
    ground.kill(victim)
    ground.again(victim)


def strike_all(ground: Ground) -> None:
    """Nobody is left, and whoever comes first finds everything as it was left."""
    crew = list(ground.crew)
    for each in crew:
        ground.wait_for_work(each)
    for each in crew:
        ground.kill(each)
    for each in crew:
        ground.again(each)
    ground.counts["kills of all at once"] += 1


def aim(victim: Victim) -> None:
    """Wait a while for a moment at which something is at stake."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and not any(words in victim.last_said for words in AT_STAKE[victim.program]):
        time.sleep(0.0005)
