"""An upgrade that dies: `python -m tests.story.upgrade_programs`, with what to do as JSON in the environment variable STORY."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import sqlalchemy as sa

from outbox import migrate
from outbox.database import Database


def upgrade_until_killed(url: str, at: int) -> int:
    """Upgrade a database, and die by kill -9 at the n-th point; how many points there were.

    Points are before each statement, before the COMMIT and after it.
    """
    database, points = Database(url), 0

    def point(*_: Any) -> None:
        nonlocal points
        points += 1
        if points == at:
            os.kill(os.getpid(), signal.SIGKILL)

    database.create()
    for engine in {id(each): each for each in (database.engine, database._reader) if each is not None}.values():
        sa.event.listen(engine, "before_cursor_execute", point)
        sa.event.listen(engine, "commit", point)
    migrate.upgrade(database)
    point()
    database.close()
    return points


if __name__ == "__main__":
    told = json.loads(os.environ["STORY"])
    print(upgrade_until_killed(told["database"], told["at"]), flush=True)
