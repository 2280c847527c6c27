"""`outbox enqueue`: one message from a terminal or a script."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import rich_click as click

from outbox.cli.context import outbox_of
from outbox.cli.options import command, complete_destination, json_option
from outbox.cli.printing import emit


@command(example="outbox enqueue enos --payload event.json --file photo=img_0042.jpg --key inspection-42")
@click.argument("destination", shell_complete=complete_destination)
@click.option("--payload", "source", required=True, metavar="FILE|-", help="The message's JSON; - reads standard input.")
@click.option("--file", "files", multiple=True, metavar="NAME=PATH", help="Attach a file; may be given again.")
@click.option("--key", help="Names the message: the same key again adds nothing.")
@click.option("--ordering-key", help="Messages that share it are delivered one after the other.")
@click.option("--lane", type=click.Choice(["express", "normal", "bulk", "large"]), help="[normal, or large for big files]")
@click.option("--due-at", metavar="ISO-TIME", help="Try it first at this time, such as 2026-11-22T18:00:00Z. [now]")
@click.option("--expires-at", metavar="ISO-TIME", help="Give it up at this time.")
@click.option("--unordered", is_flag=True, help="The ordering key only gives fair turns; the order does not matter.")
@click.option("--traceparent", help="The trace context (W3C) that its delivery shall be linked to.")
@json_option
@click.pass_context
def enqueue(
    ctx: click.Context,
    destination: str,
    source: str,
    files: tuple[str, ...],
    key: str | None,
    ordering_key: str | None,
    lane: str | None,
    due_at: str | None,
    expires_at: str | None,
    unordered: bool,
    traceparent: str | None,
    as_json: bool,
) -> None:
    """Add a message for DESTINATION; prints its id once it is committed."""
    attachments: dict[str, str] = {}
    for each in files:
        name, equals, path = each.partition("=")
        if not equals or not name or not path:
            raise click.BadParameter(f"expected NAME=PATH, got {each!r}", param_hint="--file")
        if name in attachments:
            raise click.BadParameter(f"the name {name!r} is given twice", param_hint="--file")
        attachments[name] = path
    payload = _payload(source)
    when, end = _instant(due_at, "--due-at"), _instant(expires_at, "--expires-at")
    outbox = outbox_of(ctx)
    with outbox.database.read() as connection:
        added = outbox.enqueue(
            connection,
            destination,
            payload,
            files=dict(attachments),
            key=key,
            ordering_key=ordering_key,
            lane=lane,
            due_at=when,
            expires_at=end,
            ordered=False if unordered else None,
            traceparent=traceparent,
        )
    if as_json:
        emit({"id": added.id, "new": added.new, "state": added.state})
    else:
        click.echo(added.id)


def _payload(source: str) -> object:
    try:
        if source == "-":
            text = sys.stdin.read()
        else:
            with click.open_file(source, encoding="utf-8-sig") as file:
                text = file.read()
        return json.loads(text)
    except OSError as error:
        raise click.BadParameter(f"cannot read {source}: {error.strerror}", param_hint="--payload") from None
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{source} is not JSON: {error}", param_hint="--payload") from None


def _instant(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.astimezone()).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"expected a time such as 2026-11-22T18:00:00Z, got {text!r}", param_hint=option) from None
