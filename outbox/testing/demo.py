"""The main job before your eyes: a hundred events with pictures over a bad network, a `kill -9` on the way, and the books.

Everything is real and on this machine: a SQLite outbox and a spool in a temporary folder, a strict EnOS receiver that refuses
some and misbehaves, and `outbox worker` as a process of its own. Ends with exit code 0 only if what was sent is what was
received, byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, func, select
from sqlalchemy.orm import Session

from outbox import EnosEvents, Outbox, Refused, State, Token, env, migrate, prepare
from outbox.model import Outcome
from outbox.tables import attempt, message, unfinished
from outbox.testing.behaviours import HangUp, Hold, Status
from outbox.testing.receiver import Receiver

SECRET = "demo-secret"  # noqa: S105 (of a receiver that lives for a minute on this machine)
INSPECTIONS = 100
GONE_AFTER = 3.0
#: Inspections whose events the receiver's model does not know: it refuses every batch they are in.
UNKNOWN_TO_MODEL = (13, 57, 91)

_started = time.monotonic()


@dataclass(frozen=True)
class Sent:
    """An event as it was enqueued: its payload and the digest of each file by the name it was given."""

    key: str
    payload: dict[str, Any]
    files: dict[str, str]


def main() -> int:
    """Run the demo; the exit code."""
    with tempfile.TemporaryDirectory(prefix="outbox-demo-", ignore_cleanup_errors=True) as folder, contextlib.chdir(folder):
        os.environ["DEMO_APP_SECRET"] = SECRET
        with Receiver(app_secret=SECRET, org_id="o15724268424841") as receiver:
            return _run(Path(folder), receiver)


def _run(folder: Path, receiver: Receiver) -> int:
    say("receiver", f"a strict EnOS receiver listens on {receiver.url}")
    receiver.refuse(lambda struct: "unknownEvent" in struct["events"], msg="Model validate failed: unknownEvent")
    receiver.misbehave(Status(503), HangUp("after_body"), Hold())
    receiver.sometimes(Status(503), probability=0.05, seed=1)
    database = f"sqlite:///{folder / 'shop.db'}"
    outbox = Outbox(database, spool=folder / "spool", destinations=[_destination(receiver)])
    migrate.upgrade(outbox.database)
    sent = _produce(outbox, database, folder)

    with _worker(folder, receiver, "worker 1") as first:
        receiver.wait_for(lambda seen: seen.held > 0, timeout=30)
        say("demo", f"worker 1 is in the middle of an upload: kill -9 {first.pid}")
        first.kill()
        first.wait()
    receiver.release()
    with _worker(folder, receiver, "worker 2") as second:
        _wait_until_final(outbox)
        say("demo", "every message is delivered or dead: SIGTERM for worker 2")
        second.terminate()
        code = second.wait(timeout=30)
    return _balance(outbox, receiver, sent, code)


def _destination(receiver: Receiver) -> EnosEvents:
    return EnosEvents(
        name="enos",
        url=receiver.url,
        org_id="o15724268424841",
        token=Token(receiver.token_url, "app-key", env("DEMO_APP_SECRET"), allow_plain_http=True),
        allow_plain_http=True,
    )


def _produce(outbox: Outbox, database: str, folder: Path) -> list[Sent]:
    """Commit inspections and, in the same transactions, the events they owe."""
    engine = prepare(create_engine(database))
    shop = MetaData()
    inspections = Table("inspection", shop, Column("id", Integer, primary_key=True), Column("device", String(40)))
    shop.create_all(engine)
    sent: list[Sent] = []

    def enqueue(session: Session, key: str, payload: dict[str, Any], files: dict[str, Path]) -> None:
        outbox.enqueue(session, "enos", payload, files=dict(files), key=key)
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
        sent.append(Sent(key, payload, digests))

    sample = {name: folder / name for name in ("test.txt", "blob.bin")}
    sample["test.txt"].write_text("hello from the outbox\n")
    sample["blob.bin"].write_bytes(os.urandom(1024))
    at = 1579580182824
    with Session(engine) as session, session.begin():
        device = {"productKey": "productKey1", "deviceKey": "deviceKey1"}
        event = {"intParam1": 123, "fileParam1": "local://text"}
        enqueue(session, "sample-1", {**device, "time": at, "events": {"eventId1": event}}, {"text": sample["test.txt"]})
        event = {"intParam2": 123, "fileParam2": "local://blob"}
        enqueue(
            session,
            "sample-2",
            {"assetId": "assetId2", "time": at, "events": {"eventId2": event}},
            {"blob": sample["blob.bin"]},
        )
    say("producer", "committed the two-device, two-file sample of the EnOS document")

    for number in range(INSPECTIONS):
        picture = folder / "image.jpg.png"  # the same name each time: transfer names are the outbox's care
        picture.write_bytes(_picture(number))
        name = "unknownEvent" if number in UNKNOWN_TO_MODEL else "crack"
        with Session(engine) as session, session.begin():
            number_in_shop = session.execute(
                inspections.insert().values(device=f"turbine-{number % 7}").returning(inspections.c.id)
            ).scalar_one()
            key = f"inspection-{number_in_shop}"
            event = {"severity": number % 5, "photo": "local://photo"}
            payload = {"assetId": f"turbine-{number % 7}", "time": at + number, "events": {name: event}}
            enqueue(session, key, payload, {"photo": picture})
    say("producer", f"committed {INSPECTIONS} inspections, each with its event and its picture")

    with contextlib.suppress(_Storm), Session(engine) as session, session.begin():
        session.execute(inspections.insert().values(device="turbine-9"))
        outbox.enqueue(
            session, "enos", {"assetId": "turbine-9", "time": at, "events": {"crack": {"severity": 9}}}, key="never-was"
        )
        raise _Storm
    say("producer", "rolled one back: no inspection, no event")
    try:
        with Session(engine) as session, session.begin():
            outbox.enqueue(session, "enos", {"assetId": "turbine-9", "events": {"crack": {"photo": "local://photo"}}})
    except Refused as refused:
        say("producer", f"was refused at the door: {refused}")
    engine.dispose()
    return sent


class _Storm(Exception):
    """Something that goes wrong in the caller's transaction."""


