"""The operator's terminal."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import rich_click as click
from click.exceptions import NoArgsIsHelpError

from outbox.cli.mistakes import Names, sentence


class Entry(NamedTuple):
    """A command: where it lives, and what it does in one line. Its module is imported when it runs, not when it is listed."""

    module: str
    does: str


#: Every command, in the order of help, under what one wants.
SECTIONS: dict[str, dict[str, Entry]] = {
    "Begin": {
        "init": Entry("init", "Write outbox.toml with comments, create the database and the spool."),
        "db": Entry("db", "The database's schema: upgrade, status, sql."),
        "enqueue": Entry("enqueue", "Add a message for a destination."),
    },
    "Deliver": {
        "worker": Entry("work", "Deliver until told to stop."),
        "drain": Entry("work", "Deliver until nothing is due and nothing is claimed, then end."),
    },
    "Look": {
        "status": Entry("look", "Per destination what waits, what died and why it is stopped; and the spool."),
        "list": Entry("lists", "Messages, newest first."),
        "show": Entry("show", "Everything about one message."),
        "explain": Entry("explain", "Why a message or a destination is not moving, and what happens next."),
        "deliveries": Entry("lists", "Upload requests, newest first, and what was answered."),
        "workers": Entry("lists", "Who delivers, since when, and what each has in hand."),
    },
    "Act": {
        "pause": Entry("act", "Let no upload to a destination begin any more."),
        "resume": Entry("act", "Let a destination, or one ordering key, go on."),
        "replay": Entry("act", "Give final messages a fresh start."),
        "cancel": Entry("act", "Withdraw messages that are pending or dead."),
        "purge": Entry("act", "Delete final messages for ever."),
        "audit": Entry("act", "What people did, newest first, and what can be gone on with."),
    },
    "Check": {
        "doctor": Entry("check", "Everything around this outbox that may go wrong, each with its remedy."),
        "verify": Entry("check", "Read every file and row, and name what is damaged."),
        "check": Entry("check", "One line for a monitor: OK, WARNING, CRITICAL or UNKNOWN."),
    },
    "Reference": {
        "verdicts": Entry("verdicts", "What every answer means."),
        "receiver": Entry("receiver", "A strict stand-in for EnOS, to try things on."),
        "manual": Entry("manual", "Every command with its options and an example, as one page."),
        "completion": Entry("manual", "What makes a shell complete commands, options and destinations."),
    },
}
_ENTRIES = {name: entry for section in SECTIONS.values() for name, entry in section.items()}
#: Where a command cannot have its own name in Python.
_NAMES_IN_MODULES = {"list": "list_"}

HELP = """\
A durable store-and-forward outbox.

Data goes to standard output, everything else to standard error; --json gives JSON, one object a line for lists.

Exit codes: 0 done; 1 failed; 2 used or set up wrongly; 3 nothing matched; 4 messages are left: a destination or our
credentials are in trouble, something is paused or blocked, or a try failed; 5 the database needs `outbox db upgrade`.
"""


class _Commands(Names, click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported."""
        if cmd_name not in _ENTRIES:
            return None
        module = importlib.import_module(f"outbox.cli.{_ENTRIES[cmd_name].module}")
        command: click.Command = getattr(module, _NAMES_IN_MODULES.get(cmd_name, cmd_name))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table above, without importing any: help comes at once."""
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.does) for name, entry in entries.items()])


@click.group(cls=_Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(), envvar="OUTBOX_CONFIG", show_envvar=True, help="The settings file [outbox.toml].")
@click.option("--app", envvar="OUTBOX_APP", show_envvar=True, help="Take the Outbox from module:attribute instead.")
@click.version_option(package_name="durable-outbox", prog_name="outbox")
@click.pass_context
def group(ctx: click.Context, config: str | None, app: str | None) -> None:
    ctx.obj = {"config": config, "app": app}


def main(arguments: Sequence[str] | None = None) -> None:
    """The `outbox` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any("\ud800" <= letter <= "\udfff" for argument in arguments for letter in argument):
        sys.exit(_misused(arguments, "an argument holds bytes that are no text in this terminal's encoding"))
    try:
        result: Any = group.main(arguments, prog_name="outbox", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        sys.exit(_misused(arguments, sentence(error)))
    except click.ClickException as error:
        click.echo(f"outbox: {_fit_to_print(error.format_message())}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("outbox: stopped", err=True)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 (said in a sentence, or shown with its traceback)
        sys.exit(_failed(error))


def _misused(arguments: Sequence[str], words: str) -> int:
    """Say in one line what was used wrongly, and with which exit code that ends: a monitor takes a 2 for an alarm."""
    if next((each for each in arguments if each in _ENTRIES), None) == "check":
        click.echo(f"OUTBOX UNKNOWN - {_fit_to_print(words).replace('|', '/')}")
        return 3
    click.echo(f"outbox: {_fit_to_print(words)}", err=True)
    return 2


def _fit_to_print(words: str) -> str:
    from outbox.cli.printing import shown
    from outbox.secret import conceal

    return shown(conceal(words))


def _failed(error: Exception) -> int:
    """Say what went wrong, and with which exit code that ends."""
    from outbox.cli.context import exit_code_of

    if isinstance(error, OSError) and _came_from_printing(error):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to be printed would fail once more when Python ends
        click.echo(f"outbox: cannot write the output: {error.strerror}", err=True)
        return 1
    code = exit_code_of(error)
    if code is None:
        from outbox.logs import traceback_of

        click.echo(traceback_of(error), nl=False, err=True)
        return 1
    return code


def _came_from_printing(error: OSError) -> bool:
    """Whether it was standard output that failed: a full disk, say. A pipe that nobody reads is click's to mind."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].partition(".")[0] in ("click", "rich", "rich_click")
