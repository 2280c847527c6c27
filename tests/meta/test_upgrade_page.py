"""docs/how-to/upgrade.md is true: a host application is made of its blocks, and every one of them is executed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import migrate
from outbox.database import Database
from tests import warm
from tests.factories import an_outbox

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "upgrade.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


OURS, THEIRS = blocks("sh")
ENV, REVISION, BACK = blocks("python")
(SETTINGS,) = blocks("ini")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.create()
    yield database
    database.close()


@pytest.fixture
def host(database_url: str, tmp_path: Path) -> Path:
    """A folder with what the page has in it."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "script.py.mako").write_text("")
    (tmp_path / "migrations" / "env.py").write_text(ENV)
    place = SETTINGS.replace("outbox:_migrations/versions", str(migrate.versions()))
    (tmp_path / "alembic.ini").write_text(f"{place}sqlalchemy.url = {database_url.replace('%', '%%')}\n")
    return tmp_path


def run(host: Path, url: str, line: str) -> subprocess.CompletedProcess[str]:
    """A line of a terminal there."""
    command, *arguments = shlex.split(line, comments=True)
    target = None
    if ">" in arguments:
        target = host / arguments[-1]
        del arguments[-2:]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OUTBOX_DATABASE": url, "OUTBOX_SPOOL": str(host / "spool")}
    done = warm.run([sys.executable, "-m", command, *arguments], cwd=host, env=environment, capture_output=True, text=True)
    if target is not None:
        target.write_text(done.stdout)
    return done


def alone(host: Path) -> None:
    """The host's history has only its own."""
    settings = host / "alembic.ini"
    settings.write_text(settings.read_text().replace(f" {migrate.versions()}", ""))


def test_the_first_way(database: Database, database_url: str, host: Path) -> None:
    alone(host)

    done = [run(host, database_url, line).returncode for line in OURS.splitlines()]

    migrate.require_current(database)
    assert [5, 0, 0] == done
    assert "CREATE TABLE outbox_message" in (host / "upgrade.sql").read_text()
    assert 0 == run(host, database_url, "alembic check").returncode


def test_the_second_way(database: Database, database_url: str, host: Path) -> None:
    (line,) = THEIRS.splitlines()

    done = run(host, database_url, line)

    assert 0 == done.returncode, done.stderr
    assert migrate.Standing(migrate.newest(), "alembic_version") == standing(database)
    checked = run(host, database_url, "alembic check")
    assert 0 == checked.returncode, checked.stdout + checked.stderr


def test_a_database_that_came_the_first_way_is_taken_over(database: Database, database_url: str, host: Path) -> None:
    (host / "migrations" / "versions" / "theirs.py").write_text(
        "revision, down_revision = 'theirs', None\n\ndef upgrade(): pass\n"
    )
    migrate.upgrade(database)
    (line,) = re.findall(r"`(alembic stamp --purge heads)`", PAGE)
    (drop,) = re.findall(r"`(DROP TABLE [a-z_]+)`", PAGE)

    done = run(host, database_url, line)
    with database.begin() as connection:
        connection.execute(sa.text(drop))

    assert 0 == done.returncode, done.stderr
    assert migrate.Standing(migrate.newest(), "alembic_version") == standing(database)
    assert 0 == run(host, database_url, "alembic upgrade heads").returncode


def test_the_third_way_and_back(database: Database, database_url: str, host: Path) -> None:
    alone(host)
    name = REVISION.partition("# ")[2].partition("\n")[0]
    (host / name).write_text(REVISION)

    up = run(host, database_url, "alembic upgrade head")
    there = standing(database)
    down = run(host, database_url, "alembic downgrade base")

    assert (0, 0) == (up.returncode, down.returncode), up.stderr + down.stderr
    assert migrate.Standing(migrate.newest(), migrate.VERSION_TABLE) == there
    assert migrate.Standing() == standing(database)


def test_going_back(database: Database, database_url: str, tmp_path: Path) -> None:
    migrate.upgrade(database)
    outbox = an_outbox(database_url, tmp_path / "spool")

    exec(BACK, {"outbox": outbox})

    assert migrate.Standing("outbox_0004", migrate.VERSION_TABLE) == standing(database)
    outbox.close()


def standing(database: Database) -> Any:
    with database.read() as connection:
        return migrate.standing(connection)
