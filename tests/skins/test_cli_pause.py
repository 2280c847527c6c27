"""`outbox pause` and `resume` of one ordering key as a person types them, and the last words of an act that is interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from outbox.acts import Act
from outbox.cli import group
from outbox.model import State
from outbox.tables import audit, message
from outbox.testing import Receiver
from tests.factories import NOW, message_values
from tests.skins.conftest import SECRET, Terminal


def states(terminal: Terminal) -> dict[str, str]:
    return {each["key"]: each["state"] for each in terminal.lines("list")}


def test_one_key_is_paused_shown_explained_and_goes_on(terminal: Terminal, receiver: Receiver) -> None:
    terminal.enqueue("--file", "photo=photo.jpg", "--key", "held", "--ordering-key", "turbine 7")
    terminal.enqueue("--file", "photo=photo.jpg", "--key", "other")

    paused = terminal.run("pause", "enos", "--key", "turbine 7", "--reason", "the wrong model", "--by", "anna")
    drained = terminal.run("drain")
    shown = terminal.run("status").stdout
    (status,) = terminal.lines("status")
    explained = terminal.run("explain", "held").stdout
    (detail,) = terminal.lines("show", "held")

    assert (0, 4) == (paused.returncode, drained.returncode)
    assert "the ordering key turbine 7 of enos is paused; go on with: outbox resume enos --key 'turbine 7'\n" == paused.stderr
    assert {"held": "pending", "other": "delivered"} == states(terminal)
    assert "enos: 1 ordering key is paused; see: outbox explain enos\n" in shown
    assert (1, None) == (status["destinations"]["enos"]["paused_keys"], status["destinations"]["enos"]["stop"])
    assert "ordering key 'turbine 7' of message 1 is paused by anna since" in explained
    assert "outbox resume enos --key 'turbine 7'" in explained
    assert detail["next_try_at"] is None

    resumed = terminal.run("resume", "enos", "--key", "turbine 7")
    again = terminal.run("resume", "enos", "--key", "turbine 7")

    assert (0, "the ordering key turbine 7 of enos goes on\n") == (resumed.returncode, resumed.stderr)
    assert (3, "the ordering key turbine 7 of enos was not stopped\n") == (again.returncode, again.stderr)
    assert 0 == terminal.run("drain").returncode
    assert "paused" not in terminal.run("status").stdout
    assert ["resume", "pause"] == [each["action"] for each in terminal.lines("audit")]


def test_json_names_the_key_or_says_that_there_is_none(terminal: Terminal) -> None:
    key = terminal.lines("pause", "enos", "--key", "turbine-7", "--reason", "why not")
    whole = terminal.lines("pause", "enos", "--reason", "why not")

    assert [{"destination": "enos", "ordering_key": "turbine-7", "stop": "pause"}] == key
    assert [{"destination": "enos", "ordering_key": None, "stop": "pause"}] == whole


def test_resuming_the_destination_leaves_its_paused_keys(terminal: Terminal) -> None:
    for key in ("a", "b"):
        terminal.run("pause", "enos", "--key", key, "--reason", "why not")
    terminal.run("pause", "enos", "--reason", "why not")

    terminal.run("resume", "enos")

    assert "enos: 2 ordering keys are paused; see: outbox explain enos\n" in terminal.run("status").stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--reason", ""), "reason: says nothing; say why, for whoever finds it stopped"),
        (("--reason", "x" * 501), "reason: has 501 characters; say it in 500 at most"),
        (("--reason", "why", "--key", ""), "ordering_key: no message has ''"),
    ],
    ids=["empty", "long", "no key"],
)
def test_a_reason_or_a_key_that_is_none_is_refused(terminal: Terminal, options: tuple[str, ...], said: str) -> None:
    run = terminal.run("pause", "enos", *options)

    assert 2 == run.returncode
    assert said in run.stderr
    assert [] == terminal.lines("audit")


def test_a_secret_in_a_reason_is_not_kept(terminal: Terminal) -> None:
    terminal.run("pause", "enos", "--reason", f"its secret {SECRET} is being changed")

    (status,) = terminal.lines("status")
    assert "its secret *** is being changed" == status["destinations"]["enos"]["stop_text"]
    assert SECRET not in json.dumps(terminal.lines("audit"))


@pytest.mark.parametrize("command", [("list",), ("replay", "--dry-run"), ("deliveries",)], ids=lambda each: each[0])
def test_a_span_the_wrong_way_round_is_refused(terminal: Terminal, command: tuple[str, ...]) -> None:
    run = terminal.run(*command, "--since", "1h", "--until", "2h")

    assert 2 == run.returncode
    assert "since: " in run.stderr
    assert " is later than until, " in run.stderr


# Acts.


def add_dead(terminal: Terminal, number: int, **values: Any) -> None:
    engine = sa.create_engine(f"sqlite:///{terminal.folder / 'outbox.db'}")
    with engine.begin() as connection:
        rows = [message_values(State.DEAD, key=f"d{each}", **values) for each in range(number)]
        connection.execute(sa.insert(message), rows)
    engine.dispose()


def begin_acts(terminal: Terminal, *ids: int) -> None:
    """Acts in the audit that are not over."""
    engine = sa.create_engine(f"sqlite:///{terminal.folder / 'outbox.db'}")
    values = {"at": NOW, "actor": "anna", "action": "replay", "selection": "state dead", "messages": 0, "chosen": "{}"}
    with engine.begin() as connection:
        connection.execute(sa.insert(audit), [values | {"id": each} for each in ids])
    engine.dispose()


def test_each_act_to_go_on_with_has_a_line_of_its_own(terminal: Terminal) -> None:
    begin_acts(terminal, *range(101, 121))

    lines = terminal.run("audit").stderr.splitlines()

    expected = [
        f"act {each} is under way, or interrupted; go on with: outbox replay --continue {each}" for each in range(101, 121)
    ]
    assert expected[::-1] == lines
    assert max(map(len, lines)) <= 80


def test_one_file_is_one_file(terminal: Terminal) -> None:
    add_dead(terminal, 2, files=1, file_bytes=10)

    one = terminal.run("cancel", "--state", "dead", "--limit", "1")
    two = terminal.run("cancel", "--state", "dead")

    assert "with 1 file;" in " ".join(one.stderr.split())
    assert "with 2 files;" in " ".join(two.stderr.split())


@pytest.fixture
def run_here(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command in this process, which can be interrupted at a moment of our choice."""
    monkeypatch.chdir(terminal.folder)
    for name, value in terminal.environment.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(group, arguments, prog_name="outbox")


