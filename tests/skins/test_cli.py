"""The operator's terminal, through real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outbox.tables import metadata
from outbox.testing import Answer, Receiver, Status
from tests import warm
from tests.factories import column
from tests.skins.conftest import EVENT, SECRET, Terminal


def test_init_writes_settings_a_private_database_and_a_private_spool(initialized: Path):
    modes = {name: (initialized / name).stat().st_mode & 0o777 for name in ("outbox.db", "spool")}

    assert {"outbox.db": 0o600, "spool": 0o700} == modes
    assert "[destinations.enos]" in (initialized / "outbox.toml").read_text()


def test_init_keeps_settings_that_are_there(terminal: Terminal):
    settings = terminal.folder / "outbox.toml"
    settings.write_text(settings.read_text().replace("outbox.db", "other.db").replace('"spool"', '"other"'))

    run = terminal.run("init", "--json")

    assert json.loads(run.stdout)["written"] is False
    assert (terminal.folder / "other.db").exists()


def test_a_message_goes_from_the_terminal_to_the_receiver(terminal: Terminal, receiver: Receiver):
    enqueued = terminal.enqueue("--file", "photo=photo.jpg", "--key", "inspection-42", "--json")

    drained = terminal.run("drain")

    assert {"id": 1, "new": True, "state": "pending"} == json.loads(enqueued.stdout)
    assert 0 == drained.returncode, drained.stderr
    (accepted,) = receiver.accepted
    assert ["photo.jpg"] == [file.original_filename for file in accepted.files.values()]
    (listed,) = terminal.lines("list")
    assert ("inspection-42", "delivered") == (listed["key"], listed["state"])
    (shown,) = terminal.lines("show", "inspection-42")
    assert EVENT == shown["payload"]
    assert [("delivered", 200, 0)] == [(each["outcome"], each["status"], each["code"]) for each in shown["attempts"]]
    (status,) = terminal.lines("status")
    assert 1 == status["destinations"]["enos"]["delivered_last_hour"]


def test_the_same_key_again_adds_nothing(terminal: Terminal):
    first = terminal.put("k")

    again = terminal.enqueue("--file", "photo=photo.jpg", "--key", "k", "--json")

    assert {"id": first, "new": False, "state": "pending"} == json.loads(again.stdout)


def test_bad_input_is_refused_with_every_fault_and_exit_code_2(terminal: Terminal):
    run = terminal.enqueue("--key", "inspection-None", payload={"produckKey": "p", "time": "now", "events": {}})

    assert 2 == run.returncode
    assert "" == run.stdout
    for path in ("key:", "produckKey:", "time:", "events:", "assetId:"):
        assert path in run.stderr
    assert {} == terminal.states()


CANNOT_BE_DONE: list[tuple[tuple[str, ...], int, str]] = [
    (("enqueue", "warehose", "--payload", "event.json"), 2, "no destination named 'warehose'; declared: enos"),
    (("enqueue", "enos", "--payload", "nowhere.json"), 2, "cannot read nowhere.json"),
    (("enqueue", "enos", "--payload", "outbox.toml"), 2, "is not JSON"),
    (("enqueue", "enos", "--payload", "event.json", "--file", "photo"), 2, "expected NAME=PATH"),
    (("enqueue", "enos", "--payload", "event.json", "--due-at", "soon"), 2, "expected a time"),
    (("show", "42"), 3, "no message has the id or key '42'"),
    (("list", "--state", "dead"), 3, ""),
    (("list", "--destination", "nobody"), 2, "no destination named 'nobody'"),
    (("--config", "nowhere.toml", "status"), 2, "there is no settings file nowhere.toml"),
    (("--app", "nowhere:box", "status"), 2, "cannot import nowhere"),
    (("fly",), 2, "command 'fly'"),
]


def test_what_cannot_be_done_is_said_in_a_sentence_with_an_exit_code(terminal: Terminal, subtests: pytest.Subtests):
    (terminal.folder / "event.json").write_text("{}")

    runs = terminal.run_all(*(arguments for arguments, _, _ in CANNOT_BE_DONE))

    for (arguments, code, words), run in zip(CANNOT_BE_DONE, runs, strict=True):
        with subtests.test(command=" ".join(arguments)):
            assert code == run.returncode
            assert words in " ".join(run.stderr.split())
            assert "Traceback" not in run.stderr


def test_a_database_without_a_schema_is_said_to_need_an_upgrade(tmp_path: Path, receiver: Receiver, subtests: pytest.Subtests):
    terminal = Terminal(tmp_path, receiver)
    terminal.environment |= {
        "OUTBOX_DESTINATIONS__ENOS__TYPE": "enos-events",
        "OUTBOX_DESTINATIONS__ENOS__ORG_ID": "o1",
        "OUTBOX_DESTINATIONS__ENOS__TOKEN__APP_KEY": "k",
        "OUTBOX_DESTINATIONS__ENOS__TOKEN__APP_SECRET": "env:ENOS_APP_SECRET",
    }
    (tmp_path / "event.json").write_text("{}")

    runs = terminal.run_all(("status",), ("list",), ("drain",), ("worker",), ("enqueue", "enos", "--payload", "event.json"))

    for run in runs:
        with subtests.test(command=run.args[0]):
            assert 5 == run.returncode, run.stderr
            assert "outbox db upgrade" in run.stderr
    assert not (tmp_path / "outbox.db").exists()


def test_db_status_tells_what_is_missing_and_upgrade_mends_it(terminal: Terminal):
    elsewhere = {"OUTBOX_DATABASE": "sqlite:///new.db", "OUTBOX_SPOOL": "new-spool"}
    before = terminal.run("db", "status", "--json", **elsewhere)
    terminal.run("db", "upgrade", **elsewhere)

    after = terminal.run("db", "status", "--json", **elsewhere)

    assert (5, None) == (before.returncode, json.loads(before.stdout)["found"])
    assert (0, True) == (after.returncode, json.loads(after.stdout)["current"])


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_db_sql_prints_the_schema_for_a_person_to_review(terminal: Terminal, dialect: str):
    run = terminal.run("db", "sql", "--dialect", dialect)

    assert len(metadata.tables) + 1 == run.stdout.count("CREATE TABLE outbox_")


def test_drain_says_with_exit_code_4_that_a_destination_in_trouble_left_messages(terminal: Terminal, receiver: Receiver):
    receiver.always(Status(503))
    terminal.put()

    run = terminal.run("drain", "--json")

    assert (4, {"left": {"enos": 1}, "put_off": {"enos": 0}}) == (run.returncode, json.loads(run.stdout))
    assert terminal.destination().open_until is not None


def test_refused_credentials_stop_the_destination_and_charge_no_message(terminal: Terminal, receiver: Receiver):
    terminal.put("k")

    run = terminal.run("drain", "--json", ENOS_APP_SECRET="wrong")

    assert 4 == run.returncode
    assert "credentials" == terminal.destination().stop
    assert ("pending", 0) == tuple(column(terminal.outbox.database, "k", name) for name in ("state", "failures"))


def test_credentials_that_were_mended_are_tried_when_a_worker_starts(terminal: Terminal, receiver: Receiver):
    terminal.put()
    terminal.run("drain", ENOS_APP_SECRET="wrong")

    run = terminal.run("drain")

    assert 0 == run.returncode, run.stderr
    assert 1 == len(receiver.accepted)


def test_a_payload_file_may_begin_with_a_byte_order_mark(terminal: Terminal):
    (terminal.folder / "event.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"assetId": "a", "time": 1, "events": {"e": {"p": 1}}}).encode()
    )

    assert 0 == terminal.run("enqueue", "enos", "--payload", "event.json").returncode


def test_stored_text_cannot_take_over_the_terminal(terminal: Terminal, receiver: Receiver):
    receiver.always(Answer(1204, "\x1b[2J\x1b]0;owned\x07 line\nbreak"))
    terminal.put("\u202eevil")
    terminal.deliver()

    shown = terminal.run("show", "1")

    assert "owned" in shown.stdout
    assert not set("\x1b\x07\u202e") & set(shown.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_in_order_when_it_is_told_to(terminal: Terminal, receiver: Receiver, number: signal.Signals):
    terminal.put("k")
    worker = warm.WarmPopen(
        [sys.executable, "-m", "outbox", "worker"],
        cwd=terminal.folder,
        env=terminal.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    receiver.wait_for(lambda seen: len(seen.accepted) == 1, timeout=30)

    worker.send_signal(number)
    _, log = worker.communicate(timeout=30)

    assert 0 == worker.returncode
    assert "has stopped" in log
    assert {"k": "delivered"} == terminal.states()


def test_the_secret_was_used_and_is_nowhere(terminal: Terminal, receiver: Receiver):
    terminal.put("k")

    outputs = terminal.run_all(("drain", "--log-level", "debug"), ("show", "k"), ("status", "--json"))

    assert receiver.token_requests["get"] > 0
    said = "".join(run.stdout + run.stderr for run in outputs).encode()
    rest = b"".join(path.read_bytes() for path in terminal.folder.rglob("*") if path.is_file())
    token = receiver.issue_token().encode()
    assert SECRET.encode() not in said + rest
    assert token not in said + rest


WRONG_SETTINGS = {
    'databse = "x"': "databse",
    '[destinations.enos]\ntype = "fax"': "destinations.enos.type",
    '[destinations.enos]\ntype = "enos-events"\norg_id = "o"\nurl = "http://x"': "in the clear",
    '[destinations.enos]\ntype = "enos-events"\norg_id = "o"\nurl = "https://x"\npolicy = {batch = 1}': (
        "no setting named batch"
    ),
    '[destinations.enos]\ntype = "enos-events"\norg_id = "o"\nurl = "https://x"\n'
    '[destinations.enos.token]\nurl = "https://x"\napp_key = "k"\napp_secret = "hunter2"': "env:NAME or file:PATH",
    "database = ": "is not TOML",
}


def test_wrong_settings_are_named_by_their_path_and_secrets_are_not_repeated(
    tmp_path: Path, receiver: Receiver, subtests: pytest.Subtests
):
    terminal = Terminal(tmp_path, receiver)
    terminal.environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
    for number, toml in enumerate(WRONG_SETTINGS):
        (tmp_path / f"{number}.toml").write_text(toml)

    runs = terminal.run_all(*(("--config", f"{number}.toml", "status") for number in range(len(WRONG_SETTINGS))))

    for (toml, words), run in zip(WRONG_SETTINGS.items(), runs, strict=True):
        with subtests.test(toml=toml):
            assert 2 == run.returncode
            assert words in run.stderr
            assert "hunter2" not in run.stderr
            assert "Traceback" not in run.stderr


def test_an_app_of_ones_own_takes_the_place_of_settings(terminal: Terminal, receiver: Receiver):
    (terminal.folder / "shop.py").write_text(
        "from outbox import EnosEvents, Outbox\n"
        f"box = Outbox('sqlite:///outbox.db', spool='spool', destinations=[EnosEvents(name='alarms', "
        f"url={receiver.url!r}, org_id='o', allow_plain_http=True)])\n"
    )

    (status,) = terminal.lines("--app", "shop:box", "status")

    assert "alarms" in status["destinations"]


def test_every_command_has_help_with_an_example(terminal: Terminal):
    from outbox.cli import SECTIONS

    names = [name for section in SECTIONS.values() for name in section]
    asked = [("db", "upgrade", "--help") if name == "db" else (name, "--help") for name in names]

    for run in terminal.run_all(*asked):
        assert 0 == run.returncode
        assert "xample" in run.stdout, run.args
