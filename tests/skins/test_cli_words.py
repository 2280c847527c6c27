"""What the commands say, whole and in our own words: in this process, for a start of the command costs most of a second."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import click
import pytest
import sqlalchemy as sa
from rich.cells import cell_len

from outbox import Outbox
from outbox.cli import act, context, group, look, main, printing, receiver, work
from outbox.cli.printing import columns
from outbox.errors import Refused
from outbox.model import MOST, Selection, State, require_span
from outbox.settings import Settings
from outbox.sights import BlockedKey, DestinationStatus, Flow, SpoolStatus, Status
from outbox.store import living, looking
from outbox.tables import attempt, audit, delivery
from outbox.testing import Receiver
from tests import warm
from tests.factories import NOW, add_row, an_outbox

LATER = NOW + timedelta(seconds=3)
HUGE = "99999999999999999999"


class Said(NamedTuple):
    """What a command ended with and printed."""

    code: object
    out: str
    err: str


class Here:
    """The commands in this process, on an outbox that the test has in hand."""

    def __init__(self, outbox: Outbox, folder: Path, captured: pytest.CaptureFixture[str]) -> None:
        self.outbox = outbox
        self.folder = folder
        self._captured = captured

    def run(self, *arguments: str) -> Said:
        self._captured.readouterr()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return Said(end.value.code, *self._captured.readouterr())

    def dead(self, *keys: str, text: str = "no such model") -> None:
        with self.outbox.database.begin() as connection:
            for key in keys:
                add_row(connection, State.DEAD, key=key, reason_text=text)


@pytest.fixture
def here(
    migrated_sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    for name in [each for each in os.environ if each.startswith("OUTBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    outbox = an_outbox(migrated_sqlite_url, tmp_path / "spool")
    monkeypatch.setattr(context, "outbox_and_worker", lambda _ctx: (outbox, {}))
    yield Here(outbox, tmp_path, capsys)
    outbox.close()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    for module in (printing, look):
        monkeypatch.setattr(module, "width", lambda: 80)


# Used wrongly.

WRONGLY = {
    f"list --limit {HUGE}": f"--limit: expected a whole number of at most {MOST:,}, got '{HUGE}'; see: outbox list --help",
    f"list --id {HUGE}": f"--id: expected a whole number of at most {MOST:,}, got '{HUGE}'; see: outbox list --help",
    f"audit --limit {HUGE}": f"--limit: expected a whole number of at most {MOST:,}, got '{HUGE}'; see: outbox audit --help",
    f"deliveries --limit {MOST + 1}": f"--limit: expected a whole number of at most {MOST:,}, got '{MOST + 1}'; "
    "see: outbox deliveries --help",
    f"replay --id {HUGE}": f"--id: expected a whole number of at most {MOST:,}, got '{HUGE}'; see: outbox replay --help",
    f"purge --continue {HUGE}": f"--continue: expected a whole number of at most {MOST:,}, got '{HUGE}'; "
    "see: outbox purge --help",
    "list --limit many": "--limit: expected a whole number of at least 1, got 'many'; see: outbox list --help",
    "list --limit": "--limit needs a value; see: outbox list --help",
    "list --json=5": "--json takes no value; see: outbox list --help",
    "list --stat dead": "there is no option --stat (did you mean --state or --text or --destination?); see: outbox list --help",
    "list --state deaad": "--state: expected one of pending, claimed, delivered, dead, cancelled, got 'deaad'; "
    "see: outbox list --help",
    "list --since never": "--since: expected how long ago, such as 2h, or a time such as 2026-11-22T18:00:00Z, got 'never'; "
    "see: outbox list --help",
    "replay --state dead --rate nan": "--rate: expected a number of more than 0, got 'nan'; see: outbox replay --help",
    "status --watch 0": "--watch: expected a number from 0.1 to 86,400, got '0'; see: outbox status --help",
    "receiver --port 99999": "--port: expected a whole number from 0 to 65,535, got '99999'; see: outbox receiver --help",
    "receiver --app-secret-file nope": "--app-secret-file: file 'nope' does not exist; see: outbox receiver --help",
    "show": "ID|KEY is missing; see: outbox show --help",
    "show a b c": "unexpected argument: b c; see: outbox show --help",
    "pause enos": "--reason is missing; see: outbox pause --help",
    "completion": "SHELL is missing; expected one of bash, zsh, fish; see: outbox completion --help",
    "stats": "there is no command 'stats' (did you mean status?); see: outbox --help",
    "db upgrad": "there is no command 'upgrad' (did you mean upgrade?); see: outbox db --help",
    "--bogus list": "there is no option --bogus; see: outbox --help",
    "--config": "--config needs a value; see: outbox --help",
}


@pytest.mark.parametrize("line", WRONGLY)
def test_a_command_that_is_used_wrongly_says_so_in_one_line_of_ours(here: Here, line: str) -> None:
    assert Said(2, "", f"outbox: {WRONGLY[line]}\n") == here.run(*line.split())


def test_a_value_that_came_from_the_environment_is_told_with_its_variable(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_LIST_LIMIT", "0")

    assert "--limit (OUTBOX_LIST_LIMIT): expected a whole number of at least 1, got '0'" in here.run("list").err


@pytest.mark.parametrize("line", ["", "db"])
def test_a_command_that_is_only_begun_shows_its_help(here: Here, line: str) -> None:
    said = here.run(*line.split())

    assert (2, True) == (said.code, "Usage: outbox" in said.err and said.err.count("\n") > 10)


def test_what_nobody_can_be_asked_is_one_line_too(here: Here) -> None:
    here.dead("a")

    words = "this would replay 1 message (state dead): 2 B; say --yes if that is meant; see: outbox replay --help"
    assert Said(2, "", f"outbox: {words}\n") == here.run("replay", "--state", "dead")


@pytest.mark.parametrize("line", ["--bogus check", "check --bogus", "--config"])
def test_a_mistake_in_a_monitors_command_is_no_alarm_wherever_it_is(here: Here, line: str) -> None:
    said = here.run(*line.split(), *([] if "check" in line else ["x.toml", "--bogus", "check"]))

    assert (3, "", 1) == (said.code, said.err, said.out.count("\n"))
    assert said.out.startswith("OUTBOX UNKNOWN - there is no option --bogus; see: outbox")


def test_numbers_that_no_database_holds_are_refused_in_python_too() -> None:
    with pytest.raises(Refused) as refused:
        Selection(ids=(1, MOST + 1), limit=2**70)

    assert ["ids", "limit"] == [fault.path for fault in refused.value.faults]
    assert MOST == Selection(ids=(MOST,), limit=MOST).limit


def test_a_list_of_as_many_as_a_database_can_count_is_one(here: Here) -> None:
    here.dead("a")

    assert 0 == here.run("list", "--limit", str(MOST)).code


# Tables.

ANSWER = "spooled file 01a221c9291a71f02b7781bb87cd3c1a is missing"


@pytest.mark.parametrize("room", [None, 120, 80, 60, 50])
def test_a_table_fits_and_its_times_are_whole_and_its_answers_wrap(room: int | None) -> None:
    head = ("ID", "DESTINATION", "KEY", "BEGUN", "ANSWER")
    rows = [(1, "enos", "b" * 36, NOW, ANSWER), (2, "enos", "日本語のキーです" * 3, LATER, None)]

    lines = columns(head, rows, wrap="ANSWER", room=room)

    assert all(room is None or cell_len(line) <= room for line in lines)
    for each in (NOW, LATER):
        assert any(f"{each:%Y-%m-%d %H:%M:%S}Z" in line for line in lines)
    begun = {cell_len(line[: line.index("2026")]) for line in lines if "2026" in line}
    assert 1 == len(begun), "what comes after a wide letter stands where it should"
    if room is None or room >= 80:
        wrapped = "".join(line[lines[0].index("ANSWER") :] for line in lines[1:-1])
        assert ANSWER.replace(" ", "") == wrapped.replace(" ", "")


def test_a_cell_that_wraps_ends_after_a_handful_of_lines() -> None:
    lines = columns(("ID", "ANSWER"), [(1, "word " * 100)], wrap="ANSWER", room=40)

    assert (7, True) == (len(lines), lines[-1].endswith("…"))


def test_who_did_what_and_when_is_there_on_a_narrow_terminal(here: Here, narrow: None) -> None:
    here.outbox.pause("enos", "the gateway is being mended until noon, or so they say", "anna.karenina@a-long-host-name")
    here.outbox.resume("enos", "anna")

    lines = here.run("audit").out.splitlines()

    assert ["ACT", "AT", "WHO", "WHAT", "MESSAGES", "WHICH"] == lines[0].split()
    assert {"resume", "anna", "-"} <= set(lines[1].split())
    with here.outbox.database.read() as connection:
        times = connection.execute(sa.select(audit.c.at)).scalars().all()
    assert all(f"{each:%Y-%m-%d %H:%M:%S}Z" in "\n".join(lines) for each in times)
    assert max(map(len, lines)) <= 80


def upload(here: Here, text: str) -> None:
    """One that a message was in, with what was said of it."""
    with here.outbox.database.begin() as connection:
        told = {"worker": "w", "messages": 1, "bytes": 2, "started_at": NOW, "finished_at": LATER}
        connection.execute(
            sa.insert(delivery).values(destination="enos", lane="normal", outcome="retry", text=text, probe=False, **told)
        )
        tried = {"message_id": 1, "number": 1, "delivery_id": 1, "outcome": "retry", "finished_at": LATER}
        connection.execute(sa.insert(attempt).values(**tried))


def test_deliveries_and_attempts_say_when_and_what_on_a_narrow_terminal(here: Here, narrow: None) -> None:
    here.dead("a", text=ANSWER)
    text = "the token service refused our application: 1201 no application has this key, or it was locked"
    upload(here, text)

    listed, deliveries, shown = (here.run(*line.split()).out for line in ("list", "deliveries", "show a"))

    assert f"{NOW:%Y-%m-%d %H:%M:%S}Z" in deliveries
    assert "01a221c9291a71f02b7781bb87cd3c1a" in listed
    assert f"attempt 1: {text}" in " ".join(shown.split())
    assert max(len(line) for each in (listed, deliveries) for line in each.splitlines()) <= 80


def test_more_than_is_listed_is_said_beside_the_list(here: Here) -> None:
    here.dead("a", "b", "c")

    some, all_of_them = here.run("list", "--limit", "2"), here.run("list", "--limit", "3")

    assert (3, "--limit 2 leaves out older ones; see them with a larger --limit, or with --until\n") == (
        len(some.out.splitlines()),
        some.err,
    )
    assert "" == all_of_them.err


# Acts.


def test_names_that_no_message_has_are_said(here: Here) -> None:
    here.dead("a", "b")

    found, none = here.run("replay", "a", "nope", "77777", "2"), here.run("replay", "nope", "--destination", "enos")

    assert Said(0, "", "no message has the id or key 77777, nope\nreplayed: 2 messages\n") == found
    assert Said(3, "", "no message of enos has the id or key nope\nnothing to replay\n") == none


def test_an_act_that_was_stopped_goes_on_at_the_rate_it_had(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    here.dead(*map(str, range(1000, 1020)))
    monkeypatch.setattr(act, "time", SimpleNamespace(sleep=interrupted))

    said = here.run("replay", "--state", "dead", "--yes", "--rate", "20")

    assert Said(1, "", "\nstopped after 5 messages; go on with: outbox replay --continue 1 --rate 20\n") == said


def test_each_worker_that_was_asked_to_stop_is_told_in_a_sentence(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    with here.outbox.database.begin() as connection:
        living.register(connection, "w1", "box", 1, datetime.now(UTC))
    monkeypatch.setattr(work, "outbox_of", lambda _ctx: here.outbox)
    monkeypatch.setattr(work, "_wait_for", lambda _outbox, _asked: [])

    assert Said(0, "w1\n", "worker w1 was asked to stop\n") == here.run("worker", "stop", "--all")
    assert Said(0, "w1\n", "worker w1 has stopped\n") == here.run("worker", "stop", "w1", "--wait")


# What is left, and what there is none of.


@pytest.mark.parametrize(
    ("counts", "put_off", "words"),
    [
        ({}, 0, "nothing left"),
        ({"waiting": 3}, 0, "nothing left, 3 waiting for their time"),
        ({"waiting": 3}, 1, "nothing left, 3 waiting for their time, 1 of them put off after a failed try"),
        ({"due": 2, "paused_keys": 1}, 0, "2 left behind ordering keys that are paused"),
        ({"due": 2, "paused_keys": 1, "blocked_keys": 1}, 0, "2 left behind ordering keys that are paused or blocked"),
        (
            {"due": 1200, "stop": "pause", "blocked_keys": 1},
            0,
            "1,200 left: it is paused (outbox explain enos); to try it at once: outbox resume enos",
        ),
        (
            {"due": 1, "open_until": NOW},
            0,
            (
                "1 left: it is left alone for a while, since it failed (outbox explain enos); "
                "to try it at once: outbox resume enos"
            ),
        ),
    ],
)
def test_a_drain_says_what_is_left_and_what_waits(counts: dict[str, object], put_off: int, words: str) -> None:
    assert words == work._left(looking.nothing() | counts, put_off, "enos")


def test_an_option_of_all_commands_is_told_where_it_stands(here: Here) -> None:
    behind, unknown = here.run("status", "--app", "shop:outbox"), here.run("status", "--apple", "shop:outbox")

    assert (2, True) == (behind.code, "--app stands before the command: outbox --app TEXT status" in behind.err), behind.err
    assert (2, True) == (unknown.code, "there is no option --apple" in unknown.err)


def test_a_destination_that_nobody_declared_is_not_taken_for_a_message(here: Here) -> None:
    undeclared, unknown = here.run("show", "3", "--destination", "nope"), here.run("show", "3", "--destination", "enos")

    assert (2, True) == (undeclared.code, "no destination named 'nope'; declared: enos" in undeclared.err)
    assert (3, True) == (unknown.code, "no message of destination 'enos' has the id or key '3'" in unknown.err)


@pytest.mark.parametrize("command", ["status", "verify", "check", "drain", "enqueue enos --payload e.json"])
def test_a_spool_that_is_a_file_is_refused_where_it_is_needed(
    here: Here, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (here.folder / "spool").write_text("")
    (here.folder / "e.json").write_text("{}")
    monkeypatch.setattr(work, "outbox_and_worker", lambda _ctx: (here.outbox, {}))
    monkeypatch.setattr("outbox.logs.configure", lambda *_: None)
    sentence = f"the spool {here.folder / 'spool'} is no directory; name another, or move away what is there"

    said = here.run(*command.split())

    expected = Said(3, f"OUTBOX UNKNOWN - {sentence}\n", "") if command == "check" else Said(2, "", f"outbox: {sentence}\n")
    assert expected == said


def misspelt(monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, str]:
    for name in [each for each in os.environ if each.startswith("OUTBOX_")]:
        monkeypatch.delenv(name)
    for name in names:
        monkeypatch.setenv(name, "x")
    return dict(context.misspelt_variables(click.Context(group, info_name="outbox"), Settings.model_fields))


def test_a_variable_that_looks_like_one_of_ours_is_told_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    found = misspelt(monkeypatch, "OUTBOX_SPOL", "OUTBOX_DESTINATION__ENOS__URL", "OUTBOX_WORKER_HTP", "OUTBOX_CONFG")

    assert {
        "OUTBOX_SPOL": "OUTBOX_SPOOL",
        "OUTBOX_DESTINATION__ENOS__URL": "OUTBOX_DESTINATIONS__ENOS__URL",
        "OUTBOX_WORKER_HTP": "OUTBOX_WORKER_HTTP",
        "OUTBOX_CONFG": "OUTBOX_CONFIG",
    } == found


def test_variables_that_are_known_or_somebodys_own_are_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("SPOOL", "CONFIG", "WORKER__HTTP", "WORKER_HTTP", "WORKER_STOP_ALL", "DB_UPGRADE_JSON", "RECEIVER_APP_SECRET")
    others = ("PG_PASSWORD", "TEST_PG_URL", "SCALE", "LONG", "ALL_TOOLS", "ENOS_SECRET")

    assert {} == misspelt(monkeypatch, *(f"OUTBOX_{each}" for each in (*ours, *others)))


# Other libraries' words.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "it is empty"),
        (b'{"a": 3\n', "it goes wrong in line 2, column 1"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b"9" * 5000, "a number in it is too long"),
        (b"\xff", None),
    ],
)
def test_a_payload_that_is_none_is_told_in_our_words(
    here: Here, monkeypatch: pytest.MonkeyPatch, text: bytes, words: str | None
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), "utf-8"))

    said = here.run("enqueue", "enos", "--payload", "-")

    sentence = f"is not JSON: {words}" if words else "is not UTF-8, from byte 1 on"
    assert Said(2, "", f"outbox: --payload: standard input {sentence}; see: outbox enqueue --help\n") == said


def test_a_file_that_is_not_given_is_told_with_the_option_that_gives_it(here: Here) -> None:
    (here.folder / "e.json").write_text('{"assetId": "t", "time": 1579580182824, "events": {"c": {"p": "local://photo"}}}')

    said = here.run("enqueue", "enos", "--payload", "e.json")

    assert Said(2, "", "outbox: refused\n  events.c.p: refers to a file that is not given; say --file photo=PATH\n") == said


@pytest.mark.parametrize(("when", "how"), [("0001-01-01", "too long ago"), ("9999-12-31", "too far ahead")])
def test_a_time_out_of_reach_is_not_said_to_be_none(here: Here, when: str, how: str) -> None:
    (here.folder / "e.json").write_text("{}")

    said = here.run("enqueue", "enos", "--payload", "e.json", "--due-at", when)

    assert f"outbox: --due-at: {when} is {how}; expected a time such as 2026-11-22T18:00:00Z; see: " in said.err


def test_a_span_that_is_none_is_told_with_times_as_tables_have_them() -> None:
    since = datetime(2026, 11, 28, 11, 0, 0, 123456, tzinfo=UTC)

    with pytest.raises(Refused, match=r"^since: 2026-11-28 11:00:00Z is later than until, 2026-11-28 10:00:00Z: nothing fits"):
        require_span(since, since - timedelta(hours=1))


def test_the_receiver_counts_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    file = SimpleNamespace(size=1)
    facts = {"structs": [{}], "files": {"a": file}, "number": 1, "action": "event", "status": 200, "code": 0, "seconds": 0.01}
    receiver._print_line(SimpleNamespace(**facts, complete=True, answered=True, behaviour=None, faults=[]))  # type: ignore[arg-type]

    assert "#1 event: 1 struct, 1 file (1 byte) -> 200, code 0 in 10 ms\n" == capsys.readouterr().err


def test_a_port_that_is_taken_is_told_as_a_worker_tells_it() -> None:
    with Receiver() as taken:
        command = [sys.executable, "-m", "outbox", "receiver", "--port", str(taken.port)]
        run = warm.run(command, capture_output=True, text=True, timeout=60)

    words = f"cannot listen on 127.0.0.1:{taken.port}: Address already in use; choose another address with --host and --port"
    assert (1, f"outbox: cannot start: {words}\n") == (run.returncode, run.stderr)


def test_a_command_in_the_status_is_not_broken_at_its_hyphens() -> None:
    key = BlockedKey("enos", "turbine-7", 3, "rejected", "no such model")
    spool = SpoolStatus(0, 0, None, None, None, 0, None, None)
    found = Status(NOW, {"enos": DestinationStatus(blocked_keys=1, dead=1)}, [key], 1, spool, Flow(0, 0, 0, 0))

    for room in range(50, 100):
        lines = list(look._report(found, room))
        assert [] == [line for line in lines if cell_len(line) > room or line.endswith("-")]
