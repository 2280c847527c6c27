"""What the package imports is what it says that it needs: nothing comes by way of somebody else's needs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: What may be there, and is asked for with a sentence where it is not.
EXTRAS = [need for name, needs in PROJECT["optional-dependencies"].items() if name not in ("dev", "mutation") for need in needs]
#: Which distributions a top-level name may come from: looked up once, since every one that is installed is read for it.
PROVIDED_BY = packages_distributions()
#: pydantic documents what is in its core as its own, and pins that core to one version.
PROVIDED_BY["pydantic_core"] = ["pydantic"]


def distribution(need: str) -> str:
    """The name in a requirement, as everybody writes it."""
    name = re.match(r"[\w.-]+", need)
    assert name is not None, need
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def imported(node: ast.AST) -> Iterator[str]:
    """The packages that are imported in here, but for those that only a type checker looks at."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import():
                yield from (alias.name.partition(".")[0] for alias in child.names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
        yield from imported(child)


@pytest.mark.parametrize("path", sorted((ROOT / "outbox").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_whatever_is_imported_is_asked_for_by_name(path: Path) -> None:
    declared = {distribution(need) for need in [*PROJECT["dependencies"], *EXTRAS]}
    others = set(imported(ast.parse(path.read_text("utf-8")))) - {"outbox", "__future__", *sys.stdlib_module_names}

    assert set() == {name for name in others if not declared & {distribution(each) for each in PROVIDED_BY.get(name, [name])}}
