"""A producer that knows no Python: what docs/plain-sql.md says, executed."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox.ambient import uuid7

PAGE = Path(__file__).parents[1] / "docs" / "plain-sql.md"
_NAME = re.compile(r"(?<!:):(\w+)")


def blocks() -> list[str]:
    """Every block of SQL on the page, in its order."""
    return re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def of_sqlite(name: str) -> str:
    """The block of that name."""
    (found,) = (each for each in blocks() if each.startswith(f"-- sqlite: {name}\n"))
    return found


def statements(block: str) -> Iterator[str]:
    """Its statements, one by one."""
    waiting = ""
    for line in block.splitlines(keepends=True):
        waiting += line
        if sqlite3.complete_statement(waiting):
            yield waiting
            waiting = ""
    assert not waiting.strip(), f"has no end: {waiting}"


def enqueue(connection: sa.Connection, destination: str, payload: str, **options: Any) -> int:
    """Enqueue as the page says it for this database; returns the message's id."""
    return _WAYS[connection.dialect.name](connection, destination, payload, options)


def _by_function(connection: sa.Connection, destination: str, payload: str, options: dict[str, Any]) -> int:
    named = ", ".join(f"{name} => :{name}" for name in options)
    call = f"SELECT id FROM outbox_enqueue(:destination, :payload{', ' + named if named else ''})"
    return int(connection.execute(sa.text(call), {"destination": destination, "payload": payload} | options).scalar_one())


def _by_statements(connection: sa.Connection, destination: str, payload: str, options: dict[str, Any]) -> int:
    ordered, given = options.pop("ordered", True), {"key": uuid7(), "digest": "", "lane": "normal"} | options
    values = dict.fromkeys(("due_at", "expires_at")) | given | {"destination": destination, "payload": payload}
    for name in ("due_at", "expires_at"):
        if values[name] is not None:
            values[name] = values[name].strftime("%Y-%m-%d %H:%M:%S.%f")
    way = ("ordered" if ordered else "fair turns") if "ordering_key" in values else "plain"
    driver: Any = connection.connection.dbapi_connection
    # A write of SQLAlchemy's first, so that it knows of the transaction.
    connection.exec_driver_sql("UPDATE outbox_stream SET last_number = last_number WHERE 0")
    for each in statements(of_sqlite(way)):
        driver.execute(each, {name: values[name] for name in _NAME.findall(each)})
    (found,) = statements(of_sqlite("named"))
    return int(driver.execute(found, {name: values[name] for name in _NAME.findall(found)}).fetchone()[0])


_WAYS: dict[str, Callable[[sa.Connection, str, str, dict[str, Any]], int]] = {
    "postgresql": _by_function,
    "sqlite": _by_statements,
}