def _wait_until_final(outbox: Outbox, seconds: float = 45) -> None:
    """Until no message is pending or claimed; gives up quietly, for the books tell what is left."""
    left = select(func.count()).select_from(message).where(unfinished)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with outbox.database.read() as connection:
            if connection.execute(left).scalar_one() == 0:
                return
        time.sleep(0.2)


@contextlib.contextmanager
def _worker(folder: Path, receiver: Receiver, name: str) -> Iterator[subprocess.Popen[str]]:
    """An outbox worker as a process of its own, set up by the environment alone; its log is shown as it comes."""
    settings = {
        "OUTBOX_DATABASE": f"sqlite:///{folder / 'shop.db'}",
        "OUTBOX_SPOOL": str(folder / "spool"),
        "OUTBOX_WORKER__GONE_AFTER": str(GONE_AFTER),
        "OUTBOX_DESTINATIONS__ENOS__TYPE": "enos-events",
        "OUTBOX_DESTINATIONS__ENOS__URL": receiver.url,
        "OUTBOX_DESTINATIONS__ENOS__ORG_ID": "o15724268424841",
        "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
        "OUTBOX_DESTINATIONS__ENOS__TOKEN__URL": receiver.token_url,
        "OUTBOX_DESTINATIONS__ENOS__TOKEN__APP_KEY": "app-key",
        "OUTBOX_DESTINATIONS__ENOS__TOKEN__APP_SECRET": "env:DEMO_APP_SECRET",
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")} | settings
    process = subprocess.Popen(
        [sys.executable, "-m", "outbox", "worker"], env=environment, cwd=folder, stderr=subprocess.PIPE, text=True
    )

    def relay() -> None:
        for line in process.stderr or ():
            say(name, line.rstrip().split(": ", 1)[-1])

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        thread.join(5)


def _balance(outbox: Outbox, receiver: Receiver, sent: list[Sent], code: int) -> int:
    """Hold the database's word against the receiver's books; 0 if they agree."""
    columns = (message.c.id, message.c.key, message.c.state, message.c.reason)
    with outbox.database.read() as connection:
        rows = {row.key: row for row in connection.execute(select(*columns))}
        attempts = connection.execute(select(attempt.c.message_id, attempt.c.outcome)).all()
    outbox.close()
    unknown = Counter(each.message_id for each in attempts if each.outcome == Outcome.UNKNOWN)
    confirmed = Counter(_identity(each.struct, each.files) for each in receiver.accepted)
    stored = Counter(
        _identity(each, request.files) for request in receiver.requests if request.stored for each in request.structs
    )
    faults = [f"the receiver found fault: {violation}" for violation in receiver.violations]
    expected = {_identity(each.payload, each.files): each for each in sent}
    for identity, each in expected.items():
        row = rows.get(each.key)
        if row is None:
            faults.append(f"{each.key} was committed and is not in the outbox")
        elif row.state == State.DELIVERED and not confirmed[identity]:
            faults.append(f"{each.key} counts as delivered and the receiver did not confirm it, or has other bytes")
        elif row.state == State.DEAD and (stored[identity] or row.reason != "rejected"):
            faults.append(f"{each.key} is dead ({row.reason}) without having been refused")
        elif row.state not in (State.DELIVERED, State.DEAD):
            faults.append(f"{each.key} is still {row.state}")
        if row is not None and stored[identity] - 1 > unknown[row.id]:
            faults.append(f"{each.key} arrived {stored[identity]} times with {unknown[row.id]} unknown outcomes")
    faults += [f"the receiver has an event that nobody committed: {each}" for each in stored.keys() - expected.keys()]
    faults += [f"{key} was rolled back and is there" for key in rows.keys() - {each.key for each in sent}]
    states = Counter(row.state for row in rows.values())
    _table(
        {
            "events committed": len(sent),
            "delivered": states[State.DELIVERED],
            "dead, refused by name": states[State.DEAD],
            "upload requests": len(receiver.requests),
            "attempts recorded": len(attempts),
            "of these without an answer": sum(unknown.values()),
            "copies beyond the first": sum(count - 1 for count in stored.values()),
            "files received": sum(len(each.files) for each in receiver.accepted),
            "bytes of files received": sum(file.size for each in receiver.accepted for file in each.files.values()),
        }
    )
    if states[State.DEAD] != len(UNKNOWN_TO_MODEL):
        faults.append(f"{states[State.DEAD]} events are dead; expected the {len(UNKNOWN_TO_MODEL)} that the receiver refuses")
    if code != 0:
        faults.append(f"worker 2 ended with exit code {code}")
    for fault in faults:
        say("ledger", fault)
    say("ledger", "does NOT hold" if faults else "holds: what was sent is what was received, byte for byte")
    return 1 if faults else 0


def _identity(struct: dict[str, Any], files: dict[str, Any]) -> str:
    """A struct with each `local://` replaced by the digest of the file it stands for: the same on both sides."""

    def resolved(value: object) -> object:
        if isinstance(value, dict):
            return {name: resolved(value[name]) for name in sorted(value)}
        if isinstance(value, str) and value.startswith("local://"):
            file = files[value.removeprefix("local://")]
            return file if isinstance(file, str) else file.sha256
        return value

    return repr(resolved(struct))


def _picture(number: int) -> bytes:
    """A PNG of a turbine blade with a crack: 160 × 120, grey, a little different each time."""
    width, height = 160, 120
    lines = bytearray()
    for y in range(height):
        lines.append(0)
        crack = (number * 7 + y * (1 + number % 3)) % width
        lines += bytes(20 if abs(x - crack) < 2 else (x * y + number * 31) % 200 + 40 for x in range(width))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def _table(rows: dict[str, int]) -> None:
    print(flush=True)
    for name, value in rows.items():
        print(f"  {name:<28}{value:>12,}", flush=True)
    print(flush=True)


def say(who: str, text: str) -> None:
    """One line of the story."""
    print(f"{time.monotonic() - _started:6.2f} s  {who:<9} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
