"""What every command shares: the outbox it works on, and how it fails."""

from __future__ import annotations

import contextlib
import gc
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from outbox.cli.printing import say, shown

if TYPE_CHECKING:
    from outbox.app import Outbox

DONE, FAILED, USED_WRONGLY, NOTHING_MATCHED, LEFT_BEHIND, NOT_MIGRATED = range(6)


def outbox_and_worker(ctx: click.Context) -> tuple[Outbox, Mapping[str, Any]]:
    """The outbox named by --app, or described by the settings, and what these say of how its worker shall behave."""
    if ctx.obj["app"]:
        with _without_collecting():  # and without what reads settings, which takes as long as all the rest
            from outbox.cli.named import from_app

        return from_app(ctx.obj["app"]), {}
    with _without_collecting():
        from outbox import settings

    loaded, folder = settings.load(Path(ctx.obj["config"]) if ctx.obj["config"] else None)
    return settings.build(loaded, folder), dict(loaded.worker)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Nothing that is imported is rubbish: looking for some among it is a tenth of the time that a command takes to begin."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def outbox_of(ctx: click.Context, *, migrated: bool = True) -> Outbox:
    """The outbox to work on; unless `migrated` is False, its schema is the one of this code."""
    outbox, _ = outbox_and_worker(ctx)
    require_database(outbox, migrated=migrated)
    return outbox


def require_database(outbox: Outbox, *, migrated: bool = True) -> None:
    """Raises ConfigurationError when something else than a file is where its database should be, and SchemaError."""
    from outbox import migrate
    from outbox.errors import ConfigurationError

    path = outbox.database.path
    try:
        mode = None if path is None else path.stat().st_mode
    except FileNotFoundError:
        mode = None  # that is for whoever opens it to say
    except OSError as error:
        raise ConfigurationError(f"cannot look at the database {path}: {error.strerror}") from None
    if mode is not None and not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise ConfigurationError(f"the database {path} is {kind}; name the file of the database itself")
    if migrated:
        with naming_database(outbox):
            migrate.require_current(outbox.database)


@contextlib.contextmanager
def naming_database(outbox: Outbox) -> Iterator[None]:
    """What the database says in here becomes a sentence that names it, where the database's own words do not."""
    from sqlalchemy.exc import SQLAlchemyError

    from outbox.errors import OutboxError

    try:
        yield
    except SQLAlchemyError as error:
        path = outbox.database.path
        raise OutboxError(_of_database(error, f" {path}" if path is not None else "")) from error


def _of_database(error: Exception, name: str = "") -> str:
    from outbox.checkup.findings import in_words

    return f"the database{name} cannot be used: {in_words(error)}"


def exit_code_of(error: Exception) -> int | None:
    """Say what went wrong in a sentence; None for an error that is a bug and deserves its traceback."""
    from sqlalchemy.exc import SQLAlchemyError

    from outbox.errors import ConfigurationError, NoSuchMessage, OutboxError, Refused, SchemaError
    from outbox.secret import conceal

    match error:
        case Refused():
            say("outbox: refused")
            for fault in error.faults:
                say(f"  {shown(conceal(str(fault)))}")
            return USED_WRONGLY
        case ConfigurationError():
            code = USED_WRONGLY
        case SchemaError():
            code = NOT_MIGRATED
        case NoSuchMessage():
            code = NOTHING_MATCHED
        case OutboxError():
            code = FAILED
        case SQLAlchemyError():
            say(f"outbox: {shown(_of_database(error))}")
            return FAILED
        case _:
            return None
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    say(f"outbox: {shown(conceal(words))}")
    return code
