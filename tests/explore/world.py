"""Where the lives of the machine take place: a database, a spool, and workers whose requests stand still on their way."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa

from outbox import Lane, Outbox, Policy
from outbox.database import Database
from outbox.dispatcher import Dispatcher
from outbox.errors import NoAnswer, NotSent
from outbox.multipart import FilePart
from outbox.presence import Presence
from outbox.spool.directory import DirectorySpool
from outbox.store import breaker
from outbox.tables import metadata
from outbox.testing.ledger import Received, ReceivedFile
from outbox.transport import Answer, Upload
from tests.explore.model import BACKOFF_CAP, MAX_FAILURES, MAX_UNKNOWN, Claim
from tests.factories import Clock, caller_engine, enos, event
from tests.ledger import trail

#: What is charged to a destination is for the tests of the breaker: here it never loses its patience.
POLICY = Policy(
    max_failures=MAX_FAILURES, max_unknown=MAX_UNKNOWN, backoff_cap=BACKOFF_CAP, breaker_after=10**6, reject_streak=10**6
)
LANES = (Lane.NORMAL, Lane.BULK)
ANSWERS: Mapping[str, Answer | Exception] = {
    "ok": Answer(200, {}, b'{"code": 0, "msg": "OK"}'),
    "lost": NoAnswer("the answer was lost"),
    "refused": Answer(200, {}, b'{"code": 99400, "msg": "a parameter is invalid"}'),
    "fails": Answer(503, {}, b""),
    "cut": NotSent("the connection broke", begun=True),
    "no connection": NotSent("connection refused"),
}
#: What no outbox takes.
HOSTILE: tuple[dict[str, Any], ...] = (
    {"payload": None},
    {"payload": event("x", "photo")},
    {"payload": event("x"), "files": {"photo": b"nobody refers to it"}},
    {"payload": event("x", "photo"), "files": {"photo": "/nowhere/at/all"}},
    {"payload": event("x", "photo"), "files": {"photo": b"x"}, "key": "a\0b"},
    {"payload": event("x"), "ordering_key": "k" * 256},
    {"payload": event("x"), "due_at": datetime(2026, 3, 1)},  # noqa: DTZ001 (that is what is wrong with it)
)


class Trouble(sa.exc.SQLAlchemyError):
    """The database went away at a moment that was chosen for it."""


class Killed(BaseException):
    """The process of a worker died."""


class Shaky(Database):
    """A database that goes away in the next transaction if it is told to: before its COMMIT, or after it."""

    trouble = ""

    @contextlib.contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        trouble, self.trouble = self.trouble, ""
        with super().begin() as connection:
            yield connection
            if trouble == "before":
                raise Trouble("rolled back")
        if trouble == "after":
            raise Trouble("the news of the commit was lost")


class Place:
    """A database and a spool, for one life after the other. Opened once: what was compiled once is not compiled again."""

    def __init__(self, url: str, spool: Path, *, journal: str = "WAL") -> None:
        self.url = url
        self.spool = spool
        self.spools = [DirectorySpool(spool), DirectorySpool(spool)]
        self.shaky = Shaky(url)
        self.databases = [self.shaky, Database(url)]
        trail.install(url)
        if journal != "WAL":
            with contextlib.closing(sqlite3.connect(str(sa.make_url(url).database))) as connection:
                connection.execute(f"PRAGMA journal_mode = {journal}")
        self.caller = caller_engine(url)
        for engine in {self.caller, *(each for one in self.databases for each in (one.engine, one._reader))}:
            _prepare(engine, journal)

    def close(self) -> None:
        self.caller.dispose()
        for each in self.databases:
            each.close()

    def wipe(self) -> None:
        """As if nobody had ever been here."""
        with self.databases[1].begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
            connection.exec_driver_sql(f"DELETE FROM {trail.TABLE}")
            breaker.declare(connection, ["enos"])  # as each worker does when it starts
        for path in self.spool.rglob("*") if self.spool.is_dir() else ():
            if path.is_file():
                path.unlink()

    def outbox(self, number: int, clock: Clock, new_id: Callable[[], str]) -> Outbox:
        """That of a process; its connections are the place's."""
        ambient = replace(clock.ambient, new_id=new_id, random=lambda: clock.dice)
        destinations, spool = [enos(policy=POLICY)], self.spools[number]
        outbox = Outbox(self.url, spool=spool, destinations=destinations, durability="ignore", reserve=0, ambient=ambient)
        mine, shared = outbox.database, self.databases[number]
        mine._engine, mine._reader = shared.engine, shared._reader
        return outbox


