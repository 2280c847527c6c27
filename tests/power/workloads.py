"""Programs whose every file operation is recorded: producers, workers, upgrades. `python -m tests.power.workloads`

What to do comes as JSON in the environment variable STORY. Each scene has a folder of its own below the recorded one, with
its database, its spool and its notes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from sqlalchemy.exc import SQLAlchemyError

from outbox import Outbox, Policy, Selection, migrate, prepare
from outbox.errors import NotDurable, OutboxError
from outbox.model import Batch
from outbox.tables import file, message
from outbox.testing import HangUp, Receiver, Status
from outbox.watching import Watcher
from tests.factories import enos, event, real_clock
from tests.power.hand import LANES, DyingTransport, Hand, Killed, bury
from tests.power.notes import Notes, kept

#: Lengths at which something changes: nothing, a sector, a page, and more than one block of a copy.
LENGTHS = (0, 1, 511, 512, 513, 4096, 10_000)
LONG = 300_000
RESERVE = 256 * 1024
#: What recorder.c can let fail.
KINDS = {"sync": 1, "write": 2, "rename": 4, "create": 8}
ALWAYS = 1_000_000


class Scene:
    """A database, its spool, and what is noted about them."""

    def __init__(self, root: Path, name: str, url: str = "https://enos.example", seed: int = 0) -> None:
        self.folder = root / name
        self.folder.mkdir()
        self.notes = Notes(self.folder)
        self.database = f"sqlite:///{self.folder / 'outbox.db'}"
        self.dice = random.Random(f"{name} {seed}")
        self.clock = real_clock()  # a sweep compares it with the times of files
        self.ambient = self.clock.ambient
        self.url = url
        self._outboxes: list[Outbox] = []
        self.engine: sa.Engine | None = None

    def outbox(self, **options: Any) -> Outbox:
        policy = Policy(batch_messages=3)
        made = Outbox(
            self.database,
            spool=self.folder / "spool",
            destinations=[enos(self.url, policy=policy)],
            ambient=self.ambient,
            **({"durability": "ignore", "reserve": RESERVE} | options),
        )
        self._outboxes.append(made)
        return made

    def upgrade(self, outbox: Outbox) -> None:
        migrate.upgrade(outbox.database)
        self.notes.say("schema", revision=migrate.newest())

    def enqueue(self, outbox: Outbox, key: str, files: Mapping[str, Any] | None = None, **options: Any) -> None:
        """One message in a transaction of its own, by a caller whose engine is as we say it should be."""
        if self.engine is None:
            self.engine = prepare(sa.create_engine(self.database))
        with self.telling(key, files):
            self.enqueue_only(outbox, key, files, **options)

    def enqueue_only(self, outbox: Outbox, key: str, files: Mapping[str, Any] | None = None, **options: Any) -> None:
        assert self.engine is not None
        with self.engine.begin() as connection:
            outbox.enqueue(connection, "enos", event(key, *(files or {})), files=files, key=key, **options)

    @contextmanager
    def telling(self, key: str, files: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Note what is about to be committed, and that it was."""
        self.notes.say("begins", key=key, files=digests(files), commits=True)
        yield
        self.notes.say("committed", key=key)

    def roll_back(self, outbox: Outbox, key: str, files: Mapping[str, Any] | None = None) -> None:
        assert self.engine is not None
        self.notes.say("begins", key=key, files=digests(files), commits=False)
        with self.engine.connect() as connection, connection.begin() as transaction:
            outbox.enqueue(connection, "enos", event(key, *(files or {})), files=files, key=key)
            transaction.rollback()

    def bytes(self, length: int | None = None) -> bytes:
        return self.dice.randbytes(self.dice.choice(LENGTHS) if length is None else length)

    def keep(self, outbox: Outbox) -> None:
        """Note how far every message has come."""
        with outbox.database.read() as connection:
            rows = connection.execute(sa.select(message.c.key, message.c.state, message.c.attempt, message.c.replays)).all()
        self.notes.say("kept", messages=kept(rows))

    def rest(self) -> None:
        """Every connection is closed, as at the end of a program."""
        for each in self._outboxes:
            each.close()
        if self.engine is not None:
            self.engine.dispose()

    def close(self) -> None:
        self.rest()
        self.notes.close()


def digests(files: Mapping[str, Any] | None) -> dict[str, str]:
    def sha256(each: Any) -> str:
        if isinstance(each, Path):
            each = each.read_bytes()
        return hashlib.sha256(each).hexdigest() if isinstance(each, bytes) else str(each.sha256)

    return {name: sha256(each) for name, each in (files or {}).items()}


