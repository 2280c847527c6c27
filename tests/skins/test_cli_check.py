"""`outbox doctor`, `verify` and `check` as a person, a script and a monitor run them."""

from __future__ import annotations

import copy
import json
import os
import pty
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from outbox.testing import Receiver
from tests import warm
from tests.skins.conftest import SECRET, Terminal


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """One that nobody changes anything in."""
    with Receiver(app_secret=SECRET) as receiver:
        terminal = Terminal(tmp_path_factory.mktemp("idle"), receiver)
        assert 0 == terminal.run("init").returncode
        yield terminal


@pytest.fixture(scope="module")
def enqueued(idle: Terminal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one message, whose file is a picture; to be copied."""
    folder = shutil.copytree(idle.folder, tmp_path_factory.mktemp("enqueued") / "copy")
    terminal = copy.copy(idle)
    terminal.folder = folder
    assert 0 == terminal.enqueue("--file", "photo=photo.jpg", "--key", "inspection-42").returncode
    return folder


@pytest.fixture
def terminal(idle: Terminal, tmp_path: Path, receiver: Receiver) -> Terminal:
    return Terminal(shutil.copytree(idle.folder, tmp_path / "copy"), receiver)


@pytest.fixture
def waiting(enqueued: Path, tmp_path: Path, receiver: Receiver) -> Terminal:
    """One with a message that is due."""
    return Terminal(shutil.copytree(enqueued, tmp_path / "copy"), receiver)


def statement(terminal: Terminal, words: str) -> None:
    with closing(sqlite3.connect(terminal.folder / "outbox.db")) as connection:
        connection.execute(words)
        connection.commit()


def beating(terminal: Terminal, seconds_ago: int = 0) -> None:
    """A worker that gave a sign of life so long ago."""
    when = f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-{seconds_ago} seconds') || '000'"
    statement(
        terminal,
        "INSERT INTO outbox_worker (id, host, pid, started_at, beat, beat_at, gone, stop_asked, serves)"
        f" VALUES ('{seconds_ago}', 'host', 1, {when}, 1, {when}, 0, 0, 'enos')",
    )


def spooled(terminal: Terminal) -> Path:
    (path,) = (each for each in (terminal.folder / "spool").rglob("*") if each.is_file() and len(each.name) == 32)
    return path


# doctor


def test_doctor_tells_what_it_looked_at_and_ends_well_without_problems(terminal: Terminal) -> None:
    beating(terminal)

    told = terminal.run("doctor")
    lines = terminal.lines("doctor")

    assert (0, "") == (told.returncode, told.stderr), told.stdout
    assert "ok       schema: the schema is outbox_" in told.stdout
    assert {"check", "level", "text", "remedy"} == {key for line in lines for key in line}
    assert {"ok", "warning"} == {line["level"] for line in lines}
    assert {"schema", "clock", "disk", "reach", "token", "workers"} <= {line["check"] for line in lines}
    assert all(line["remedy"] for line in lines if line["level"] != "ok")


def test_a_problem_comes_with_its_remedy_and_exit_code_1(terminal: Terminal) -> None:
    (terminal.folder / "outbox.toml").chmod(0o666)

    told = terminal.run("doctor", "--offline")

    assert 1 == told.returncode
    assert "problem  settings: everybody may write to outbox.toml (0666)" in told.stdout
    assert "→ run: chmod o-w outbox.toml" in told.stdout
    assert "reach:" not in told.stdout


def test_wrong_credentials_are_told_and_the_secret_is_not(terminal: Terminal, receiver: Receiver) -> None:
    told = terminal.run("doctor", "--json", ENOS_APP_SECRET="canary-8d2f71")

    (token,) = (
        line for line in map(json.loads, told.stdout.splitlines()) if line["check"] == "token" and line["level"] != "ok"
    )
    assert (1, "problem") == (told.returncode, token["level"])
    assert receiver.token_requests["get"] == 1
    assert "canary" not in told.stdout + told.stderr


# verify


def test_verify_names_the_message_of_a_damaged_file_with_exit_code_1(waiting: Terminal) -> None:
    sound = waiting.run("verify")
    spooled(waiting).write_bytes(b"b picture")

    damaged = waiting.run("verify")
    finding, summary = waiting.lines("verify", "--destination", "enos")

    assert (0, "") == (sound.returncode, sound.stderr)
    assert re.search(r"1 message and 1 file \(9 B\) in .* s: no problems, no warnings", sound.stdout)
    assert 1 == damaged.returncode
    assert "needed by message 1 (inspection-42, pending)" in damaged.stdout
    assert {"kind", "level", "text", "remedy", "file", "messages"} == finding.keys()
    assert ("file_changed", "problem", [1], spooled(waiting).name) == tuple(
        finding[each] for each in ("kind", "level", "messages", "file")
    )
    assert ("summary", 1, 1, 1, 0) == tuple(summary[each] for each in ("kind", "messages", "files", "problems", "warnings"))


def test_a_damaged_database_is_a_finding_of_verify_and_a_sentence_of_the_others(terminal: Terminal) -> None:
    database = terminal.folder / "outbox.db"
    database.write_bytes(b"x" * 100 + database.read_bytes()[100:])

    runs = {name: terminal.run(name) for name in ("verify", "doctor", "worker", "check")}

    assert "the database is damaged: file is not a database" in runs["verify"].stdout
    assert {"verify": 1, "doctor": 1, "check": 3} == {name: runs[name].returncode for name in ("verify", "doctor", "check")}
    assert runs["worker"].returncode
    assert "Traceback" not in "".join(run.stdout + run.stderr for run in runs.values())
    assert database.read_bytes().startswith(b"xxx")


def test_a_bar_is_drawn_on_a_terminal_alone(idle: Terminal) -> None:
    ours, theirs = pty.openpty()
    run = warm.WarmPopen(
        [sys.executable, "-m", "outbox", "verify"],
        cwd=idle.folder,
        env=idle.environment | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    drawn = b""
    with os.fdopen(ours, "rb", buffering=0) as screen:
        try:
            while block := screen.read(4096):
                drawn += block
        except OSError:  # Linux' word for the end of a terminal
            pass
    out, _ = run.communicate(timeout=30)

    assert b"\x1b[" in drawn
    assert out.startswith("0 messages and 0 files")
    assert "\x1b" not in out


# check


def test_check_says_ok_in_one_line_with_its_numbers(waiting: Terminal) -> None:
    beating(waiting)

    told = waiting.run("check", "--max-age", "5m", "--max-dead", "10", "--max-pending", "1", "--max-spool", "1MiB")

    (line,) = told.stdout.splitlines()
    assert (0, "") == (told.returncode, told.stderr)
    assert re.fullmatch(
        r"OUTBOX OK - 1 due, the oldest for [\d.]+ s, 0 waiting, 0 dead \| due=1;;;0 pending=1;;1;0 claimed=0;;;0 dead=0;;10;0 "
        r"oldest=[\d.]+s;;300;0 spool=9B;;1048576;0 workers=1;;;0",
        line,
    )


def test_a_limit_that_is_passed_is_critical(waiting: Terminal) -> None:
    beating(waiting)

    told = waiting.run("check", "--max-age", "0.001s", "--max-pending", "0", "--max-spool", "8")

    assert 2 == told.returncode
    assert told.stdout.startswith("OUTBOX CRITICAL - the oldest message has been due for")
    assert "; 1 pending, more than 0; 9 B in the spool, more than 8 B |" in told.stdout


def test_dead_messages_and_work_without_a_worker_are_critical_together(waiting: Terminal, receiver: Receiver) -> None:
    receiver.refuse(lambda struct: True, msg="no such | model")
    waiting.run("drain")
    dead = waiting.run("check", "--max-dead", "0")
    beating(waiting, seconds_ago=300)
    waiting.enqueue("--file", "photo=photo.jpg", "--key", "b")

    both = waiting.run("check", "--max-dead", "0", "--json")

    assert (2, True) == (dead.returncode, "1 dead, more than 0 |" in dead.stdout)
    told = json.loads(both.stdout)
    assert ("CRITICAL", 2, 2) == (told["state"], told["code"], both.returncode)
    assert ["1 dead, more than 0", "no worker is alive, and messages wait for one"] == told["reasons"]
    assert {"due": 1, "waiting": 0, "claimed": 0, "dead": 1} == {
        key: value for key, value in told["destinations"]["enos"].items() if key != "oldest_due_at"
    }


def test_a_pause_is_a_warning_whatever_the_age_and_cannot_forge_numbers(waiting: Terminal) -> None:
    beating(waiting)
    waiting.run("pause", "enos", "--reason", "until noon | dead=0\nOUTBOX OK", "--by", "anna")

    told = waiting.run("check", "--max-age", "0.001s")

    assert 1 == told.returncode
    assert told.stdout.startswith("OUTBOX WARNING - enos is paused by anna: until noon / dead=0 OUTBOX OK | due=1")
    assert 1 == len(told.stdout.splitlines())


@pytest.mark.parametrize("stop", ["credentials", "reject_streak"])
def test_a_stop_that_nobody_meant_is_critical(terminal: Terminal, stop: str) -> None:
    when = "'2026-03-01 12:00:00.000000'"
    statement(terminal, f"INSERT INTO outbox_destination (name, stop, stopped_at) VALUES ('enos', '{stop}', {when})")

    told = terminal.run("check")

    assert (2, True) == (told.returncode, "enos is stopped: " in told.stdout)


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        (("check", "--max-age", "soon"), {}, "expected a time such as 90s"),
        (("check", "--bogus"), {}, "there is no option --bogus"),
        (("check", "--destination", "eons"), {}, "no destination named 'eons'; declared: enos"),
        (("--config", "nowhere.toml", "check"), {}, "there is no settings file nowhere.toml"),
        (("check",), {"OUTBOX_DATABASE": "sqlite:///nowhere.db"}, "there is no database"),
        (("check",), {"OUTBOX_DATABASE": "postgresql+psycopg://ada:pw@host:x/name"}, "cannot read the database URL"),
        (("check",), {"OUTBOX_DESTINATIONS__ENOS__URL": "https://[x"}, "expected a URL that begins with https://"),
        (("--app", "broken:outbox", "check"), {}, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_told_is_unknown(idle: Terminal, arguments, more, words: str) -> None:
    (idle.folder / "broken.py").write_text("outbox = 1 / 0\n")
    told = idle.run(*arguments, **more)

    assert (3, "") == (told.returncode, told.stderr)
    assert told.stdout.startswith("OUTBOX UNKNOWN - ")
    assert words in told.stdout


@pytest.mark.postgres
def test_a_database_that_does_not_answer_is_unknown_within_seconds(idle: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://nobody:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/nowhere"
        began = time.monotonic()
        told = idle.run("check", "--timeout", "1s", OUTBOX_DATABASE=url)

    assert (3, "OUTBOX UNKNOWN - the database did not answer within 1 s\n", "") == (told.returncode, told.stdout, told.stderr)
    assert time.monotonic() - began < 20  # and not the two minutes that a connection may take


def test_its_own_exit_codes_are_in_the_help(idle: Terminal) -> None:
    told = " ".join(idle.run("check", "--help").stdout.split())

    assert "0 OK, 1 WARNING" in told
    assert "3 UNKNOWN" in told
