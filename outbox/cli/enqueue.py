"""`outbox enqueue`: one message from a terminal or a script."""

from __future__ import annotations

import json
import re
import shlex
import sys
from datetime import UTC, datetime

import rich_click as click

from outbox.cli.context import outbox_of, require_spool
from outbox.cli.options import OneOf, command, complete_destination, json_option
from outbox.cli.printing import emit
from outbox.errors import Fault, Refused

#: Years within which a time can be told in every zone.
_PLAUSIBLE, _FAR = 2, 9998
#: How the door tells of a file that Python's `files=` has not.
_NOT_GIVEN = re.compile(r""" (['"])(.*)\1 that is not given in files=""")


@command(example="outbox enqueue enos --payload event.json --file photo=img_0042.jpg --key inspection-42")
@click.argument("destination", shell_complete=complete_destination)
@click.option("--payload", "source", required=True, metavar="FILE|-", help="The message's JSON; - reads standard input.")
@click.option("--file", "files", multiple=True, metavar="NAME=PATH", help="Attach a file; may be given again.")
@click.option("--key", help="Names the message: the same key again adds nothing.")
@click.option("--ordering-key", help="Messages that share it are delivered one after the other.")
@click.option("--lane", type=OneOf(["express", "normal", "bulk", "large"]), help="[normal, or large for big files]")
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
    require_spool(outbox)
    try:
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
    except Refused as error:
        error.faults = tuple(_as_options_say(fault) for fault in error.faults)
        raise
    if as_json:
        emit({"id": added.id, "new": added.new, "state": added.state})
    else:
        click.echo(added.id)


def _as_options_say(fault: Fault) -> Fault:
    """What is wrong with it, where the door speaks of an argument in Python."""
    name = _NOT_GIVEN.search(fault.text)
    if name is None:
        return fault
    return fault._replace(text=f"{fault.text[: name.start()]} that is not given; say --file {shlex.quote(f'{name[2]}=PATH')}")


def _payload(source: str) -> object:
    name = "standard input" if source == "-" else source
    try:
        if source == "-":
            text = sys.stdin.read()
        else:
            with click.open_file(source, encoding="utf-8-sig") as file:
                text = file.read()
        return json.loads(text)
    except OSError as error:
        raise click.BadParameter(f"cannot read {source}: {error.strerror}", param_hint="--payload") from None
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{name} is not UTF-8, from byte {error.start + 1} on", param_hint="--payload") from None
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{name} is not JSON: {_why_none(error, text)}", param_hint="--payload") from None


def _why_none(error: Exception, text: str) -> str:
    match error:
        case json.JSONDecodeError() if not text.strip():
            return "it is empty"
        case json.JSONDecodeError():
            return f"it goes wrong in line {error.lineno}, column {error.colno}"
        case RecursionError():
            return "it is nested too deeply"
        case _:
            return "a number in it is too long"


def _instant(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"expected a time such as 2026-11-22T18:00:00Z, got {text!r}", param_hint=option) from None
    if not _PLAUSIBLE <= when.year <= _FAR:
        how = "too long ago" if when.year < _PLAUSIBLE else "too far ahead"
        raise click.BadParameter(f"{text} is {how}; expected a time such as 2026-11-22T18:00:00Z", param_hint=option)
    return (when if when.tzinfo else when.astimezone()).astimezone(UTC)
