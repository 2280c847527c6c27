"""A command that was used wrongly: what is wrong with it, in one sentence of ours, and where to read how it is used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import rich_click as click
from click.core import ParameterSource

_UNEXPECTED = re.compile(r"Got unexpected extra arguments? \((.*)\)", re.DOTALL)


class Told:
    """Says of each mistake in a command which command it was; mixed into commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            left: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        return left


class Names(Told):
    """Tells a command that is none in our words; mixed into groups."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        known: Sequence[str] = self.list_commands(ctx)  # type: ignore[attr-defined]  # it is mixed into groups
        if args[0] not in known and not ctx.resilient_parsing:
            ctx.fail(f"there is no command {args[0]!r}{meant(args[0], known)}")
        found: tuple[str | None, click.Command | None, list[str]] = super().resolve_command(ctx, args)  # type: ignore[misc]
        return found


def sentence(error: click.UsageError) -> str:
    """What was used wrongly, in one line."""
    words = " ".join(_words(error).split())
    return words if error.ctx is None else f"{words}; see: {error.ctx.command_path} --help"


def meant(word: str, known: Iterable[str]) -> str:
    """What one who said this has most likely meant, if there is anything like it."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known))
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _words(error: click.UsageError) -> str:
    match error:
        case click.NoSuchOption():
            if (usage := _usage_of_all(error)) is not None:
                return f"{error.option_name} stands before the command: {usage}"
            known = [each for option in _options(error) for each in (*option.opts, *option.secondary_opts)]
            return f"there is no option {error.option_name}{meant(error.option_name, known)}"
        case click.MissingParameter():
            kind = error.param.type if error.param is not None else None
            choices = f"; expected one of {', '.join(kind.choices)}" if isinstance(kind, click.Choice) else ""
            return f"{_name(error)} is missing{choices}"
        case click.BadParameter():
            name = _name(error)
            return f"{name}: {_lowered(error)}" if name else error.message
        case click.BadOptionUsage():
            return f"{error.option_name} {'takes no' if 'does not take' in error.message else 'needs a'} value"
        case _:
            found = _UNEXPECTED.search(error.message)
            return f"unexpected argument: {found[1]}" if found else error.message


def _usage_of_all(error: click.NoSuchOption) -> str | None:
    """How an option is used that all commands have in common; None if it is none of those."""
    if error.ctx is None or (root := error.ctx.find_root()) is error.ctx:
        return None
    options = (each for each in root.command.get_params(root) if isinstance(each, click.Option))
    found = next((each for each in options if error.option_name in each.opts), None)
    if found is None:
        return None
    value = "" if found.is_flag else f" {found.make_metavar(root)}"
    return f"{root.command_path} {error.option_name}{value} {error.ctx.info_name}"


def _options(error: click.UsageError) -> list[click.Option]:
    of = error.ctx
    return [each for each in of.command.get_params(of) if isinstance(each, click.Option)] if of is not None else []


def _name(error: click.BadParameter) -> str:
    """The option or argument, with its variable if that is where the value came from."""
    if isinstance(error.param_hint, str):
        return error.param_hint
    param = error.param
    if param is None:
        return ""
    if not isinstance(param, click.Option):
        return param.human_readable_name
    flag = max(param.opts, key=len)
    source: Any = error.ctx.get_parameter_source(param.name or "") if error.ctx is not None else None
    return f"{flag} ({param.envvar})" if source is ParameterSource.ENVIRONMENT else flag


def _lowered(error: click.BadParameter) -> str:
    """Its message as the rest of a sentence: about a path it is click's own."""
    if error.param is None or not isinstance(error.param.type, click.Path):
        return error.message
    return error.message[:1].lower() + error.message[1:].rstrip(".")
