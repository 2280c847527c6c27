"""SIGSTOP of workers for longer than the gone time, at any moment, then SIGCONT: what is late changes nothing."""

from __future__ import annotations

import time

import sqlalchemy as sa

from outbox.tables import worker
from tests.factories import held_up
from tests.torture.course import Course
from tests.torture.ground import Ground, Template
from tests.torture.kills import AIMED, JITTER, aim
from tests.torture.knobs import Knobs
from tests.torture.victim import Victim

GONE_AFTER = 0.6
#: Seconds that somebody is frozen for, at least; then until others have seen that they are gone, but no longer than this, and
#: not at all where one stands still in the middle of a transaction that keeps them from writing; and up to so much longer.
LONGER, AT_MOST, SPREAD = 1.05 * GONE_AFTER, 4.0, 0.4
#: Seconds between two strikes in which all are at work, on average.
AWAKE_FOR = 0.2
#: One pause in so many is longer than Postgres lets a transaction of ours stand still.
RARELY, DEEP = 40, 11.0
#: One frozen worker in so many is killed instead of being woken.
NEVER_WAKES = 15
ROUND = 40
WORKERS, PRODUCERS = 3, 2


def run(course: Course, kind: str, server: str | None = None) -> None:
    """Rounds of pauses until there were enough of them."""
    with Template.of(kind, course.folder, server) as template:
        while course.goes_on:
            one_round(course, template, deep=kind == "postgres")


def one_round(course: Course, template: Template, *, deep: bool) -> None:
    """Pauses, then peace, then the balance."""
    with course.round(template, lambda dice: Knobs.draw(dice, GONE_AFTER)) as ground:
        for number in range(WORKERS):
            ground.start("work", f"work-{number}")
        for number in range(PRODUCERS):
            ground.start("produce", f"produce-{number}")
        ground.start("operate", "operate-0")
        while ground.counts["pauses"] < ROUND and course.goes_on_with(ground):
            strike(ground, deep=deep)
        ground.drain()


def strike(ground: Ground, *, deep: bool) -> None:
    """Freeze one or two workers wherever they are, so that at least one sees that they are gone, and wake them again."""
    time.sleep(ground.dice.expovariate(1 / AWAKE_FOR))
    ground.look_after()
    feed(ground)
    victims = ground.dice.sample(ground.those("work"), ground.dice.choice((1, 2)))
    for each in victims:
        ground.wait_for_work(each)
    if ground.dice.random() < AIMED:
        aim(victims[0])
        time.sleep(ground.dice.uniform(0, JITTER))
    for each in victims:
        each.freeze()
    time.sleep(LONGER)
    rarely = deep and ground.dice.randrange(RARELY) == 0
    ends = time.monotonic() + (DEEP if rarely else AT_MOST - LONGER)
    stuck = held_up(ground.database.engine)
    ground.counts["paused in a transaction"] += stuck
    while (rarely or not stuck) and time.monotonic() < ends and not all(is_gone(ground, each) for each in victims):
        time.sleep(0.05)
    time.sleep(ground.dice.uniform(0, SPREAD))
    for each in victims:
        wake(ground, each)


def is_gone(ground: Ground, victim: Victim) -> bool:
    """Whether others have seen that a worker is gone."""
    alive = sa.select(worker.c.id).where(worker.c.pid == victim.pid, worker.c.gone.is_(False))
    with ground.database.read() as connection:
        return connection.execute(alive).first() is None


def wake(ground: Ground, victim: Victim) -> None:
    """SIGCONT, or its end."""
    under_way = any(line.operation == "send" for line in victim.under_way())
    ground.counts["pauses"] += 1
    ground.counts["declared gone in a pause"] += is_gone(ground, victim)
    ground.counts["paused in an upload"] += under_way
    if ground.dice.randrange(NEVER_WAKES) == 0:
        ground.kill(victim)
        ground.again(victim)
    else:
        victim.thaw()


def feed(ground: Ground) -> None:
    """A producer that has said all that it had to say begins anew."""
    for each in ground.those("produce"):
        if each.at_work and ground.dice.random() < 0.15:
            ground.kill(each)
            ground.again(each)
