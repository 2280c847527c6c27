"""The reference and the table of defaults are what the code says, and the code says something of everything that is public."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from outbox import Outbox, Policy, Retention, Worker, declaring, settings
from tests.writing import PAGES, ROOT, defaults, reference, source

DEFAULTS = (ROOT / "docs" / "defaults.md").read_text("utf-8")
REFERENCE = (ROOT / "docs" / "reference.md").read_text("utf-8")


@pytest.mark.parametrize(("name", "written"), [("defaults.md", defaults.page), ("reference.md", reference.page)])
def test_a_page_is_what_the_code_says(name: str, written) -> None:
    if written() != (ROOT / "docs" / name).read_text("utf-8"):
        pytest.fail(f"docs/{name} is not what the code says; write it anew with: make docs", pytrace=False)


def test_every_page_that_is_written_is_there_and_says_so() -> None:
    assert all((ROOT / "docs" / name).is_file() for name in PAGES)
    assert all("`make docs`" in page for page in (DEFAULTS, REFERENCE))
    assert "python -m tests.writing" in subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.parametrize("module", reference.MODULES)
def test_everything_public_has_an_entry_and_words(module: str) -> None:
    home = importlib.import_module(module)
    for name in reference.public(home):
        assert f"\n### `{name}`\n" in REFERENCE, name
        thing = inspect.unwrap(getattr(home, name)) if callable(getattr(home, name)) else getattr(home, name)
        if inspect.isclass(thing):
            assert source.doc(source.class_of(thing)), name
        elif inspect.isfunction(thing):
            assert inspect.getdoc(thing), name


@pytest.mark.parametrize("kind", [Outbox, Worker])
def test_every_public_method_is_told(kind: type) -> None:
    methods = [name for name, each in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]

    assert [] == [name for name in methods if not re.search(rf"^(await )?{kind.__name__}\.{name}\(", REFERENCE, re.MULTILINE)]


def test_every_field_and_value_of_a_table_has_words() -> None:
    kinds = [Policy, Retention, *dict.fromkeys(kind for each in declaring.TYPES.values() for kind in each.__mro__)]
    tables = [kind for kind in kinds if dataclasses.is_dataclass(kind)]

    assert [] == [row for kind in tables for row in defaults._fields(kind) if not row[2]]
    assert [] == [row for row in defaults._constants() if not row[2]]
    assert set(defaults._FIXED) == {row[0].strip("`") for row in defaults._constants()}


def test_every_setting_is_a_row_with_its_variable() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \|.*\| `(OUTBOX_\w+)` \|$", DEFAULTS, re.MULTILINE))

    assert settings.Settings.model_fields.keys() == {key.partition(".")[0] for key in rows}
    assert {"OUTBOX_" + key.replace(".", "__").upper() for key in rows} == set(rows.values())


def test_a_variable_of_the_page_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "OUTBOX_DATABASE": "sqlite:///x.db",
        "OUTBOX_RETENTION__DEAD": "30d",
        "OUTBOX_DESTINATIONS__ERP__TYPE": "enos-events",
        "OUTBOX_DESTINATIONS__ERP__URL": "https://a.example",
        "OUTBOX_DESTINATIONS__ERP__ORG_ID": "o",
        "OUTBOX_DESTINATIONS__ERP__POLICY__SENDERS": "7",
        "OUTBOX_WORKER__STOP_GRACE": "5",
    }.items():
        monkeypatch.setenv(variable, value)

    loaded, folder = settings.load()

    assert 7 == settings.build(loaded, folder).destinations["erp"].policy.senders
    assert (30, 5) == (loaded.retention.dead and loaded.retention.dead.days, loaded.worker.stop_grace)


def test_a_default_is_shown_as_people_write_it() -> None:
    shown = [defaults.shown(each) for each in (None, True, 5.0, 900, 8 * 1024 * 1024, "warn", ())]

    assert ["none", "true", "5", "900", "8,388,608 (8.0 MiB)", '`"warn"`', "nothing"] == shown


SAMPLE = """\
class Sample:
    a: int = 1  #: beside
    #: above,
    #: on two lines
    b: int = 2
    c: int = (
        3  #: within
    )
    d: int = 4
    '''below'''
    e: int = 5  # for those who read the code
    _f: int = 6  #: private
"""


def test_words_are_found_beside_above_within_and_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_sample.py").write_text(SAMPLE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    text = source.text_of("a_sample")

    words = [(each.name, each.words) for each in text.members(text.find("Sample").body)]

    sys.modules.pop("a_sample")
    assert [("a", "beside"), ("b", "above, on two lines"), ("c", "within"), ("d", "below"), ("e", "")] == words
