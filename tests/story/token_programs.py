"""A worker with a token as a process of its own, that begins when it is told to: `python -m tests.story.token_programs`.

What to do comes as JSON in the environment variable STORY. It says `ready`, reads the instant of the monotonic clock at which
to begin, and logs everything that anybody logs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from outbox import Ambient, EnosEvents, Outbox, Policy, Token, Worker
from outbox.ambient import utc_now
from outbox.secret import secret_file


def to_the_second() -> datetime:
    """A clock that ticks once a second: whoever asks it in the same second signs with the same time."""
    return utc_now().replace(microsecond=0)


def main() -> None:
    story: dict[str, Any] = json.loads(os.environ["STORY"])
    logging.basicConfig(level=logging.DEBUG)
    destination = EnosEvents(
        name="enos",
        url=story["url"],
        org_id="o1",
        token=Token(story["url"], story["app_key"], secret_file(story["secret"]), allow_plain_http=True),
        allow_plain_http=True,
        policy=Policy(**story["policy"]),
    )
    ambient = replace(Ambient(), now=to_the_second) if story["coarse"] else Ambient()
    outbox = Outbox(story["database"], spool=story["spool"], destinations=[destination], durability="ignore", ambient=ambient)
    worker = Worker(outbox, poll=0.05)
    print("ready", flush=True)
    begins = float(sys.stdin.readline())
    time.sleep(max(0.0, begins - time.monotonic()))
    worker.run(until_idle=True)


main()
