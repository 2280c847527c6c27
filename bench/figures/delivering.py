"""What a worker delivers over HTTP, from its own rows: from the first claim to the last answer written down."""

from __future__ import annotations

import sqlalchemy as sa

from bench.ground import Ground
from bench.harness import Slice
from outbox import Worker
from outbox.tables import delivery

#: A backlog is made of so many at least: so that what begins and ends a drain is a small part of it.
SMALLEST = 1000


def drained(ground: Ground, messages: int) -> float:
    """Messages a second of a real worker that finds so many waiting; putting them in is not counted."""
    ground.fill(messages)
    with ground.engine.begin() as connection:
        last = connection.execute(sa.select(sa.func.coalesce(sa.func.max(delivery.c.id), 0))).scalar_one()
        if ground.kind == "postgresql":
            connection.execute(sa.text("ANALYZE outbox_message"))  # a backlog that grew by itself has been looked at, too
    Worker(ground.outbox).run(until_idle=True)
    began, ended = sa.func.min(delivery.c.started_at), sa.func.max(delivery.c.finished_at)
    done = sa.func.sum(delivery.c.messages).filter(delivery.c.outcome == "delivered")
    with ground.engine.connect() as connection:
        row = connection.execute(sa.select(began, ended, done).where(delivery.c.id > last)).one()
    if row[2] != messages:
        raise RuntimeError(f"of {messages} messages {row[2] or 0} were delivered")
    return messages / (row[1] - row[0]).total_seconds()


def emptied(ground: Ground) -> None:
    """Nothing is in it any more, not even what Postgres keeps of deleted rows until somebody vacuums."""
    if ground.kind == "sqlite":
        ground.empty()
    else:
        with ground.engine.begin() as connection:
            connection.execute(sa.text("TRUNCATE outbox_attempt, outbox_delivery, outbox_message CASCADE"))


def draining(ground: Ground, guess: int, *, batch: int = 100) -> Slice:
    """Slices of `drained` on tables that are empty before each: as many whole batches as the last one managed in the time."""
    rate = float(guess)

    def slice_of(seconds: float) -> float:
        nonlocal rate
        emptied(ground)
        rate = drained(ground, max(round(rate * seconds / batch), -(-SMALLEST // batch)) * batch)
        return rate

    return slice_of