def produce(scene: Scene, messages: int) -> None:
    """Messages without files, with one, with three, with the same one twice; some come to nothing; checkpoints."""
    outbox = scene.outbox()
    scene.upgrade(outbox)
    scene.enqueue(outbox, "first", {"photo": scene.bytes(LONG)})
    outbox.mark_spool()
    for number in range(messages):
        key = f"m{number}"
        match number % 6 if number < 6 else scene.dice.randrange(6):
            case 0:
                scene.enqueue(outbox, key)
            case 1:
                scene.enqueue(outbox, key, {"photo": scene.bytes()})
            case 2:
                scene.enqueue(outbox, key, {name: scene.bytes() for name in ("photo", "log", "map")}, ordering_key="pump")
            case 3:
                same = scene.bytes()
                scene.enqueue(outbox, key, {"photo": same, "again": same})
            case 4:
                ahead = outbox.spool(scene.bytes())
                scene.notes.say("spooled", name=ahead.name)
                scene.enqueue(outbox, key, {"photo": ahead, "again": ahead}, ordering_key="valve", ordered=False)
            case 5:
                scene.roll_back(outbox, key, {"photo": scene.bytes()})
        if number % 7 == 6:
            outbox.database.checkpoint(shrink=number % 2 == 0)
    scene.rest()
    scene.enqueue(outbox, "last", {"photo": scene.bytes()})


