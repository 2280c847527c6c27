"""A shell of one's own, with an outbox in it, and the receiver that it delivers to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.testing import Receiver

SECRET = "canary-7f3a9c"
EVENT = {"assetId": "turbine-7", "time": 1579580182824, "events": {"crack": {"severity": 3, "photo": "local://photo"}}}


class Terminal:
    """A shell of one's own: a folder, an environment, and the `outbox` command."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
        self.environment = kept | {
            "OUTBOX_DESTINATIONS__ENOS__URL": receiver.url,
            "OUTBOX_DESTINATIONS__ENOS__TOKEN__URL": receiver.token_url,
            "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
            "ENOS_APP_KEY": "app-key",
            "ENOS_APP_SECRET": SECRET,
        }

    def run(self, *arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "outbox", *arguments],
            cwd=self.folder,
            env=self.environment | more,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--json").stdout.splitlines()]

    def enqueue(self, *more: str, payload: object = EVENT) -> subprocess.CompletedProcess[str]:
        (self.folder / "photo.jpg").write_bytes(b"a picture")
        return self.run("enqueue", "enos", "--payload", "-", *more, stdin=json.dumps(payload))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(app_secret=SECRET) as receiver:
        yield receiver


@pytest.fixture
def terminal(tmp_path: Path, receiver: Receiver) -> Terminal:
    terminal = Terminal(tmp_path, receiver)
    assert 0 == terminal.run("init").returncode
    return terminal
