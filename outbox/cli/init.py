"""`outbox init`: a settings file with comments, a database and a spool."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from outbox.cli.options import command, json_option
from outbox.cli.printing import emit, say


@command(example="outbox init && $EDITOR outbox.toml")
@json_option
@click.pass_context
def init(ctx: click.Context, as_json: bool) -> None:
    """Write outbox.toml with comments, create the database and the spool. What is there already is kept."""
    from outbox import migrate, settings
    from outbox.errors import ConfigurationError

    path = Path(ctx.obj["config"] or settings.DEFAULT_FILE)
    written = not path.exists()
    if written:
        try:
            path.write_text(settings.TEMPLATE, "utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    loaded, folder = settings.load(path)
    outbox = settings.build(loaded, folder)
    _, revision = migrate.upgrade(outbox.database)
    spool = folder / loaded.spool
    outbox.spool_store.prepare()
    if as_json:
        emit({"config": str(path), "written": written, "spool": str(spool), "schema": revision})
        return
    say(f"{'wrote' if written else 'kept'} {path}; the database is at {revision}, the spool is {spool}")
    if written:
        say("Next: set url, org_id and the token's place in it, then run: outbox worker")
