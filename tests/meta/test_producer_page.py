"""docs/how-to/test-your-producer.md is true: its blocks are the files of a project, and the tests in them pass."""

from __future__ import annotations

import re
from pathlib import Path

from tests.story.test_pytest_plugin import run

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test-your-producer.md"


def files_of(page: str) -> dict[str, str]:
    """Each block has the name of the file that it is."""
    return dict(re.findall(r'^```python title="(\S+\.py)"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL))


def test_every_block_is_a_file_of_its_own() -> None:
    assert PAGE.read_text("utf-8").count("```python") == len(files_of(PAGE.read_text("utf-8")))


def test_the_first_test_is_short() -> None:
    first = files_of(PAGE.read_text("utf-8"))["test_shop.py"]

    assert len([line for line in first.splitlines() if line.strip()]) <= 10


def test_its_tests_pass(tmp_path: Path) -> None:
    files = files_of(PAGE.read_text("utf-8"))
    tests = sum(len(re.findall(r"^def test_", text, re.MULTILINE)) for text in files.values())

    done = run(tmp_path, files)

    assert (0, True) == (done.returncode, f"{tests} passed" in done.stdout), done.stdout + done.stderr


def test_a_failure_reads_as_it_is_shown(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    files = {name: text for name, text in files_of(PAGE.read_text("utf-8")).items() if name in ("shop.py", "conftest.py")}
    wrong = """
import shop

def test_another_turbine(outbox_tester):
    with outbox_tester.session() as session:
        shop.report_crack(outbox_tester.outbox, session, "turbine-7", 3, b"a photo")
    outbox_tester.assert_enqueued("enos", {"assetId": "turbine-8"})
"""

    done = run(tmp_path, files | {"test_wrong.py": wrong})

    for piece in re.split("…|\n", shown):
        assert piece.strip(" ,}") in done.stdout, done.stdout
