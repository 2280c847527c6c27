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
from tests.factories import NOW, count, message_values
from tests.skins.conftest import SECRET, Terminal


def test_one_key_is_paused_shown_explained_and_goes_on(terminal: Terminal, receiver: Receiver) -> None:
    terminal.put("held", ordering_key="turbine 7")
    terminal.put("other")

    paused = terminal.run("pause", "enos", "--key", "turbine 7", "--reason", "the wrong model", "--by", "anna")
    drained, shown, told, explained, detail = terminal.run_all(
        ("drain",), ("status",), ("status", "--json"), ("explain", "held"), ("show", "held", "--json")
    )

    status = json.loads(told.stdout)["destinations"]["enos"]

    assert (0, 4) == (paused.returncode, drained.returncode)
    assert "the ordering key turbine 7 of enos is paused; go on with: outbox resume enos --key 'turbine 7'\n" == paused.stderr
    assert {"held": "pending", "other": "delivered"} == terminal.states()
    assert "enos: 1 ordering key is paused; see: outbox explain enos\n" in shown.stdout
    assert (1, None) == (status["paused_keys"], status["stop"])
    assert "ordering key 'turbine 7' of message 1 is paused by anna since" in explained.stdout
    assert "outbox resume enos --key 'turbine 7'" in explained.stdout
    assert json.loads(detail.stdout)["next_try_at"] is None

    resumed = terminal.run("resume", "enos", "--key", "turbine 7")
    again, drained, shown, audited = terminal.run_all(
        ("resume", "enos", "--key", "turbine 7"), ("drain",), ("status",), ("audit", "--json")
    )

    assert (0, "the ordering key turbine 7 of enos goes on\n") == (resumed.returncode, resumed.stderr)
    assert (3, "the ordering key turbine 7 of enos was not stopped\n") == (again.returncode, again.stderr)
    assert 0 == drained.returncode
    assert "paused" not in shown.stdout
    assert ["resume", "pause"] == [json.loads(each)["action"] for each in audited.stdout.splitlines()]


def test_json_names_the_key_or_says_that_there_is_none(terminal: Terminal) -> None:
    why = ("--reason", "why not", "--json")
    key, whole = terminal.run_all(("pause", "enos", "--key", "turbine-7", *why), ("pause", "enos", *why))

    assert {"destination": "enos", "ordering_key": "turbine-7", "stop": "pause"} == json.loads(key.stdout)
    assert {"destination": "enos", "ordering_key": None, "stop": "pause"} == json.loads(whole.stdout)


def test_resuming_the_destination_leaves_its_paused_keys(terminal: Terminal) -> None:
    for key in ("a", "b", None):
        terminal.outbox.pause("enos", "why not", "anna", ordering_key=key)

    _, status = terminal.run_all(("resume", "enos"), ("status",))

    assert terminal.destination().stop is None
    assert "enos: 2 ordering keys are paused; see: outbox explain enos\n" in status.stdout


def test_a_reason_or_a_key_that_is_none_is_refused(terminal: Terminal) -> None:
    empty, long, no_key = terminal.run_all(
        ("pause", "enos", "--reason", ""),
        ("pause", "enos", "--reason", "x" * 501),
        ("pause", "enos", "--reason", "why", "--key", ""),
    )

    assert [2, 2, 2] == [run.returncode for run in (empty, long, no_key)]
    assert "reason: says nothing; say why, for whoever finds it stopped" in empty.stderr
    assert "reason: has 501 characters; say it in 500 at most" in long.stderr
    assert "ordering_key: no message has ''" in no_key.stderr
    assert 0 == count(terminal.outbox.database, audit)


def test_a_secret_in_a_reason_is_not_kept(terminal: Terminal) -> None:
    terminal.run("pause", "enos", "--reason", f"its secret {SECRET} is being changed")

    status, audited = terminal.run_all(("status", "--json"), ("audit", "--json"))
    assert "its secret *** is being changed" == json.loads(status.stdout)["destinations"]["enos"]["stop_text"]
    assert "pause" in audited.stdout
    assert SECRET not in audited.stdout
    assert SECRET.encode() not in (terminal.folder / "outbox.db").read_bytes()


def test_a_span_the_wrong_way_round_is_refused(terminal: Terminal) -> None:
    span = ("--since", "1h", "--until", "2h")
    runs = terminal.run_all(("list", *span), ("replay", "--dry-run", *span), ("deliveries", *span))

    assert [2, 2, 2] == [run.returncode for run in runs]
    assert all("since: " in run.stderr and " is later than until, " in run.stderr for run in runs)


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

    one, two = terminal.run_all(("cancel", "--state", "dead", "--limit", "1"), ("cancel", "--state", "dead"))

    assert "with 1 file;" in " ".join(one.stderr.split())
    assert "with 2 files;" in " ".join(two.stderr.split())


def acted(terminal: Terminal) -> int:
    """How many messages the audit says the only act was about."""
    with terminal.outbox.database.read() as connection:
        return int(connection.execute(sa.select(audit.c.messages)).scalar_one())


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

    done = acted(terminal)
    assert done >= 50 * step
    assert 1 == run.exit_code
    assert f"stopped after {done} messages; go on with: outbox replay --continue 1\n" in run.stderr


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