def produce_with(scene: Scene, messages: int, journal: str, synchronous: str) -> None:
    """A caller whose own engine uses SQLite in another way; one that is not power-safe is refused."""
    outbox = scene.outbox(reserve=0, durability="strict")
    scene.upgrade(outbox)
    outbox.spool_store.prepare()
    outbox.mark_spool()
    outbox.close()
    scene.engine = sa.create_engine(scene.database)

    @sa.event.listens_for(scene.engine, "connect")
    def as_the_caller_likes(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute(f"PRAGMA synchronous = {synchronous}")

    for number in range(messages):
        files = {"photo": scene.bytes()} if number % 2 else {}
        try:
            scene.enqueue(outbox, f"m{number}", files)
        except NotDurable:
            scene.notes.say("refused")
    with scene.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == journal.lower()


def produce_slowly(scene: Scene) -> None:
    """A transaction outlasts the grace of a sweep, which sets its file aside while others use the same folder."""
    numbers = itertools.count(256, 256)  # whose last two digits name the folder
    scene.ambient = replace(scene.ambient, new_id=lambda: f"{next(numbers):032x}")
    outbox = scene.outbox()
    scene.upgrade(outbox)
    scene.enqueue(outbox, "first", {"photo": scene.bytes()})
    outbox.mark_spool()
    assert scene.engine is not None
    files = {"photo": scene.bytes(2000)}
    with scene.telling("slow", files), scene.engine.begin() as connection:
        outbox.enqueue(connection, "enos", event("slow", "photo"), files=files, key="slow")
        scene.clock.move(hours=25)
        outbox.sweep()
        outbox.spool_store.put(outbox.ambient.new_id(), io.BytesIO(b"of a producer that waits for its turn"))
    with outbox.database.read() as connection:
        name = connection.execute(sa.select(file.c.name).order_by(file.c.name.desc()).limit(1)).scalar_one()
    outbox.spool_store.size(name)  # which takes it back
    scene.clock.move(hours=25)
    outbox.sweep()
    scene.enqueue(outbox, "last", {"photo": scene.bytes()})


class Diary(Watcher):
    """Notes every request before its first byte can go out."""

    def __init__(self, scene: Scene, receiver: Receiver) -> None:
        self._scene = scene
        self._receiver = receiver

    def upload_begins(self, batch: Batch) -> Mapping[str, str]:
        attempts = {each.key: each.attempt for each in batch.messages}
        known = len(self._receiver.requests)
        self._scene.notes.say("sends", delivery=batch.delivery, attempts=attempts, requests=known)
        return {}


def work(scene: Scene, receiver: Receiver, messages: int) -> None:
    """Deliveries of every outcome, a rescue, and what a person and the housekeeping do."""
    outbox = scene.outbox()
    scene.upgrade(outbox)
    outbox.care.keep_room()
    diary = Diary(scene, receiver)
    hand = Hand(outbox, watcher=diary)
    for number in range(messages):
        files = {"photo": scene.bytes()} if number % 2 else {}
        options = {"ordering_key": f"s{number % 4}", "ordered": number % 4 == 0} if number % 3 == 0 else {}
        scene.enqueue(outbox, f"m{number}", files, **options)
    scene.enqueue(outbox, "bad", {"photo": scene.bytes()})
    outbox.mark_spool()
    scene.enqueue(outbox, "later", due_at=scene.clock.wall + timedelta(days=300))
    receiver.refuse(lambda struct: struct["assetId"] == "bad")
    receiver.misbehave(Status(503), HangUp("after_body"))

    def turn(by: Hand) -> None:
        by.turn(LANES)
        scene.keep(outbox)
        scene.clock.move(hours=2)
        if by.presence.beat():
            scene.keep(outbox)

    for _ in range(4):
        turn(hand)
    outbox.database.checkpoint()
    dying = Hand(outbox, watcher=diary, transport=DyingTransport())
    try:
        dying.turn(LANES)
    except Killed:
        scene.keep(outbox)
    bury(outbox, except_for=hand.presence.id)
    hand.dispatcher.rescue()
    scene.keep(outbox)
    for _ in range(messages):
        turn(hand)
    receiver.stop_refusing()
    outbox.replay(Selection(keys=("bad",)), "ada")
    scene.keep(outbox)
    outbox.cancel(Selection(keys=("later",)), "ada")
    scene.keep(outbox)
    turn(hand)
    scene.roll_back(outbox, "never", {"photo": scene.bytes()})
    outbox.free_files()
    outbox.sweep(timedelta(0))
    scene.notes.say("purges", keys=["m1"])
    outbox.purge(Selection(keys=("m1",)), "ada")
    outbox.database.checkpoint(shrink=True)
    _tidy(scene, outbox)
    scene.enqueue(outbox, "afterwards", {"photo": scene.bytes()})
    hand.dispatcher.free_after = timedelta(0)
    turn(hand)
    outbox.free_files()
    hand.presence.leave()


@contextmanager
def failing(kind: str, error: str, skip: int, times: int) -> Iterator[Callable[[], bool]]:
    """Let file operations of a kind fail: not the next few, but so many after them. Tells whether one of them was reached."""
    recorder = ctypes.CDLL(None)
    recorder.power_fail(KINDS[kind], skip, times, getattr(errno, error))
    reached = False
    try:
        yield lambda: reached
    finally:
        reached = recorder.power_seen() > skip
        recorder.power_fail(0, 0, 0, 0)


def fail_to_enqueue(scene: Scene, failures: Sequence[tuple[str, str, int]]) -> None:
    """Of an enqueue's file operations of a kind the first fails, then the second, until there are no more; what was said.

    Every time the same caller enqueues once more, on the same engine, with nothing in its way.
    """
    outbox = scene.outbox(reserve=0)
    scene.upgrade(outbox)
    scene.enqueue(outbox, "first", {"photo": scene.bytes()})
    for kind, error, times in failures:
        number, reached = 0, True
        while reached:
            key, said = f"{kind}-{error}-{times}-{number}", ""
            files = {"photo": scene.bytes(LONG if number % 2 else 2000)}
            try:
                with scene.telling(key, files), failing(kind, error, number, times) as was_reached:
                    scene.enqueue_only(outbox, key, files)
            except (OutboxError, SQLAlchemyError) as refused:
                said = type(refused).__name__
            reached = was_reached()
            scene.notes.say("tried", key=key, kind=kind, error=error, number=number, reached=reached, said=said)
            scene.enqueue(outbox, f"{key}-next", {"photo": scene.bytes()})
            number += 1


def fail_to_deliver(scene: Scene, receiver: Receiver, failures: Sequence[tuple[str, str, int]]) -> None:
    """The same for a worker's turn, and for the freeing of files; afterwards it goes on as if nothing had been."""
    outbox = scene.outbox(reserve=0)
    scene.upgrade(outbox)
    outbox.mark_spool()
    hand = Hand(outbox, watcher=Diary(scene, receiver))
    hand.dispatcher.free_after = timedelta(hours=1)
    for kind, error, times in failures:
        for step in (hand.turn, outbox.free_files):
            number, reached = 0, True
            while reached:
                scene.enqueue(outbox, f"{step.__name__}-{kind}-{error}-{times}-{number}", {"photo": scene.bytes()})
                if step == outbox.free_files:
                    hand.turn()
                    scene.clock.move(hours=2)
                said = ""
                try:
                    with failing(kind, error, number, times) as was_reached:
                        step()
                except (OutboxError, SQLAlchemyError) as failed:
                    said = type(failed).__name__
                reached = was_reached()
                scene.notes.say("tried", step=step.__name__, number=number, reached=reached, said=said)
                hand.dispatcher.release_unheld()
                while hand.turn():
                    pass
                scene.keep(outbox)
                outbox.free_files()
                number += 1


def _tidy(scene: Scene, outbox: Outbox) -> None:
    """Everything is over, and goes."""
    with outbox.database.read() as connection:
        keys = list(connection.execute(sa.select(message.c.key)).scalars())
    scene.notes.say("purges", keys=keys)
    scene.notes.say("forgets deliveries")
    scene.clock.move(days=400)
    while outbox.care.tidy() is not None:
        scene.clock.move(seconds=1)
    outbox.free_files()
    outbox.care.keep_room()
    outbox.database.give_back(1000)
    outbox.database.checkpoint(shrink=True)


def upgrade(scene: Scene, messages: int) -> None:
    """From the first schema, with messages and files in it, to the newest."""
    outbox = scene.outbox(reserve=0)
    outbox.database.create()
    with outbox.database.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "outbox_0001")
    scene.notes.say("schema", revision="outbox_0001")
    outbox.spool_store.prepare()
    for number in range(messages):
        key, content = f"m{number}", scene.bytes()
        with scene.telling(key, {"photo": content}):
            insert_into_the_first_schema(outbox, key, content)
    outbox.database.checkpoint()
    scene.upgrade(outbox)
    scene.enqueue(outbox, "afterwards", {"photo": scene.bytes()})
    outbox.mark_spool()


