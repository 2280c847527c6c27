"""`outbox db`: the schema."""

from __future__ import annotations

import rich_click as click

from outbox.cli.context import NOT_MIGRATED, naming_database, outbox_of
from outbox.cli.options import Group, OneOf, json_option
from outbox.cli.printing import emit, say


@click.group(cls=Group)
def db() -> None:
    """The database's schema: upgrade, status, sql."""


@db.command(epilog="Example: outbox db upgrade")
@click.option("--sql", "only_print", is_flag=True, help="Only print the statements that would do so, from where it is now.")
@json_option
@click.pass_context
def upgrade(ctx: click.Context, only_print: bool, as_json: bool) -> None:
    """Bring the database to the schema of this version. Safe to run again, and from several machines at once.

    A spool that belongs to another database, or to this one before it was lost, is refused before anything is made. So is a
    database whose outbox schema is part of an application's own migrations: that application upgrades it.
    """
    from outbox import migrate

    outbox = outbox_of(ctx, migrated=False)
    if only_print:
        with naming_database(outbox):
            click.echo(migrate.sql_from_here(outbox.database), nl=False)
        return
    with naming_database(outbox):
        outbox.marks.check()  # an empty database beside the spool of one that was lost is not made
        before, after = migrate.upgrade(outbox.database)
    if as_json:
        emit({"before": before, "after": after})
    else:
        say(f"the database was at {before or 'nothing'} and is at {after}" if before != after else f"nothing to do: {after}")


@db.command(epilog="Example: outbox db status --json")
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """The schema of the database, and the one that this version needs. Exit code 5 when they differ."""
    from outbox import migrate
    from outbox.errors import SchemaError

    outbox = outbox_of(ctx, migrated=False)
    try:
        with naming_database(outbox), outbox.database.read() as connection:
            found = migrate.current(connection)
    except SchemaError:  # there is not even a file
        found = None
    if as_json:
        emit({"found": found, "needed": migrate.newest(), "current": found == migrate.newest()})
    else:
        click.echo(f"found {found or 'nothing'}, needed {migrate.newest()}")
    if found != migrate.newest():
        ctx.exit(NOT_MIGRATED)


@db.command(epilog="Example: outbox db sql --dialect postgresql > outbox.sql")
@click.option("--dialect", type=OneOf(["sqlite", "postgresql"]), help="[that of the database in the settings]")
@click.pass_context
def sql(ctx: click.Context, dialect: str | None) -> None:
    """Print the statements that make the schema in an empty database, for a person to review and run."""
    from outbox import migrate

    if dialect is None:
        dialect = outbox_of(ctx, migrated=False).database.kind
    click.echo(migrate.sql(dialect), nl=False)
