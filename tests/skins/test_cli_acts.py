"""`outbox pause`, `resume`, `replay`, `cancel`, `purge` and `audit` as a person types them, and what is shown then."""

from __future__ import annotations

import getpass
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from typing import Any

import pytest
import sqlalchemy as sa

from outbox.model import State
from outbox.tables import audit, message
from outbox.testing import Receiver
from tests import warm
from tests.factories import column, count, message_values
from tests.skins.conftest import Terminal
from tests.story.conftest import eventually


def refused(terminal: Terminal, receiver: Receiver, **options: Any) -> None:
    """One message that its destination refuses."""
    receiver.refuse(lambda struct: True, msg="no such model")
    terminal.put("bad", **options)
    terminal.deliver()
    receiver.stop_refusing()


def test_a_pause_says_who_and_why_and_nothing_is_sent(terminal: Terminal, receiver: Receiver) -> None:
    terminal.put()

    paused = terminal.run("pause", "enos", "--reason", "maintenance until noon", "--by", "anna")
    drained, status, told = terminal.run_all(("drain",), ("status",), ("status", "--json"))

    assert (0, 4) == (paused.returncode, drained.returncode)
    destination = json.loads(told.stdout)["destinations"]["enos"]
    assert ("pause", "maintenance until noon", "anna") == tuple(
        destination[name] for name in ("stop", "stop_text", "stopped_by")
    )
    assert "pause by anna: maintenance until noon" in status.stdout
    assert [] == receiver.requests


def test_a_paused_destination_goes_on_when_it_is_resumed(terminal: Terminal, receiver: Receiver) -> None:
    terminal.put()
    terminal.outbox.pause("enos", "a look around", "anna")

    resumed = terminal.run("resume", "enos")
    terminal.deliver()

    assert 0 == resumed.returncode
    assert 1 == len(receiver.accepted)


def test_who_it_was_is_known_without_being_told(terminal: Terminal) -> None:
    terminal.run("pause", "enos", "--reason", "why not")

    assert terminal.destination().stopped_by.startswith(f"{getpass.getuser()}@")


def test_resuming_what_goes_is_said_with_exit_code_3(terminal: Terminal) -> None:
    run = terminal.run("resume", "enos")

    assert (3, "enos was not stopped\n") == (run.returncode, run.stderr)


def test_a_pause_without_a_reason_or_for_nobody_is_refused(terminal: Terminal) -> None:
    without, nobody = terminal.run_all(("pause", "enos"), ("pause", "eons", "--reason", "a typo"))

    assert (2, 2) == (without.returncode, nobody.returncode)
    assert "no destination named 'eons'; declared: enos" in nobody.stderr


def test_a_dead_message_tells_the_destinations_words_and_is_replayed_by_its_key(terminal: Terminal, receiver: Receiver) -> None:
    refused(terminal, receiver)

    listed, replayed = terminal.run_all(("list", "--state", "dead", "--json"), ("replay", "bad", "--json"))
    terminal.deliver()

    dead = json.loads(listed.stdout)
    assert ("rejected", "no such model") == (dead["reason"], dead["reason_text"])
    assert {"action": "replay", "act": 1, "messages": 1, "passed_over": 0} == json.loads(replayed.stdout)
    now = (column(terminal.outbox.database, "bad", name) for name in ("state", "lane", "replays", "attempt"))
    assert ("delivered", "bulk", 1, 2) == tuple(now)


def test_many_messages_are_replayed_only_if_that_is_meant(terminal: Terminal, receiver: Receiver) -> None:
    refused(terminal, receiver)

    asked, meant = terminal.run_all(
        ("replay", "--state", "dead", "--destination", "enos"),
        ("replay", "--state", "dead", "--destination", "enos", "--reason", "rejected", "--yes"),
    )

    assert 2 == asked.returncode
    assert "this would replay 1 message (destination enos; state dead)" in " ".join(asked.stderr.split())
    assert "say --yes if that is meant" in " ".join(asked.stderr.split())
    assert (0, "replayed: 1 message\n") == (meant.returncode, meant.stderr)


