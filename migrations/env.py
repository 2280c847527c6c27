"""Runs the migrations on a connection that is handed in, on a dialect for SQL output, or on alembic.ini's URL."""

from typing import Literal

from alembic import context
from sqlalchemy import Connection, create_engine

from outbox.migrate import VERSION_TABLE
from outbox.tables import Instant, schema

config = context.config


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """In somebody else's database only our tables are ours to compare."""
    return kind != "table" or (name or "").startswith("outbox_")


def render_item(kind: str, item: object, _context: object) -> str | Literal[False]:
    """A migration is history: it names the database's types, not a class of ours that may change."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, Instant) else False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=schema(),
        version_table=VERSION_TABLE,
        render_as_batch=True,
        include_name=include_name,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    context.configure(
        dialect_name=config.attributes.get("dialect", "sqlite"), target_metadata=schema(), version_table=VERSION_TABLE
    )
    with context.begin_transaction():
        context.run_migrations()
elif (handed_in := config.attributes.get("connection")) is not None:
    run(handed_in)
else:
    with create_engine(config.get_main_option("sqlalchemy.url") or "").begin() as connection:
        run(connection)
