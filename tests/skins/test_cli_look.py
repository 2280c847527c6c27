"""`outbox status`, `list`, `show`, `deliveries` and `workers`, as a person sees them: through real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import Policy
from outbox.cli.curl import curl
from outbox.model import SpooledFile
from outbox.multipart import FieldPart, FilePart
from outbox.secret import remember
from outbox.store import living
from outbox.tables import delivery, destination, file, message
from outbox.testing import Answer, Receiver, Status
from outbox.transport import Upload
from tests import warm
from tests.skins.conftest import EVENT, SECRET, Terminal

REFUSED = "the asset's \x1b[31mmodel is unknown"


class Desk(Terminal):
    """One whose breaker opens, as far as this process delivers, at the first failure."""

    policy = Policy(breaker_after=1)

    def died(self, key: str = "bad") -> None:
        """A message that was refused."""
        self.receiver.always(Answer(1204, REFUSED))
        self.put(key)
        self.deliver()
        self.receiver.always(None)


@pytest.fixture
def desk(initialized: Path, tmp_path: Path, receiver: Receiver) -> Iterator[Desk]:
    desk = Desk(shutil.copytree(initialized, tmp_path, dirs_exist_ok=True), receiver)
    yield desk
    desk.close()


class Screen:
    """A command on a terminal of so many columns."""

    def __init__(self, desk: Desk, columns: int, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, columns))
        environment = {key: value for key, value in desk.environment.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = warm.WarmPopen(
            [sys.executable, "-m", "outbox", *arguments],
            cwd=desk.folder,
            env=environment | {"TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.text = ""

    def read_until(self, enough: Callable[[str], bool], within: float = 30.0) -> str:
        """What it has written, once that is enough or it has ended."""
        ends = time.monotonic() + within
        while not enough(self.text) and time.monotonic() < ends:
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._ours, 65536).decode()
                except OSError:  # it has closed its end
                    break
        return self.text

    def close(self) -> None:
        os.close(self._ours)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def screen(desk: Desk) -> Iterator[Callable[..., Screen]]:
    opened: list[Screen] = []

    def open_one(columns: int, *arguments: str) -> Screen:
        opened.append(Screen(desk, columns, *arguments))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


# Status.


def test_status_has_keys_that_stay(desk: Desk) -> None:
    (status,) = desk.lines("status")

    top = {"at", "destinations", "blocked_keys", "workers", "spool", "last_hour", "oldest_transaction"}
    of_destination = {"due", "waiting", "claimed", "dead", "dead_by_reason", "delivered_last_hour", "delivered_bytes_last_hour"}
    of_destination |= {"oldest_due_at", "failures", "reject_streak", "blocked_keys", "stop", "stop_text", "stopped_by"}
    of_destination |= {"stopped_at", "open_until", "ramp", "learned_bytes", "declared", "paused_keys", "last_failure"}
    of_spool = {"files", "bytes", "free_bytes", "quota_bytes", "quota_percent", "growth_per_hour", "full_in_seconds", "filling"}
    assert top == status.keys()
    assert of_destination == status["destinations"]["enos"].keys()
    assert of_spool == status["spool"].keys()
    assert {"arrived_messages", "arrived_bytes", "delivered_messages", "delivered_bytes"} == status["last_hour"].keys()


def test_status_tells_what_died_what_waits_and_how_the_spool_fills(desk: Desk, receiver: Receiver) -> None:
    desk.died()
    desk.put("later", due_at=datetime(2100, 1, 1, tzinfo=UTC))

    text = desk.run("status", OUTBOX_QUOTA="1 KiB").stdout

    assert "enos: 1 message is dead (1 rejected); see: outbox list --state dead --destination enos" in text
    assert "spool: 2 files, 18 B, 1.8 % of its quota of 1.0 KiB" in text
    assert "full in 2 d 7 h at the present rate (18 B an hour)" in text
    assert "last hour: 2 messages came" in text
    assert ["enos", "0", "1", "0", "1", "0", "-", "no"] == text.splitlines()[1].split()


def test_status_says_of_a_breaker_when_the_next_try_is(desk: Desk, receiver: Receiver) -> None:
    receiver.always(Status(503, headers={"Retry-After": "600"}))
    desk.put("k")
    desk.deliver()

    text = desk.run("status").stdout

    assert "breaker" in text.splitlines()[1]
    (line,) = (each for each in text.splitlines() if each.startswith("enos: "))
    assert line.startswith("enos: breaker, after 1 failure; ")
    assert "; next try in " in line


def test_status_says_of_a_reject_streak_once_what_was_refused_and_what_ends_it(desk: Desk, receiver: Receiver) -> None:
    desk.put("k")
    now = datetime.now(UTC)
    said = "refused 20 messages, one after the other; the last one: 1204 no such model"
    with desk.outbox.database.begin() as connection:
        connection.execute(
            sa.insert(destination).values(
                name="enos", stop="reject_streak", reject_streak=20, stop_text=said, stopped_at=now, open_until=now
            )
        )

    (line,) = (each for each in desk.run("status").stdout.splitlines() if each.startswith("enos: "))

    assert line.startswith(f"enos: reject streak: it {said}, since ")
    assert line.endswith("; next try as soon as a worker looks; once that is mended, go on with: outbox resume enos")
    assert 1 == line.count("one after the other")


def test_one_is_not_many_and_every_time_says_its_zone(desk: Desk) -> None:
    desk.died()

    desk.outbox.pause("enos", "x", "anna")

    commands = [("status",), ("list",), ("show", "bad"), ("deliveries",), ("audit",)]
    status, *others = (run.stdout for run in desk.run_all(*commands))

    assert "spool: 1 file, 9 B" in status
    assert "last hour: 1 message came, " in status
    for told in others:
        times = re.findall(r"\d\d:\d\d:\d\d\S*", told)
        assert times
        assert all(each.endswith("Z") for each in times), told


def test_show_says_fields_in_words_and_keeps_them_as_they_are_for_programs(desk: Desk) -> None:
    desk.put("k", {**EVENT, "events": {"crack": {"photo": "local://photo", "text": "x" * 1950}}})

    shown, as_json = desk.run_all(("show", "k"), ("show", "k", "--json"))

    text, told = shown.stdout, json.loads(as_json.stdout)
    assert f"size           {told['size']:,} bytes, 2.4 KiB\n" in text
    assert "file bytes     9 bytes\n" in text
    assert "suspect        no\n" in text
    assert "scheduled      no\n" in text
    assert (False, 9) == (told["suspect"], told["file_bytes"])


def test_status_fits_a_narrow_terminal_and_a_wide_one(desk: Desk, screen: Callable[..., Screen]) -> None:
    desk.died()
    desk.outbox.pause("enos", "maintenance of the gateway until noon, and then some more of it", "anna")

    texts = {columns: screen(columns, "status").read_until(lambda _: False) for columns in (60, 200)}

    for columns, text in texts.items():
        assert "\x1b[2J" not in text
        lines = text.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
        assert max(map(len, lines)) <= columns
        assert "pause by anna: maintenance of the gateway until noon, and then some more of it" in " ".join(text.split())
    assert "CLAIMED" not in texts[60]
    assert "CLAIMED" in texts[200]


def test_status_that_is_watched_without_a_terminal_is_printed_again_until_it_is_interrupted(desk: Desk) -> None:
    watching = warm.WarmPopen(
        [sys.executable, "-m", "outbox", "status", "--watch", "0.1", "--json"],
        cwd=desk.folder,
        env=desk.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    first, second = json.loads(watching.stdout.readline()), json.loads(watching.stdout.readline())

    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=30)

    assert first["at"] < second["at"]
    assert (0, "") == (watching.returncode, errors)


def rename(desk: Desk, table: str, other: str) -> None:
    with desk.outbox.database.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {other}")


def test_status_that_is_watched_on_a_terminal_is_drawn_anew_also_after_a_database_that_fails(
    desk: Desk, screen: Callable[..., Screen]
) -> None:
    watching = screen(100, "status", "--watch", "0.2")
    watching.read_until(lambda text: text.count("DESTINATION") >= 2)

    rename(desk, "outbox_message", "somewhere_else")
    watching.read_until(lambda text: "trying again" in text)
    rename(desk, "somewhere_else", "outbox_message")
    seen = len(watching.text)
    watching.read_until(lambda text: "DESTINATION" in text[seen:])
    watching.process.send_signal(signal.SIGINT)
    watching.read_until(lambda _: False)

    assert "no such table: outbox_message" in watching.text
    assert "DESTINATION" in watching.text[seen:]
    assert 1 == watching.text.count("\x1b[?1049h")  # the screen was lent, and is given back
    assert "\x1b[?1049l" in watching.text
    assert 0 == watching.process.wait(30)


# Lists.


def test_a_list_is_narrowed_by_whatever_is_said(desk: Desk, receiver: Receiver) -> None:
    desk.died()
    desk.put("waits", ordering_key="turbine-7")

    by_reason, by_stream, by_name, none, everything = desk.run_all(
        ("list", "--state", "dead", "--since", "2h", "--text", "MODEL", "--reason", "rejected", "--json"),
        ("list", "--ordering-key", "turbine-7", "--destination", "enos", "--json"),
        ("list", "bad", "2", "--json"),
        ("list", "--until", "2h"),
        ("list",),
    )

    def keys(run: subprocess.CompletedProcess[str]) -> list[str]:
        return [json.loads(line)["key"] for line in run.stdout.splitlines()]

    text = everything.stdout
    assert ["2", "1"] == [line.split()[0] for line in text.splitlines()[1:]]
    assert (["bad"], ["waits"], ["waits", "bad"]) == (keys(by_reason), keys(by_stream), keys(by_name))
    assert ["ID", "DESTINATION", "KEY", "STATE"] == text.split()[:4]
    assert "\x1b" not in text
    assert 3 == none.returncode


def test_deliveries_tell_what_each_carried_and_what_was_answered(desk: Desk, receiver: Receiver) -> None:
    desk.died()
    desk.put("good")
    desk.deliver()

    as_json, narrowed, unclear = desk.run_all(
        ("deliveries", "--json"),
        ("deliveries", "--outcome", "reject"),
        ("deliveries", "--open", "--outcome", "reject"),
    )

    good, bad = map(json.loads, as_json.stdout.splitlines())
    assert [("delivered", 0, 1), ("reject", 1204, 1)] == [
        (each["outcome"], each["code"], each["messages"]) for each in (good, bad)
    ]
    assert "1204" in bad["answer"]
    assert "1204" in narrowed.stdout
    assert "delivered" not in narrowed.stdout
    assert 2 == unclear.returncode


def test_workers_are_those_that_live_unless_all_are_asked_for(desk: Desk) -> None:
    nobody = desk.run("workers")
    now = datetime.now(UTC)
    with desk.outbox.database.begin() as connection:
        living.register(connection, "w" * 24 + "-sees-it", "box-7", 42, now, ["enos", "alarms"], "1.2")
        living.register(connection, "gone", "box-8", 43, now)
        living.leave(connection, "gone")

    as_json, everybody = desk.run_all(("workers", "--json"), ("workers", "--all"))

    alive, every = json.loads(as_json.stdout), everybody.stdout
    assert (3, "no worker is running; start one with: outbox worker\n") == (nobody.returncode, nobody.stderr)
    assert (42, "box-7", "1.2", ["enos", "alarms"]) == tuple(alive[name] for name in ("pid", "host", "version", "serves"))
    assert (0, 0, False, False) == tuple(alive[name] for name in ("claims", "deliveries", "stop_asked", "gone"))
    assert 3 == len(every.splitlines())
    assert "-sees-it" in every
    assert "enos, alarms" in every


# One message.


def test_show_tells_every_attempt_with_its_answer_and_what_became_of_the_files(desk: Desk, receiver: Receiver) -> None:
    desk.died()
    (listed,) = desk.lines("show", "bad")
    (desk.folder / "spool" / listed["attachments"][0]["spooled"][-2:] / listed["attachments"][0]["spooled"]).unlink()

    with desk.outbox.database.begin() as connection:
        connection.execute(sa.update(delivery).values(answer="two\nlines, \x1b[2J\u202eone evil"))

    text = desk.run("show", "bad").stdout

    (attempt,) = listed["attempts"]
    assert EVENT == listed["payload"]
    assert ("reject", 200, 1204, 1) == tuple(attempt[name] for name in ("outcome", "status", "code", "messages"))
    assert "model is unknown" in attempt["text"]
    assert {"number", "delivery_id", "started_at", "finished_at", "seconds", "worker", "request_id", "answer"} <= attempt.keys()
    assert "there" == listed["attachments"][0]["bytes_are"]
    assert "missing" in text
    assert "answer to attempt 1:\n  two\n  lines, \ufffd[2J\ufffdone evil" in text
    assert "next try       none: it is dead; start it afresh with: outbox replay 1" in text
    assert "\x1b" not in text


def test_the_next_try_is_told_with_what_stands_in_its_way(desk: Desk, receiver: Receiver) -> None:
    desk.put("later", due_at=datetime(2100, 1, 1, tzinfo=UTC))
    waits = desk.run("show", "later").stdout
    desk.outbox.pause("enos", "maintenance", "anna")

    assert "next try       2100-01-01 00:00:00Z, in " in waits
    assert "next try       none before somebody acts; why, says: outbox explain 1" in desk.run("show", "later").stdout


def test_the_curl_command_sends_what_the_worker_would_and_holds_no_secret(desk: Desk, receiver: Receiver) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not here")
    name = """it's "odd"; $HOME ü.jpg"""
    payload = EVENT | {"events": {"crack": {"note": 'a\'b \u202e \\ ; "q" `id`', "photo": "local://photo"}}}
    desk.put("k", payload)
    with desk.outbox.database.begin() as connection:
        connection.execute(sa.text("UPDATE outbox_attachment SET filename = :name"), {"name": name})

    shown = desk.run("show", "k", "--curl")
    desk.deliver()
    words = shown.stdout.replace("apim-accesstoken: ***", f"apim-accesstoken: {receiver.issue_token()}")
    ran = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60)

    assert 0 == ran.returncode, ran.stderr
    ours, theirs = receiver.accepted
    assert SECRET not in shown.stdout
    assert "\u202e" not in shown.stdout
    assert 1 == shown.stdout.count("***")
    assert (payload["events"]["crack"]["note"], ours.files) == (ours.struct["events"]["crack"]["note"], theirs.files)
    assert ours.struct == theirs.struct


