"""The README is true: every block in it is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from outbox import settings
from tests.story.test_pytest_plugin import run as run_pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_opens_with_one_sentence_and_two_commands_that_exist():
    commands = [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()]

    assert ["make demo", "make test"] == commands
    for command in commands:
        assert 0 == subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True).returncode


def test_ci_runs_the_readmes_own_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def files() -> dict[str, str]:
    """The blocks that are files."""
    return dict(re.findall(r'^```python title="(\S+)"\n(.*?)^```$', README, re.MULTILINE | re.DOTALL))


def test_the_python_blocks_are_one_program_that_runs(tmp_path: Path):
    program, port = tmp_path / "readme.py", str(free_port())
    program.write_text("\n".join(blocks("python")).replace("8765", port), "utf-8")
    (tmp_path / "shop.py").write_text(files()["shop.py"].replace("8765", port), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    for _ in range(2):  # whoever reads on runs it again
        run = subprocess.run(
            [sys.executable, "-W", "error", program], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (0, "") == (run.returncode, run.stderr)


@pytest.mark.merge
def test_the_terminal_blocks_run_as_they_stand(tmp_path: Path):
    script = blocks("sh")[1].replace("8765", str(free_port()))
    script = script.replace(
        "export OUTBOX_DESTINATIONS__ENOS__URL",
        "receiver=$!\ntrap 'kill $receiver' EXIT\nexport OUTBOX_DESTINATIONS__ENOS__URL",
        1,
    )
    script = script.replace("outbox drain ", f"{WAIT_FOR_RECEIVER}\noutbox drain ", 1)
    (tmp_path / "outbox").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m outbox "$@"\n')
    (tmp_path / "outbox").chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
    environment |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}

    run = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    assert 0 == run.returncode, run.stderr
    assert "inspection-42" in run.stdout
    assert "delivered" in run.stdout


def test_the_test_in_it_is_short_and_passes(tmp_path: Path):
    test = files()["test_shop.py"].partition("def test_")[2]
    assert len(test.splitlines()) <= 10

    done = run_pytest(tmp_path, files())

    assert (0, True) == (done.returncode, "1 passed" in done.stdout), done.stdout + done.stderr
    assert not (tmp_path / "shop.db").exists()


def test_the_toml_block_for_who_outgrows_sqlite_is_understood():
    page = (ROOT / "docs" / "how-to" / "outgrow-sqlite.md").read_text("utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)

    assert settings.Settings(**tomllib.loads(block)).database.startswith("postgresql+psycopg://")


WAIT_FOR_RECEIVER = """
for try in $(seq 100); do "$PYTHON" -c "
import os, socket, urllib.parse as u
p = u.urlsplit(os.environ['OUTBOX_DESTINATIONS__ENOS__URL'])
socket.create_connection((p.hostname, p.port)).close()" 2>/dev/null && break; sleep 0.1; done
"""


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
