"""Pages of docs/ that are written from the code: `make docs` writes them, and a test sees that each says what the code does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.writing import defaults, reference

ROOT = Path(__file__).parents[2]


def _printed(command: str) -> Callable[[], str]:
    """What a command of ours prints."""

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-X", "utf8", "-m", "outbox", command], cwd=ROOT, capture_output=True, check=True
        )
        return done.stdout.decode("utf-8")

    return run


#: Each page below docs/, and what it says.
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": _printed("manual"),
    "defaults.md": defaults.page,
    "reference.md": reference.page,
    "verdicts.md": _printed("verdicts"),
}
