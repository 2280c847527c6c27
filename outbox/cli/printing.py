"""How the terminal shows things: data on standard output, remarks on standard error, and nothing that could mislead either."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TextIO

import rich_click as click

#: A column that wraps has room for so much, or others are left out; then they are cut to so much before it has less.
_LEAST_WRAPPED, _LEAST_CUT = 24, 12
#: Lines of a cell that wraps.
_LINES = 6


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


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = (), wrap: str = "") -> list[str]:
    """Columns for a person to read, as `columns` makes them fit the terminal; `--json` has everything whole.

    Returns the lines below the head.
    """
    lines = columns(head, rows, spare=spare, wrap=wrap, room=width())
    for number, line in enumerate(lines):
        click.echo(click.style(line, bold=True) if number == 0 and is_terminal(sys.stdout) and colourful() else line)
    return lines[1:]


def columns(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = (), wrap: str = "", room: int | None
) -> list[str]:
    """The lines of a table that has so much room, its head first.

    Where it is narrow, those in `spare` are left out, the first of them first. What is still too wide then is cut at the end
    of its widest column, but never a time. The column `wrap` has several lines instead, up to a handful, and the room that the
    others leave.
    """
    given = [list(row) for row in rows]
    cells = [list(head), *([shown(cell) for cell in row] for row in given)]
    kept = list(range(len(head)))
    full = {column: max(cell_width(row[column]) for row in cells) for column in kept}
    least = {column: min(full[column], _LEAST_WRAPPED) if head[column] == wrap else full[column] for column in kept}
    for name in spare:
        if room is None or _total(least, kept) <= room:
            break
        kept = [column for column in kept if head[column] != name]
    widths = {column: full[column] for column in kept}
    if room is not None:
        times = {column for column in kept if any(isinstance(row[column], datetime) for row in given)}
        _narrow(widths, room, times, head.index(wrap) if wrap else None)
    lines = [
        [_lines(row[column], widths[column], wraps=number > 0 and head[column] == wrap) for column in kept]
        for number, row in enumerate(cells)
    ]
    return [
        "  ".join(_padded(piece, widths[column]) for piece, column in zip(pieces, kept, strict=True)).rstrip()
        for row in lines
        for pieces in itertools.zip_longest(*row, fillvalue="")
    ]


def cell_width(text: str) -> int:
    """How many columns of a terminal a text takes: a letter of Chinese takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def colourful() -> bool:
    """Whether colours and movement are wanted: not with NO_COLOR or TERM=dumb."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _total(widths: Mapping[int, int], kept: Collection[int]) -> int:
    return sum(widths[column] for column in kept) + 2 * (len(kept) - 1)


def _narrow(widths: dict[int, int], room: int, times: Collection[int], wrapping: int | None) -> None:
    """Take from the columns what is too much: first from the one that wraps, as long as it is wide enough; then from the
    widest, but never from a time."""
    if wrapping is not None:
        enough = min(widths[wrapping], _LEAST_WRAPPED)
        widths[wrapping] = max(enough, widths[wrapping] - max(0, _total(widths, widths) - room))
    for kept, at_least in (({*times, wrapping}, _LEAST_CUT), ({*times}, 1)):
        others = [column for column in widths if column not in kept]
        while others and (over := _total(widths, widths) - room) > 0:
            widest = max(others, key=lambda column: widths[column])
            second = max((widths[column] for column in others if column != widest), default=1)
            wanted = max(widths[widest] - over, min(second, widths[widest] - 1), at_least)
            if wanted >= widths[widest]:
                break
            widths[widest] = wanted


def _lines(text: str, room: int, *, wraps: bool) -> list[str]:
    """A cell: one line of it, or if it wraps as many as it takes."""
    if cell_width(text) <= room:
        return [text]
    if not wraps:
        return [f"{_head(text, room - 1)}…"]
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and cell_width(longer) > room:
            lines.append(line)
            longer = word
        while cell_width(longer) > room:
            piece = _head(longer, room) or longer[0]
            lines.append(piece)
            longer = longer[len(piece) :]
        line = longer
    lines.append(line)
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"{_head(lines[_LINES - 1], room - 1)}…"]


def _head(text: str, room: int) -> str:
    """As much of the beginning of a text as there is room for."""
    if text.isascii():
        return text[: max(0, room)]
    taken = itertools.accumulate(cell_width(letter) for letter in text)
    return "".join(letter for letter, end in zip(text, taken, strict=True) if end <= room)


def _padded(text: str, room: int) -> str:
    return text + " " * (room - cell_width(text))


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
