"""`outbox show`: everything about one message, and the request that would carry it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import rich_click as click

from outbox.cli.context import outbox_of
from outbox.cli.options import command, complete_destination, json_option
from outbox.cli.printing import emit, paragraph, say, shown, table
from outbox.counting import counted

if TYPE_CHECKING:
    from outbox.app import Outbox
    from outbox.sights import AttachmentView, AttemptView, MessageDetail


@command(example="outbox show inspection-42 --destination enos")
@click.argument("message", metavar="ID|KEY")
@click.option("--destination", help="Whose, when a key is given that several have.", shell_complete=complete_destination)
@click.option("--curl", "as_curl", is_flag=True, help="Print the upload request as a curl command; secrets are masked.")
@json_option
@click.pass_context
def show(ctx: click.Context, message: str, destination: str | None, as_curl: bool, as_json: bool) -> None:
    """One message: its payload, its files, and every attempt with its answer. Exit code 3 when there is none.

    With --curl, the request that would carry it alone. Whatever lets us in stands there as ***, and is for you to fill in.
    """
    outbox = outbox_of(ctx)
    detail = _detail(outbox, message, destination)
    if as_curl:
        command_line = _curl(outbox, detail)
        if as_json:
            emit({"id": detail.message.id, "curl": command_line})
        else:
            click.echo(command_line)
    elif as_json:
        emit(_told(detail))
    else:
        for line in _report(detail, outbox.ambient.now()):
            click.echo(line)
        _tables(detail)


def _detail(outbox: Outbox, message: str, destination: str | None) -> MessageDetail:
    from outbox.errors import NoSuchMessage
    from outbox.model import Selection

    try:
        return outbox.message(message, destination)
    except NoSuchMessage:
        if destination is not None:
            outbox.messages(Selection(destination=destination, limit=1))  # which says so if it is the destination that is none
        raise


def _told(detail: MessageDetail) -> dict[str, Any]:
    """The message's own keys, and beside them what belongs to it."""
    of_it = asdict(detail)
    told: dict[str, Any] = of_it.pop("message")
    return told | of_it


#: What is said in words of its own, or only to the machinery.
_SAID_BELOW = frozenset({"claimed_by", "delivery_id", "stream_number"})
#: What is a number of bytes.
_BYTES = frozenset({"size", "file_bytes"})
_KIB = 1024


def _report(detail: MessageDetail, now: datetime) -> Iterator[str]:
    for name, value in asdict(detail.message).items():
        if value is not None and name not in _SAID_BELOW:
            yield f"{name.replace('_', ' '):<14} {_in_words(name, value)}"
    yield f"{'next try':<14} {_next_try(detail, now)}"
    if not detail.declared:
        yield f"{'undeclared':<14} no destination named {shown(detail.message.destination)} is in these settings"
    yield f"\n{shown(json.dumps(detail.payload, ensure_ascii=False))}\n"


def _in_words(name: str, value: object) -> str:
    """A field as a person says it; `--json` has it as it is."""
    from outbox.units import bytes_in_words

    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name in _BYTES:
            return counted(value, "byte") + (f", {bytes_in_words(value)}" if value >= _KIB else "")
        case _:
            return shown(value)


def _next_try(detail: MessageDetail, now: datetime) -> str:
    from outbox.units import in_words

    of = detail.message
    if detail.under_way is not None:
        begun = detail.under_way
        return f"under way for {in_words(begun.seconds)}, by worker {begun.worker[-8:]} in delivery {begun.id}"
    if of.state not in ("pending", "claimed"):
        return f"none: it is {of.state}" + (f"; start it afresh with: outbox replay {of.id}" if of.state == "dead" else "")
    if detail.next_try_at is None:
        return f"none before somebody acts; why, says: outbox explain {of.id}"
    if detail.next_try_at <= now:
        return f"due for {in_words(now - detail.next_try_at)}; if it does not move, ask: outbox explain {of.id}"
    return f"{shown(detail.next_try_at)}, in {in_words(detail.next_try_at - now)}"


def _tables(detail: MessageDetail) -> None:
    if detail.attachments:
        _files(detail.attachments)
    if not detail.attempts:
        click.echo("no attempt yet" if detail.under_way is None else "the first attempt is under way")
        return
    _attempts(detail.attempts)
    for each in detail.attempts:
        if each.answer:
            click.echo(f"\nanswer to attempt {each.number}:\n{_lines(each.answer)}")


def _lines(text: str) -> str:
    """An answer with its own lines, and nothing else that a terminal would obey."""
    return "\n".join(f"  {shown(line)}" for line in text.splitlines())


def _files(attachments: Sequence[AttachmentView]) -> None:
    from outbox.units import bytes_in_words

    head = ("FILE", "NAME", "TYPE", "BYTES", "IS", "SPOOLED", "SHA-256")
    rows = [
        (each.name, each.filename, each.content_type, bytes_in_words(each.size), each.bytes_are, each.spooled, each.sha256)
        for each in attachments
    ]
    table(head, rows, spare=("SHA-256", "SPOOLED", "TYPE"))
    click.echo()


def _attempts(attempts: Sequence[AttemptView]) -> None:
    head = (
        "ATTEMPT",
        "BEGUN",
        "SECONDS",
        "OUTCOME",
        "LATE",
        "STATUS",
        "CODE",
        "ANSWER",
        "REQUEST ID",
        "DELIVERY",
        "TOGETHER",
        "WORKER",
    )
    rows = [
        (
            each.number,
            each.started_at,
            f"{each.seconds:.2f}" if each.seconds is not None else None,
            each.outcome,
            each.late_outcome,
            each.status,
            each.code,
            each.text,
            each.request_id,
            each.delivery_id,
            each.messages,
            (each.worker or "-")[-8:],
        )
        for each in attempts
    ]
    lines = table(head, rows, spare=("TOGETHER", "LATE", "REQUEST ID", "WORKER", "DELIVERY", "CODE"))
    for each, line in zip(attempts, lines, strict=True):
        if each.text and shown(each.text) not in line:  # it was cut
            click.echo(f"\n{paragraph(each.text, begin=f'attempt {each.number}: ')}")


def _curl(outbox: Outbox, detail: MessageDetail) -> str:
    """The request that would carry the message alone; remarks on it go to standard error."""
    from outbox import secret
    from outbox.cli.curl import curl

    destination, name = detail.message.destination, str(detail.message.id)
    upload = outbox.upload(name)
    secret.learn()  # what a destination of one's own may have put into it
    credentials = outbox.destinations[destination].credentials
    names = (*getattr(credentials, "header_names", ()), *outbox.destinations[destination].signature_headers)
    if credentials is not None and not getattr(credentials, "header_names", ()):
        say(f"the credentials of {destination} do not say which headers they give; they are missing here")
    where = getattr(outbox.spool_store, "where", None)
    if where is None and detail.attachments:
        say("the spool is no directory: fetch the files first, and put their paths in the place of their names")
    for each in detail.attachments:
        if each.bytes_are != "there":
            say(f"the file {shown(each.name)} is {each.bytes_are}: this request cannot be made")
    return curl(upload, names, lambda spooled: spooled if where is None else str(where(spooled)))
