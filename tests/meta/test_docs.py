"""The pages in docs/ are true: what is generated is as generated, and what is a program runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from outbox.cli.verdicts import consequence, reaction, verdicts
from outbox.declaring import TYPES
from outbox.destinations import bystatus
from outbox.destinations.enos import VERDICTS
from outbox.destinations.table import Meaning
from outbox.destinations.token import ANSWERS, Reaction

ROOT = Path(__file__).parents[2]
VERDICTS_PAGE = ROOT / "docs" / "verdicts.md"
REGENERATE = "outbox verdicts > docs/verdicts.md"


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(verdicts, arguments)
    assert 0 == result.exit_code, result.output
    return result.output


def test_the_page_of_verdicts_is_what_the_command_prints() -> None:
    if printed() != VERDICTS_PAGE.read_text("utf-8"):
        pytest.fail(f"docs/verdicts.md is not what the tables say; write it anew with: {REGENERATE}", pytrace=False)


def test_it_has_every_type_and_a_line_for_every_rule() -> None:
    lines = printed().splitlines()

    assert all(any(line.startswith("## ") and f"`{name}`" in line for line in lines) for name in TYPES)
    for rule in (*VERDICTS, *bystatus.VERDICTS, *ANSWERS):
        assert any(line.startswith("|") and line.endswith(f" {rule.note} |") for line in lines)


def test_every_table_in_it_is_one() -> None:
    """A cell with a bar in it, or a line broken in two, would shift all that follows."""
    blocks = re.findall(r"^\|.*(?:\n\|.*)*", printed(), re.MULTILINE)

    assert 4 == len(blocks)
    assert [1] * 4 == [len({line.count("|") for line in block.splitlines()}) for block in blocks]


def test_it_can_be_limited_to_a_type() -> None:
    page = printed("--type", "enos-attributes")

    assert "## Answers to `enos-attributes`\n" in page
    assert "enos-events`" not in page.partition("## Answers of the token service")[0].partition("## Answers to")[2]


def test_a_type_that_nobody_knows_is_refused_with_those_that_are() -> None:
    result = CliRunner().invoke(verdicts, ["--type", "enos"])

    assert 2 == result.exit_code
    assert all(name in result.output for name in ("enos-events", "enos-attributes"))


def test_no_meaning_is_without_words() -> None:
    assert all(all(consequence(meaning)) for meaning in Meaning)
    assert all(reaction(meaning) for meaning in Reaction)


def test_its_example_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", VERDICTS_PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    program = tmp_path / "example.py"
    program.write_text(block, "utf-8")

    environment = {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-W", "error", program], env=environment, capture_output=True, text=True)

    assert (0, "") == (run.returncode, run.stderr)


def test_it_needs_neither_settings_nor_a_database(tmp_path: Path) -> None:
    command = "import sys; from outbox.cli.verdicts import verdicts; verdicts()"
    environment = {"PYTHONPATH": str(ROOT), "OUTBOX_CONFIG": str(tmp_path / "missing.toml"), "PYTHONUTF8": "1"}

    run = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert (0, "") == (run.returncode, run.stderr)
    assert [] == list(tmp_path.iterdir())
