"""I14: the database itself is sound, as it says when it is asked, whatever our code thinks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import sqlalchemy as sa

from outbox.database import Database
from outbox.tables import metadata


def database_sound(database: Database, *, thorough: bool = True) -> Iterator[str]:
    """SQLite: its own checks of structure, references and CHECKs. Postgres: the same by amcheck, where it has that.

    Not `thorough`: Postgres is not asked for anything, since its constraints hold unless a disk lies.
    """
    yield from _KINDS[database.engine.dialect.name](database, thorough)


def _sqlite(database: Database, _thorough: bool) -> Iterator[str]:
    with database.read() as connection:
        for (line,) in connection.exec_driver_sql("PRAGMA integrity_check").all():
            if line != "ok":
                yield f"the database is damaged: {line}"
        for row in connection.exec_driver_sql("PRAGMA foreign_key_check").all():
            yield f"row {row[1]} of {row[0]} refers to a row of {row[2]} that is not there"
        yield from _contradictions(connection)


def _contradictions(connection: sa.Connection) -> Iterator[str]:
    """Rows that break a CHECK; SQLite itself does not look at those where it may only read."""
    for table, checks in _CHECKS.items():
        # All in one look, and only if that finds something each for itself.
        if _count(connection, table, " OR ".join(checks.values())):
            for name, broken in checks.items():
                if number := _count(connection, table, broken):
                    yield f"{number} rows of {table} break {name}"


def _count(connection: sa.Connection, table: str, condition: str) -> int:
    return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table} WHERE {condition}").scalar_one())


_CHECKS = {
    table.name: {str(check.name): f"NOT ({check.sqltext})" for check in checks}
    for table in metadata.sorted_tables
    if (checks := [each for each in table.constraints if isinstance(each, sa.CheckConstraint)])
}


def _postgres(database: Database, thorough: bool) -> Iterator[str]:
    if not thorough:
        return
    with database.read() as connection:
        yield from _contradictions(connection)
        for table in metadata.sorted_tables:
            # Every row is read whole, its large values too.
            connection.exec_driver_sql(f"SELECT max(length({table.name}::text)) FROM {table.name}")
            for key in table.foreign_keys:
                yield from _dangling(connection, key)
        has_amcheck = "SELECT rolsuper FROM pg_roles, pg_available_extensions WHERE name = 'amcheck' AND rolname = current_user"
        if not connection.exec_driver_sql(has_amcheck).scalar():
            return
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS amcheck")
    yield from _by_amcheck(database)


def _by_amcheck(database: Database) -> Iterator[str]:
    names = tuple(metadata.tables)
    with database.read() as connection:
        for name in names:
            for row in connection.execute(sa.text("SELECT blkno, msg FROM verify_heapam(:name)"), {"name": name}):
                yield f"{name} is damaged in block {row.blkno}: {row.msg}"
        indexes = sa.text(
            "SELECT c.oid, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_class t ON t.oid = i.indrelid JOIN pg_am a ON a.oid = c.relam"
            " WHERE a.amname = 'btree' AND t.relname = ANY(:names) AND i.indisvalid"
        )
        found = connection.execute(indexes, {"names": list(names)}).all()
    for index in found:
        with database.read() as connection:
            try:
                connection.execute(sa.text("SELECT bt_index_check(CAST(:oid AS oid), true)"), {"oid": index.oid})
            except sa.exc.DBAPIError as error:
                yield f"{index.relname} is damaged: {error.orig}"


def _dangling(connection: sa.Connection, key: sa.ForeignKey) -> Iterator[str]:
    of, to = key.parent, key.column
    other = to.table.alias()
    lost = sa.select(sa.func.count()).select_from(of.table.outerjoin(other, of == other.c[to.name]))
    if number := connection.execute(lost.where(of.is_not(None), other.c[to.name].is_(None))).scalar_one():
        yield f"{number} rows of {of.table.name} refer to rows of {to.table.name} that are not there"


_KINDS: dict[str, Callable[[Database, bool], Iterator[str]]] = {"sqlite": _sqlite, "postgresql": _postgres}
