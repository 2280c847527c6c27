"""`outbox explain`: why something is not moving, and what happens next and when."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import rich_click as click

from outbox.cli.context import outbox_of
from outbox.cli.options import command, complete_destination, json_option
from outbox.cli.printing import emit, paragraph, shown

if TYPE_CHECKING:
    from outbox.explaining import Cause


@command(example="outbox explain inspection-42 --destination enos")
@click.argument("what", metavar="ID|KEY|DESTINATION")
@click.option("--destination", help="Which destination's, when a key is given.", shell_complete=complete_destination)
@json_option
@click.pass_context
def explain(ctx: click.Context, what: str, destination: str | None, as_json: bool) -> None:
    """Why a message or a destination is not moving: a sentence for each cause, and what happens next and when.

    The causes that matter most come first. A database that cannot be read or has another schema is one too. Exit code 3 when
    nothing has that id, key or name.
    """
    outbox = outbox_of(ctx, migrated=False)
    causes = outbox.explain(what, destination)
    now = outbox.ambient.now()
    for number, each in enumerate(causes):
        if as_json:
            emit({"code": each.code, "sentence": each.sentence, "next": each.next, "at": each.at})
        else:
            click.echo(("\n" if number else "") + _told(each, now))


def _told(cause: Cause, now: datetime) -> str:
    """A cause for a person to read."""
    from outbox.units import in_words

    lines = [paragraph(cause.sentence), paragraph(cause.next, begin="  next: ", indent="        ")]
    if cause.at is not None:
        away = (cause.at - now).total_seconds()
        lines.append(f"  when: {shown(cause.at)}, {f'in {in_words(away)}' if away > 0 else 'now'}")
    return "\n".join(lines)
