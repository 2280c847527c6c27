"""What every command shares: the outbox it works on, and how it fails."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from outbox.cli.printing import shown

if TYPE_CHECKING:
    from outbox.app import Outbox
    from outbox.settings import WorkerSettings

DONE, FAILED, USED_WRONGLY, NOTHING_MATCHED, LEFT_BEHIND, NOT_MIGRATED = range(6)


def outbox_and_worker(ctx: click.Context) -> tuple[Outbox, WorkerSettings]:
    """The outbox named by --app, or described by the settings, and how its worker shall behave."""
    with _without_collecting():
        from outbox import settings

    if ctx.obj["app"]:
        return settings.from_app(ctx.obj["app"]), settings.WorkerSettings()
    loaded, folder = settings.load(Path(ctx.obj["config"]) if ctx.obj["config"] else None)
    return settings.build(loaded, folder), loaded.worker


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Nothing that is imported is rubbish: looking for some among it is a tenth of the time that a command takes to begin."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def outbox_of(ctx: click.Context) -> Outbox:
    """The outbox to work on, whose schema is the one of this code."""
    from outbox import migrate

    outbox, _ = outbox_and_worker(ctx)
    migrate.require_current(outbox.database)
    return outbox


def exit_code_of(error: Exception) -> int | None:
    """Say what went wrong in a sentence; None for an error that is a bug and deserves its traceback."""
    from sqlalchemy.exc import SQLAlchemyError

    from outbox.errors import ConfigurationError, NoSuchMessage, OutboxError, Refused, SchemaError
    from outbox.secret import conceal

    match error:
        case Refused():
            print("outbox: refused", file=sys.stderr)
            for fault in error.faults:
                print(f"  {shown(conceal(str(fault)))}", file=sys.stderr)
            return USED_WRONGLY
        case ConfigurationError():
            code = USED_WRONGLY
        case SchemaError():
            code = NOT_MIGRATED
        case NoSuchMessage():
            code = NOTHING_MATCHED
        case OutboxError() | SQLAlchemyError():
            code = FAILED
        case _:
            return None
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    print(f"outbox: {shown(conceal(words))}", file=sys.stderr)
    return code
