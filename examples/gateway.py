"""A plain script on a gateway: each picture that a camera puts into a folder becomes an event with that picture.

    pip install durable-outbox
    outbox init                       # writes outbox.toml: say there where EnOS is; creates database and spool
    python gateway.py /data/camera    # until Ctrl-C or SIGTERM; the network may come and go

Kill it at any moment and start it again: a picture that was committed is never enqueued again, one that was not is taken then.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from sqlalchemy import Column, MetaData, String, Table, create_engine, select

from outbox import File, Outbox, Refused, Worker, from_settings, migrate, prepare

tables = MetaData()
pictures = Table("picture", tables, Column("name", String(255), primary_key=True))


def take(outbox: Outbox, engine, folder: Path) -> int:
    """Commit every new picture, each with the event that is owed for it; returns how many."""
    with engine.connect() as connection:
        known = set(connection.execute(select(pictures.c.name)).scalars())
    new = [path for path in sorted(folder.glob("*.jpg")) if path.name not in known and path.is_file()]
    for path in new:
        with engine.begin() as connection:  # one transaction: our own row, and the message
            connection.execute(pictures.insert().values(name=path.name))
            event = {
                "assetId": folder.name,
                "time": int(path.stat().st_mtime * 1000),
                "events": {"picture": {"image": File(path, content_type="image/jpeg")}},
            }
            try:
                outbox.enqueue(connection, "enos", event, key=path.name)
            except Refused as refused:  # one that is too large, say, must not keep the others from being taken
                print(f"{path.name} is left out: {refused}", file=sys.stderr, flush=True)
    return len(new)


def main(folder: Path) -> None:
    outbox = from_settings()  # outbox.toml and OUTBOX_… in the environment
    migrate.upgrade(outbox.database)
    engine = prepare(create_engine(outbox.database.url))  # so that a commit survives a power cut
    tables.create_all(engine)

    stop = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stop.set())
    # Delivers in the background, and finishes what is in hand when we leave; unless that is somebody else's work.
    with contextlib.nullcontext() if os.environ.get("GATEWAY_WORKER") == "sidecar" else Worker(outbox):
        print(f"watching {folder}", flush=True)
        while not stop.is_set():
            if taken := take(outbox, engine, folder):
                print(f"{time.strftime('%H:%M:%S')} took {taken}", flush=True)
            stop.wait(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