class Interrupted:
    """A Ctrl-C that falls between the COMMIT of a step and the note of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, then: Callable[[], object] = lambda: None) -> None:
        self.left = at
        noted = Act._note

        def note(act: Act, *told: Any) -> None:
            self.left -= 1
            if not self.left:
                then()
                raise KeyboardInterrupt
            noted(act, *told)

        monkeypatch.setattr(Act, "_note", note)


@pytest.mark.parametrize("step", [1, 2])
def test_an_interruption_after_a_commit_counts_what_was_committed(
    terminal: Terminal, run_here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    add_dead(terminal, 200)
    Interrupted(monkeypatch, step)

    run = run_here("replay", "--state", "dead", "--yes")

    (row,) = terminal.lines("audit")
    assert row["messages"] >= 50 * step
    assert 1 == run.exit_code
    assert f"stopped after {row['messages']} messages; go on with: outbox replay --continue 1\n" in run.stderr


def test_an_interruption_of_an_act_that_was_over_says_so(
    terminal: Terminal, run_here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_dead(terminal, 3)
    finished = Act._finish

    def finish(act: Act) -> None:
        finished(act)
        raise KeyboardInterrupt

    monkeypatch.setattr(Act, "_finish", finish)

    run = run_here("replay", "--state", "dead", "--yes")

    assert "stopped after 3 messages, which was all of it\n" in run.stderr


def test_where_the_database_cannot_be_read_any_more_what_is_known_is_told(
    terminal: Terminal, run_here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_dead(terminal, 200)
    database = terminal.folder / "outbox.db"
    Interrupted(monkeypatch, 2, lambda: database.rename(database.with_name("gone.db")))

    run = run_here("replay", "--state", "dead", "--yes")

    assert "stopped after 50 messages; go on with: outbox replay --continue 1\n" in run.stderr


def test_an_act_that_never_began_says_so(
    terminal: Terminal, run_here: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_dead(terminal, 3)

    def interrupt(_act: Act) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Act, "_open", interrupt)

    assert "stopped before anything was done\n" in run_here("replay", "--state", "dead", "--yes").stderr
