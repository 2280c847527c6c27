"""What every command shares: the outbox it works on, and how it fails."""

from __future__ import annotations

import contextlib
import gc
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from outbox.cli.printing import say, shown

if TYPE_CHECKING:
    from outbox.app import Outbox

_PREFIX = "OUTBOX_"
#: How much a variable looks like one of ours before we ask whether it was meant: names of somebody's secrets are further off.
_CLOSE = 0.8

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
    for name, near in misspelt_variables(ctx, settings.Settings.model_fields):
        if f"env:{name}" not in loaded.model_dump_json():  # a secret may have any name
            say(f"outbox: nothing reads the variable {shown(name)}; did you mean {near}?")
    return settings.build(loaded, folder), dict(loaded.worker)


def misspelt_variables(ctx: click.Context, settings: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Variables of ours that nothing reads, each with one that it looks like. A setting's own parts are looked at with it."""
    known = {"CONFIG", "APP", "RECEIVER_APP_SECRET", *(name.upper() for name in settings)}
    for name in os.environ:
        word, step, rest = name.upper().removeprefix(_PREFIX).partition("__")
        if not name.upper().startswith(_PREFIX) or word in known:
            continue
        from difflib import get_close_matches

        options = {each.removeprefix(_PREFIX) for each in _variables_like(ctx.find_root(), word)}
        near = get_close_matches(word, known | options, n=1, cutoff=_CLOSE)
        if near and word not in options:
            yield name, f"{_PREFIX}{near[0]}{step}{rest}"


def _variables_like(root: click.Context, word: str) -> Iterator[str]:
    """The variables of the options of a command that the word begins with."""
    commands = root.command
    assert isinstance(commands, click.Group), "the root is a group"  # noqa: S101
    for name in commands.list_commands(root):
        if word.startswith(f"{name.upper()}_"):
            yield from _variables_of(commands, name, root)


def _variables_of(group: click.Group, name: str, parent: click.Context) -> Iterator[str]:
    command = group.get_command(parent, name)
    if command is None:
        return
    made = command.make_context(name, [], parent, resilient_parsing=True)
    yield from (str(each.envvar) for each in command.params if isinstance(each, click.Option) and each.envvar)
    if isinstance(command, click.Group):
        for below in command.list_commands(made):
            yield from _variables_of(command, below, made)


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


def require_spool(outbox: Outbox) -> None:
    """Raises ConfigurationError when something else than a directory is where its spool should be."""
    from outbox.errors import ConfigurationError
    from outbox.spool.directory import DirectorySpool

    spool = outbox.spool_store
    if not isinstance(spool, DirectorySpool):
        return
    try:
        mode = spool.root.stat().st_mode
    except OSError:
        return  # that is for whoever needs it to say
    if not stat.S_ISDIR(mode):
        raise ConfigurationError(f"the spool {spool.root} is no directory; name another, or move away what is there")


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