def insert_into_the_first_schema(outbox: Outbox, key: str, content: bytes) -> None:
    """As the code of that time did: what it wrote then is all that matters here."""
    now = "2026-03-01 12:00:00.000000"
    spooled = outbox.spool_store.put(outbox.ambient.new_id(), io.BytesIO(content))
    text = json.dumps(event(key, "photo"))
    with outbox.database.begin() as connection:
        rows = {
            "outbox_message": {
                "destination": "enos",
                "lane": "normal",
                "key": key,
                "payload": text,
                "digest": hashlib.sha256(text.encode()).hexdigest(),
                "size": len(text),
                "file_bytes": len(content),
                "files": 1,
                "state": "pending",
                "created_at": now,
                "due_at": now,
                "clock_plausible": True,
            },
            "outbox_file": {
                "name": spooled.name,
                "size": spooled.size,
                "sha256": spooled.sha256,
                "md5": spooled.md5,
                "created_at": now,
            },
        }
        for name, values in rows.items():
            insert(connection, name, values)
        number = connection.exec_driver_sql("SELECT max(id) FROM outbox_message").scalar()
        attachment = {
            "message_id": number,
            "position": 0,
            "name": "photo",
            "file": spooled.name,
            "filename": "photo.jpg",
            "content_type": "image/jpeg",
        }
        insert(connection, "outbox_attachment", attachment)


def insert(connection: sa.Connection, name: str, values: Mapping[str, Any]) -> None:
    table = sa.table(name, *(sa.column(each) for each in values))
    connection.execute(sa.insert(table).values(values))


SCENES: dict[str, Callable[..., None]] = {
    each.__name__: each for each in (produce, produce_with, produce_slowly, work, upgrade, fail_to_enqueue, fail_to_deliver)
}
#: Those in which something is delivered.
_WITH_RECEIVER = (work, fail_to_deliver)


def record(story: Mapping[str, Any]) -> None:
    """Play every scene of the story: name, scene, and what it is told."""
    root = Path(story["root"])
    for name, asked in story["scenes"].items():
        asked = dict(asked)
        play = SCENES[asked.pop("scene")]
        if play in _WITH_RECEIVER:
            with Receiver(check_token=False, ledger=Path(story["books"])) as receiver:
                scene = Scene(root, name, receiver.url, story["seed"])
                play(scene, receiver, **asked)
        else:
            scene = Scene(root, name, seed=story["seed"])
            play(scene, **asked)
        scene.close()


PROGRAMS = {each.__name__: each for each in (record,)}

if __name__ == "__main__":
    told = json.loads(os.environ["STORY"])
    PROGRAMS[told["program"]](told)
