"""What commands are made of: options that can also come from the environment, and the one selection."""

from __future__ import annotations

import getpass
import math
import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from outbox.cli.mistakes import Names, Told
from outbox.model import MOST, Reason, Selection, State

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from outbox.app import Outbox

F = TypeVar("F", bound=Callable[..., Any])

#: Characters of a wrong value that are repeated.
_LONGEST = 40


class _FromEnvironment(Told):
    """Gives every option of a command a variable: OUTBOX_, the command's name, the option's."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        path = [info_name or ""]
        above = parent
        while above is not None and above.parent is not None:
            path.insert(0, above.info_name or "")
            above = above.parent
        if parent is not None:
            for parameter in self.params:  # type: ignore[attr-defined]  # it is mixed into commands
                if isinstance(parameter, click.Option) and parameter.envvar is None:
                    flag = max(parameter.opts, key=len).lstrip("-")
                    parameter.envvar = "_".join(["OUTBOX", *path, flag]).replace("-", "_").upper()
                    parameter.show_envvar = True
        made: click.Context = super().make_context(info_name, args, parent, **extra)  # type: ignore[misc]
        return made


class Command(_FromEnvironment, click.RichCommand):
    """One command of ours."""


class Group(_FromEnvironment, Names, click.RichGroup):  # type: ignore[misc]  # two ways to the same method
    """A command with commands below it."""

    command_class = Command


def command(name: str | None = None, *, example: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command; `example` is shown at the end of its help, and runs as it stands."""
    made: Callable[[Callable[..., Any]], click.Command] = click.command(name, cls=Command, epilog=f"Example: {example}")
    return made


def json_option(function: F) -> F:
    """The --json flag that every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def yes_option(function: F) -> F:
    """Without a terminal there is nobody to ask."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(function)


def _somebody() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = "somebody"
    return f"{name}@{socket.gethostname()}"


def by_option(function: F) -> F:
    """Who it is, for the audit."""
    return click.option("--by", default=_somebody, metavar="NAME", help="Who does it. [you@this-host]")(function)


class Length(click.ParamType[Any]):
    """A length of time: 90s, 5m, 2h, 7d."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        from outbox import units

        if isinstance(value, timedelta):
            return value
        try:
            return units.duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Number(click.FloatRange):
    """A number that is one: not nan, and not infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            found: float = super().convert(value, param, ctx)
        except click.BadParameter:
            found = math.nan
        if not math.isfinite(found):
            self.fail(f"expected a number{_within(self)}, got {_brief(value)}", param, ctx)
        return found


class Whole(click.IntRange):
    """A whole number, and none that is more than a database can hold."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            found: int = super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"expected a whole number{_within(self)}, got {_brief(value)}", param, ctx)
        if found > MOST:
            self.fail(f"expected a whole number of at most {MOST:,}, got {_brief(value)}", param, ctx)
        return found


def _within(kind: click.IntRange | click.FloatRange) -> str:
    """Between which bounds a number shall be, as it stands in a sentence."""
    if kind.min is None:
        return ""
    if kind.max is not None:
        return f" from {kind.min:,} to {kind.max:,}"
    return f" of more than {kind.min:,}" if kind.min_open else f" of at least {kind.min:,}"


def _brief(value: object) -> str:
    text = str(value)
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


class OneOf(click.Choice[str]):
    """One of several words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            found: str = super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"expected one of {', '.join(self.choices)}, got {_brief(value)}", param, ctx)
        return found


class Moment(click.ParamType[Any]):
    """An instant: so long ago (2h), or an ISO time; without a zone it is local."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from outbox import units

        if isinstance(value, datetime):
            return value
        try:
            return datetime.now(UTC) - units.duration(value)
        except (ValueError, OverflowError):
            pass
        try:
            when = datetime.fromisoformat(value)
            return (when if when.tzinfo else when.astimezone()).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            self.fail(f"expected how long ago, such as 2h, or a time such as 2026-11-22T18:00:00Z, got {value!r}", param, ctx)


def complete_destination(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Names of destinations for the shell, from the settings file alone: a tab shall not wait for a database."""
    import tomllib
    from pathlib import Path

    from click.shell_completion import CompletionItem

    try:
        settings = tomllib.loads(Path(os.environ.get("OUTBOX_CONFIG") or "outbox.toml").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return [CompletionItem(name) for name in settings.get("destinations", {}) if name.startswith(begun)]


def selection_options(states: Sequence[str] = tuple(State), limit: int | None = None) -> Callable[[F], F]:
    """The options that say which messages are meant: the same for whatever is done with them."""

    def add(function: F) -> F:
        for each in (
            click.option("--limit", type=Whole(1), default=limit, show_default=limit is not None, help="At most so many."),
            click.option("--text", help="These words are in what was said when it died."),
            click.option("--until", type=Moment(), metavar="TIME", help="The same, before that. So long ago, or ISO."),
            click.option(
                "--since",
                type=Moment(),
                metavar="TIME",
                help="It ended (or, unfinished, was enqueued) at that time or later: 2h ago, or 2026-11-22T18:00:00Z.",
            ),
            click.option("--ordering-key", help="Messages of this ordering key."),
            click.option(
                "--reason",
                "reasons",
                multiple=True,
                type=OneOf([each.value for each in Reason]),
                help="Dead for this reason.",
            ),
            click.option(
                "--state",
                "states",
                multiple=True,
                type=OneOf([State(each).value for each in states]),
                help="May be given again.",
            ),
            click.option("--destination", help="Messages for this destination.", shell_complete=complete_destination),
            click.option("--key", "keys", multiple=True, help="A key, also one that is all digits. May be given again."),
            click.option("--id", "ids", multiple=True, type=Whole(1), help="An id. May be given again."),
            click.argument("messages", metavar="[ID|KEY]...", nargs=-1),
        ):
            function = each(function)
        return function

    return add


def selection_of(outbox: Outbox, options: dict[str, Any]) -> Selection:
    """The selection that the options say; takes them out of the others. A word of digits is an id or a key, never a guess."""
    destination = options.pop("destination")
    ids, keys = outbox.named(options.pop("messages"), destination)
    return Selection(
        ids=(*ids, *options.pop("ids")),
        keys=(*keys, *options.pop("keys")),
        destination=destination,
        states=tuple(State(state) for state in options.pop("states")),
        reasons=tuple(Reason(reason) for reason in options.pop("reasons")),
        ordering_key=options.pop("ordering_key"),
        since=options.pop("since"),
        until=options.pop("until"),
        text=options.pop("text"),
        limit=options.pop("limit"),
    )
