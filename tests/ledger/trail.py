"""A trail in database order, independent of our code: triggers write down what becomes of messages, attempts and workers.

    trail.install(url)           # before the story, or in the middle of it; trail.remove(url) leaves no trace
    trail.read(database)         # a Trail: every change

A trigger writes in the transaction that it belongs to, while that holds the message's row: so the changes of one message are
numbered in the order in which they were committed, and those that were rolled back left nothing.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from outbox.database import Database
from tests.ledger.fate import Fate, Tried

TABLE = "ledger_trail"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row. `about`: message, attempt or worker. Old and new are None where there was, or is, no row."""

    id: int
    about: str
    message_id: int | None
    key: str | None
    stream_id: int | None
    stream_number: int | None
    old_state: str | None  #: of an attempt its outcome; of a worker `here` or `gone`
    new_state: str | None
    old_attempt: int | None
    new_attempt: int | None
    old_worker: str | None
    new_worker: str | None
    old_delivery: int | None
    new_delivery: int | None
    old_replays: int | None
    new_replays: int | None


@dataclass(frozen=True)
class Trail:
    """Everything that was written, in order."""

    changes: Sequence[Change]

    def lives(self) -> Counter[str]:
        """How many messages had each key, one after the other."""
        return Counter(str(each.key) for each in self.changes if each.about == "message" and each.old_state is None)

    def fates_of_deleted(self) -> dict[str, Fate]:
        """What had become of each message whose row was deleted, by its key."""
        tried: dict[int | None, dict[int | None, Tried]] = {}
        fates: dict[str, Fate] = {}
        lives = self.lives()
        for each in self.changes:
            if each.about == "attempt" and each.new_state is not None:
                mine = tried.setdefault(each.message_id, {})
                mine[each.new_attempt] = Tried(each.new_attempt or 0, each.new_delivery or 0, each.new_state)
            elif each.about == "message" and each.new_state is None:
                key = str(each.key)
                fates[key] = Fate(
                    each.message_id or 0,
                    key,
                    str(each.old_state),
                    each.old_attempt or 0,
                    each.old_replays or 0,
                    each.stream_id,
                    each.stream_number,
                    tuple(tried.get(each.message_id, {}).values()),
                    purged=True,
                    lives=max(1, lives[key]),
                )
        return fates


def install(url: str, *, patience: float = 60.0) -> bool:
    """Write down what is there, and every change from now on. Doing it again is no error.

    False when somebody's open transaction keeps us from it for so many seconds. A database that is not there is not made.
    """
    return _execute(url, lambda kind, there: [] if there else _STATEMENTS[kind], patience)


def remove(url: str, *, patience: float = 60.0) -> bool:
    """Leave no trace in the schema. Doing it again is no error."""
    return _execute(url, lambda kind, _: _AWAY[kind], patience)


def _execute(url: str, statements: Callable[[str, bool], Sequence[str]], patience: float) -> bool:
    """Execute these in one transaction, on a connection of our own; False when others lock what they need."""
    kind = sa.make_url(url).get_backend_name()
    engine = sa.create_engine(url, poolclass=sa.NullPool, **_OPTIONS[kind](url, patience))
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "BEGIN IMMEDIATE" if kind == "sqlite" else f"SET lock_timeout = {round(1000 * patience)}"
            )
            for statement in statements(kind, is_installed(connection)):
                connection.exec_driver_sql(statement)
            connection.commit()
    except sa.exc.OperationalError as error:
        if not any(words in str(error) for words in ("locked", "lock timeout")):
            raise
        return False
    finally:
        engine.dispose()
    return True


def _open_sqlite(url: str, patience: float) -> sqlite3.Connection:
    path = quote(str(sa.make_url(url).database))
    # One that is not there is not made.
    return sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=patience, isolation_level=None)


_OPTIONS: dict[str, Callable[[str, float], dict[str, Any]]] = {
    "sqlite": lambda url, patience: {"creator": lambda: _open_sqlite(url, patience)},
    "postgresql": lambda _url, _patience: {},
}


def is_installed(connection: sa.Connection) -> bool:
    return sa.inspect(connection).has_table(TABLE)


def read(database: Database) -> Trail | None:
    """The trail; None where none was installed."""
    with database.read() as connection:
        return read_on(connection)


def read_on(connection: sa.Connection) -> Trail | None:
    if not is_installed(connection):
        return None
    rows = connection.exec_driver_sql(f"SELECT {', '.join(_COLUMNS)} FROM {TABLE} ORDER BY id").all()
    return Trail([Change(*row) for row in rows])


_COLUMNS = tuple(Change.__slots__)
_TEXTS = frozenset({"about", "key", "old_state", "new_state", "old_worker", "new_worker"})


