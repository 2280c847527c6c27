"""`outbox doctor`, `verify` and `check`: is everything as it should be, is it all there, and does anybody need to be woken."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from outbox.cli.context import DONE, FAILED, outbox_and_worker, outbox_of, require_spool
from outbox.cli.options import Length, Whole, command, complete_destination, json_option
from outbox.cli.printing import colourful, emit, is_terminal, shown, width
from outbox.counting import counted
from outbox.units import bytes_in_words, in_words

if TYPE_CHECKING:
    from outbox.checkup import Damage, Level, Limits, Reading
    from outbox.checkup.verify import Progress

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
_LEVEL_WIDTH = 9


@command(example="outbox doctor --offline --json")
@click.option("--offline", is_flag=True, help="Ask no destination and no token service.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, offline: bool, as_json: bool) -> None:
    """Look at everything around this outbox that is known to go wrong, and say what to do about each.

    The database's settings and schema, the clock, permissions, the disk, the file system, workers and their beats, the spool,
    and each destination with its token: a connection is made there, nothing is sent. Nothing is changed. Exit code 0 without
    problems, 1 otherwise; warnings do not count. With --json a line for each finding: check, level, text, remedy.
    """
    from outbox.checkup import Doctor, Level

    outbox, _ = outbox_and_worker(ctx)
    worst = Level.OK
    for finding in Doctor(outbox, offline=offline, settings_file=_settings_file(ctx)).run():
        worst = _worse(worst, finding.level)
        if as_json:
            emit({"check": finding.check, "level": finding.level, "text": finding.text, "remedy": finding.remedy})
        else:
            _print(finding.level, f"{finding.check}: {finding.text}", finding.remedy)
    ctx.exit(FAILED if worst is Level.PROBLEM else DONE)


@command(example="outbox verify --destination enos --fast")
@click.option("--destination", help="Only what is for this one.", shell_complete=complete_destination)
@click.option("--fast", is_flag=True, help="Look at the length of files, not into them.")
@json_option
@click.pass_context
def verify(ctx: click.Context, destination: str | None, fast: bool, as_json: bool) -> None:
    """Read every spooled file and every row, and name what is not as it was enqueued, with the messages that need it.

    Also rows without their bytes, bytes without a row, and what is in the spool and none of ours. Nothing is changed, and
    workers and producers may go on meanwhile. Exit code 0 when all is there (warnings do not count), 1 otherwise. With --json
    a line for each finding (kind, level, text, remedy, file, messages), and one at the end whose kind is "summary".
    """
    from outbox.checkup import Verification

    outbox = outbox_of(ctx, migrated=False)
    require_spool(outbox)
    with _progress() as progress:
        verification = Verification(outbox, destination=destination, fast=fast, progress=progress)
        for damage in verification.run():
            _told(damage, as_json)
    tally = verification.tally
    if as_json:
        emit({"kind": "summary", **asdict(tally)})
    else:
        how = "lengths only" if fast else bytes_in_words(tally.bytes)
        aside = f", {tally.swept} more set aside" if tally.swept else ""
        click.echo(
            f"{counted(tally.messages, 'message')} and {counted(tally.files, 'file')} ({how}{aside}) in "
            f"{in_words(tally.seconds)}: {_some(tally.problems, 'problem')}, {_some(tally.warnings, 'warning')}"
        )
    ctx.exit(FAILED if tally.problems else DONE)


def _some(number: int, what: str) -> str:
    return counted(number, what) if number else f"no {what}s"


class _Size(click.ParamType[Any]):
    """A number of bytes: 500 MB, 20 GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from outbox import units

        if isinstance(value, int):
            return value
        try:
            return units.size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@command(example="outbox check --max-age 5m --max-dead 10")
