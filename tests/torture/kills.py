"""SIGKILL of producers, workers and operators, at any moment, again and again."""

from __future__ import annotations

import time

from tests.torture.course import Course
from tests.torture.ground import Ground, Template
from tests.torture.knobs import Knobs
from tests.torture.victim import Victim

GONE_AFTER = 1.0
#: Seconds between two kills, on average.
PAUSE = 0.05
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
CREW = (("produce", 2), ("work", 2), ("operate", 1))


def run(course: Course, kind: str, server: str | None = None) -> None:
    """Rounds of kills until there were enough of them."""
    with Template.of(kind, course.folder, server) as template:
        rounds = 0
        while course.goes_on:
            one_round(course, template, LONG_ROUND if rounds == 0 else ROUND)
            rounds += 1


def one_round(course: Course, template: Template, kills: int) -> None:
    """Kills, then peace, then the balance."""
    with course.round(template, lambda dice: Knobs.draw(dice, GONE_AFTER)) as ground:
        for program, many in CREW:
            for number in range(many):
                ground.start(program, f"{program}-{number}")
        for _ in range(kills):
            if not course.goes_on_with(ground):
                break
            strike(ground)
        ground.drain()


def strike(ground: Ground) -> None:
    """Kill one of them who is at work, whatever it does at that moment; its next life begins at once."""
    time.sleep(ground.dice.expovariate(1 / PAUSE))
    ground.look_after()
    if ground.dice.random() < ALL_AT_ONCE:
        strike_all(ground)
        return
    victim = chosen(ground)
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


def chosen(ground: Ground) -> Victim:
    """Producers and workers in equal parts, and now and then an operator."""
    program = ground.dice.choices(("produce", "work", "operate"), (45, 45, 10))[0]
    return ground.dice.choice(ground.those(program))


def aim(victim: Victim) -> None:
    """Wait a while for a moment at which something is at stake."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and not any(words in victim.last_said for words in AT_STAKE[victim.program]):
        time.sleep(0.0005)
