"""docs/how-to/hooks.md is true: its Python is one program that runs, and its settings are understood."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from outbox import settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "hooks.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_its_python_is_one_program_that_runs(tmp_path: Path) -> None:
    program = tmp_path / "hooks.py"
    program.write_text("\n".join([*blocks("python"), "engine.dispose()", "outbox.close()"]), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    run = subprocess.run(
        [sys.executable, "-W", "error", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )

    assert 0 == run.returncode, run.stderr


def test_its_settings_are_understood(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    (tmp_path / "outbox.toml").write_text(f'database = "sqlite:///outbox.db"\n{block}')

    outbox = settings.build(*settings.load(tmp_path / "outbox.toml"))

    route = outbox.destinations["enos"].route
    assert route is not None
    assert str(tmp_path / "factory-ca.pem") == route.ca_file