@click.option("--max-age", type=Length(), metavar="TIME", help="The oldest message may have been due for so long, such as 5m.")
@click.option("--max-dead", type=Whole(0), help="So many messages may be dead.")
@click.option("--max-pending", type=Whole(0), help="So many messages may be waiting, due or not.")
@click.option("--max-spool", type=_Size(), metavar="SIZE", help="The spool may hold so much, such as 20 GiB.")
@click.option(
    "--destination",
    "destinations",
    multiple=True,
    help="Only this one; may be given again.",
    shell_complete=complete_destination,
)
@click.option(
    "--timeout", type=Length(), default="5s", show_default=True, metavar="TIME", help="Without an answer by then: UNKNOWN."
)
@json_option
@click.pass_context
def check(
    ctx: click.Context,
    max_age: timedelta | None,
    max_dead: int | None,
    max_pending: int | None,
    max_spool: int | None,
    destinations: tuple[str, ...],
    timeout: timedelta,
    as_json: bool,
) -> None:
    """Say in one line whether somebody should look, for Nagios and its kin.

    The exit codes are theirs, and other than those of the other commands: 0 OK, 1 WARNING (a destination is paused), 2
    CRITICAL (a limit is passed; nobody who is alive delivers what is due; a destination is stopped over credentials or because
    it refuses everything), 3 UNKNOWN (the database does not answer, or this command was used wrongly). Messages of a paused
    destination are not counted for --max-age. The spool is counted whole, whatever the destination.
    """
    from outbox.checkup import Limits, monitor
    from outbox.checkup.findings import in_words as said
    from outbox.checkup.monitoring import Alarm, Reading
    from outbox.errors import OutboxError

    limits = Limits(max_age, max_dead, max_pending, max_spool)
    try:
        outbox = outbox_of(ctx, migrated=False)
        require_spool(outbox)
        found = monitor(outbox, limits, destinations, deadline=timeout.total_seconds())
    except OutboxError as error:
        found = Reading(Alarm.UNKNOWN, (str(error),))
    except Exception as error:  # noqa: BLE001 (a bug, be it one of --app's program: a monitor would take its exit code for another alarm)
        found = Reading(Alarm.UNKNOWN, (f"{type(error).__name__}: {said(error)}",))
    if as_json:
        _emit_reading(found)
    else:
        click.echo(_line(found, limits))
    ctx.exit(int(found.alarm))


def _emit_reading(found: Reading) -> None:
    each = {name: asdict(backlog) for name, backlog in sorted(found.destinations.items())}
    state = {"state": found.alarm.name, "code": int(found.alarm), "reasons": list(found.reasons)}
    emit(state | {"numbers": dict(found.numbers), "destinations": each})


def _line(found: Reading, limits: Limits) -> str:
    numbers = found.numbers
    text = "; ".join(_for_monitor(reason) for reason in found.reasons)
    if not numbers:
        return f"OUTBOX {found.alarm.name} - {text}"
    if not text:
        oldest = in_words(numbers["oldest_seconds"])
        text = f"{numbers['due']} due, the oldest for {oldest}" if numbers["due"] else "nothing due"
        text += f", {numbers['waiting']} waiting, {numbers['dead']} dead"
    age = limits.max_age.total_seconds() if limits.max_age is not None else None
    measured = (
        ("due", numbers["due"], "", None),
        ("pending", numbers["due"] + numbers["waiting"], "", limits.max_pending),
        ("claimed", numbers["claimed"], "", None),
        ("dead", numbers["dead"], "", limits.max_dead),
        ("oldest", numbers["oldest_seconds"], "s", age),
        ("spool", numbers["spool_bytes"], "B", limits.max_spool),
        ("workers", numbers["workers"], "", None),
    )
    # label=value[unit];warning;critical;least
    limited = ((name, value, unit, "" if most is None else f"{most:.15g}") for name, value, unit, most in measured)
    data = " ".join(f"{name}={value}{unit};;{most};0" for name, value, unit, most in limited)
    return f"OUTBOX {found.alarm.name} - {text} | {data}"


def _for_monitor(text: str) -> str:
    """One line without the bar that begins the numbers."""
    return shown(" ".join(text.split())).replace("|", "/")


def _settings_file(ctx: click.Context) -> Path | None:
    if ctx.obj["app"]:
        return None
    from outbox.settings import DEFAULT_FILE

    return Path(ctx.obj["config"] or os.environ.get("OUTBOX_CONFIG") or DEFAULT_FILE)


def _worse(one: Level, other: Level) -> Level:
    order = list(type(one))
    return max(one, other, key=order.index)


def _print(level: Level, text: str, remedy: str) -> None:
    """A finding, broken into lines that fit, with its remedy under it."""
    columns = width()
    for number, (words, mark) in enumerate(((text, ""), (remedy, "→ "))):
        if not words:
            continue
        room = columns - _LEVEL_WIDTH if columns is not None else len(shown(words)) + len(mark) + 1
        lines = textwrap.wrap(
            mark + shown(words), room, subsequent_indent=" " * len(mark), break_long_words=False, break_on_hyphens=False
        )
        for place, line in enumerate(lines):
            head = level.value.ljust(_LEVEL_WIDTH) if number == place == 0 else " " * _LEVEL_WIDTH
            styled = click.style(head, fg=_COLOURS[level.value]) if is_terminal(sys.stdout) and colourful() else head
            click.echo(styled + line)


def _told(damage: Damage, as_json: bool) -> None:
    if as_json:
        emit(asdict(damage))
    else:
        _print(damage.level, damage.text, damage.remedy)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on a terminal's standard error; elsewhere nothing."""
    if not (is_terminal(sys.stderr) and colourful()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars)


class _Bar:
    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._task: Any = None

    def begin(self, what: str, total: int | None) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(what, total=total)

    def advance(self, by: int = 1) -> None:
        self._bars.advance(self._task, by)
