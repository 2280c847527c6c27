"""`outbox manual` and `outbox completion`: every command on one page, and the shell's part of it."""

from __future__ import annotations

from collections.abc import Iterator

import rich_click as click

from outbox.cli.options import OneOf, command

OPENING = """\
# The command line

**Every command with its options, where each can come from in the environment, and an example.** This page is the output of
`outbox manual`.

Data goes to standard output, everything else to standard error. `--json` gives one JSON object, or one a line where there are
several, with keys that stay. Colours and movement are left out where nobody looks, with `NO_COLOR`, and with `TERM=dumb`. An
option of the line wins over its variable; an option that may be given again takes several values from it, with spaces between
them. `--config` (`OUTBOX_CONFIG`) and `--app` (`OUTBOX_APP`) stand before the command: `outbox --config edge.toml status`.

A time is how long ago (`90s`, `5m`, `2h`, `7d`, `1h30m`) or an ISO time (`2026-11-22T18:00:00Z`; without a zone it is local).

| exit code | means |
|---:|---|
| 0 | done |
| 1 | failed |
| 2 | used or set up wrongly |
| 3 | nothing matched |
| 4 | messages are left: a destination or our credentials are in trouble, something is paused or blocked, or a try failed |
| 5 | the database needs `outbox db upgrade` |

(`outbox check` speaks to monitoring, and has the exit codes of its plugins.)

Completion: `eval "$(outbox completion bash)"`, and likewise for `zsh` and `fish`.
"""


@command("manual", example="outbox manual > docs/cli.md")
@click.pass_context
def manual(ctx: click.Context) -> None:
    """Every command with its options and an example, as one page of Markdown."""
    click.echo("\n".join(_pages(ctx.find_root())))


@command("completion", example='eval "$(outbox completion bash)"')
@click.argument("shell", type=OneOf(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options and the names of destinations."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three shells"  # noqa: S101
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "outbox", "_OUTBOX_COMPLETE").source())


def _pages(root: click.Context) -> Iterator[str]:
    from outbox.cli import SECTIONS

    yield OPENING
    for title, entries in SECTIONS.items():
        yield f"## {title}\n"
        for name in entries:
            yield from _page(root, name)


def _page(parent: click.Context, name: str) -> Iterator[str]:
    group = parent.command
    assert isinstance(group, click.Group), "a page is of a command in a group"  # noqa: S101
    found = group.get_command(parent, name)
    assert found is not None, name  # noqa: S101
    with found.make_context(name, [], parent, resilient_parsing=True) as ctx:
        yield f"### `{ctx.command_path}`\n"
        yield f"{_joined(found.help or '')}\n"
        usage = " ".join(found.collect_usage_pieces(ctx))
        yield f"```\n{ctx.command_path} {usage}\n```\n"
        options = [each for each in found.get_params(ctx) if isinstance(each, click.Option) and each.name != "help"]
        if options:
            yield "| option | means | variable |\n|---|---|---|"
            yield from (_row(each, ctx) for each in options)
            yield ""
        if found.epilog:
            yield f"{_marked(found.epilog)}\n"
        if isinstance(found, click.Group):
            for below in found.list_commands(ctx):
                yield from _page(ctx, below)


def _row(option: click.Option, ctx: click.Context) -> str:
    names, means = option.get_help_record(ctx) or ("", "")
    means = means.partition("[env var:")[0].partition("  [env var:")[0]
    bracket = means.rpartition("  [")
    default = option.get_help_extra(ctx).get("default")
    words = (bracket[0] or means).strip() if default is not None else means.strip()
    said = f"{words} Default: {default}." if default is not None else words
    variable = f"`{option.envvar}`" if option.envvar else ""
    cells = (f"`{names}`", said, variable)
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def _joined(text: str) -> str:
    """Paragraphs, each on one line: a page has no terminal's width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _marked(epilog: str) -> str:
    word, _, example = epilog.partition(": ")
    return f"{word}: `{example}`"
