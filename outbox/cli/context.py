"""What every command shares: the outbox it works on, how it prints, and how it fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from outbox.app import Outbox
    from outbox.settings import WorkerSettings

F = TypeVar("F", bound=Callable[..., Any])

DONE, FAILED, USED_WRONGLY, NOTHING_MATCHED, LEFT_BEHIND, NOT_MIGRATED = range(6)


def json_option(command: F) -> F:
    """The --json flag that every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def outbox_and_worker(ctx: click.Context) -> tuple[Outbox, WorkerSettings]:
    """The outbox named by --app, or described by the settings, and how its worker shall behave."""
    from outbox import settings

    if ctx.obj["app"]:
        return settings.from_app(ctx.obj["app"]), settings.WorkerSettings()
    loaded, folder = settings.load(Path(ctx.obj["config"]) if ctx.obj["config"] else None)
    return settings.build(loaded, folder), loaded.worker


def outbox_of(ctx: click.Context) -> Outbox:
    """The outbox to work on, whose schema is the one of this code."""
    from outbox import migrate

    outbox, _ = outbox_and_worker(ctx)
    migrate.require_current(outbox.database)
    return outbox


def emit(value: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own; ASCII, so that no terminal can be misled by it."""
    click.echo(json.dumps(value, default=_plain))


def say(text: str) -> None:
    """A remark for a person, kept away from the data."""
    click.echo(text, err=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns for a person to read."""
    cells = [list(head), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def shown(value: object) -> str:
    """A value for a terminal: stored text cannot move the cursor, colour the screen or break the line."""
    match value:
        case None:
            return "-"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case _:
            return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def size(count: int) -> str:
    """Bytes in a unit that can be read."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def exit_code_of(error: Exception) -> int | None:
    """Say what went wrong in a sentence; None for an error that is a bug and deserves its traceback."""
    from sqlalchemy.exc import SQLAlchemyError

    from outbox.errors import ConfigurationError, NoSuchMessage, OutboxError, Refused, SchemaError

    match error:
        case Refused():
            print("outbox: refused", file=sys.stderr)
            for fault in error.faults:
                print(f"  {shown(fault)}", file=sys.stderr)
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
    print(f"outbox: {shown(str(error).splitlines()[0] if str(error) else type(error).__name__)}", file=sys.stderr)
    return code


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case StrEnum():
            return value.value
        case _:
            return str(value)
