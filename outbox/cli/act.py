"""`outbox pause`, `resume`, `replay`, `cancel`, `purge` and `audit`: what a person does, and what people did."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from outbox.cli.context import FAILED, NOTHING_MATCHED, outbox_of
from outbox.cli.options import Number, Whole, by_option, command, json_option, selection_of, selection_options, yes_option
from outbox.cli.printing import colourful, emit, is_terminal, say, shown, table
from outbox.counting import counted

if TYPE_CHECKING:
    from outbox.acts import Act
    from outbox.app import Outbox
    from outbox.model import Selection
    from outbox.store.acting import Action, Preview

F = TypeVar("F", bound=Callable[..., Any])

#: Names that are looked up at a time, and of those that nothing has how many are said.
_PIECE, _NAMED = 500, 10

_DID = {"replay": "replayed", "cancel": "cancelled", "purge": "purged"}


@command(example="outbox pause enos --key turbine-7 --reason 'the wrong model until noon'")
@click.argument("destination")
@click.option("--key", "ordering_key", metavar="ORDERING_KEY", help="Only hold back messages of this ordering key.")
@click.option("--reason", required=True, help="Why, for whoever finds it stopped; 500 characters at most.")
@by_option
@json_option
@click.pass_context
def pause(ctx: click.Context, destination: str, ordering_key: str | None, reason: str, by: str, as_json: bool) -> None:
    """Let no upload to DESTINATION begin any more, on any worker. Those in hand are finished; messages go on to queue up.

    With --key only the messages of that ordering key wait, whether or not their order matters and whether or not there are any
    yet; all others go on.
    """
    outbox_of(ctx).pause(destination, reason, by, ordering_key)
    if as_json:
        emit({"destination": destination, "ordering_key": ordering_key, "stop": "pause"})
    elif ordering_key is None:
        say(f"{destination} is paused; go on with: outbox resume {destination}")
    else:
        go_on = f"outbox resume {destination} --key {shlex.quote(ordering_key)}"
        say(f"the ordering key {shown(ordering_key)} of {destination} is paused; go on with: {shown(go_on)}")


@command(example="outbox resume enos --key turbine-7")
@click.argument("destination")
@click.option(
    "--key",
    "ordering_key",
    metavar="ORDERING_KEY",
    help="Only let this ordering key go on, if it is paused, and past its dead messages.",
)
@by_option
@json_option
@click.pass_context
def resume(ctx: click.Context, destination: str, ordering_key: str | None, by: str, as_json: bool) -> None:
    """Let DESTINATION go on, whatever stopped it: a pause, our credentials, a reject streak, the breaker.

    If it was in trouble, one message goes first. Exit code 3 when nothing was stopped. Ordering keys that are paused stay so
    until they are named.
    """
    changed = outbox_of(ctx).resume(destination, by, ordering_key=ordering_key)
    what = f"the ordering key {shown(ordering_key)} of {destination}" if ordering_key else destination
    if as_json:
        emit({"destination": destination, "ordering_key": ordering_key, "resumed": changed})
    else:
        say(f"{what} goes on" if changed else f"{what} was not stopped")
    if not changed:
        ctx.exit(NOTHING_MATCHED)


def _bulk_options(*states: str) -> Callable[[F], F]:
    """What every act on many messages has."""

    def add(function: F) -> F:
        for each in (
            json_option,
            by_option,
            yes_option,
            click.option("--rate", type=Number(0, min_open=True), metavar="N", help="At most N messages a second."),
            click.option(
                "--continue",
                "act_id",
                type=Whole(1),
                metavar="ACT",
                help="Go on with an act; outbox audit lists them.",
            ),
            click.option("--dry-run", is_flag=True, help="Only say what would be done."),
            selection_options(states),
        ):
            function = each(function)
        return function

    return add


@command(example="outbox replay --state dead --reason rejected --destination enos --since 2h --dry-run")
@_bulk_options("dead", "delivered", "cancelled")
@click.pass_context
def replay(ctx: click.Context, /, **options: Any) -> None:
    """Give final messages a fresh start, the oldest first, in the bulk lane; their history stays.

    Passed over are messages that are not final, and those whose files have been freed. Exit code 3 when none was replayed.
    """
    _act(ctx, "replay", **options)


@command(example="outbox cancel inspection-42")
@_bulk_options("pending", "dead")
@click.pass_context
def cancel(ctx: click.Context, /, **options: Any) -> None:
    """Withdraw messages that are pending or dead; a stream goes on without them. Exit code 3 when none was.

    A message that is being sent at this moment is passed over.
    """
    _act(ctx, "cancel", **options)


@command(example="outbox purge --state delivered --until 30d --dry-run")
@_bulk_options("delivered", "cancelled", "dead")
@click.pass_context
def purge(ctx: click.Context, /, **options: Any) -> None:
    """Delete final messages for ever, with their attempts and the files that nobody else refers to. Exit code 3 when none was.

    Always asks, and without a terminal needs --yes.
    """
    _act(ctx, "purge", **options)


@command(example="outbox audit --json")
@click.option("--limit", type=Whole(1), default=20, show_default=True, help="At most so many.")
@json_option
@click.pass_context
def audit(ctx: click.Context, limit: int, as_json: bool) -> None:
    """What people did, newest first: who, when, to which messages, to how many, and whether it is over."""
    from outbox.store import acting

    with outbox_of(ctx).database.read() as connection:
        rows = acting.acts(connection, limit)
    if as_json:
        for row in rows:
            emit({**row, "continue": _command(row["action"], row["id"]) if row["finished_at"] is None else None})
        return
    if not rows:
        say("nobody has done anything yet")
        return
    cells = [
        (
            *(row[name] for name in ("id", "at", "actor", "action")),
            row["messages"] if row["action"] in _DID else None,
            "yes" if row["finished_at"] else "no",
            row["selection"],
        )
        for row in rows
    ]
    table(("ACT", "AT", "WHO", "WHAT", "MESSAGES", "OVER", "WHICH"), cells, spare=("OVER",), wrap="WHICH")
    for row in rows:
        if row["finished_at"] is None:  # a line for each, or a terminal would break it in the middle of a command
            say(f"act {row['id']} is under way, or interrupted; go on with: {_command(row['action'], row['id'])}")


def _how_to_go_on(act: Act, rate: float | None) -> str:
    from sqlalchemy.exc import SQLAlchemyError

    from outbox.errors import OutboxError

    over = False
    with suppress(SQLAlchemyError, OutboxError):  # then what it noted itself is what is known
        over = act.look()
    if act.id is None:
        return "before anything was done"
    if over:
        return f"after {counted(act.messages, 'message')}, which was all of it"
    return f"after {counted(act.messages, 'message')}; go on with: {_command(act.action, act.id, rate)}"


def _command(action: str, act_id: int, rate: float | None = None) -> str:
    return f"outbox {action} --continue {act_id}" + (f" --rate {rate:.15g}" if rate is not None else "")


def _act(
    ctx: click.Context,
    action: Action,
    /,
    *,
    by: str,
    yes: bool,
    as_json: bool,
    dry_run: bool,
    act_id: int | None,
    rate: float | None,
    **options: Any,
) -> None:
    outbox = outbox_of(ctx)
    selection = selection_of(outbox, options)
    if act_id is not None:
        if selection.narrows or selection.limit is not None or dry_run:
            raise click.UsageError("--continue goes on with the act as it began; say nothing else about which messages")
        if action == "purge" and not yes:
            _confirm(f"purge what act {act_id} has not come to yet")
        act, expected = outbox.go_on(act_id, action, rate=rate), None
    else:
        _say_unknown(outbox, selection)
        preview = outbox.preview(action, selection)
        if dry_run:
            _show(action, selection, preview, as_json=as_json)
            ctx.exit(0 if preview.messages else NOTHING_MATCHED)
        if not preview.messages:
            _say_none(action, preview, as_json=as_json)
            ctx.exit(NOTHING_MATCHED)
        _ask(action, selection, preview, yes=yes)
        act, expected = outbox.begin(action, selection, by, rate=rate), preview.messages
    _run(ctx, act, expected, rate)
    if as_json:
        emit({"action": action, "act": act.id, "messages": act.messages, "passed_over": act.passed_over})
    else:
        over = f"; passed over: {act.passed_over:,}" if act.passed_over else ""
        say(f"{_DID[action]}: {counted(act.messages, 'message')}{over}")
    if not act.messages:
        ctx.exit(NOTHING_MATCHED)


def _say_unknown(outbox: Outbox, selection: Selection) -> None:
    """Say which of the ids and keys that were named no message has."""
    from outbox.model import MOST, Selection

    found: set[int | str] = set()
    for first in range(0, max(len(selection.ids), len(selection.keys)), _PIECE):
        ids, keys = selection.ids[first : first + _PIECE], selection.keys[first : first + _PIECE]
        some = Selection(ids=ids, keys=keys, destination=selection.destination, limit=MOST)
        found.update(name for each in outbox.messages(some) for name in (each.id, each.key))
    missing = [shown(each) for each in dict.fromkeys((*selection.ids, *selection.keys)) if each not in found]
    if missing:
        of = f" of {selection.destination}" if selection.destination else ""
        rest = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        say(f"no message{of} has the id or key {', '.join(missing[:_NAMED])}{rest}")


def _ask(action: Action, selection: Selection, preview: Preview, *, yes: bool) -> None:
    named = bool(selection.ids or selection.keys) and action != "purge"
    if yes or named:
        return
    _confirm(_line(action, selection, preview))


def _confirm(what: str) -> None:
    """Ask; where nobody can be asked, refuse."""
    if not is_terminal(sys.stdin):
        raise click.UsageError(f"this would {what}; say --yes if that is meant")
    click.confirm(f"{what}?", abort=True, err=True)


def _run(ctx: click.Context, act: Act, expected: int | None, rate: float | None) -> None:
    """Take the steps of an act, with a bar where somebody looks. Whatever interrupts it, the last words tell how to go on."""
    try:
        with _bar(act, expected) as tell:
            for progress in act.steps():
                tell(progress.messages)
                time.sleep(progress.rest)
    except KeyboardInterrupt:
        say(f"\nstopped {_how_to_go_on(act, rate)}")
        ctx.exit(FAILED)
    except Exception:
        say(f"interrupted {_how_to_go_on(act, rate)}")
        raise


@contextmanager
def _bar(act: Act, expected: int | None) -> Iterator[Callable[[int], object]]:
    """On a terminal a bar on standard error; elsewhere nothing."""
    if not (is_terminal(sys.stderr) and colourful()):
        yield lambda _messages: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(act.action, total=expected, completed=0)
        yield lambda messages: progress.update(task, completed=messages)


def _line(action: Action, selection: Selection, preview: Preview) -> str:
    """What an act would be done to, in one line."""
    from outbox.units import bytes_in_words

    more = [f"with {counted(preview.files, 'file')}" if preview.files else ""]
    more += [f"{preview.may_be_duplicates:,} may arrive twice" if preview.may_be_duplicates else ""]
    size = bytes_in_words(preview.bytes + preview.file_bytes)
    extra = "".join(f", {each}" for each in more if each)
    return f"{action} {counted(preview.messages, 'message')} ({shown(selection)}): {size}{extra}"


def _show(action: Action, selection: Selection, preview: Preview, *, as_json: bool) -> None:
    """The whole preview."""
    from outbox.units import bytes_in_words

    if as_json:
        told = {name: getattr(preview, name) for name in preview.__slots__}
        emit({"action": action, "dry_run": True, "selection": str(selection), **told})
        return
    kinds = {"that have lost a file": preview.lost_their_file} | dict(preview.passed_over)
    lines = {
        f"would {action}": f"{counted(preview.messages, 'message')} ({selection})",
        "destinations": ", ".join(f"{name} {count:,}" for name, count in preview.destinations.items()),
        "text": bytes_in_words(preview.bytes),
        "files": f"{preview.files:,}, {bytes_in_words(preview.file_bytes)}",
        "oldest": shown(preview.oldest),
        "may arrive twice": f"{preview.may_be_duplicates:,}" if action == "replay" else "",
        "passed over": ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count),
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:<18}{shown(value)}")


def _say_none(action: Action, preview: Preview, *, as_json: bool) -> None:
    kinds = {"lost a file": preview.lost_their_file} | dict(preview.passed_over)
    over = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    if as_json:
        emit({"action": action, "act": None, "messages": 0, "passed_over": sum(kinds.values())})
    else:
        say(f"nothing to {action}" + (f"; passed over: {over}" if over else ""))
