"""Bringing a database to the schema of this code, and refusing to work on another one."""

from __future__ import annotations

import functools
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, column, inspect, select, table

from outbox.database import Database, lock_for_migration
from outbox.errors import NO_SCHEMA, SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

#: Our own, so that a host application's Alembic in the same database and ours never meet.
VERSION_TABLE = "outbox_alembic_version"
_VERSIONS = table(VERSION_TABLE, column("version_num"))
_REVISION = re.compile(r"^(outbox_\d{4})_", re.ASCII)


def script_location() -> Path:
    """Where the migrations are: inside the wheel, or at the top of a checkout."""
    inside = Path(__file__).parent / "_migrations"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "migrations"


@functools.cache
def newest() -> str:
    """The revision that this code is written for."""
    revisions = [match.group(1) for path in (script_location() / "versions").iterdir() if (match := _REVISION.match(path.name))]
    return max(revisions)


def current(connection: Connection) -> str | None:
    """The revision of a database; None when it was never migrated."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(_VERSIONS.c.version_num)).scalars().first()


def require_current(database: Database) -> None:
    """Raises SchemaError, with what to do, unless the database has the schema of this code."""
    with database.read() as connection:
        found = current(connection)
    if found == newest():
        return
    if found is None:
        raise SchemaError(NO_SCHEMA)
    if found < newest():
        raise SchemaError(f"the database's outbox schema is {found}, this code needs {newest()}; run: outbox db upgrade")
    raise SchemaError(
        f"the database's outbox schema is {found}, newer than this code ({newest()}); upgrade durable-outbox here"
    )


def upgrade(database: Database) -> tuple[str | None, str]:
    """Bring the database to the newest schema; returns the revisions before and after. Doing it again is no error."""
    from alembic import command

    database.create()
    with database.begin() as connection:
        lock_for_migration(connection)
        before = current(connection)
        if before is not None and before > newest():
            raise SchemaError(
                f"the database's outbox schema is {before}, newer than this code ({newest()}); upgrade durable-outbox here"
            )
        if before != newest():
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "outbox@head")
    return before, newest()


def sql(dialect: str) -> str:
    """The statements that bring an empty database to the newest schema, for a person to review and run."""
    from alembic import command

    config = _config()
    output = io.StringIO()
    config.output_buffer = output
    config.attributes["dialect"] = dialect
    command.upgrade(config, "outbox@head", sql=True)
    return output.getvalue()


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def include_object(item: object, name: str | None, kind: str, *_: object) -> bool:
    """For a host application's Alembic (`context.configure(include_object=...)`): leaves our tables alone.

    Without it the host's autogenerate proposes to drop them.
    """
    of = getattr(item, "table", None)
    owner = name if kind == "table" else getattr(of, "name", None)
    return not (owner or "").startswith("outbox_")
