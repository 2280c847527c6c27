"""The page of promises names tests that are there, files that are there and targets that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def _tests(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_it_names_is_there() -> None:
    named = re.findall(r"(?:tests/)?((?:\w+/)+test_\w+\.py)::(\w+)", PAGE)

    assert len(named) > 20
    assert [] == [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / "tests" / file).is_file() or name not in _tests(ROOT / "tests" / file)
    ]


def test_every_path_that_it_names_is_there() -> None:
    assert [] == [each for each in re.findall(r"`((?:tests|docs|outbox)/[\w/.]+)`", PAGE) if not (ROOT / each).exists()]


def test_every_target_that_it_names_is_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert set() == set(re.findall(r"`make ([\w-]+)", PAGE)) - targets


def test_every_place_that_it_leads_to_is_there() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}

    assert set() == set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) - anchors
