"""S15: whatever a person or a program looks for is a value and never a part of a statement."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Outbox, State, UnknownDestination, migrate
from outbox.model import Reason, Selection
from outbox.store import pausing
from outbox.tables import message
from tests.commands import run_all
from tests.factories import NOW, an_outbox, enos, in_full, put

#: What has ended statements, strings, patterns and lists before: one a line.
LINES = r"""
'
''
"
""
`
\
\'
;
--
/*
#
%
_
%%
[a-z]
^
$1
:name
?
%s
%(x)s
{}
' OR '1'='1
' OR 1=1 --
" OR ""="
1; DROP TABLE outbox_message
'; DELETE FROM outbox_message; --
1 OR 1=1
' UNION SELECT payload FROM outbox_message --
') OR ('a'='a
x' AND 1=(SELECT count(*) FROM outbox_file) --
NULL
'||(SELECT name FROM outbox_file)||'
x'; ATTACH DATABASE 'x' AS y; --
'; PRAGMA writable_schema=1; --
\x27
%27
' AND sleep(5) --
'; SELECT pg_sleep(5); --
' || randomblob(1000000000) || '
load_extension('x')
'; COPY x TO 'x'; --
enos
ENOS
enos'
e%
en_s
KEY
key
0
-1
1
1e9
0x1
true
a b
' ESCAPE '\
a/%b
a/_b
"""
LETTERS = [
    "Gr\u00f6\u00dfe",
    "GR\u00d6SSE",
    "\u00c9",
    "\u00e9",
    "\u0130",
    "\u0131",
    "\u00df",
    "\u1e9e",
    "\u212a",
    "\u043a\u043b\u044e\u0447",
]
ODD = [
    " enos",
    "enos ",
    "\u202e",
    "\ufeff",
    "a\u0301",
    "\u00e1",
    "\U0001f600",
    "\u0661",
    "a\tb",
    "a\nb",
    "\r\n",
    "\x1b[2J",
    "\x7f",
    "\x01",
]
LONG = ["x" * 255, "x" * 10_000, "%" * 300, "_" * 255, "\\" * 99, "'" * 999, "(" * 2000, "9" * 30]
CLASSIC = [*LINES.strip("\n").splitlines(), *LETTERS, *ODD, *LONG]


def five_hundred(dice: random.Random) -> list[str]:
    """The classics, pieces of them, and mixtures."""
    made = list(dict.fromkeys(CLASSIC))
    while len(made) < 500:
        made = list(dict.fromkeys([*made, "".join(dice.choice(CLASSIC)[: dice.randrange(1, 12)] for _ in range(3))]))
    return made


class Rows:
    """Messages of all kinds under hostile names, what they are for a Python that has never heard of SQL, and an outbox."""

    def __init__(self, url: str, folder: Path, names: list[str]) -> None:
        self.outbox: Outbox = an_outbox(url, folder / "spool", enos())
        migrate.upgrade(self.outbox.database)
        self.known: list[dict[str, Any]] = []
        short = [name for name in dict.fromkeys(names) if 0 < len(name) <= 100]
        with self.outbox.database.begin() as connection:
            for number, name in enumerate(short):
                destination = name if number % 3 == 0 else "enos"
                ordered = number % 2 == 0
                put(connection, name, destination=destination, ordering_key=short[-number], ordered=ordered)
                said = {"destination": destination, "key": name, "ordering_key": short[-number], "text": None}
                if number % 4:
                    said["text"] = f"it said {name}, {short[number // 2]}!"
                self.known.append(said | {"id": number + 1})
            for each in self.known:
                if each["text"] is not None:
                    dead = {"state": State.DEAD, "reason": Reason.REJECTED, "reason_text": each["text"], "finished_at": NOW}
                    connection.execute(sa.update(message).where(message.c.id == each["id"]).values(dead))
        self.statements: list[str] = []
        reader = self.outbox.database._reader
        assert reader is not None
        sa.event.listen(reader, "before_cursor_execute", lambda *given: self.statements.append(given[2]))

    def found(self, **wanted: Any) -> list[int] | None:
        """The ids that the outbox finds; None when it says that there is no such destination."""
        try:
            return sorted(each.id for each in self.outbox.messages(Selection(limit=10_000, **wanted)))
        except UnknownDestination:
            return None

    def expected(self, holds: Callable[[dict[str, Any]], bool]) -> list[int]:
        return sorted(each["id"] for each in self.known if holds(each))

    def is_destination(self, name: str) -> bool:
        return name == "enos" or any(each["destination"] == name for each in self.known)


SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def said(text: str | None, words: str) -> bool:
    """Whether these words are in a text, in capitals or not, as far as ASCII goes."""
    return text is not None and (words.translate(SMALL) in text.translate(SMALL) or words.lower() in text.translate(SMALL))


def compare(rows: Rows, name: str, turn: int) -> None:
    """What is found under a name, as a key and in texts; and in its turn as an ordering key, as a destination, or as both."""
    assert rows.expected(lambda row: row["key"] == name) == rows.found(keys=(name,))
    assert rows.expected(lambda row: said(row["text"], name)) == rows.found(text=name)
    known = rows.is_destination(name)
    match turn % 3:
        case 0:
            assert rows.expected(lambda row: row["ordering_key"] == name) == rows.found(ordering_key=name)
        case 1:
            mine = rows.expected(lambda row: row["destination"] == name)
            assert (mine if known else None) == rows.found(destination=name)
        case _:
            both = rows.expected(lambda row: row["destination"] == name and said(row["text"], name))
            assert (both if known else None) == rows.found(destination=name, text=name, states=(State.DEAD,))


@pytest.fixture
def make_rows(tmp_path: Path) -> Iterator[Callable[..., Rows]]:
    made: list[Rows] = []

    def make(url: str, names: list[str]) -> Rows:
        made.append(Rows(url, tmp_path, names))
        return made[-1]

    yield make
    for each in made:
        each.outbox.close()


@pytest.fixture
def sqlite_url(migrated_sqlite_url: str) -> str:
    return migrated_sqlite_url


@pytest.fixture
def postgres_url(migrated_postgres_url: str) -> str:
    return migrated_postgres_url


def test_a_filter_finds_what_a_loop_would_find(
    sqlite_url: str, make_rows: Callable[..., Rows], dice: random.Random, subtests: pytest.Subtests
) -> None:
    rows = make_rows(sqlite_url, dice.sample(CLASSIC, 24))
    for turn, name in enumerate(CLASSIC):
        with subtests.test(ascii(name)[:60]):
            compare(rows, name, turn)


@pytest.mark.merge
def test_five_hundred_times_a_filter_finds_what_a_loop_would_find(
    database_url: str, make_rows: Callable[..., Rows], dice: random.Random
) -> None:
    names = five_hundred(dice)
    rows = make_rows(database_url, dice.sample(names, 24))
    many = in_full(len(names), 150) if database_url.startswith("sqlite") else 100
    for turn, name in enumerate(dice.sample(names, many)):
        compare(rows, name, turn)


def test_no_statement_is_made_of_what_is_looked_for(sqlite_url: str, make_rows: Callable[..., Rows]) -> None:
    """The same statements, as many and word for word, whatever is looked for in vain; each a SELECT or its BEGIN."""
    rows = make_rows(sqlite_url, ["a", "b"])

    def spoken(**wanted: Any) -> list[str]:
        rows.statements.clear()
        rows.found(**wanted)
        return list(rows.statements)

    for option in ("keys", "ordering_key", "text", "destination"):
        plain = spoken(**{option: ("nothing",) if option == "keys" else "nothing"})
        for name in CLASSIC[::3]:
            if name.lower() == name.translate(SMALL) and not rows.is_destination(name):
                assert plain == spoken(**{option: (name,) if option == "keys" else name})
        assert {"SELECT", "BEGIN"} >= {statement.split()[0] for statement in plain}


def test_what_is_looked_for_is_not_looked_for_in_other_letters(sqlite_url: str, make_rows: Callable[..., Rows]) -> None:
    rows = make_rows(sqlite_url, ["a%b", "a_b", "axb", "a/b", "a\\b"])

    assert [[1], [2], [4], [5]] == [rows.found(keys=(each,)) for each in ("a%b", "a_b", "a/b", "a\\b")]
    assert [[3], []] == [rows.found(text=each) for each in ("AXB", "a__b")]


def test_every_name_can_be_paused_and_goes_on(sqlite_url: str, make_rows: Callable[..., Rows]) -> None:
    rows = make_rows(sqlite_url, ["a"])
    names = [name for name in CLASSIC if 0 < len(name) <= 255 and name.isprintable()]
    for name in names:
        rows.outbox.pause("enos", f"because of {name}", name, name)

    with rows.outbox.database.read() as connection:
        assert set(names) == set(connection.execute(pausing.keys_of("enos")).scalars())
    for name in names:
        assert rows.outbox.resume("enos", name, ordering_key=name)
    with rows.outbox.database.read() as connection:
        assert [] == connection.execute(pausing.keys_of("enos")).scalars().all()


@pytest.mark.merge
def test_on_the_terminal_every_option_is_a_value_too(
    sqlite_url: str, make_rows: Callable[..., Rows], tmp_path: Path, dice: random.Random
) -> None:
    names = [name for name in dice.sample(five_hundred(dice), 16) if name.strip() and len(name) < 300]
    rows = make_rows(sqlite_url, [*names[:30], "plain"])
    wanted: list[tuple[str, str, list[int] | None]] = []
    for name in names:
        mine = rows.expected(lambda row, name=name: row["destination"] == name) if rows.is_destination(name) else None
        wanted.append(("--key", name, rows.expected(lambda row, name=name: row["key"] == name)))
        wanted.append(("--ordering-key", name, rows.expected(lambda row, name=name: row["ordering_key"] == name)))
        wanted.append(("--text", name, rows.expected(lambda row, name=name: said(row["text"], name))))
        wanted.append(("--destination", name, mine))
    (tmp_path / "outbox.toml").write_text(
        'database = "sqlite:///outbox.db"\n[destinations.enos]\ntype = "enos-events"\nurl = "https://x.example"\norg_id = "o"\n'
    )
    environment = {"PATH": "/usr/bin", "PYTHONUTF8": "1"}

    runs = run_all(
        [("list", "--json", "--limit", "9999", f"{option}={name}") for option, name, _ in wanted], tmp_path, environment
    )

    for (option, name, ids), run in zip(wanted, runs, strict=True):
        told = sorted(json.loads(line)["id"] for line in run.stdout.splitlines())
        assert (ids or []) == told, (option, name)
        assert run.returncode == (2 if ids is None else 0 if ids else 3), (option, name, run.stderr)
        assert "Traceback" not in run.stderr
        assert run.stderr.isprintable() or run.stderr.replace("\n", "").isprintable()