def test_no_request_is_made_up_for_a_destination_that_is_not_declared(desk: Desk) -> None:
    desk.put("k")
    with desk.outbox.database.begin() as connection:
        connection.execute(sa.update(message).values(destination="retired"))

    text, request = desk.run_all(("show", "k"), ("show", "k", "--curl"))

    assert "no destination named retired is in these settings" in text.stdout
    assert (2, "") == (request.returncode, request.stdout)
    assert "no destination named 'retired'; declared: enos" in request.stderr


def test_a_curl_command_says_when_a_file_is_gone(desk: Desk) -> None:
    desk.put("k")
    with desk.outbox.database.begin() as connection:
        connection.execute(sa.update(file).values(freed_at=sa.func.current_timestamp()))

    request = desk.run("show", "k", "--curl")

    assert 0 == request.returncode
    assert "the file photo is freed: this request cannot be made" in request.stderr


# The curl command itself.


def words(upload: Upload, *secret_headers: str) -> list[str]:
    return shlex.split(curl(upload, secret_headers, lambda name: f"/spool/{name}").replace("\\\n", " "))


def test_headers_that_let_one_in_are_masked_by_their_names_and_secrets_wherever_they_stand() -> None:
    remember("hunter2hunter2")
    headers = {"X-Api-Key": "abc", "Authorization": "Bearer abc", "X-Signature": "abc", "X-Trace": "hunter2hunter2 t-1"}
    upload = Upload("https://x.example/?ticket=hunter2hunter2", [FieldPart("note", b"hunter2hunter2")], headers)

    said = words(upload, "apim-accesstoken")

    assert "abc" not in " ".join(said)
    assert "hunter2" not in " ".join(said)
    assert {"X-Api-Key: ***", "Authorization: ***", "X-Signature: ***", "X-Trace: *** t-1", "apim-accesstoken: ***"} <= set(
        said
    )


