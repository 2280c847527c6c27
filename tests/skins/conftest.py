"""A shell of one's own, with an outbox in it, and the receiver that it delivers to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import EnosEvents, Outbox, Policy, Token, Worker
from outbox.tables import destination
from outbox.testing import Receiver
from tests import factories, warm
from tests.commands import run_all

SECRET = "canary-7f3a9c"
EVENT = {"assetId": "turbine-7", "time": 1579580182824, "events": {"crack": {"severity": 3, "photo": "local://photo"}}}


class Terminal:
    """A shell of one's own: a folder, an environment, and the `outbox` command.

    A start of the command costs most of a second. So what a test only needs to find there, or looks at afterwards, goes
    through the library in this process; what the test is about goes through a process.
    """

    #: Of the outbox in this process alone: the command has its settings.
    policy = Policy()

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.folder = folder
        self.receiver = receiver
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
        self.environment = kept | {
            "OUTBOX_DESTINATIONS__ENOS__URL": receiver.url,
            "OUTBOX_DESTINATIONS__ENOS__TOKEN__URL": receiver.token_url,
            "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
            "ENOS_APP_KEY": "app-key",
            "ENOS_APP_SECRET": SECRET,
        }

    def run(self, *arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return warm.run(
            [sys.executable, "-m", "outbox", *arguments],
            cwd=self.folder,
            env=self.environment | more,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def run_all(self, *commands: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
        """Several commands one after the other in one process."""
        return run_all(commands, self.folder, self.environment)

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--json").stdout.splitlines()]

    def enqueue(self, *more: str, payload: object = EVENT) -> subprocess.CompletedProcess[str]:
        self.photo()
        return self.run("enqueue", "enos", "--payload", "-", *more, stdin=json.dumps(payload))

    def photo(self) -> Path:
        path = self.folder / "photo.jpg"
        path.write_bytes(b"a picture")
        return path

    @cached_property
    def outbox(self) -> Outbox:
        """The same outbox in this process."""
        token = Token(url=self.receiver.token_url, app_key="app-key", app_secret=SECRET, allow_plain_http=True)
        enos = EnosEvents(
            name="enos",
            url=self.receiver.url,
            org_id="o15724268424841",
            token=token,
            allow_plain_http=True,
            policy=self.policy,
        )
        database = f"sqlite:///{self.folder / 'outbox.db'}"
        return Outbox(database, spool=self.folder / "spool", destinations=[enos], durability="ignore")

    def put(self, key: str = "k", payload: object = EVENT, **options: Any) -> int:
        """Enqueue a message with its photo; its id."""
        files = {"photo": self.photo()}
        with self.outbox.database.begin() as connection:
            return self.outbox.enqueue(connection, "enos", payload, files=files, key=key, **options).id

    def deliver(self) -> None:
        Worker(self.outbox).run(until_idle=True)

    def states(self) -> dict[str, str]:
        """The state of every message by its key."""
        return factories.states(self.outbox.database)

    def destination(self) -> Any:
        """Its row: whether it is stopped, by whom and why, and until when its breaker is open."""
        with self.outbox.database.read() as connection:
            return connection.execute(sa.select(destination).where(destination.c.name == "enos")).one()

    def close(self) -> None:
        if "outbox" in self.__dict__:
            self.outbox.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(app_secret=SECRET) as receiver:
        yield receiver


@pytest.fixture(scope="session")
def initialized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `outbox init` ran. A copy of it is as good as another run, and much faster."""
    folder = tmp_path_factory.mktemp("initialized")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
    warm.run([sys.executable, "-m", "outbox", "init"], cwd=folder, env=environment, capture_output=True, check=True)
    return folder


@pytest.fixture
def terminal(initialized: Path, tmp_path: Path, receiver: Receiver) -> Iterator[Terminal]:
    terminal = Terminal(shutil.copytree(initialized, tmp_path, dirs_exist_ok=True), receiver)
    yield terminal
    terminal.close()
