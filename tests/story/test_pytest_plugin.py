"""The plugin, as pytest loads it in somebody else's project: fixtures that are there at once, and may be overridden."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.story.process import ROOT

SHOP = """
from outbox import EnosEvents, Outbox

def made(database, spool):
    enos = EnosEvents(name="enos", url="https://enos.example", org_id="o1")
    return Outbox(database, spool=spool, destinations=[enos])

def inspect(outbox, session, asset, photo):
    payload = {"assetId": asset, "time": 1579580182824, "events": {"crack": {"photo": "local://photo"}}}
    outbox.enqueue(session, "enos", payload, files={"photo": photo}, key=f"inspection-{asset}")
"""

GLOBAL = """
import pytest
from pathlib import Path
import shop_of_one

@pytest.fixture
def outbox_app():
    return shop_of_one.outbox

def test_a_programs_own_outbox_is_moved_for_the_test(outbox_tester):
    with outbox_tester.session() as session:
        shop_of_one.inspect(session, "turbine-7")

    assert outbox_tester.outbox is shop_of_one.outbox
    outbox_tester.assert_enqueued("enos", key="inspection-turbine-7")
    assert not Path("shop.db").exists()

def test_the_next_test_finds_nothing_of_it(outbox_tester):
    outbox_tester.assert_nothing_enqueued()

def test_it_is_back_where_it_was():
    assert "shop.db" == shop_of_one.outbox.database.path.name
    assert {"enos"} == set(shop_of_one.outbox.destinations)

def test_an_engine_that_stays_behind_is_noticed(outbox_tester):
    from outbox import ConfigurationError
    from sqlalchemy import create_engine
    Path("shop.db").touch()
    engine = create_engine("sqlite:///shop.db")
    with engine.begin() as connection:
        with pytest.raises(ConfigurationError, match="shop.db, and the outbox on"):
            shop_of_one.inspect(connection, "turbine-8")
    engine.dispose()
"""

SHOP_OF_ONE = """
import shop

outbox = shop.made("sqlite:///shop.db", "spool")

def inspect(session, asset):
    shop.inspect(outbox, session, asset, b"bytes")
"""

AT_ONCE = """
def test_it_works_at_once(outbox_tester):
    with outbox_tester.session() as session:
        outbox_tester.outbox.enqueue(session, "test", {"a": 1})

    outbox_tester.assert_enqueued("test", {"a": 1})
    assert 1 == len(outbox_tester.drain())

def test_each_test_has_a_database_of_its_own(outbox_tester):
    outbox_tester.assert_nothing_enqueued()
"""

DESTINATIONS = """
import pytest
from outbox import EnosEvents
import shop

@pytest.fixture
def outbox_destinations():
    return EnosEvents(name="enos", url="https://enos.example", org_id="o1")

def test_destinations_are_the_projects_own(outbox_tester):
    with outbox_tester.session() as session:
        shop.inspect(outbox_tester.outbox, session, "turbine-7", b"bytes")

    (sent,) = outbox_tester.drain()
    assert sent.url.startswith("https://enos.example/")
"""

APP = """
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
import outbox
import shop

@pytest.fixture
def outbox_app(tmp_path):
    app = shop.made(f"sqlite:///{tmp_path / 'shop.db'}", tmp_path / "spool")
    yield app
    app.close()

@pytest.mark.parametrize("number", range(4))
def test_a_whole_outbox_is_the_projects_own(outbox_app, outbox_tester, tmp_path, number):
    assert outbox_app is outbox_tester.outbox
    engine = outbox.prepare(create_engine(f"sqlite:///{tmp_path / 'shop.db'}"))
    with Session(engine) as session, session.begin():
        shop.inspect(outbox_app, session, f"turbine-{number}", b"bytes")
    engine.dispose()

    outbox_tester.drain()
    assert [f"inspection-turbine-{number}"] == [each.key for each in outbox_tester.delivered]
"""

RECEIVER = """
from outbox import EnosEvents, Token, Worker
from outbox.testing import Status
import pytest
import shop

@pytest.fixture
def outbox_destinations(outbox_receiver):
    token = Token(outbox_receiver.token_url, "app-key", "app-secret", allow_plain_http=True)
    return [EnosEvents(name="enos", url=outbox_receiver.url, org_id="o1", token=token, allow_plain_http=True)]

def test_a_real_worker_delivers_to_a_real_receiver(outbox_tester, outbox_receiver):
    outbox_receiver.misbehave(Status(503))
    with outbox_tester.session() as session:
        shop.inspect(outbox_tester.outbox, session, "turbine-7", b"bytes")

    Worker(outbox_tester.outbox).run(until_idle=True)

    assert ["turbine-7"] == [each.struct["assetId"] for each in outbox_receiver.accepted]
    assert [] == outbox_receiver.violations
"""

WRONG = """
import pytest
import shop

class TestDestinations:
    @pytest.fixture
    def outbox_destinations(self):
        return ["enos"]

    def test_what_is_no_destination(self, outbox_tester): ...

class TestApp:
    @pytest.fixture
    def outbox_app(self):
        return "shop"

    def test_what_is_no_outbox(self, outbox_tester): ...

class TestSchema:
    @pytest.fixture
    def outbox_app(self, tmp_path):
        (tmp_path / "shop.db").touch()
        app = shop.made(f"sqlite:///{tmp_path / 'shop.db'}", tmp_path)
        yield app
        app.close()

    def test_what_is_not_migrated(self, outbox_tester): ...
"""

NOTHING = """
import sys

def test_nothing_is_loaded_that_nobody_asked_for():
    ours = {name for name in sys.modules if name.split(".")[0] == "outbox"}
    assert {"outbox", "outbox.testing", "outbox.testing.plugin"} == ours
    assert not {"sqlalchemy", "requests", "multipart", "http.server"} & set(sys.modules)
"""


def run(folder: Path, files: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """pytest, in a project of these files."""
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:randomly -p no:cacheprovider -p no:hypothesispytest\n")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", *options, str(folder)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_its_fixtures_work_at_once_and_are_overridden_side_by_side(tmp_path: Path) -> None:
    files = {
        "shop.py": SHOP,
        "test_at_once.py": AT_ONCE,
        "test_destinations.py": DESTINATIONS,
        "test_app.py": APP,
        "test_receiver.py": RECEIVER,
    }

    done = run(tmp_path, files, "-n", "2")

    assert (0, True) == (done.returncode, "8 passed" in done.stdout), done.stdout + done.stderr


def test_what_a_project_gives_wrongly_is_told_in_a_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, {"shop.py": SHOP, "test_wrong.py": WRONG})

    assert "3 errors" in done.stdout, done.stdout + done.stderr
    assert "KitError: expected outbox_destinations to be a list of destinations, got ['enos']" in done.stdout
    assert "KitError: expected outbox_app to be an Outbox, got str" in done.stdout
    assert "in the fixture outbox_app: outbox.migrate.upgrade(app.database)" in done.stdout


def test_a_project_that_does_not_use_it_loads_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, {"test_nothing.py": NOTHING})

    assert 0 == done.returncode, done.stdout + done.stderr


def test_a_programs_own_outbox_is_tested_without_touching_its_database(tmp_path: Path) -> None:
    done = run(tmp_path, {"shop.py": SHOP, "shop_of_one.py": SHOP_OF_ONE, "test_global.py": GLOBAL})

    assert (0, True) == (done.returncode, "4 passed" in done.stdout), done.stdout + done.stderr
