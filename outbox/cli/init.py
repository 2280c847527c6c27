"""`outbox init`: a settings file with comments, a database and a spool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from outbox.cli.context import outbox_and_worker
from outbox.cli.options import command, json_option
from outbox.cli.printing import emit, say

if TYPE_CHECKING:
    from outbox.app import Outbox


@command(example="outbox init && $EDITOR outbox.toml")
@click.option(
    "--adopt-spool",
    is_flag=True,
    help="This database shall have the spool, and the one that had it is used no more: files that no row of this database "
    "vouches for are then swept after a day, and gone a week later.",
)
@json_option
@click.pass_context
def init(ctx: click.Context, adopt_spool: bool, as_json: bool) -> None:
    """Write outbox.toml with comments, create the database and the spool. What is there already is kept.

    A spool that belongs to another database, or to this one before it was lost, is refused before anything is made. With --app
    no settings are written.
    """
    from outbox import migrate
    from outbox.errors import OutboxError
    from outbox.marks import Step

    path = _settings_file(ctx)
    written = path is not None and _write(path)
    try:
        outbox = _outbox(ctx, path)
        step = outbox.marks.check(adopt=adopt_spool)
    except OutboxError:
        if path is not None and written:
            path.unlink(missing_ok=True)  # refused: as if it had never been
        raise
    _, revision = migrate.upgrade(outbox.database)
    outbox.spool_store.prepare()
    outbox.mark_spool(adopt=adopt_spool)
    adopted = step is Step.ADOPT
    if as_json:
        told = {"config": None if path is None else str(path), "written": written, "spool": str(outbox.spool_store)}
        emit(told | {"schema": revision, "adopted": adopted})
        return
    settings = "" if path is None else f"{'wrote' if written else 'kept'} {path}; "
    say(f"{settings}the database is at {revision}, the spool is {outbox.spool_store}")
    if adopted:
        say("The spool is this database's now: files that no row of it vouches for go: swept after a day, gone a week later")
    if written:
        say("Next: set url, org_id and the token's place in it, then run: outbox worker")


def _settings_file(ctx: click.Context) -> Path | None:
    """Where the settings are or shall be; None where a program has the outbox."""
    from outbox import settings

    return None if ctx.obj["app"] else Path(ctx.obj["config"] or settings.DEFAULT_FILE)


def _write(path: Path) -> bool:
    """Write the settings, unless there are some."""
    from outbox import settings
    from outbox.errors import ConfigurationError

    if path.exists():
        return False
    try:
        with path.open("x", encoding="utf-8") as file:  # and not through a link to where nothing is yet
            file.write(settings.TEMPLATE)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from None
    return True


def _outbox(ctx: click.Context, path: Path | None) -> Outbox:
    from outbox import settings

    return outbox_and_worker(ctx)[0] if path is None else settings.build(*settings.load(path))
