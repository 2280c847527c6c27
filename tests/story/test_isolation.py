"""One bad message among ten thousand good ones: it ends dead by name, and nobody else pays for it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Sequence

import pytest
import sqlalchemy as sa

from outbox import Outbox, Policy, Worker
from outbox.payload import text
from outbox.tables import attempt, message
from tests.factories import event, message_values, reasons
from tests.story.conftest import Place, eventually

GOOD, BAD, BATCH = 10_000, 10, 100
WORDS = "Model validate failed"


def put_all(place: Place, keys: Sequence[str]) -> None:
    """Messages as `enqueue` would have written them, all due; the door is another story."""
    rows = []
    for key in keys:
        written = text(event(key))
        rows.append(
            message_values(
                key=key,
                payload=written,
                size=len(written) + 1,
                created_at=place.clock.wall,
                due_at=place.clock.wall,
            )
        )
        place.acknowledge(key)
    with place.database.begin() as connection:
        connection.execute(sa.insert(message), rows)


def where(placement: str, total: int = GOOD + BAD) -> set[int]:
    match placement:
        case "spread":
            return set(range(total // BAD // 2, total, total // BAD))
        case "adjacent":
            return set(range(total // 2 - 5, total // 2 + 5))
        case "first":
            return set(range(BAD))
        case "last":
            return set(range(total - BAD, total))
        case "random":
            seed = random.randrange(2**32)
            print(f"random with seed {seed}")
            return set(random.Random(seed).sample(range(total), BAD))
        case _:
            raise AssertionError(placement)


@pytest.mark.parametrize("keep_good", [False, True])
@pytest.mark.parametrize("placement", ["spread", "adjacent", "first", "last", "random"])
@pytest.mark.parametrize("how", ["hand", "workers"])
def test_measure(place: Place, placement: str, keep_good: bool, how: str) -> None:
    t0 = time.perf_counter()
    bad = where(placement)
    keys = [f"{'bad' if n in bad else 'good'}-{n}" for n in range(GOOD + BAD)]
    put_all(place, keys)
    place.receiver.refuse(lambda s: s["assetId"].startswith("bad"), 1204, WORDS, keep_good=keep_good)
    t1 = time.perf_counter()
    if how == "hand":
        place.hand(place.outbox(clock=place.clock)).turn_while_it_moves(1000)
    else:
        workers = [Worker(place.outbox(), poll=0.02) for _ in range(2)]
        for w in workers:
            w.start()
        place.receiver.wait_for(lambda r: len(r.accepted) >= GOOD - 300 or len(r.requests) > 1000, 60)
        def left():
            with place.database.read() as c:
                return c.execute(sa.select(sa.func.count()).select_from(message).where(message.c.finished_at.is_(None))).scalar_one()
        eventually(lambda: left() == 0, 60)
        for w in workers:
            w.stop()
            w.join()
    t2 = time.perf_counter()
    n = len(place.receiver.requests)
    print(f"RESULT {placement} keep={keep_good} {how}: requests {n}; put {t1-t0:.1f} run {t2-t1:.1f}")
    assert len(reasons(place.database)) == BAD
    place.check()
    print(f"RESULT check {time.perf_counter()-t2:.1f}")
