"""The page about destinations of one's own is true: its blocks run, and its tables have every option there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from outbox import Destination, Form, Webhook, settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "write-a-destination.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_python_blocks_are_one_program_that_prints_what_the_page_says(tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks("python")), "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}

    run = subprocess.run(
        [sys.executable, "-W", "error", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert (0, "") == (run.returncode, run.stderr)
    assert "".join(blocks("text")) == run.stdout


def test_the_settings_on_it_are_understood(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    file = tmp_path / "outbox.toml"
    file.write_text(block, "utf-8")

    outbox = settings.build(*settings.load(file))

    outbox.close()
    assert ["archive", "hook"] == sorted(outbox.destinations)


def test_its_destination_is_as_short_as_promised() -> None:
    (block,) = [each for each in blocks("python") if "class Depot" in each]

    assert 25 >= len(block.splitlines())


def test_its_tables_have_every_option() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    usual = {each.name for each in fields(Destination)}
    there = {each.name for kind in (Form, Webhook) for each in fields(kind)} - usual

    assert there | {"verdicts"} == told


def test_no_block_is_left_out() -> None:
    assert {"python", "toml", "text"} == set(re.findall(r"^```(\w*)$", PAGE, re.MULTILINE)) - {""}