def test_everything_at_once_is_refused(terminal: Terminal) -> None:
    runs = terminal.run_all(("replay", "--yes"), ("cancel", "--yes"), ("purge", "--yes"))

    assert [2, 2, 2] == [run.returncode for run in runs]
    assert all(f"say which messages to {run.args[0]}" in run.stderr for run in runs)


def test_what_matches_nothing_ends_with_exit_code_3(terminal: Terminal) -> None:
    run = terminal.run("replay", "nobody")

    assert (3, "no message has the id or key nobody\nnothing to replay\n") == (run.returncode, run.stderr)


def test_a_reason_that_is_none_is_refused_with_those_that_are(terminal: Terminal) -> None:
    run = terminal.run("replay", "--reason", "refused", "--yes")

    assert 2 == run.returncode
    assert "rejected" in run.stderr


def test_a_pending_message_is_withdrawn(terminal: Terminal, receiver: Receiver) -> None:
    terminal.put("wrong")

    cancelled, drained = terminal.run_all(("cancel", "wrong"), ("drain",))

    assert (0, 0) == (cancelled.returncode, drained.returncode)
    assert {"wrong": "cancelled"} == terminal.states()
    assert [] == receiver.requests


def test_a_blocked_key_is_shown_and_goes_on_when_it_is_resumed(terminal: Terminal, receiver: Receiver) -> None:
    refused(terminal, receiver, ordering_key="turbine-7")
    terminal.put("next", ordering_key="turbine-7")
    terminal.deliver()

    told, shown, resumed = terminal.run_all(("status", "--json"), ("status",), ("resume", "enos", "--key", "turbine-7"))
    terminal.deliver()

    status = json.loads(told.stdout)
    assert [("turbine-7", "rejected", "no such model")] == [
        (each["ordering_key"], each["reason"], each["reason_text"]) for each in status["blocked_keys"]
    ]
    assert 1 == status["destinations"]["enos"]["blocked_keys"]
    assert "outbox resume DESTINATION --key KEY" in shown.stdout
    assert 0 == resumed.returncode
    assert {"bad": "dead", "next": "delivered"} == terminal.states()


def test_a_message_may_be_given_an_end(terminal: Terminal) -> None:
    late = terminal.enqueue("--file", "photo=photo.jpg", "--expires-at", "2020-01-01T00:00:00Z")

    assert 2 == late.returncode
    assert "expires_at: has passed" in late.stderr


def test_limits_come_from_the_environment_too(terminal: Terminal) -> None:
    terminal.environment["OUTBOX_DESTINATIONS__ENOS__POLICY__RATE"] = "50"
    good = terminal.run("status")
    terminal.environment["OUTBOX_DESTINATIONS__ENOS__POLICY__RATE"] = "fast"

    bad = terminal.run("status")

    assert (0, 2) == (good.returncode, bad.returncode)
    assert "OUTBOX_DESTINATIONS__ENOS__POLICY__RATE: expected a number, got 'fast'" in bad.stderr


# Many messages.


def add_dead(terminal: Terminal, number: int) -> None:
    """Dead messages without files."""
    engine = sa.create_engine(f"sqlite:///{terminal.folder / 'outbox.db'}")
    with engine.begin() as connection:
        connection.execute(sa.insert(message), [message_values(State.DEAD, key=f"d{n}", size=100) for n in range(number)])
    engine.dispose()


def replayed(terminal: Terminal) -> dict[int, int]:
    with closing(sqlite3.connect(terminal.folder / "outbox.db")) as connection:
        return dict(connection.execute("SELECT replays, count(*) FROM outbox_message GROUP BY replays").fetchall())


def done_so_far(terminal: Terminal) -> int:
    with closing(sqlite3.connect(terminal.folder / "outbox.db")) as connection:
        row = connection.execute("SELECT max(messages) FROM outbox_audit").fetchone()
        return row[0] or 0


def begin(terminal: Terminal, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "outbox", *arguments]
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True} | options
    return warm.WarmPopen(command, cwd=terminal.folder, env=terminal.environment, **options)


