"""The outbox of a worker that is a process of its own: `python -m outbox --app bench.idle_app:outbox worker`.

Where it is comes in the environment. On SIGUSR1 it writes down what it has cost so far, into the file BENCH_COST: seconds of
CPU, and each statement with how often it was executed. BEGIN, COMMIT, ROLLBACK and `PRAGMA data_version` do not count, nor
does what is asked of the driver without SQLAlchemy: how long SQLite waits for a lock, and how large its file is.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.ground import NAME
from outbox import EnosEvents, Outbox

_FREE = ("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA data_version")
executed: Counter[str] = Counter()


def _count(statement: str) -> None:
    words = " ".join(statement.split())
    if not words.startswith(_FREE):
        executed[words] += 1


@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def _hear(_connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
    _count(statement)


def _tell(_number: int, _frame: Any) -> None:
    path = Path(os.environ["BENCH_COST"])
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps({"cpu": time.process_time(), "executed": executed}))
    unfinished.rename(path)


if "BENCH_COST" in os.environ:
    signal.signal(signal.SIGUSR1, _tell)

_enos = EnosEvents(name=NAME, url=os.environ["BENCH_RECEIVER"], org_id="o1", allow_plain_http=True)
outbox = Outbox(os.environ["BENCH_DATABASE"], spool=os.environ["BENCH_SPOOL"], destinations=[_enos])
