"""docs/operating.md is true: an operator who types in what it says is understood, and gets what he asked for."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from outbox.testing import Receiver
from tests.meta.running import ROOT, environment_of, free_port

BLOCKS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "operating.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
PORT = "9464"
#: Nothing matched, or there is something to look at: an answer, and no misunderstanding.
ANSWERS = {0, 1, 3}


@pytest.mark.merge
def test_every_command_on_the_page_is_understood(tmp_path: Path) -> None:
    with Receiver(check_token=False) as receiver:
        environment = environment_of(tmp_path) | {
            "OUTBOX_DESTINATIONS__ENOS__URL": receiver.url,
            "OUTBOX_DESTINATIONS__ENOS__TOKEN__URL": receiver.token_url,
            "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
            "ENOS_APP_KEY": "app-key",
            "ENOS_APP_SECRET": "app-secret",
        }

        def run(command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )

        assert 0 == run("outbox init").returncode
        event = '{"assetId": "turbine-7", "time": 1579580182824, "events": {"crack": {"severity": 3}}}'
        assert 0 == run(f"echo '{event}' | outbox enqueue enos --payload - --key inspection-42").returncode
        assert 0 == run("outbox drain").returncode

        for command in COMMANDS:
            if command.startswith("outbox worker"):
                works_until_it_is_stopped(command.replace(PORT, str(free_port())), tmp_path, environment)
                continue
            done = run(command)
            assert done.returncode in ANSWERS, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
            assert "Traceback" not in done.stderr, done.stderr


def works_until_it_is_stopped(command: str, folder: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(command.split(), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        assert any("delivers to enos" in line for line in iter(worker.stderr.readline, ""))
        worker.send_signal(signal.SIGTERM)
        worker.stderr.read()
    assert 0 == worker.returncode


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10
    assert all(each.startswith("outbox ") for each in COMMANDS)
