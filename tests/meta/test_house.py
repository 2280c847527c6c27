"""The rules of the house that no linter knows."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "outbox"

#: What only a skin or a migration needs. A gateway that just enqueues should not pay for it.
HEAVY = {"alembic", "apscheduler", "click", "pydantic_settings", "rich", "rich_click"}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.merge
def test_the_rings_hold() -> None:
    linted = run(Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo")

    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_receiver_stands_alone() -> None:
    """`outbox receiver` may reach up for it only because it drags nothing along but its neighbours in `testing`."""
    seen: set[str] = set()
    left = {"outbox.testing.receiver"}
    while left:
        name = left.pop()
        seen.add(name)
        left |= imports_of_ours(file_of(name)) - seen

    assert {name for name in seen if not name.startswith("outbox.testing")} == set()


def file_of(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of_ours(file: Path) -> set[str]:
    """The modules of outbox that this file names, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} uses a relative import; name the module in full"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {part for part in parts if file_of(part).is_file()} or {node.module or ""}
    return {name for name in names if name.split(".")[0] == "outbox"}


def test_import_outbox_is_light() -> None:
    imported = run(sys.executable, "-c", "import sys, outbox; print(*sys.modules)")

    assert imported.returncode == 0, imported.stderr
    assert HEAVY & set(imported.stdout.split()) == set()


def test_a_producer_imports_what_it_needs_and_no_more() -> None:
    """It sends nothing, migrates nothing and shows nothing; whatever else it loads, it waits for at each of its starts."""
    imported = run(
        sys.executable, "-c", "import gc, sys; from outbox import EnosEvents, Outbox; print(gc.isenabled(), *sys.modules)"
    )

    assert imported.returncode == 0, imported.stderr
    collecting, *names = imported.stdout.split()
    unneeded = HEAVY | {"pydantic", "requests", "urllib3", "outbox.transport", "outbox.sights", "outbox.worker", "outbox.cli"}
    assert ("True", set()) == (collecting, unneeded & set(names))


def test_only_who_builds_with_types_pays_for_them() -> None:
    """A payload may be a plain dict, with files and a time in it, and needs no pydantic."""
    script = """
import sys
from datetime import UTC, datetime
from outbox import Entry, EnosEvents, File, intake
enos = EnosEvents(name="enos", url="https://a.example", org_id="o")
struct = {"assetId": "a", "time": datetime.now(UTC), "events": {"crack": {"photo": File(b"x")}}}
intake.examine(enos, Entry(struct), (), datetime.now(UTC))
print(*sys.modules)
"""
    imported = run(sys.executable, "-c", script)

    assert imported.returncode == 0, imported.stderr
    assert {"pydantic"} & set(imported.stdout.split()) == set()


@pytest.mark.full
def test_every_module_can_be_imported_first() -> None:
    """An import cycle shows only from one of its ends, so each module is tried with none of the others loaded."""
    script = """
import importlib, pkgutil, sys, outbox
names = [m.name for m in pkgutil.walk_packages(outbox.__path__, "outbox.") if not m.name.endswith("__main__")]
for name in names:
    for loaded in [m for m in sys.modules if m.split(".")[0] == "outbox"]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""
    imported = run(sys.executable, "-c", script)

    assert imported.returncode == 0, imported.stderr


def test_the_types_are_declared() -> None:
    assert (PACKAGE / "py.typed").is_file()


#: Where one machine keeps things, and where one network gets its packages: neither is any reader's business.
PRIVATE = re.compile(
    r"(?<![\w.$}-])/(?:home|root|Users|work|workspace|builds)/\w"
    r"|[A-Za-z]:\\Users\\"
    r"|/tmp/\w*jobs\b"
    r"|(?:index|find|registry)[-_](?:url|links)\b"
    r"|https?://\S+/\+?simple\b",
    re.IGNORECASE,
)


def test_no_file_names_a_machine_or_a_package_index() -> None:
    listed = run("git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip("not a git checkout")

    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name in listed.stdout.splitlines()
        for number, line in enumerate(lines_of(ROOT / name), 1)
        if PRIVATE.search(line)
    ]
    assert found == []


def lines_of(path: Path) -> list[str]:
    """Its lines; none for what is not text or was just deleted."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


@pytest.mark.parametrize(
    "line",
    [
        "/" + "home/ada/outbox",
        "see C:" + "\\Users\\ada",
        "cp x /" + "root/x",
        "--index" + "-url",
        "find" + "_links = x",
        "https://pypi.example/root/pypi/+" + "simple/",
    ],
)
def test_a_private_line_is_noticed(line: str) -> None:
    assert PRIVATE.search(line)
