"""The operator's terminal."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import rich_click as click

#: Commands and where they live: a module is imported when its command runs, or when help lists it.
_COMMANDS = {
    "init": "outbox.cli.init",
    "db": "outbox.cli.db",
    "enqueue": "outbox.cli.enqueue",
    "worker": "outbox.cli.work",
    "drain": "outbox.cli.work",
    "status": "outbox.cli.look",
    "list": "outbox.cli.look",
    "show": "outbox.cli.look",
    "pause": "outbox.cli.act",
    "resume": "outbox.cli.act",
    "replay": "outbox.cli.act",
    "cancel": "outbox.cli.act",
    "verdicts": "outbox.cli.verdicts",
    "receiver": "outbox.cli.receiver",
}
_NAMES_IN_MODULES = {"list": "list_"}

HELP = """\
A durable store-and-forward outbox.

Data goes to standard output, everything else to standard error; --json gives JSON, one object a line for lists.

Exit codes: 0 done; 1 failed; 2 used or set up wrongly; 3 nothing matched; 4 messages are left, because a destination or
our credentials are in trouble or a try of theirs failed; 5 the database needs `outbox db upgrade`.
"""


class _Commands(click.RichGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name])
        command: click.Command = getattr(module, _NAMES_IN_MODULES.get(cmd_name, cmd_name))
        return command


@click.group(cls=_Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None})
@click.option("--config", type=click.Path(), envvar="OUTBOX_CONFIG", show_envvar=True, help="The settings file [outbox.toml].")
@click.option("--app", envvar="OUTBOX_APP", show_envvar=True, help="Take the Outbox from module:attribute instead.")
@click.version_option(package_name="durable-outbox", prog_name="outbox")
@click.pass_context
def group(ctx: click.Context, config: str | None, app: str | None) -> None:
    ctx.obj = {"config": config, "app": app}


def main(arguments: list[str] | None = None) -> None:
    """The `outbox` command."""
    from outbox.cli.context import exit_code_of

    try:
        result: Any = group.main(arguments, standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        print("outbox: stopped", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        sys.exit(code)