def test_a_field_is_text_even_if_it_looks_like_the_name_of_a_file() -> None:
    plain = words(Upload("https://x.example", [FieldPart("note", b"@/etc/passwd")]))
    named = words(Upload("https://x.example", [FieldPart("note", b'@x;"y"', "note.txt", {"X-Kind": "a"})]))

    assert ["--form-string", "note=@/etc/passwd"] == plain[-2:]
    assert ["--form", 'note="@x;\\"y\\"";filename="note.txt";headers="X-Kind: a"'] == named[-2:]


def test_a_document_is_sent_as_it_is() -> None:
    said = words(Upload("https://x.example", json=b'@{"a": "it\'s"}', headers={"Idempotency-Key": "k"}), "webhook-signature")

    assert ["--data-raw", '@{"a": "it\'s"}'] == said[-2:]
    assert {"Content-Type: application/json", "Idempotency-Key: k", "webhook-signature: ***"} <= set(said)


def test_a_file_is_sent_from_the_spool_under_its_own_name() -> None:
    spooled = SpooledFile("ab" * 16, 3, "5" * 64, "3" * 32)
    part = FilePart("photo", 'a "b" \\.jpg', spooled, "image/jpeg")

    said = words(Upload("https://x.example", [part]))

    assert [
        "--form",
        f'photo=@"/spool/{"ab" * 16}";type=image/jpeg;filename="a \\"b\\" \\\\.jpg";headers="Content-Length: 3"',
    ] == said[-2:]
