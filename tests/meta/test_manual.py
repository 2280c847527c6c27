"""The command line is told once: docs/cli.md is what `outbox manual` prints, and help comes without loading the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from outbox.cli import group
from tests import warm

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cli.md"
REGENERATE = "outbox manual > docs/cli.md"


def outbox(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.run(
        [sys.executable, "-m", "outbox", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
    )


def every_command(parent: click.Context | None = None) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Path, command and context of each, those below groups included."""
    parent = parent or click.Context(group, info_name="outbox")
    assert isinstance(parent.command, click.Group)
    for name in parent.command.list_commands(parent):
        command = parent.command.get_command(parent, name)
        assert command is not None
        context = command.make_context(name, [], parent, resilient_parsing=True)
        yield context.command_path, command, context
        if isinstance(command, click.Group):
            yield from every_command(context)


def test_the_page_is_what_the_command_prints() -> None:
    if outbox("manual").stdout != PAGE.read_text("utf-8"):
        pytest.fail(f"docs/cli.md is not what the commands say; write it anew with: {REGENERATE}", pytrace=False)


def test_every_command_says_what_it_does_and_has_an_example() -> None:
    without = [
        path
        for path, command, _ in every_command()
        if not command.help or (not isinstance(command, click.Group) and not (command.epilog or "").startswith("Example: "))
    ]

    assert [] == without


def test_every_option_can_come_from_the_environment() -> None:
    without = [
        f"{path} {option.opts[-1]}"
        for path, command, _ in every_command()
        for option in command.params
        if isinstance(option, click.Option) and not (option.envvar and option.show_envvar)
    ]

    assert [] == without


def test_no_two_options_have_the_same_variable() -> None:
    options = [o for _, command, _ in every_command() for o in command.params if isinstance(o, click.Option)]
    variables = [str(option.envvar) for option in options]

    assert sorted(set(variables)) == sorted(variables)


def test_help_loads_nothing_that_it_is_about() -> None:
    command = (
        "import sys; sys.argv = ['outbox', '--help']\ntry:\n import outbox.cli; outbox.cli.main()\nfinally: print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)

    loaded = set(run.stdout.split())
    assert "Usage:" in run.stdout, run.stderr
    assert set() == loaded & {"sqlalchemy", "requests", "alembic", "apscheduler", "pydantic", "rich.console", "outbox.app"}


def test_a_shell_completes_commands_options_and_destinations(tmp_path: Path) -> None:
    (tmp_path / "outbox.toml").write_text("[destinations.enos]\n[destinations.erp]\n")

    def completed(words: str) -> set[str]:
        asked = {"_OUTBOX_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        run = outbox(OUTBOX_CONFIG=str(tmp_path / "outbox.toml"), **asked)
        return {line.partition(",")[2] for line in run.stdout.splitlines()}

    assert {"replay", "resume", "receiver"} <= completed("outbox re")
    assert {"--destination"} == completed("outbox list --des")
    assert {"enos", "erp"} == completed("outbox list --destination e")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_part_of_completion_is_printed(shell: str) -> None:
    run = outbox("completion", shell)

    assert (0, "") == (run.returncode, run.stderr)
    assert "_OUTBOX_COMPLETE" in run.stdout
