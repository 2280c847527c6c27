"""Statements that are executed all the time, compiled once; and sets of rows that travel in them.

SQLAlchemy looks each time whether it knows a statement already, and that takes longer than the database does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    Connection,
    CursorResult,
    Dialect,
    FromClause,
    String,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy import values as sql_values
from sqlalchemy.sql.compiler import SQLCompiler


class Ready:
    """A statement of ours as the driver takes it, compiled when a dialect first meets it.

    `build` makes it for a connection. Its parameters are `bindparam`s of which each has a name, or constants.
    """

    def __init__(self, build: Callable[[Connection], Any]) -> None:
        self._build = build
        self._plans: dict[tuple[str, str, str], _Plan] = {}

    def run(self, connection: Connection, values: dict[str, Any]) -> CursorResult[Any]:
        """Execute it; what comes back is as the driver has it: `read_instant` reads its instants."""
        plan = self._plan(connection)
        return connection.exec_driver_sql(plan.text, plan.parameters(values))

    def rows(self, connection: Connection, values: dict[str, Any]) -> Sequence[Sequence[Any]]:
        """Execute it, and fetch all that comes back as the driver gives it: columns without names, in the statement's order."""
        found = self.run(connection, values)
        # As `fetchall` does, which makes a Row of each: for many short ones that is half of what it takes to read them.
        rows: Sequence[Sequence[Any]] = found.cursor_strategy.fetchall(found, found.cursor)
        return rows

    def run_with(self, connection: Connection, values: dict[str, Any], rows: Sequence[Sequence[Any]]) -> CursorResult[Any]:
        """The same for one whose last parameters are the row of `filled_in`, with so many rows in its place."""
        plan = self._plan(connection)
        return connection.exec_driver_sql(*plan.repeated(values, rows))

    def _plan(self, connection: Connection) -> _Plan:
        dialect = connection.dialect
        which = (dialect.name, dialect.driver, dialect.paramstyle)
        plan = self._plans.get(which)
        if plan is None:
            plan = self._plans[which] = _Plan(self._build(connection), dialect)
        return plan


class _Plan:
    """A statement in the words of one driver, and what its values go through on the way there and back."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled: SQLCompiler = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self._order = list(compiled.positiontup or ()) if compiled.positional else None
        # Those of one type in a row: a message is mostly due when it is enqueued.
        binds = sorted(compiled.binds.items(), key=lambda bind: type(bind[1].type).__name__)
        made = {name: each.type.dialect_impl(dialect).bind_processor(dialect) for name, each in binds}
        self._writers = [(name, write) for name, write in made.items() if write is not None]
        self._texts: dict[int, str] = {}
        self._constants = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}

    def parameters(self, values: dict[str, Any]) -> Any:
        """The values as the driver takes them: in its order, or by name."""
        known = self._constants | values
        last = written = None
        for name, write in self._writers:
            if (value := known[name]) is not None:
                if value is not last:
                    last, written = value, write(value)
                known[name] = written
        return known if self._order is None else tuple([known[name] for name in self._order])

    def repeated(self, values: dict[str, Any], rows: Sequence[Sequence[Any]]) -> tuple[str, tuple[Any, ...]]:
        """The text for so many rows, and the values as the driver takes them.

        There are texts for 2, 4, 8 and so on, so that a driver that keeps what it has prepared has seen them before; what is
        too many is filled with nulls.
        """
        width, room = len(rows[0]), 1 << (len(rows) - 1).bit_length()
        if room not in self._texts:
            marks = f"({', '.join('?' * width)})"
            self._texts[room] = self.text.replace(marks, ", ".join([marks] * room))
        nulls = (None,) * (width * (room - len(rows)))
        return self._texts[room], (*self.parameters(values)[:-width], *chain.from_iterable(rows), *nulls)


def parameter(column: Column[Any], name: str | None = None) -> BindParameter[Any]:
    """A value for a column, given under the column's name or another."""
    return bindparam(name or column.name, type_=column.type)


def document(columns: Sequence[Column[Any]], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of plain values and instants as one value that travels in a statement, for `listed` in it to take apart."""
    names = [each.name for each in columns]
    return _as_text([dict(zip(names, row, strict=True)) for row in rows])


#: What stands between the members of a list: no JSON holds it as it is, and no name may.
_BETWEEN = "\x1e"
_BETWEEN_IN_SQL = func.chr(literal_column(str(ord(_BETWEEN))))


def lists(columns: Sequence[Column[Any]], rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """Rows of texts and numbers without control characters, one at least, as one value for each column, for `unlisted`.

    Neither side has to look at each letter, as it would for a `document`: that takes a server a tenth of the time, and us too.
    """
    return {
        each.name: _BETWEEN.join(values if isinstance(each.type, String) else map(str, values))
        for each, values in zip(columns, zip(*rows, strict=True), strict=True)
    }


def unlisted(name: str, columns: Sequence[Column[Any]]) -> FromClause:
    """The same as rows again, in a statement for Postgres."""
    parts = [func.string_to_array(bindparam(each.name, type_=Text), _BETWEEN_IN_SQL) for each in columns]
    found = func.unnest(*parts).table_valued(*(column(each.name, Text) for each in columns), name=name).render_derived()
    return select(
        *(found.c[each.name] if isinstance(each.type, String) else cast(found.c[each.name], each.type) for each in columns)
    ).subquery(name)


def can_fill_in(connection: Connection) -> bool:
    """Whether a driver marks parameters so that `filled_in` can be repeated."""
    return connection.dialect.paramstyle == "qmark"


def filled_in(columns: Sequence[Column[Any]]) -> FromClause:
    """A row of parameters for these columns, for `Ready.run_with` to repeat; in a statement for SQLite, which names them so.

    Rows without a `column1` are none. SQLite takes a document apart anew for each member of each row.
    """
    names = [column(f"column{number}", each.type) for number, each in enumerate(columns, 1)]
    return sql_values(*names).data([tuple(parameter(each) for each in columns)])


def _written(value: object) -> str:
    if isinstance(value, datetime):
        # As SQLite keeps it, with the zone behind it for whoever must be told.
        return value.astimezone(UTC).isoformat(" ", "microseconds")
    raise TypeError(f"cannot travel in a statement: {type(value).__name__}")


_as_text = json.JSONEncoder(check_circular=False, separators=(",", ":"), default=_written).encode
