"""Eight producers, three workers, an operator who purges and somebody who looks, all on one database; nobody is killed.

No caller may ever hear of a lock, no message may arrive twice without a reason, and a worker may not grow.
"""

from __future__ import annotations

import time

from outbox import Outbox
from tests.ledger import history
from tests.ledger.bounds import Size, within
from tests.torture.course import Course
from tests.torture.ground import Ground, Template
from tests.torture.knobs import Knobs
from tests.torture.victim import Victim
from tests.torture.victims import outbox_of

GONE_AFTER = 15.0
PRODUCERS, WORKERS = 8, 3
#: Seconds between two transactions of a producer, on average.
PACE = 0.15
#: Seconds of a round, at most; and after how much of it a worker has all that it needs.
ROUND, WARM = 60.0, 0.4
#: What a worker may have more at the end than when it was warm.
MORE = Size(memory=16 * 1024, descriptors=24, threads=4)


def run(course: Course, kind: str, server: str | None = None) -> None:
    """Rounds until the time is over."""
    with Template.of(kind, course.folder, server) as template:
        while course.goes_on:
            one_round(course, template)


def one_round(course: Course, template: Template) -> None:
    """A minute of everybody at once, then the balance."""
    with course.round(template, lambda dice: Knobs.draw(dice, GONE_AFTER).busy()) as ground:
        for number in range(PRODUCERS):
            ground.start("produce", f"produce-{number}", messages=10**6, pace=PACE, dawdles=0.0)
        for number in range(WORKERS):
            ground.start("work", f"work-{number}")
        ground.start("operate", "operate-0")
        for each in ground.crew:
            ground.wait_for_work(each)
        length = min(ROUND, max(5.0, course.left))
        began = time.monotonic()
        look(ground, began + WARM * length)
        warm = sizes(ground)
        look(ground, began + length)
        grown = [words for each, size in sizes(ground).items() for words in within(size, most(warm[each]), each.name)]
        ground.drain()
        ground.found("I16", grown)
        waits = sorted(waits_of(ground))
        ground.counts["crowds"] += 1
        ground.counts["transactions in a crowd"] += len(waits)
        ground.most["slowest of a hundred transactions, in ms"] = round(1000 * waits[len(waits) * 99 // 100]) if waits else 0


def look(ground: Ground, until: float) -> None:
    """Look at everything that an operator's screen shows, until then."""
    outbox: Outbox = outbox_of(ground.story("look"))
    try:
        while time.monotonic() < until:
            ground.look_after()
            outbox.status()
            time.sleep(0.2)
    finally:
        outbox.close()


def sizes(ground: Ground) -> dict[Victim, Size]:
    return {each: Size.of(each.pid) for each in ground.those("work")}


def most(warm: Size) -> Size:
    """What one that was so large may become."""
    return Size(
        memory=(warm.memory or 0) + (MORE.memory or 0),
        descriptors=(warm.descriptors or 0) + (MORE.descriptors or 0),
        threads=(warm.threads or 0) + (MORE.threads or 0),
    )


def waits_of(ground: Ground) -> list[float]:
    """How long each transaction of a producer took that enqueued something."""
    began: dict[tuple[str, int], float] = {}
    took = []
    for line in history.lines(sorted(ground.folder.glob("produce*.jsonl"))):
        if line.operation == "enqueue" and line.kind == "invoke":
            began[line.process, line.step] = line.at
        elif line.operation == "enqueue" and line.kind == "ok":
            took.append(line.at - began[line.process, line.step])
    return took
