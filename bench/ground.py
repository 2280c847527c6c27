"""Where it is measured: databases on a disk, an outbox on each, events to put in, and a receiver in a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from outbox import EnosEvents, Outbox, Policy, migrate, prepare
from outbox.database import Database
from tests.postgres import Postgres, create_database

ROOT = Path(__file__).parents[1]
Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql")
NAME = "enos"

_open = contextlib.ExitStack()
atexit.register(_open.close)


def event(number: int) -> dict[str, Any]:
    """A message of about 300 bytes."""
    words = {"severity": number % 5, "text": "x" * 110, "place": [1.25, 2.5, 3.75], "confirmed": False, "model": "crack-seg-4"}
    return {"assetId": f"turbine-{number % 97}", "time": 1579580182824 + number, "events": {"crack": words}}


@functools.cache
def postgres() -> Postgres:
    """A server as durable as it comes, with the room that a machine for it would give; one for the whole run."""
    settings = {"shared_buffers": "1GB", "max_wal_size": "8GB", "autovacuum_naptime": "10s"}
    return _open.enter_context(Postgres(durable=True, settings=settings))


def folder() -> Path:
    """A new folder on the disk, gone at the end."""
    made = Path(tempfile.mkdtemp(prefix="outbox-bench-"))
    _open.callback(shutil.rmtree, made, ignore_errors=True)
    return made


def database_url(kind: Kind) -> str:
    """A new, empty database."""
    if kind == "postgresql":
        return create_database(postgres().url)
    url = f"sqlite:///{folder() / 'outbox.db'}"
    Database(url).create()
    return url


@dataclass
class Sink:
    """A receiver that reads what it is sent and confirms it; a process of its own, so that it has its own processor."""

    delay: float = 0.0  #: seconds that it takes for each request
    tls: bool = False
    url: str = ""
    ca_file: str | None = None
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Sink:
        command = [sys.executable, "-m", "bench.sink", str(self.delay), *(["tls", str(folder())] if self.tls else [])]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url, _, ca_file = self._process.stdout.readline().strip().partition(" ")
        self.ca_file = ca_file or None
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.communicate()  # its input ends, and so does it


@functools.cache
def sink() -> Sink:
    """The one that confirms at once."""
    return _open.enter_context(Sink())


class Ground:
    """An outbox on a new database, and an engine of the producer's own."""

    def __init__(
        self, kind: Kind, policy: Policy | None = None, *, url: str | None = None, receiver: Sink | None = None
    ) -> None:
        self.kind = kind
        self.url = url or database_url(kind)
        self.receiver = receiver or sink()
        enos = EnosEvents(name=NAME, url=self.receiver.url, org_id="o1", allow_plain_http=True, policy=policy or Policy())
        self.outbox = Outbox(self.url, spool=folder() / "spool", destinations=[enos])
        migrate.upgrade(self.outbox.database)
        self.engine = prepare(sa.create_engine(self.url))
        self._numbers = itertools.count()

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.dispose()
        self.outbox.close()

    def events(self, number: int) -> list[dict[str, Any]]:
        """New ones."""
        return [event(next(self._numbers)) for _ in range(number)]

    def fill(self, number: int) -> None:
        """Messages that wait, many in a transaction."""
        while number > 0:
            with self.engine.begin() as connection:
                self.outbox.enqueue_many(connection, NAME, self.events(min(number, 2000)))
            number -= 2000

    def empty(self) -> None:
        """Nothing is in it any more: what comes is measured on a database as small as at the beginning."""
        with self.engine.begin() as connection:
            for table in ("attempt", "delivery", "message"):
                connection.execute(sa.text(f"DELETE FROM outbox_{table}"))

    def scalar(self, words: str) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(sa.text(words)).scalar()


def grounds(policy: Policy | None = None) -> Iterator[Ground]:
    """One on each database."""
    for kind in KINDS:
        with Ground(kind, policy) as ground:
            yield ground
