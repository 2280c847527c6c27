"""Workers that a message can kill, for tests/story/test_isolation.py: `python -m tests.story.isolation_programs`.

What to do comes as JSON in the environment variable STORY.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any

from outbox import EnosEvents, Outbox, Policy, Worker
from outbox.model import Batch
from outbox.transport import Upload

Story = dict[str, Any]

log = logging.getLogger("outbox.tests")

#: More deaths than this and the poison is not found any more.
MOST_DEATHS = 60


class Deadly(EnosEvents):
    """A destination whose `encode` dies, as by the kernel's hand, of every message whose key begins with `poison`."""

    def encode(self, batch: Batch) -> Upload:
        if any(message.key.startswith("poison") for message in batch.messages):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(batch)


def outbox_of(story: Story) -> Outbox:
    policy = Policy(**story.get("policy", {}))
    destination = Deadly(name="enos", url=story["url"], org_id="o1", allow_plain_http=True, policy=policy)
    return Outbox(story["database"], spool=story["spool"], destinations=[destination], durability="ignore")


def work(story: Story) -> None:
    """A worker that ends when nothing is left to do."""
    Worker(outbox_of(story), **story.get("worker", {})).run(until_idle=True)


def supervise(story: Story) -> int:
    """Start a worker again each time that it dies, as a service manager does, and say so; the last one's exit code."""
    for _ in range(MOST_DEATHS):
        child = os.fork()  # of a process that has no threads and no connections
        if child == 0:
            try:
                work(story)
            except BaseException:
                log.exception("the worker failed")
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            return code
        print("died", flush=True)
    return 2


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)s %(threadName)s %(name)s %(message)s")
    sys.exit(supervise(json.loads(os.environ["STORY"])))
