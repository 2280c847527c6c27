"""Statements that every message meets, compiled once; and sets of rows that travel in them as one value.

SQLAlchemy looks each time whether it knows a statement already, and that takes longer than the database does.
"""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Dialect,
    FromClause,
    Row,
    Text,
    bindparam,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from outbox.tables import Instant

#: How an instant is written in a document of rows: as SQLite keeps it, and with what Postgres must be told besides.
_INSTANT, _IN_UTC = "%Y-%m-%d %H:%M:%S.%f", "+00:00"
_DIGITS = 26


class Ready:
    """A statement of ours as the driver takes it, compiled when a dialect first meets it.

    `build` makes it for a connection. Its parameters are `bindparam`s of which each has a name, or constants.
    """

    def __init__(self, build: Callable[[Connection], Any]) -> None:
        self._build = build
        self._plans: dict[tuple[str, str, str], _Plan] = {}

    def run(self, connection: Connection, values: dict[str, Any]) -> CursorResult[Any]:
        """Execute it; what comes back is as the driver has it."""
        plan = self._plan(connection)
        return connection.exec_driver_sql(plan.text, plan.parameters(values))

    def all(self, connection: Connection, values: dict[str, Any]) -> Sequence[Any]:
        """Execute it and take every row, its columns in the types of the schema."""
        plan = self._plan(connection)
        return plan.read(connection.exec_driver_sql(plan.text, plan.parameters(values)).all())

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
        made = {name: each.type.dialect_impl(dialect).bind_processor(dialect) for name, each in compiled.binds.items()}
        self._writers = [(name, write) for name, write in made.items() if write is not None]
        self._constants = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
        columns = list(statement.exported_columns)
        readers = [each.type.dialect_impl(dialect).result_processor(dialect, None) for each in columns]
        self._readers = {at: read for at, read in enumerate(readers) if read is not None}
        self._made = _maker([each.key for each in columns]) if self._readers else None

    def parameters(self, values: dict[str, Any]) -> Any:
        """The values as the driver takes them: in its order, or by name."""
        known = {**self._constants, **values}
        last = written = None
        for name, write in self._writers:
            if (value := known[name]) is not None:
                if value is not last:  # a message is mostly due when it is enqueued
                    last, written = value, write(value)
                known[name] = written
        return known if self._order is None else tuple([known[name] for name in self._order])

    def read(self, rows: Sequence[Row[Any]]) -> Sequence[Any]:
        """The rows with their columns in the types of the schema."""
        if self._made is None:
            return rows
        readers, made = self._readers, self._made
        return [made([readers[at](value) if at in readers else value for at, value in enumerate(row)]) for row in rows]


def _maker(names: Sequence[str]) -> Callable[[Iterable[Any]], Any]:
    made: Any = namedtuple("_made", list(names))  # type: ignore[misc]  # the names are found at run time
    make: Callable[[Iterable[Any]], Any] = made._make
    return make


class _Listed(FunctionElement[Any]):
    """The elements of a document, as rows with a column `value`."""

    inherit_cache = False  # a statement of ours is compiled by itself


class _Item(ColumnElement[Any]):
    """One member of a listed row, as a column of the schema takes it."""

    inherit_cache = False

    def __init__(self, rows: Any, place: int, column: Column[Any]) -> None:
        self.rows, self.place, self.column, self.type = rows, place, column, column.type


class _Number(ColumnElement[int]):
    """A listed element that is a number."""

    inherit_cache = False
    type = BigInteger()

    def __init__(self, rows: Any) -> None:
        self.rows = rows


@compiles(_Listed, "sqlite")
def _listed_by_sqlite(element: _Listed, compiler: SQLCompiler, **how: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **how)})"


@compiles(_Listed, "postgresql")
def _listed_by_postgres(element: _Listed, compiler: SQLCompiler, **how: Any) -> str:
    return f"json_array_elements(CAST({compiler.process(element.clauses, **how)} AS json))"


@compiles(_Item, "sqlite")
def _item_of_sqlite(element: _Item, compiler: SQLCompiler, **how: Any) -> str:
    found = f"json_extract({compiler.process(element.rows.c.value, **how)}, '$[{element.place}]')"
    return f"substr({found}, 1, {_DIGITS})" if isinstance(element.column.type, Instant) else found


@compiles(_Item, "postgresql")
def _item_of_postgres(element: _Item, compiler: SQLCompiler, **how: Any) -> str:
    kind = compiler.dialect.type_compiler_instance.process(element.column.type)
    return f"CAST({compiler.process(element.rows.c.value, **how)} ->> {element.place} AS {kind})"


@compiles(_Number, "sqlite")
def _number_of_sqlite(element: _Number, compiler: SQLCompiler, **how: Any) -> str:
    return compiler.process(element.rows.c.value, **how)


@compiles(_Number, "postgresql")
def _number_of_postgres(element: _Number, compiler: SQLCompiler, **how: Any) -> str:
    return f"CAST(CAST({compiler.process(element.rows.c.value, **how)} AS text) AS bigint)"


def listed(name: str, columns: Sequence[Column[Any]]) -> tuple[FromClause, list[ColumnElement[Any]]]:
    """Rows that travel in the parameter `name`, made by `document`; and their members, as these columns take them."""
    rows = _Listed(bindparam(name, type_=Text)).table_valued("value", name=name)
    return rows, [_Item(rows, place, column) for place, column in enumerate(columns)]


def among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """The condition that a column is one of the numbers that travel in the parameter `name`, made by `document`."""
    rows = _Listed(bindparam(name, type_=Text)).table_valued("value", name=name)
    return column.in_(select(_Number(rows)).select_from(rows))


def document(elements: Iterable[Any]) -> str:
    """Numbers, or rows of plain values and instants, as one value that travels in a statement."""
    return json.dumps(list(elements), separators=(",", ":"), default=_written)


def _written(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime(_INSTANT) + _IN_UTC
    raise TypeError(f"cannot travel in a statement: {type(value).__name__}")
