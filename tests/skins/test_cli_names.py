"""Which message a word means: an id, a key, or a key that looks like an id; and words that are none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox.testing import Receiver
from tests.skins.conftest import SECRET, Terminal


@pytest.fixture(scope="module")
def terminal(initialized: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """An outbox in which message 1 has the key 2, message 2 the key 777777, and message 3 the key "two words"."""
    with Receiver(app_secret=SECRET) as receiver:
        folder = tmp_path_factory.mktemp("names")
        terminal = Terminal(shutil.copytree(initialized, folder, dirs_exist_ok=True), receiver)
        for key in ("2", "777777", "two words"):
            terminal.put(key)
        yield terminal
        terminal.close()


def listed(run: subprocess.CompletedProcess[str]) -> list[int]:
    assert 0 == run.returncode, run.stderr
    return sorted(json.loads(line)["id"] for line in run.stdout.splitlines())


def test_a_key_of_digits_is_meant_where_no_message_has_it_as_its_id(terminal: Terminal) -> None:
    assert [2, 3] == listed(terminal.run("list", "777777", "two words", "--json"))


@pytest.mark.parametrize("command", [("list",), ("cancel", "--dry-run")])
def test_an_id_that_is_another_messages_key_is_not_guessed_at(terminal: Terminal, command: tuple[str, ...]) -> None:
    run = terminal.run(*command, "2")

    assert (2, "") == (run.returncode, run.stdout)
    assert "2 is the id of one message and the key of another (message 1); say --id 2 or --key 2" in run.stderr


def test_what_is_said_exactly_is_meant(terminal: Terminal) -> None:
    by_key, by_id = terminal.run_all(("list", "--key", "2", "--json"), ("list", "--id", "2", "--json"))

    assert ([1], [2]) == (listed(by_key), listed(by_id))


def test_bytes_that_are_no_text_are_refused_with_a_sentence(terminal: Terminal) -> None:
    run = subprocess.run(
        [sys.executable.encode(), b"-m", b"outbox", b"show", b"bad\xff"],
        cwd=terminal.folder,
        env=terminal.environment,
        capture_output=True,
    )

    assert (2, b"") == (run.returncode, run.stdout)
    assert b"outbox: an argument holds bytes that are no text" in run.stderr


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_number_that_is_none_is_refused(terminal: Terminal, number: str) -> None:
    run = terminal.run("replay", "--state", "dead", "--rate", number)

    assert 2 == run.returncode
    assert "expected a number" in run.stderr


def test_a_purge_that_is_gone_on_with_asks_like_one_that_begins(terminal: Terminal) -> None:
    run = terminal.run("purge", "--continue", "1")

    assert 2 == run.returncode
    assert "say --yes if that is meant" in run.stderr
