"""Commands in a process of their own: several one after the other in one, since each start costs most of a second."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import warm

#: Runs commands in turn. What each says ends with a separator, on standard output after its exit code.
_ONE_AFTER_THE_OTHER = """
import json, sys
from outbox.cli import main

from tests import warm
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as end:
        sys.stdout.write(f"\\x1f{end.code}\\x1e")
        sys.stderr.write("\\x1e")
"""


def run_all(
    commands: Sequence[Sequence[str]], folder: Path, environment: Mapping[str, str]
) -> list[subprocess.CompletedProcess[str]]:
    """What each of these commands said, and how it ended."""
    program = [sys.executable, "-c", _ONE_AFTER_THE_OTHER, json.dumps(commands)]
    run = warm.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    outputs, errors = run.stdout.split("\x1e"), run.stderr.split("\x1e")
    assert len(commands) + 1 == len(outputs) == len(errors), run.stderr
    told = [(*output.split("\x1f"), error) for output, error in zip(outputs[:-1], errors, strict=False)]
    return [
        subprocess.CompletedProcess(command, int(code), output, error)
        for command, (output, code, error) in zip(commands, told, strict=True)
    ]
