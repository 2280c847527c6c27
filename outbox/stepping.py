"""Migrations taken step by step on somebody else's connection, while their own Alembic runs.

A run of Alembic inside another takes away the other's `op` and `context`, and the rest of that migration dies. So none is
begun: each of our revisions is handed operations of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from outbox.errors import SchemaError


class Stepping:
    """Our revisions, one after the other; `version_table` says how far they are."""

    def __init__(self, connection: Connection, config: Config, version_table: str) -> None:
        given: object = connection
        if not isinstance(given, Connection):
            raise SchemaError(
                f"expected the connection that is migrated, op.get_bind(), got {given!r}; "
                "where only statements are printed (--sql), those of ours are what outbox db sql prints"
            )
        self._script = ScriptDirectory.from_config(config)
        self._context = MigrationContext.configure(connection, opts={"version_table": version_table})
        self._operations = Operations(self._context)
        self.revisions = sorted(each.revision for each in self._script.walk_revisions())  #: the oldest first

    def require(self, name: str) -> str:
        """The same. Raises SchemaError for what is no revision of ours."""
        if name not in self.revisions:
            raise SchemaError(f"no revision named {name!r}; there are: {', '.join(self.revisions)}")
        return name

    def upgrade(self, revisions: Iterable[str]) -> None:
        """Take these steps."""
        for name in revisions:
            self._module(name).upgrade()
            self._context.stamp(self._script, name)

    def downgrade(self, revisions: Iterable[str]) -> None:
        """Take these steps back."""
        for name in revisions:
            module = self._module(name)
            module.downgrade()
            self._context.stamp(self._script, module.down_revision or "base")

    def _module(self, name: str) -> Any:
        module: Any = self._script.get_revision(name).module
        module.op = self._operations
        return module