def test_a_dry_run_tells_everything_and_does_nothing(terminal: Terminal) -> None:
    add_dead(terminal, 1200)

    run, purge, audited = terminal.run_all(
        ("replay", "--state", "dead", "--dry-run"),
        ("purge", "--state", "dead", "--limit", "7", "--dry-run", "--json"),
        ("audit", "--json"),
    )

    told = json.loads(purge.stdout)
    assert 0 == run.returncode
    assert [
        "would replay      1,200 messages (state dead)",
        "destinations      enos 1,200",
        "text              117.2 KiB",
    ] == run.stdout.splitlines()[:3]
    assert ("purge", True, 7, "state dead; at most 7") == tuple(
        told[name] for name in ("action", "dry_run", "messages", "selection")
    )
    assert {"bytes", "files", "file_bytes", "destinations", "oldest", "may_be_duplicates", "lost_their_file"} <= set(told)
    assert {0: 1200} == replayed(terminal)
    assert "" == audited.stdout


def test_a_purge_is_for_ever_so_it_asks_even_for_one(terminal: Terminal, receiver: Receiver) -> None:
    refused(terminal, receiver)

    asked, meant = terminal.run_all(("purge", "bad"), ("purge", "bad", "--yes"))

    assert (2, 0) == (asked.returncode, meant.returncode)
    assert "say --yes if that is meant" in " ".join(asked.stderr.split())
    assert "purged: 1 message\n" == meant.stderr
    assert {} == terminal.states()
    assert [] == [each for each in (terminal.folder / "spool").glob("??/*") if each.is_file()]


def test_an_interrupted_replay_says_how_to_go_on_and_a_killed_one_is_in_the_audit(terminal: Terminal) -> None:
    add_dead(terminal, 60)
    process = begin(terminal, "replay", "--state", "dead", "--yes", "--by", "anna", "--rate", "20")
    eventually(lambda: done_so_far(terminal) >= 10)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=20)
    done = done_so_far(terminal)

    killed = begin(terminal, "replay", "--continue", "1", "--rate", "20")
    eventually(lambda: done_so_far(terminal) > done)
    killed.kill()
    killed.communicate()
    told, shown, ended, after = terminal.run_all(
        ("audit", "--json"), ("audit",), ("replay", "--continue", "1"), ("audit", "--json")
    )
    row = json.loads(told.stdout)

    assert 1 == process.returncode
    assert f"stopped after {done} messages; go on with: outbox replay --continue 1" in words
    assert (1, "anna", "replay", None) == (row["id"], row["actor"], row["action"], row["finished_at"])
    assert "outbox replay --continue 1" == row["continue"]
    assert "go on with: outbox replay --continue 1" in shown.stderr
    assert (0, "replayed: 60 messages\n") == (ended.returncode, ended.stderr)
    assert {1: 60} == replayed(terminal)
    row = json.loads(after.stdout)
    assert (60, None, True) == (row["messages"], row["continue"], row["finished_at"] is not None)


def test_going_on_needs_no_other_words(terminal: Terminal) -> None:
    runs = terminal.run_all(("cancel", "--continue", "1", "--state", "dead"), ("cancel", "--continue", "1"))

    assert [2, 2] == [run.returncode for run in runs]
    assert "say nothing else about which messages" in " ".join(runs[0].stderr.split())
    assert "there is no act 1 to go on with; outbox audit lists them" in runs[1].stderr


def on_a_terminal(terminal: Terminal, answer: bytes, *arguments: str) -> tuple[int, str]:
    """What a person sees who types an answer."""
    ours, theirs = pty.openpty()
    process = begin(terminal, *arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, answer)
    seen = b""
    with suppress(OSError), closing(os.fdopen(ours, "rb", buffering=0)) as screen:
        while more := screen.read(4096):
            seen += more
    return process.wait(20), seen.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_person_is_asked_with_the_numbers_and_sees_a_bar(terminal: Terminal) -> None:
    add_dead(terminal, 120)

    said_no, question = on_a_terminal(terminal, b"n\n", "cancel", "--state", "dead")
    before = count(terminal.outbox.database, audit)
    said_yes, shown = on_a_terminal(terminal, b"y\n", "cancel", "--state", "dead", "--rate", "400")

    assert (1, 0) == (said_no, before)
    assert "cancel 120 messages (state dead): 11.7 KiB?" in question
    assert 0 == said_yes
    assert "120/120" in shown
    assert "cancelled: 120 messages" in shown
