"""Programs that a story runs as processes of their own, to be stopped, killed and compared: `python -m tests.story.processes`.

What to do comes as JSON in the environment variable STORY.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from outbox import EnosEvents, Outbox, Policy, Worker, database, prepare

Story = dict[str, Any]


def outbox_of(story: Story) -> Outbox:
    policy = Policy(**story.get("policy", {}))
    destination = EnosEvents(
        name="enos", url=story["url"], org_id="o1", allow_plain_http=True, policy=policy, **story.get("options", {})
    )
    return Outbox(story["database"], spool=story["spool"], destinations=[destination], durability="ignore")


def event(key: str, **values: Any) -> dict[str, Any]:
    return {"assetId": key, "time": 1579580182824, "events": {"crack": {"severity": 3, **values}}}


def say(word: str) -> None:
    """One line for whoever reads our standard output."""
    print(word, flush=True)


def work(story: Story) -> None:
    """A worker; ends on a signal, or when nothing is left to do. Its last line is the most memory it had, in KiB."""
    if "busy_timeout" in story:
        database._BUSY_TIMEOUT = story["busy_timeout"]
    worker = Worker(outbox_of(story), **story.get("worker", {}))
    worker.run(until_idle=story.get("until_idle", False))
    say(str(peak_memory()))


def enqueue(story: Story) -> None:
    """Enqueues one message with a file, says so, and commits when a line comes in."""
    outbox = outbox_of(story)
    engine = prepare(sa.create_engine(story["database"]))
    with Session(engine) as session, session.begin():
        key = story["key"]
        outbox.enqueue(session, "enos", event(key, photo="local://photo"), files={"photo": b"bytes"}, key=key)
        say("enqueued")
        sys.stdin.readline()
    say("committed")


def spool_slowly(story: Story) -> None:
    """Is busy copying a file into the spool for ever."""
    outbox = outbox_of(story)

    class Endless(io.RawIOBase):
        def read(self, _size: int = -1) -> bytes:
            if self.tell_once:
                self.tell_once = False
                return b"x" * 1000
            say("copying")
            sys.stdin.readline()
            return b""

        tell_once = True

    engine = prepare(sa.create_engine(story["database"]))
    with Session(engine) as session, session.begin():
        outbox.enqueue(session, "enos", event("endless", photo="local://photo"), files={"photo": Endless()}, key="endless")


def enqueue_large(story: Story) -> None:
    """Enqueues one message with the file at `path`; says the most memory it had, in KiB."""
    outbox = outbox_of(story)
    engine = prepare(sa.create_engine(story["database"]))
    with Session(engine) as session, session.begin():
        files = {"photo": Path(story["path"])}
        outbox.enqueue(session, "enos", event(story["key"], photo="local://photo"), files=files, key=story["key"])
    say(str(peak_memory()))


def produce(story: Story) -> None:
    """A caller that reads and then enqueues, `messages` in all, `together` in each transaction; says each key it committed."""
    outbox = outbox_of(story)
    engine = prepare(sa.create_engine(story["database"]))
    host = sa.Table("host", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("done", sa.Integer))
    for first in range(0, story["messages"], story["together"]):
        keys = [f"{story['name']}-{number}" for number in range(first, min(first + story["together"], story["messages"]))]
        with Session(engine) as session, session.begin():
            done = session.execute(sa.select(host.c.done).where(host.c.id == story["row"])).scalar_one()
            for key in keys:
                outbox.enqueue(session, "enos", event(key), key=key)
            session.execute(sa.update(host).where(host.c.id == story["row"]).values(done=done + len(keys)))
        say("\n".join(keys))


def peak_memory() -> int:
    """The most memory this program had since it began, in KiB; what the process was before it does not count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


PROGRAMS = {each.__name__: each for each in (work, enqueue, spool_slowly, enqueue_large, produce)}

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(name)s %(message)s")
    told = json.loads(os.environ["STORY"])
    PROGRAMS[told["program"]](told)
