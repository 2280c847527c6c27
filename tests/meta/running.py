"""Runs a page: its blocks in their order, as a reader would who types them in.

A block with a title is written to that file. On a page without commands the Python blocks are one program; on one with commands
each is a program of its own, and the commands are those of one terminal.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
#: The port that pages name: another one here, since several may run.
_PORT = "8765"
#: What is started in the background is there before what follows it.
_WAIT = """\
python - <<'END'
import socket, time
ends = time.monotonic() + 20
while time.monotonic() < ends:
    try:
        socket.create_connection(("127.0.0.1", PORT)).close()
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
END
"""
_BEGIN = "set -emu\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"


def run(page: Path, folder: Path) -> None:
    """Run a page in an empty folder. Raises AssertionError, with all that was said, for what fails."""
    port = free_port()
    text = page.read_text("utf-8").replace(_PORT, str(port))
    blocks = [(each["language"], each["title"], each["code"]) for each in _BLOCK.finditer(text)]
    program = folder / ".page"
    if any(language == "sh" for language, _, _ in blocks):
        program.write_text(_BEGIN + "".join(_in_a_terminal(blocks, port)), "utf-8")
        command = ["bash", str(program)]
    else:
        program.write_text("\n".join(code for language, title, code in blocks if language == "python" and not title), "utf-8")
        command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment_of(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    assert 0 == done.returncode, done.stdout


def _in_a_terminal(blocks: list[tuple[str, str | None, str]], port: int) -> Iterator[str]:
    for number, (language, title, code) in enumerate(blocks):
        if title is not None:
            yield f"cat > {title} <<'END_OF_BLOCK'\n{code}END_OF_BLOCK\n"
        elif language == "python":
            yield f"cat > .block{number}.py <<'END_OF_BLOCK'\n{code}END_OF_BLOCK\npython -W error .block{number}.py\n"
        elif language == "sh":
            yield re.sub(r"&$", "&\n" + _WAIT.replace("PORT", str(port)), code, flags=re.MULTILINE)


def environment_of(folder: Path) -> dict[str, str]:
    """A reader's: `python` and `outbox` are there, and nothing is set."""
    tools = folder / ".tools"
    tools.mkdir()
    for name, command in (("python", ""), ("outbox", " -m outbox")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        (tools / name).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "ENOS_"))}
    return clean | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port
