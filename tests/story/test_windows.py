"""Where Windows differs: no POSIX, files that are open are held fast, and every process begins from nothing (spawn)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
import sqlalchemy as sa

from outbox.database import parsed
from tests.factories import states
from tests.story.conftest import ROOT, Place
from tests.windows import FORBIDDEN

in_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only /proc tells which files are open")


def on_windows(what: str, folder: Path) -> dict[str, Any]:
    """What was seen in a process that is like one on Windows."""
    command = [sys.executable, "-m", "tests.windows", what, str(folder)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120)
    assert 0 == done.returncode, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@in_proc
def test_a_life_without_posix_where_open_files_are_held_fast(tmp_path: Path) -> None:
    seen = on_windows("life", tmp_path)

    assert {"again": [True, False], "delivered": ["a"], "sizes": [7], "purged": 1} == {
        name: seen[name] for name in ("again", "delivered", "sizes", "purged")
    }
    assert {"freed": 1, "kept": [True, True]} == seen["held"], "what is open stays, and nothing fails for it"
    assert [] == seen["left"], "and is gone with the next sweep"
    assert {"status": 0, "list": 3, "verify": 0, "workers": 3, "drain": 0} == {
        name: code for name, code in seen["commands"].items() if name != "doctor"
    }
    assert seen["commands"]["doctor"] in (0, 1)


@in_proc
def test_no_file_has_a_name_that_windows_forbids(tmp_path: Path) -> None:
    names = on_windows("life", tmp_path)["names"]

    assert {"spool", ".unfinished", "out box.db", "out box.db-wal", "ledger.jsonl"} <= set(names)
    assert [] == [name for name in names if FORBIDDEN.search(name)]


@pytest.mark.parametrize("name", ["a:b", "nul", "COM1.txt", "aux.", "a.", "a ", "a?", "a\x01"])
def test_a_name_that_windows_forbids_is_noticed(name: str) -> None:
    assert FORBIDDEN.search(name)


def test_ctrl_break_ends_a_worker(tmp_path: Path) -> None:
    assert {"ended": True} == on_windows("stop", tmp_path)


@pytest.mark.parametrize("path", [r"C:\data\outbox.db", r"C:\Program Data\out box.db", r"d:\größe#1.db"])
def test_a_path_of_windows_survives_a_url(path: str) -> None:
    """In a database URL as it stands, and in the URI that we open SQLite's file with."""
    assert path == parsed(f"sqlite:///{path}").database
    assert path == parsed(sa.URL.create("sqlite", database=path).render_as_string()).database
    uri = PureWindowsPath(path).as_uri()
    assert uri.lower().startswith(f"file:///{path[0].lower()}:/")
    assert not {"#", "?", " "} & set(uri)


SPAWNING = """
import copy, multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from outbox import EnosEvents, KeyConflict, Outbox, Policy, Refused, Worker, prepare
from sqlalchemy import create_engine

enos = EnosEvents(name="enos", url=os.environ["PLACE"], org_id="o1", allow_plain_http=True, policy=Policy(senders=1))
outbox = Outbox(os.environ["DATABASE"], spool=os.environ["SPOOL"], destinations=[enos], durability="ignore", reserve=0)

def work():
    Worker(outbox).run(until_idle=True)

def enqueue(struct, key):
    engine = prepare(create_engine(os.environ["DATABASE"]))
    with engine.begin() as connection:
        return outbox.enqueue(connection, "enos", struct, key=key, files={"photo": b"bytes of a photo"})

def struct(asset, **more):
    return {"assetId": asset, "time": 1579580182824, "events": {"crack": {"photo": "local://photo"} | more}}

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        done = list(pool.map(enqueue, [struct("a"), struct("b")], ["a", "b"]))
        assert [True, True] == [each.new for each in done], done
        for wrong, kind in ((struct("c"), KeyConflict), (struct(""), Refused)):
            assert isinstance(pool.submit(enqueue, wrong, "a").exception(), kind)
        assert enos == pool.submit(copy.copy, enos).result()
    workers = [spawn.Process(target=work) for _ in range(2)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    print([each.exitcode for each in workers])
"""


def test_producers_and_workers_may_be_spawned(place: Place, tmp_path: Path) -> None:
    program = tmp_path / "spawning.py"
    program.write_text(SPAWNING, "utf-8")
    here = {"PLACE": place.receiver.url, "DATABASE": place.url, "SPOOL": str(place.spool), "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=os.environ | here, capture_output=True, text=True, timeout=120
    )

    assert (0, "[0, 0]\n") == (done.returncode, done.stdout), done.stderr
    assert {"a": "delivered", "b": "delivered"} == states(place.database)
    assert {"a", "b"} == {each.struct["assetId"] for each in place.receiver.accepted}
