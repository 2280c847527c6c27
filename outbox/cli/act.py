"""`outbox pause`, `resume`, `replay` and `cancel`: what a person does, with a name and a trace in the audit."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import rich_click as click

from outbox.cli.context import NOTHING_MATCHED, outbox_of
from outbox.cli.options import command, json_option
from outbox.cli.printing import emit, say

if TYPE_CHECKING:
    from outbox.model import Selection


def _somebody() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = "somebody"
    return f"{name}@{socket.gethostname()}"


by_option = click.option("--by", default=_somebody, metavar="NAME", help="Who does it. [you@this-host]")


@command(example="outbox pause enos --reason 'maintenance until noon'")
@click.argument("destination")
@click.option("--reason", required=True, help="Why, for whoever finds it stopped.")
@by_option
@json_option
@click.pass_context
def pause(ctx: click.Context, destination: str, reason: str, by: str, as_json: bool) -> None:
    """Let no upload to DESTINATION begin any more, on any worker. Those in hand are finished; messages go on to queue up."""
    outbox_of(ctx).pause(destination, reason, by)
    if as_json:
        emit({"destination": destination, "stop": "pause"})
    else:
        say(f"{destination} is paused; go on with: outbox resume {destination}")


@command(example="outbox resume enos, or: outbox resume enos --key turbine-7")
@click.argument("destination")
@click.option("--key", "ordering_key", metavar="ORDERING_KEY", help="Only let this stream go on, past its dead messages.")
@by_option
@json_option
@click.pass_context
def resume(ctx: click.Context, destination: str, ordering_key: str | None, by: str, as_json: bool) -> None:
    """Let DESTINATION go on, whatever stopped it: a pause, our credentials, a reject streak, the breaker.

    If it was in trouble, one message goes first. Exit code 3 when nothing was stopped.
    """
    changed = outbox_of(ctx).resume(destination, by, ordering_key=ordering_key)
    what = f"the stream {ordering_key} of {destination}" if ordering_key else destination
    if as_json:
        emit({"destination": destination, "ordering_key": ordering_key, "resumed": changed})
    else:
        say(f"{what} goes on" if changed else f"{what} was not stopped")
    if not changed:
        ctx.exit(NOTHING_MATCHED)


def _selection_options(states: tuple[str, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--yes", is_flag=True, help="Do not ask."),
            by_option,
            click.option("--ordering-key", help="Messages of this stream."),
            click.option("--reason", "reasons", multiple=True, help="Dead for this reason; may be given again."),
            click.option("--state", "states", multiple=True, type=click.Choice(states), help="May be given again."),
            click.option("--destination", help="Messages for this destination."),
            click.argument("messages", metavar="[ID|KEY]...", nargs=-1),
        ):
            command = option(command)
        return command

    return add


@command(example="outbox replay --state dead --reason rejected --destination enos")
@_selection_options(("dead", "delivered", "cancelled"))
@json_option
@click.pass_context
def replay(ctx: click.Context, /, **options: Any) -> None:
    """Give final messages a fresh start, in the bulk lane; their history stays.

    Passed over are messages that are not final, and those whose files have been freed. Exit code 3 when none was replayed.
    """
    _act(ctx, "replay", **options)


@command(example="outbox cancel inspection-42")
@_selection_options(("pending", "dead"))
@json_option
@click.pass_context
def cancel(ctx: click.Context, /, **options: Any) -> None:
    """Withdraw messages that are pending or dead; a stream goes on without them. Exit code 3 when none was.

    A message that is being sent at this moment is passed over.
    """
    _act(ctx, "cancel", **options)


def _act(
    ctx: click.Context, action: Literal["replay", "cancel"], /, *, by: str, yes: bool, as_json: bool, **options: Any
) -> None:
    outbox = outbox_of(ctx)
    selection = _selection(**options)
    matching = outbox.count(action, selection)
    if matching and not (yes or selection.ids or selection.keys):
        if not sys.stdin.isatty():
            raise click.UsageError(f"this would {action} {matching} messages ({selection}); say --yes if that is meant")
        click.confirm(f"{action} {matching} messages ({selection})?", abort=True, err=True)
    done = (outbox.replay if action == "replay" else outbox.cancel)(selection, by)
    if as_json:
        emit({"action": action, "messages": done, "passed_over": matching - done})
    else:
        say(f"{'replayed' if action == 'replay' else 'cancelled'}: {done} messages")
    if not done:
        ctx.exit(NOTHING_MATCHED)


def _selection(
    *,
    messages: tuple[str, ...],
    destination: str | None,
    states: tuple[str, ...],
    reasons: tuple[str, ...],
    ordering_key: str | None,
) -> Selection:
    from outbox.model import Reason, Selection, State

    if unknown := set(reasons) - set(Reason):
        raise click.BadParameter(f"no reason {', '.join(sorted(unknown))}; known: {', '.join(Reason)}", param_hint="--reason")
    ids = [each for each in messages if each.isascii() and each.isdigit() and len(each) < 19]
    return Selection(
        ids=tuple(int(each) for each in ids),
        keys=tuple(each for each in messages if each not in ids),
        destination=destination,
        states=tuple(State(state) for state in states),
        reasons=tuple(Reason(reason) for reason in reasons),
        ordering_key=ordering_key,
    )
