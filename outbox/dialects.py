"""What SQLite and Postgres say differently in a statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    String,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    null,
    select,
    true,
)

from outbox.tables import Instant


def insert_or_nothing(connection: Connection, table: Table, key: list[str] | None = None) -> Any:
    """An INSERT that does nothing where a unique row exists already, or one with the same `key` columns.

    Never a savepoint instead: on a plain SQLite session rolling one back commits the caller's work.
    """
    return _insert(connection, table).on_conflict_do_nothing(index_elements=key)


def insert_or_update(connection: Connection, table: Table, key: list[str], change: dict[str, Any]) -> Any:
    """An INSERT that makes `change` where a row with the same `key` columns exists already."""
    return _insert(connection, table).on_conflict_do_update(index_elements=key, set_=change)


def insert_or_overwrite(
    connection: Connection, table: Table, key: list[str], names: Sequence[str], where: ColumnElement[bool]
) -> Any:
    """An INSERT that overwrites the columns of these names of a row with the same `key`, if `where` holds for that."""
    new = _insert(connection, table)
    return new.on_conflict_do_update(index_elements=key, set_={name: new.excluded[name] for name in names}, where=where)


def _insert(connection: Connection, table: Table) -> Any:
    """An INSERT as this dialect has it. Its module is loaded by now; the other may never be."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    return insert(table)


def fresh_id(connection: Connection, column: Column[Any]) -> ColumnElement[Any]:
    """The id of a row that is given none, where it cannot just be left out; SQLite numbers such a row by itself."""
    if connection.dialect.name == "postgresql":
        return func.nextval(func.pg_get_serial_sequence(column.table.name, column.name))
    return null()


_as_json = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


def listed(connection: Connection, name: str, columns: Sequence[Column[Any]]) -> FromClause:
    """Rows that travel in the parameter `name`, as `statements.document` made them of these columns."""
    given = bindparam(name, type_=Text)
    if connection.dialect.name == "postgresql":
        # Text as text: what is cast to VARCHAR(10) is cut off without a word.
        members = [column(each.name, Text() if isinstance(each.type, String) else each.type) for each in columns]
        return func.json_to_recordset(cast(given, JSON)).table_valued(*members, name=name).render_derived(with_types=True)
    elements = func.json_each(given).table_valued("value", name="element")
    found = [func.json_extract(elements.c.value, f"$.{each.name}") for each in columns]
    as_kept = [
        func.substr(member, 1, 26) if isinstance(each.type, Instant) else member
        for member, each in zip(found, columns, strict=True)
    ]
    return select(*(member.label(each.name) for member, each in zip(as_kept, columns, strict=True))).subquery(name)


def paired(connection: Connection, claims: Mapping[int, Sequence[int]]) -> str:
    """The messages that are claimed for each delivery as one value that travels in a statement, for `pairs_of`."""
    if connection.dialect.name == "postgresql":
        pairs = sorted((each, number) for number, ids in claims.items() for each in ids)
        return " ".join([f"{each}:{number}" for each, number in pairs])
    return _as_json(claims)


def pairs_of(connection: Connection, name: str) -> FromClause:
    """The same as rows of `id` and `delivery_id`, one for each message, from the parameter `name`.

    Each database in the words that it is quickest with: SQLite takes every row of a JSON document apart anew for each of its
    members, and Postgres takes twice as long for a document as for words.
    """
    if connection.dialect.name == "postgresql":
        # As a value of its own: a planner that sees how many words there are may prefer to read the whole table for them.
        words = select(func.string_to_array(bindparam(name, type_=Text), " ")).scalar_subquery()
        pair = func.unnest(words).table_valued("pair", name="word").render_derived().c.pair
        members = [cast(func.split_part(pair, ":", place), BigInteger) for place in (1, 2)]
        return select(members[0].label("id"), members[1].label("delivery_id")).subquery(name)
    each = func.json_each(bindparam(name, type_=Text)).table_valued("key", "value", name="each")
    member = func.json_each(each.c.value).table_valued("value", name="member")
    number = cast(each.c.key, BigInteger)
    return select(member.c.value.label("id"), number.label("delivery_id")).select_from(each.join(member, true())).subquery(name)