@dataclass(frozen=True)
class _Watched:
    """A table whose rows leave a trail. `same` is written of its present row, `both` of the old one and the new one."""

    about: str
    name: str
    minded: str  #: columns whose changes matter
    same: Mapping[str, str]
    both: Mapping[str, str]
    order: str = "id"

    def insert(self, event: str) -> str:
        """The statement that writes an event down; ROW stands for the row in each expression."""
        present = "OLD" if event == "DELETE" else "NEW"
        values = {"about": f"'{self.about}'"}
        values |= {column: expression.replace("ROW", present) for column, expression in self.same.items()}
        for row in {"INSERT": ("NEW",), "UPDATE": ("OLD", "NEW"), "DELETE": ("OLD",)}[event]:
            values |= {f"{row.lower()}_{column}": each.replace("ROW", row) for column, each in self.both.items()}
        return f"INSERT INTO {TABLE} ({', '.join(values)}) VALUES ({', '.join(values.values())})"

    def births(self) -> str:
        """The statement that writes down what is there when the trail begins; attempts as such that do not change."""
        values = {"about": f"'{self.about}'", **self.same}
        for row in ("old", "new") if self.about == "attempt" else ("new",):
            values |= {f"{row}_{column}": each for column, each in self.both.items()}
        columns, expressions = ", ".join(values), ", ".join(values.values()).replace("ROW", self.name)
        return f"INSERT INTO {TABLE} ({columns}) SELECT {expressions} FROM {self.name} ORDER BY {self.order}"


_WATCHED = (
    _Watched(
        "message",
        "outbox_message",
        "state, attempt, claimed_by, delivery_id, replays",
        {"message_id": "ROW.id", "key": "ROW.key", "stream_id": "ROW.stream_id", "stream_number": "ROW.stream_number"},
        {
            "state": "ROW.state",
            "attempt": "ROW.attempt",
            "worker": "ROW.claimed_by",
            "delivery": "ROW.delivery_id",
            "replays": "ROW.replays",
        },
    ),
    _Watched(
        "attempt",
        "outbox_attempt",
        "outcome, number, delivery_id",
        {"message_id": "ROW.message_id"},
        {"state": "ROW.outcome", "attempt": "ROW.number", "delivery": "ROW.delivery_id"},
        "message_id, number",
    ),
    _Watched(
        "worker", "outbox_worker", "gone", {}, {"state": "CASE WHEN ROW.gone THEN 'gone' ELSE 'here' END", "worker": "ROW.id"}
    ),
)


def _triggers() -> list[tuple[_Watched, str, str]]:
    """Each with its event and its name."""
    return [
        (each, event, f"ledger_{each.about}_{event.lower()}") for each in _WATCHED for event in ("INSERT", "UPDATE", "DELETE")
    ]


def _when(each: _Watched, event: str) -> str:
    return f"AFTER {event}{f' OF {each.minded}' if event == 'UPDATE' else ''} ON {each.name}"


def _table(identity: str) -> str:
    columns = (f"{name} {'TEXT' if name in _TEXTS else 'BIGINT'}" for name in _COLUMNS if name != "id")
    return f"CREATE TABLE IF NOT EXISTS {TABLE} (id {identity}, {', '.join(columns)})"


def _postgres(each: _Watched, event: str, name: str) -> list[str]:
    # Its triggers may write whatever those may whose changes they write down.
    kind = "RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT"
    body = f"BEGIN {each.insert(event)}; RETURN NULL; END"
    return [
        f"CREATE OR REPLACE FUNCTION {name}() {kind} AS $ledger$ {body} $ledger$",
        f"CREATE TRIGGER {name} {_when(each, event)} FOR EACH ROW WHEN (true OR {_HERE}()) EXECUTE FUNCTION {name}()",
    ]


#: A function that is never called. It depends on the table, and the triggers on it: whoever drops the table drops them, too.
_HERE = "ledger_is_here"
_DEPENDENT = f"CREATE FUNCTION {_HERE}() RETURNS boolean LANGUAGE sql BEGIN ATOMIC SELECT count(*) > 0 FROM {TABLE}; END"
_STATEMENTS = {
    "sqlite": [
        _table("INTEGER PRIMARY KEY AUTOINCREMENT"),
        *(
            f"CREATE TRIGGER IF NOT EXISTS {name} {_when(each, event)} BEGIN {each.insert(event)}; END"
            for each, event, name in _triggers()
        ),
        *(each.births() for each in _WATCHED),
    ],
    "postgresql": [
        _table("BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY"),
        _DEPENDENT,
        *(statement for each, event, name in _triggers() for statement in _postgres(each, event, name)),
        *(each.births() for each in _WATCHED),
    ],
}
_AWAY = {
    "sqlite": [*(f"DROP TRIGGER IF EXISTS {name}" for _, _, name in _triggers()), f"DROP TABLE IF EXISTS {TABLE}"],
    "postgresql": [
        f"DROP TABLE IF EXISTS {TABLE} CASCADE",
        *(f"DROP FUNCTION IF EXISTS {name}()" for _, _, name in _triggers()),
    ],
}
