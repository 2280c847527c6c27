"""`outbox pause`, `resume`, `replay` and `cancel` as a person types them, and what `status` and `list` then say."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing import Receiver
from tests.skins.test_cli import SECRET, Terminal


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(app_secret=SECRET) as receiver:
        yield receiver


@pytest.fixture
def terminal(tmp_path: Path, receiver: Receiver) -> Terminal:
    terminal = Terminal(tmp_path, receiver)
    assert 0 == terminal.run("init").returncode
    return terminal


def destination(terminal: Terminal) -> dict[str, object]:
    (status,) = terminal.lines("status")
    return dict(status["destinations"]["enos"])


def refused(terminal: Terminal, receiver: Receiver, *options: str) -> None:
    """One message that its destination refuses."""
    receiver.refuse(lambda struct: True, msg="no such model")
    assert 0 == terminal.enqueue("--file", "photo=photo.jpg", "--key", "bad", *options).returncode
    terminal.run("drain")
    receiver.stop_refusing()


def test_a_pause_says_who_and_why_and_nothing_is_sent(terminal: Terminal, receiver: Receiver) -> None:
    terminal.enqueue("--file", "photo=photo.jpg")

    paused = terminal.run("pause", "enos", "--reason", "maintenance until noon", "--by", "anna")
    drained = terminal.run("drain")

    assert (0, 4) == (paused.returncode, drained.returncode)
    assert ("pause", "maintenance until noon", "anna") == tuple(
        destination(terminal)[name] for name in ("stop", "stop_text", "stopped_by")
    )
    assert "pause by anna: maintenance until noon" in terminal.run("status").stdout
    assert [] == receiver.requests


def test_a_paused_destination_goes_on_when_it_is_resumed(terminal: Terminal, receiver: Receiver) -> None:
    terminal.enqueue("--file", "photo=photo.jpg")
    terminal.run("pause", "enos", "--reason", "a look around")

    resumed = terminal.run("resume", "enos")

    assert (0, 0) == (resumed.returncode, terminal.run("drain").returncode)
    assert 1 == len(receiver.accepted)


def test_who_it_was_is_known_without_being_told(terminal: Terminal) -> None:
    terminal.run("pause", "enos", "--reason", "why not")

    assert str(destination(terminal)["stopped_by"]).startswith(f"{getpass.getuser()}@")


def test_resuming_what_goes_is_said_with_exit_code_3(terminal: Terminal) -> None:
    run = terminal.run("resume", "enos")

    assert (3, "enos was not stopped\n") == (run.returncode, run.stderr)


def test_a_pause_without_a_reason_or_for_nobody_is_refused(terminal: Terminal) -> None:
    assert 2 == terminal.run("pause", "enos").returncode

    run = terminal.run("pause", "eons", "--reason", "a typo")

    assert 2 == run.returncode
    assert "no destination named 'eons'; declared: enos" in run.stderr


def test_a_dead_message_tells_the_destinations_words_and_is_replayed_by_its_key(terminal: Terminal, receiver: Receiver) -> None:
    refused(terminal, receiver)
    (dead,) = terminal.lines("list", "--state", "dead")

    replayed = terminal.run("replay", "bad", "--json")
    terminal.run("drain")

    assert ("rejected", "no such model") == (dead["reason"], dead["reason_text"])
    assert {"action": "replay", "messages": 1, "passed_over": 0} == json.loads(replayed.stdout)
    (now,) = terminal.lines("list")
    assert ("delivered", "bulk", 1, 2) == (now["state"], now["lane"], now["replays"], now["attempt"])


def test_many_messages_are_replayed_only_if_that_is_meant(terminal: Terminal, receiver: Receiver) -> None:
    refused(terminal, receiver)

    asked = terminal.run("replay", "--state", "dead", "--destination", "enos")
    meant = terminal.run("replay", "--state", "dead", "--destination", "enos", "--reason", "rejected", "--yes")

    assert 2 == asked.returncode
    assert "this would replay 1 messages (destination enos; state dead); say --yes if that is meant" in asked.stderr
    assert (0, "replayed: 1 messages\n") == (meant.returncode, meant.stderr)


@pytest.mark.parametrize("action", ["replay", "cancel"])
def test_everything_at_once_is_refused(terminal: Terminal, action: str) -> None:
    run = terminal.run(action, "--yes")

    assert 2 == run.returncode
    assert f"say which messages to {action}" in run.stderr


def test_what_matches_nothing_ends_with_exit_code_3(terminal: Terminal) -> None:
    assert 3 == terminal.run("replay", "nobody").returncode


def test_a_reason_that_is_none_is_refused_with_those_that_are(terminal: Terminal) -> None:
    run = terminal.run("replay", "--reason", "refused", "--yes")

    assert 2 == run.returncode
    assert "rejected" in run.stderr


def test_a_pending_message_is_withdrawn(terminal: Terminal, receiver: Receiver) -> None:
    terminal.enqueue("--file", "photo=photo.jpg", "--key", "wrong")

    cancelled = terminal.run("cancel", "wrong")

    assert (0, 0) == (cancelled.returncode, terminal.run("drain").returncode)
    assert ["cancelled"] == [each["state"] for each in terminal.lines("list")]
    assert [] == receiver.requests


def test_a_blocked_key_is_shown_and_goes_on_when_it_is_resumed(terminal: Terminal, receiver: Receiver) -> None:
    refused(terminal, receiver, "--ordering-key", "turbine-7")
    terminal.enqueue("--file", "photo=photo.jpg", "--key", "next", "--ordering-key", "turbine-7")
    terminal.run("drain")
    (status,) = terminal.lines("status")
    shown = terminal.run("status").stdout

    resumed = terminal.run("resume", "enos", "--key", "turbine-7")
    terminal.run("drain")

    assert [("turbine-7", "rejected", "no such model")] == [
        (each["ordering_key"], each["reason"], each["reason_text"]) for each in status["blocked_keys"]
    ]
    assert 1 == status["destinations"]["enos"]["blocked_keys"]
    assert "outbox resume DESTINATION --key KEY" in shown
    assert 0 == resumed.returncode
    assert {"bad": "dead", "next": "delivered"} == {each["key"]: each["state"] for each in terminal.lines("list")}


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
    assert "destinations.enos.policy: rate" in bad.stderr
