"""How the terminal shows things: data on standard output, remarks on standard error, and nothing that could mislead either."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TextIO

import rich_click as click


def emit(value: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own; ASCII, so that no terminal can be misled by it."""
    click.echo(json.dumps(value, default=_plain))


def say(text: str) -> None:
    """A remark for a person, kept away from the data."""
    click.echo(text, err=True)


def shown(value: object) -> str:
    """A value for a terminal: stored text cannot move the cursor, colour the screen or break the line."""
    match value:
        case None:
            return "-"
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
        case _:
            return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def paragraph(text: str, *, begin: str = "", indent: str = "  ") -> str:
    """A sentence for a person, broken between words where the terminal ends."""
    room = width()
    line = f"{begin}{shown(text)}"
    return line if room is None else "\n".join(textwrap.wrap(line, room, subsequent_indent=indent, break_on_hyphens=False))


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at it; a stream that was closed before we began is None."""
    return stream is not None and stream.isatty()


def width() -> int | None:
    """Columns of the terminal; None where nobody looks, and every line may be as long as it is."""
    if not is_terminal(sys.stdout):
        return None
    return max(40, shutil.get_terminal_size().columns)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()) -> None:
    """Columns for a person to read. On a narrow terminal those in `spare` are left out, the first of them first.

    What is still too wide then is cut at the end of its widest column: `--json` has it whole.
    """
    for number, line in enumerate(columns(head, rows, spare=spare, room=width())):
        click.echo(click.style(line, bold=True) if number == 0 and is_terminal(sys.stdout) and colourful() else line)


def columns(head: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = (), room: int | None) -> list[str]:
    """The lines of a table that has so much room, its head first."""
    cells = [list(head), *([shown(cell) for cell in row] for row in rows)]
    columns = list(range(len(head)))
    for name in spare:
        if room is None or _total(cells, columns) <= room:
            break
        columns = [column for column in columns if head[column] != name]
    widths = {column: max(len(row[column]) for row in cells) for column in columns}
    while room is not None and sum(widths.values()) + 2 * (len(columns) - 1) > room:
        widest = max(columns, key=lambda column: widths[column])
        others = sum(widths.values()) - widths[widest] + 2 * (len(columns) - 1)
        second = max((widths[column] for column in columns if column != widest), default=0)
        wanted = max(room - others, min(second, widths[widest] - 1), 1)
        if wanted >= widths[widest]:
            break
        widths[widest] = wanted
    return ["  ".join(_fit(row[column], widths[column]) for column in columns).rstrip() for row in cells]


def colourful() -> bool:
    """Whether colours and movement are wanted: not with NO_COLOR or TERM=dumb."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _total(cells: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    return sum(max(len(row[column]) for row in cells) for column in columns) + 2 * (len(columns) - 1)


def _fit(text: str, room: int) -> str:
    return text.ljust(room) if len(text) <= room else text[: room - 1] + "…"


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case StrEnum():
            return value.value
        case _:
            return str(value)
