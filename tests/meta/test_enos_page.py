"""docs/how-to/enos.md is true: its blocks are one program that runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "enos.md").read_text("utf-8")


def test_its_blocks_are_one_program_that_runs(tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text("\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    run = subprocess.run(
        [sys.executable, "-W", "error", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert (0, "") == (run.returncode, run.stderr)
