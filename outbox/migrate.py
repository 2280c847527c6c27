"""Bringing a database to the schema of this code, and refusing to work on another one."""

from __future__ import annotations

import functools
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Connection, Inspector, column, inspect, select, table

from outbox.database import Database, begin_to_write, lock_for_migration
from outbox.errors import NO_SCHEMA, SchemaError
from outbox.tables import message, metadata

if TYPE_CHECKING:
    from alembic.config import Config

#: Our own, so that a host application's Alembic in the same database and ours never meet.
VERSION_TABLE = "outbox_alembic_version"
#: And a host's, which ours may be a part of: tables that are named so, or end in that.
_HOSTS_TABLE = "alembic_version"
_FILE = re.compile(r"^(outbox_\d{4})_", re.ASCII)
_REVISION = re.compile(r"outbox_\d{4}", re.ASCII)


class Standing(NamedTuple):
    """How far a database has been migrated, and the table that says so."""

    revision: str | None = None  #: None when it never was
    history: str | None = None  #: a version table: ours, or that of a host application which has taken ours into its own

    @property
    def is_a_hosts(self) -> bool:
        """Whether only the host application's own Alembic may go on with it."""
        return self.history not in (None, VERSION_TABLE)

    @property
    def remedy(self) -> str:
        """What a person does to have the newest."""
        return (
            "alembic upgrade heads, in the application whose migrations it is part of"
            if self.is_a_hosts
            else "outbox db upgrade"
        )

    @property
    def refusal(self) -> str | None:
        """Why this code does not work on it; None when it is as it should be."""
        if self.revision is None:
            return NO_SCHEMA
        where = f" (by the table {self.history})" if self.is_a_hosts else ""
        if self.revision < newest():
            return f"the database's outbox schema is {self.revision}{where}, this code needs {newest()}; run: {self.remedy}"
        if self.revision > newest():
            newer = f"newer than this code ({newest()}); upgrade durable-outbox here"
            return f"the database's outbox schema is {self.revision}{where}, {newer}"
        return None


def script_location() -> Path:
    """Where the migrations are: inside the wheel, or at the top of a checkout."""
    inside = Path(__file__).parent / "_migrations"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "migrations"


def versions() -> Path:
    """The folder of the migrations themselves, for the `version_locations` of a host application's Alembic.

    In an installed wheel that is also `outbox:_migrations/versions`.
    """
    return script_location() / "versions"


@functools.cache
def newest() -> str:
    """The revision that this code is written for."""
    return max(match.group(1) for path in versions().iterdir() if (match := _FILE.match(path.name)))


def current(connection: Connection) -> str | None:
    """The revision of a database; None when it was never migrated."""
    return standing(connection).revision


def standing(connection: Connection) -> Standing:
    """How far a database has been migrated, by our own version table or that of a host application."""
    inspector = inspect(connection)
    if inspector.has_table(VERSION_TABLE) and (ours := _revision_in(connection, VERSION_TABLE)):
        return Standing(ours, VERSION_TABLE)
    hosts = sorted(name for name in inspector.get_table_names() if name.endswith(_HOSTS_TABLE) and name != VERSION_TABLE)
    for name in hosts:
        if found := _revision_in(connection, name):
            return Standing(found, name)
    if hosts and inspector.has_table(message.name):
        # A host's revision that depends on ours stands for it, and so does one that merges heads.
        return Standing(newest() if _has_all(inspector) else _FIRST, hosts[0])
    return Standing()


_FIRST = "outbox_0001"


def _revision_in(connection: Connection, name: str) -> str | None:
    found = connection.execute(select(table(name, column("version_num")).c.version_num)).scalars()
    return max((each for each in found if _REVISION.fullmatch(each)), default=None)


def _has_all(inspector: Inspector) -> bool:
    """Whether every column is there that this code asks for."""
    there = {name for name in inspector.get_table_names() if name in metadata.tables}
    named = {name: {each["name"] for each in inspector.get_columns(name)} for name in there}
    return all(set(each.c.keys()) <= named.get(each.name, set()) for each in metadata.sorted_tables)


def require_current(database: Database) -> None:
    """Raises SchemaError, with what to do, unless the database has the schema of this code."""
    with database.read() as connection:
        refusal = standing(connection).refusal
    if refusal is not None:
        raise SchemaError(refusal)


def upgrade(database: Database) -> tuple[str | None, str]:
    """Bring the database to the newest schema; returns the revisions before and after. Doing it again is no error.

    Raises SchemaError, and changes nothing, for one that is newer, or that a host application's own Alembic has to upgrade.
    """
    from alembic import command

    database.create()
    with database.begin() as connection:
        lock_for_migration(connection)
        found = standing(connection)
        if (refusal := found.refusal) is not None:
            _require_ours(found, refusal)
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "outbox@head")
    return found.revision, newest()


def up(connection: Connection, to: str = "head") -> None:
    """Bring the schema to a revision, from within a migration of a host application: `up(op.get_bind(), to="outbox_0003")`.

    It is part of the host's transaction, and the host's `op` goes on afterwards. A database that has it is left as it is, so
    that one migration of the host's for each upgrade of ours is all there is to write. Raises SchemaError for a revision that
    is none, and for a database that is newer than this code, or has ours in the host's own history; ConfigurationError where
    each statement is committed by itself.
    """
    from outbox.stepping import Stepping

    steps = Stepping(connection, _config(), VERSION_TABLE)
    found = _ready_to_step(connection)
    wanted = newest() if to in ("head", "heads") else steps.require(to)
    steps.upgrade([each for each in steps.revisions if (found or "") < each <= wanted])


def down(connection: Connection, to: str) -> None:
    """Take the schema back to a revision, or to `base`, where there is nothing of it: what `up` has done, undone."""
    from outbox.stepping import Stepping

    steps = Stepping(connection, _config(), VERSION_TABLE)
    found = _ready_to_step(connection)
    wanted = "" if to == "base" else steps.require(to)
    steps.downgrade([each for each in reversed(steps.revisions) if wanted < each <= (found or "")])


def _ready_to_step(connection: Connection) -> str | None:
    begin_to_write(connection)
    lock_for_migration(connection)
    found = standing(connection)
    if found.is_a_hosts:
        raise SchemaError(f"the outbox schema of this database is part of the history in {found.history}: {found.remedy}")
    if (found.revision or "") > newest():
        raise SchemaError(str(found.refusal))
    return found.revision


def sql_from_here(database: Database) -> str:
    """The statements that `upgrade` would execute, for a person to review and run; none where there is nothing to do.

    Raises SchemaError for a database that `upgrade` refuses.
    """
    try:
        with database.read() as connection:
            found = standing(connection)
    except SchemaError:  # there is not even a file
        found = Standing()
    if (refusal := found.refusal) is None:
        return ""
    _require_ours(found, refusal)
    return sql(database.kind, found.revision)


def _require_ours(found: Standing, refusal: str) -> None:
    """Raises SchemaError, with the refusal, for a schema that is newer, or that a host application has to upgrade."""
    if found.is_a_hosts or (found.revision or "") > newest():
        raise SchemaError(refusal)


def sql(dialect: str, since: str | None = None) -> str:
    """The statements that bring a database to the newest schema, from a revision or from nothing, for a person to run."""
    from alembic import command

    config = _config()
    output = io.StringIO()
    config.output_buffer = output
    config.attributes["dialect"] = dialect
    command.upgrade(config, f"{since}:outbox@head" if since else "outbox@head", sql=True)
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
