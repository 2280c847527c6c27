"""S17: no text that is kept can steer the terminal of whoever looks at it, nor break a line of what programs read."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import State, migrate, tables
from outbox.cli.printing import columns, paragraph, shown
from outbox.database import Database
from outbox.model import Reason
from tests.commands import run_all
from tests.factories import NOW, add_row, event, new_message

#: Every control there is (C0, DEL, C1), what turns the order of letters round, what takes no room, and what ends a line.
SINGLE = [chr(number) for number in (*range(0x20), *range(0x7F, 0xA0))]
SINGLE += "\u061c\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069"
SINGLE += "\ufeff\ufff9\ufffa\ufffb\u2061\u2062\u206a\u206f"
SINGLE += "\U000e0001\U000e007f\ud800\udfff\udc9b\ufffe\U0010ffff\u00ad\u180e"
#: Bodies of sequences that begin with ESC, or with one letter of C1.
BODIES = [
    *(
        "[2J",
        "[H",
        "[1;1H",
        "[31m",
        "[0;0;0m",
        "[?1049h",
        "[?25l",
        "[6n",
        "[c",
        "[21t",
        "[5i",
        "[8m",
        "[3J",
        "[1A",
        "[K",
        "[1000D",
    ),
    *(
        "]0;owned\x07",
        "]2;owned\x1b\\",
        "]52;c;cm0gLXJm\x07",
        "]8;;http://evil.example\x07click\x1b]8;;\x07",
        "]1337;File=:\x07",
    ),
    *(
        "]4;0;?\x07",
        "]10;?\x07",
        "P$q\x1b\\",
        "P+q\x1b\\",
        "_G\x1b\\",
        "^x\x1b\\",
        "Xx\x1b\\",
        "c",
        "7",
        "8",
        "(0",
        ")B",
        "#8",
        "=",
        ">",
        "N",
        "O",
        "Z",
    ),
]
SEQUENCES = [
    opening + body for opening in ("\x1b", "\x9b", "\x1b\x1b") for body in BODIES if opening != "\x9b" or body[0] == "["
]
TRICKS = [
    "ok\rFAILED",
    "ok\b\b\bno",
    "\x0e\x0f",
    "a\nb",
    "a\r\nb",
    "a\vb\fc",
    "1\n2026-03-01 12:00:00 INFO outbox: forged",
    "\x1b",
    "\x9d0;x\x9c",
]
STRINGS = [*(f"a{each}b" for each in SINGLE), *SEQUENCES, *TRICKS]


def steers(text: str) -> list[str]:
    """What in a text a terminal might obey, but for the ends of lines."""
    return sorted({ascii(letter) for letter in text if not (letter.isprintable() or letter == "\n")})


def test_there_are_two_hundred_control_strings() -> None:
    assert 200 <= len(set(STRINGS))
    assert all(steers(each) or "\n" in each for each in STRINGS)


def test_a_value_is_shown_in_one_line_without_any_of_them() -> None:
    for each in STRINGS:
        assert shown(each).isprintable()
        assert paragraph(each).isprintable()
        for line in columns(("HEAD", "MORE"), [(each, "x"), ("x", each)], wrap="MORE", room=40):
            assert line.isprintable()
            assert len(line) <= 40


class Poisoned:
    """A database in which every text that can be shown holds some of them, so that each is somewhere."""

    def __init__(self, folder: Path) -> None:
        self.left, self.again = list(STRINGS), itertools.cycle(STRINGS)
        database = Database(f"sqlite:///{folder / 'outbox.db'}")
        migrate.upgrade(database)
        with database.begin() as connection:
            for number in range(1, 9):
                self._message(connection, number)
            self._others(connection)
        assert not self.left, "all are used"
        database.close()

    def some(self, many: int = 5) -> str:
        """The next of them, and all again from the first when there are no more."""
        return " ".join(self.left.pop() if self.left else next(self.again) for _ in range(many))

    def _insert(self, connection: sa.Connection, table: sa.Table, **values: Any) -> None:
        connection.execute(table.insert().values({name: _raw(value) for name, value in values.items()}))

    def _message(self, connection: sa.Connection, number: int) -> None:
        stream = {"destination": "enos", "ordering_key": self.some(), "last_number": 1}
        self._insert(connection, tables.stream, id=number, **stream)
        self._insert(connection, tables.head, stream_id=number, destination="enos", lane="normal", blocked_by=number)
        payload = json.dumps(event(self.some(), note=self.some()), ensure_ascii=number % 2 == 0)
        final = number > 2
        state = {"state": State.DEAD, "reason": Reason.REJECTED, "finished_at": NOW, "reason_text": _raw(self.some())}
        add_row(
            connection,
            **(state if final else {"state": State.PENDING}),
            key=_raw(f"{number} {self.some(3)}"),
            payload=_raw(payload),
            destination=_raw(self.some(2)) if number == 4 else "enos",
            stream_id=number,
            stream_number=1,
            attempt=1,
            traceparent=_raw(self.some(2)),
        )
        self._insert(connection, tables.file, name=f"{number:032x}", size=1, sha256=self.some(1), md5="0" * 32, created_at=NOW)
        attached = {"name": self.some(2), "filename": self.some(2), "content_type": self.some(2)}
        self._insert(connection, tables.attachment, message_id=number, position=0, file=f"{number:032x}", **attached)
        told = {"text": self.some(), "request_id": self.some(2), "answer": self.some()}
        begun = {"lane": "normal", "messages": 1, "bytes": 1, "probe": False, "started_at": NOW, "finished_at": NOW}
        to = {
            "destination": self.some(1) if number == 5 else "enos",
            "worker": self.some(1),
            "outcome": "reject",
            "status": 400,
        }
        self._insert(connection, tables.delivery, id=number, **begun, **told, **to)
        tried = {"number": 1, "delivery_id": number, "finished_at": NOW, "outcome": "reject"}
        self._insert(connection, tables.attempt, message_id=number, **tried)

    def _others(self, connection: sa.Connection) -> None:
        stopped = {"stop": "pause", "stop_text": self.some(), "stopped_by": self.some(2), "stopped_at": NOW}
        self._insert(connection, tables.destination, name="enos", **stopped)
        self._insert(connection, tables.destination, name=self.some(2), failures=9, open_until=NOW + timedelta(days=999))
        for number in range(3):
            who = {"host": self.some(2), "version": self.some(2), "serves": self.some(2)}
            beats = {"pid": 1, "started_at": NOW, "beat": 1, "beat_at": NOW, "gone": number == 1, "stop_asked": number == 2}
            self._insert(connection, tables.worker, id=f"w{number}{self.some(1)}", **who, **beats)
            act = {"action": "replay", "selection": self.some(), "messages": 1, "actor": self.some(2), "finished_at": None}
            self._insert(connection, tables.audit, at=NOW, chosen='{"keys": ["a"]}', position=0, **act)
            paused = {"paused_at": NOW, "paused_by": self.some(2), "text": self.some()}
            self._insert(connection, tables.pause, destination="enos", ordering_key=self.some(), **paused)
        while self.left:
            act = {"action": "cancel", "selection": self.some(9), "messages": 1, "actor": self.some(9), "finished_at": NOW}
            self._insert(connection, tables.audit, at=NOW, **act)


def _raw(value: Any) -> Any:
    """Text as the driver takes it: what is no Unicode becomes bytes, as a damaged row would hold them."""
    if not isinstance(value, str):
        return value
    return sa.literal_column("CAST(x'" + value.encode("utf-8", "surrogatepass").hex() + "' AS TEXT)")


SETTINGS = """
database = "sqlite:///outbox.db"
[destinations.enos]
type = "enos-events"
url = "https://integration.example"
org_id = "o1"
"""
COMMANDS = [
    *(
        ("status",),
        ("list",),
        ("list", "--state", "dead"),
        ("deliveries",),
        ("workers", "--all"),
        ("audit",),
        ("explain", "enos"),
    ),
    *(("show", f"{number}") for number in range(1, 9)),
    *(("explain", f"{number}") for number in (1, 3, 4)),
    *(("show", "3", "--curl"), ("doctor", "--offline"), ("verify",), ("check",), ("check", "--max-age", "1s")),
    *(
        ("replay", "--state", "dead", "--dry-run"),
        ("purge", "--state", "dead", "--dry-run"),
        ("replay", "--continue", "1", "--yes"),
    ),
    *(("show", "\x1b]0;x\x07"), ("explain", "\x1b[2J"), ("list", "--destination", "\u202e"), ("list", "--state", "\x1b[2J")),
    *(
        ("pause", "\x1b[2J", "--reason", "x"),
        ("enqueue", "\x9b2J", "--payload", "\x1b[2J"),
        ("\x1b[2J",),
        ("list", "--\x1b[2J"),
    ),
]
MACHINES = [
    ("status",),
    ("list",),
    ("deliveries",),
    ("workers", "--all"),
    ("audit",),
    ("show", "3"),
    ("explain", "3"),
    ("verify",),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("poisoned")
    Poisoned(folder)
    (folder / "outbox.toml").write_text(SETTINGS)
    (folder / "spool").mkdir()
    commands = [*COMMANDS, *((*command, "--json") for command in MACHINES)]
    runs = run_all(commands, folder, {"PATH": "/usr/bin:/bin", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:surrogatepass"})
    return dict(zip(commands, runs, strict=True))


@pytest.mark.merge
def test_no_command_lets_a_kept_text_steer_a_terminal(
    told: dict[tuple[str, ...], subprocess.CompletedProcess[str]], subtests: pytest.Subtests
) -> None:
    for command in COMMANDS:
        with subtests.test(ascii(" ".join(command))):
            run = told[command]
            assert [] == steers(run.stdout)
            assert [] == steers(run.stderr)
            assert "Traceback" not in run.stderr
            assert run.stdout + run.stderr


@pytest.mark.merge
def test_what_programs_read_is_ascii_and_one_object_a_line(
    told: dict[tuple[str, ...], subprocess.CompletedProcess[str]], subtests: pytest.Subtests
) -> None:
    for command in MACHINES:
        with subtests.test(" ".join(command)):
            run = told[*command, "--json"]
            assert run.stdout.isascii()
            assert all(line.isprintable() and json.loads(line) for line in run.stdout.splitlines())


@pytest.mark.merge
def test_a_forged_line_of_a_table_cannot_be_made(told: dict[tuple[str, ...], subprocess.CompletedProcess[str]]) -> None:
    """A key with a line end in it is one cell of one line."""
    lines = told["list",].stdout.splitlines()

    assert 8 == len([line for line in lines if re.match(r" *[0-9]+ ", line)])
    assert not any(line.startswith("2026-03-01 12:00:00 INFO") for line in lines)


def test_a_message_of_the_factories_is_not_poisoned_by_itself() -> None:
    assert not steers(new_message("key").payload)
