"""The pages of docs/ are true: what a reader would type in works, and what he would follow leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.meta.running import ROOT, run

PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("deploy/*.md")])
#: Pages whose blocks others run, or which have them from elsewhere.
ELSEWHERE = {
    "README.md": "test_readme.py",
    "docs/verdicts.md": "test_docs.py",
    "docs/plain-sql.md": "test_plain_sql_page.py",
    "docs/how-to/upgrade.md": "test_upgrade_page.py",
}
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_HEADLINE = re.compile(r"^#+ (.*)$", re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def is_in_a_terminal(page: Path) -> bool:
    return "```sh" in page.read_text("utf-8")


RUN = [each for each in PAGES if name(each).startswith("docs/") and "```python" in each.read_text("utf-8")]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(each, id=name(each), marks=[pytest.mark.merge] if is_in_a_terminal(each) else [])
        for each in RUN
        if name(each) not in ELSEWHERE
    ],
)
def test_what_a_reader_would_type_in_works(page: Path, tmp_path: Path) -> None:
    run(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for match in _LINK.finditer(text):
        target, _, anchor = unquote(match[1] or match[2]).partition("#")
        if target.startswith(("http://", "https://")):
            continue
        found = page.parent / target if target else page
        assert found.exists(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name(page)} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The names of its headlines as GitHub makes them."""
    headlines = _HEADLINE.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headlines}