def _prepare(engine: sa.Engine, journal: str) -> None:
    """No disk is waited for: none loses its power here. And SQLite keeps the journal that it was given."""
    if engine.dialect.name != "sqlite":
        return

    @sa.event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, _arguments: Any, named: dict[str, Any]) -> None:
        named["factory"] = _JOURNALS[journal]

    @sa.event.listens_for(engine, "connect")
    def hurry(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    engine.dispose()


class _Steadfast(sqlite3.Cursor):
    """Of a database that stays with its journal, whoever asks for WAL: as on a file system where there is none."""

    def execute(self, sql: str, *parameters: Any) -> Any:
        return super().execute(sql.replace("journal_mode = WAL", "journal_mode = TRUNCATE"), *parameters)


class _Truncating(sqlite3.Connection):
    def cursor(self, *_: Any) -> Any:
        return super().cursor(_Steadfast)


_JOURNALS = {"WAL": sqlite3.Connection, "TRUNCATE": _Truncating}


class Turn:
    """One turn of a worker, in a thread that stands still while its request is on its way."""

    def __init__(self, take: Callable[[], object]) -> None:
        self.upload: Upload | None = None
        self.files: dict[str, ReceivedFile] = {}  #: that came with it, by their transfer names
        self.error: BaseException | None = None
        self._take = take
        self._answer: BaseException | Answer = Killed()
        self._stands, self._goes = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def begin(self) -> None:
        """Until it is over, or its request is out."""
        self._thread.start()
        self._stands.acquire()
        if self.upload is None:
            self._thread.join()

    def go_on(self, answer: BaseException | Answer) -> None:
        """To its end, with this answer."""
        self._answer = answer
        self._goes.release()
        self._thread.join()

    def wait(self, upload: Upload, files: dict[str, ReceivedFile]) -> Answer:
        """The request is out."""
        self.upload, self.files = upload, files
        self._stands.release()
        self._goes.acquire()
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    def _run(self) -> None:
        try:
            self._take()
        except BaseException as error:  # noqa: BLE001 (whoever began it looks at it)
            self.error = error
        self._stands.release()


@dataclass(eq=False)
class Request:
    """What is on its way."""

    claim: Claim
    document: dict[str, Any]
    began: int

    def received(self, number: int, files: dict[str, ReceivedFile], how: str, finished: int) -> Received:
        """What the receiver remembers of it, after that answer."""
        status = getattr(ANSWERS[how], "status", None)
        whole = how not in ("cut", "no connection")
        return Received(
            number=number,
            action="postEvent",
            query={},
            headers={},
            complete=whole,
            faults=(),
            stored=how in ("ok", "lost"),
            status=status,
            code={"ok": 0, "refused": 99400}.get(how),
            answered=status is not None,
            started=float(self.began),
            finished=float(finished),
            wire_bytes=0,
            behaviour=None,
            message=self.document if whole else None,
            files=files,
        )


class Worker:
    """A worker's process: the real dispatcher and presence, and a transport that says what it is told to."""

    def __init__(self, outbox: Outbox, database: Database) -> None:
        # Time stands still between two steps: whoever looks has seen nothing of the others for as long as he waits.
        self.presence = Presence(database, outbox.ambient, gone_after=0.0)
        presence, spool, destinations = self.presence, outbox.spool_store, outbox.destinations
        self.dispatcher = Dispatcher(database, spool, destinations, outbox.ambient, self, lambda: presence.id)
        self.turn: Turn | None = None
        self.request: Request | None = None
        self.unheld: list[Claim] = []  #: what it has claimed, and the news of it was lost
        self.unrecorded: list[tuple[Claim, str]] = []  #: with the answers

    def begin_turn(self, *, peek: bool) -> Turn:
        self.turn = Turn(lambda: self.dispatcher.turn("enos", LANES, peek=peek))
        self.turn.begin()
        return self.turn

    def die(self) -> None:
        """What is on its way comes to nothing."""
        if self.request is not None and self.turn is not None:
            self.turn.go_on(Killed())

    # The transport.

    def send(self, upload: Upload, open_file: Callable[[str], BinaryIO], deadline: float, connect: float) -> Answer:
        files = {}
        for part in upload.parts:
            if isinstance(part, FilePart):
                with open_file(part.file.name) as opened:
                    content = opened.read()
                digests = hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest()
                files[part.filename] = ReceivedFile(len(content), *digests)
        assert self.turn is not None
        return self.turn.wait(upload, files)

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError

    def through(self, route: object) -> Worker:
        return self

    def within(self, reach: object) -> Worker:
        raise NotImplementedError
