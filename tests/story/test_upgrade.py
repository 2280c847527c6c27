"""A rolling upgrade: the database first, then workers; producers of the version before go on all the while."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command

from outbox import migrate
from outbox.errors import SchemaError
from outbox.worker import Worker
from tests.story.conftest import ROOT, Place, eventually

#: Enqueues through the code it finds, in whatever way a producer of that version did, and says what it got.
PRODUCER = """
import json, os, sqlalchemy as sa
from outbox import EnosEvents, Outbox, prepare
story = json.loads(os.environ["STORY"])
enos = EnosEvents(name="enos", url=story["url"], org_id="o1", allow_plain_http=True)
outbox = Outbox(story["database"], spool=story["spool"], destinations=[enos], durability="ignore")
engine = prepare(sa.create_engine(story["database"]))
for key, more in story["messages"].items():
    payload = {"assetId": key, "time": 1579580182824, "events": {"crack": {"severity": 3, "photo": "local://photo"}}}
    with engine.begin() as connection:
        added = outbox.enqueue(connection, "enos", payload, files={"photo": b"bytes of " + key.encode()}, key=key, **more)
        again = outbox.enqueue(connection, "enos", payload, files={"photo": b"bytes of " + key.encode()}, key=key, **more)
    print(json.dumps([key, added.new, again.new]))
"""

MESSAGES: dict[str, dict[str, object]] = {
    "plain": {},
    "in order": {"ordering_key": "turbine-7"},
    "in order, the second": {"ordering_key": "turbine-7"},
    "in no order": {"ordering_key": "turbine-8", "ordered": False},
    "an alarm": {"lane": "express"},
}


@functools.cache
def code_of_the_schema_before() -> str | None:
    """The last commit whose newest migration was the one before ours; None where the history is not at hand."""
    newest = next(path for path in (ROOT / "migrations" / "versions").glob(f"{migrate.newest()}_*.py"))
    came = _git("log", "--diff-filter=A", "--format=%H", "--", str(newest.relative_to(ROOT))).split()
    return _git("rev-parse", "--verify", "--quiet", f"{came[-1]}^").strip() or None if came else None


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", "-c", "safe.directory=*", *arguments], cwd=ROOT, capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else ""


@pytest.fixture(scope="session")
def code_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of the version before this schema."""
    commit = code_of_the_schema_before()
    if commit is None:
        pytest.skip("the version before is not in this checkout's history")
    archive = subprocess.run(
        ["git", "-c", "safe.directory=*", "archive", commit, "outbox", "migrations"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        found.extractall(folder, filter="data")
    return folder


def run_before(code: Path, place: Place, program: str, **story: object) -> subprocess.CompletedProcess[str]:
    """A program on the code of the version before, in a process of its own."""
    here = {"database": place.url, "spool": str(place.spool), "url": place.receiver.url}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(code), "STORY": json.dumps(here | story)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.long
def test_a_producer_of_the_version_before_enqueues_into_the_new_schema(place: Place, code_before: Path) -> None:
    run = run_before(code_before, place, PRODUCER, messages=MESSAGES)

    assert [[key, True, False] for key in MESSAGES] == [json.loads(line) for line in run.stdout.splitlines()], run.stderr
    with Worker(place.outbox()):
        eventually(lambda: len(place.receiver.accepted) == len(MESSAGES))


@pytest.mark.long
def test_a_worker_of_the_version_before_refuses_with_what_to_do(place: Place, code_before: Path) -> None:
    program = PRODUCER.partition("engine =")[0] + "from outbox import Worker\nWorker(outbox).run(until_idle=True)\n"

    run = run_before(code_before, place, program)

    assert 1 == run.returncode
    assert f"newer than this code ({migrate.newest()[:-1]}" in run.stderr
    assert "upgrade durable-outbox here" in run.stderr


@pytest.fixture
def old_place(place: Place) -> Iterator[Place]:
    """A place whose database has the schema before this one."""
    with place.database.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.downgrade(config, "outbox@-1")
    yield place
    migrate.upgrade(place.database)


WORKER = PRODUCER.partition("engine =")[0] + "from outbox import Worker\nWorker(outbox, poll=0.05).run()\n"


@pytest.fixture
def old_worker(old_place: Place, code_before: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the version before, at work in its own schema."""
    here = {"database": old_place.url, "spool": str(old_place.spool), "url": old_place.receiver.url}
    environment = os.environ | {"PYTHONPATH": str(code_before), "STORY": json.dumps(here)}
    with subprocess.Popen([sys.executable, "-c", WORKER], cwd=code_before, env=environment) as process:
        yield process
        process.kill()


@pytest.mark.long
def test_a_running_worker_of_the_version_before_goes_on_when_the_schema_is_upgraded_under_it(
    old_place: Place, old_worker: subprocess.Popen[bytes]
) -> None:
    outbox = old_place.outbox()
    old_place.enqueue(outbox, "before", {"photo": b"bytes"})
    old_place.receiver.wait_for(lambda each: len(each.accepted) == 1, 60)

    migrate.upgrade(old_place.database)
    for key, options in MESSAGES.items():
        old_place.enqueue(outbox, key, {"photo": b"bytes"}, **options)
    old_place.receiver.wait_for(lambda each: len(each.accepted) == 1 + len(MESSAGES), 60)

    old_worker.terminate()
    assert 0 == old_worker.wait(60)
    old_place.check()


def test_a_producer_of_this_version_enqueues_into_the_schema_before(old_place: Place) -> None:
    """Which of them is upgraded first cannot always be chosen."""
    outbox = old_place.outbox()
    for key, options in MESSAGES.items():
        old_place.enqueue(outbox, key, {"photo": b"bytes"}, **options)

    migrate.upgrade(old_place.database)

    with Worker(outbox):
        eventually(lambda: len(old_place.receiver.accepted) == len(MESSAGES))


def test_a_worker_of_this_version_refuses_the_schema_before(old_place: Place) -> None:
    with pytest.raises(SchemaError, match="run: outbox db upgrade"):
        Worker(old_place.outbox()).start()
