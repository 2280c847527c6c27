"""`outbox status`, `list` and `show`: what is there, what is in its way, and everything about one message."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from typing import Any

import rich_click as click

from outbox.cli.context import NOTHING_MATCHED, outbox_of
from outbox.cli.options import command, json_option
from outbox.cli.printing import emit, shown, table
from outbox.units import bytes_in_words

#: So many blocked ordering keys are named, the longest blocked first.
_BLOCKED_SHOWN = 20


@command(example="outbox status --json")
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Per destination: messages by state, the oldest, why it is stopped; and the spool."""
    from outbox.store import looking

    outbox = outbox_of(ctx)
    now = outbox.ambient.now()
    with outbox.database.read() as connection:
        counts = looking.counts(connection, now)
        for name, delivered in looking.delivered_since(connection, now - timedelta(hours=1)).items():
            counts.setdefault(name, looking.nothing())["delivered_last_hour"] = delivered
        workers = looking.alive(connection)
        files, spooled = looking.spooled(connection)
        blocked = looking.blocked(connection, _BLOCKED_SHOWN)
    for name in outbox.destinations:
        counts.setdefault(name, looking.nothing())
    root = getattr(outbox.spool_store, "root", None)
    free = shutil.disk_usage(root).free if root is not None and root.exists() else None
    if as_json:
        emit(
            {
                "destinations": counts,
                "blocked_keys": [dict(each) for each in blocked],
                "workers": workers,
                "spool": {"files": files, "bytes": spooled, "free_bytes": free},
            }
        )
        return
    head = ("DESTINATION", "DUE", "WAITING", "CLAIMED", "DEAD", "DELIVERED/H", "OLDEST DUE", "STOPPED")
    rows = []
    for name, each in sorted(counts.items()):
        numbers = [each.get(what, 0) for what in ("due", "waiting", "claimed", "dead", "delivered_last_hour")]
        rows.append((name, *numbers, each.get("oldest_due_at"), _stopped(each)))
    table(head, rows)
    for name, each in sorted(counts.items()):
        if each["learned_bytes"]:
            click.echo(f"\n{name} refused larger requests: at most {bytes_in_words(each['learned_bytes'])} go into one for now")
    if blocked:
        click.echo("\nblocked by a dead message; replay it, cancel it, or: outbox resume DESTINATION --key KEY")
        names = ("destination", "ordering_key", "message", "reason", "reason_text")
        table(
            ("DESTINATION", "ORDERING KEY", "MESSAGE", "REASON", "ANSWER"), [[each[name] for name in names] for each in blocked]
        )
    click.echo(
        f"\nspool: {files} files, {bytes_in_words(spooled)}" + (f"; {bytes_in_words(free)} free" if free is not None else "")
    )
    click.echo(f"workers: {workers}" if workers else "workers: none is running; start one with: outbox worker")


def _stopped(each: dict[str, Any]) -> str:
    if each.get("stop") == "pause":
        return f"pause by {each['stopped_by']}: {each['stop_text']}"
    if each.get("stop"):
        why = f"{each['stop']}: {each.get('stop_text') or ''}".rstrip(": ")
        return f"{why}; next try {shown(each['open_until'])}" if each.get("open_until") else why
    if each.get("open_until"):
        return f"breaker, after {each['failures']} failures; next try {shown(each['open_until'])}"
    return "no"


@command("list", example="outbox list --state dead --destination enos")
@click.option("--state", "states", multiple=True, type=click.Choice(["pending", "claimed", "delivered", "dead", "cancelled"]))
@click.option("--destination", "destinations", multiple=True)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="Show so many, newest first.")
@json_option
@click.pass_context
def list_(ctx: click.Context, states: tuple[str, ...], destinations: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Messages, newest first. Exit code 3 when none matches."""
    from outbox.model import State
    from outbox.store import looking

    outbox = outbox_of(ctx)
    names = [outbox.destination(name).name for name in destinations]
    with outbox.database.read() as connection:
        rows = looking.messages(connection, names, [State(state) for state in states], limit)
    if as_json:
        for row in rows:
            emit(_told(row))
    elif rows:
        head = ("ID", "DESTINATION", "KEY", "STATE", "REASON", "ATTEMPT", "FILES", "BYTES", "DUE AT", "ANSWER")
        cells = [
            (
                row["id"],
                row["destination"],
                row["key"],
                row["state"],
                row["reason"],
                row["attempt"],
                row["files"],
                bytes_in_words(row["size"] + row["file_bytes"]),
                row["due_at"],
                row["reason_text"],
            )
            for row in rows
        ]
        table(head, cells)
    if not rows:
        ctx.exit(NOTHING_MATCHED)


#: Columns that matter to the machinery only.
_INNER = frozenset({"payload", "digest", "stream_id", "clock_plausible", "faulted_in", "share_id"})


def _told(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _INNER}


@command(example="outbox show inspection-42 --destination enos")
@click.argument("message", metavar="ID|KEY")
@click.option("--destination", help="Which destination's, when a key is given that several have.")
@json_option
@click.pass_context
def show(ctx: click.Context, message: str, destination: str | None, as_json: bool) -> None:
    """One message: its payload, its files, and every attempt with its answer."""
    from outbox.errors import NoSuchMessage
    from outbox.store import looking

    outbox = outbox_of(ctx)
    with outbox.database.read() as connection:
        row = looking.one(connection, message, destination)
        if row is None:
            raise NoSuchMessage(f"no message has the id or key {message!r}")
        files = looking.files_of(connection, row["id"])
        attempts = looking.attempts_of(connection, row["id"])
    if as_json:
        told = _told(row) | {"payload": json.loads(row["payload"])}
        emit(told | {"attachments": [dict(each) for each in files], "attempts": [dict(each) for each in attempts]})
        return
    for name, value in _told(row).items():
        if value is not None:
            click.echo(f"{name.replace('_', ' '):<14} {shown(value)}")
    click.echo(f"\n{shown(row['payload'])}\n")
    if files:
        file_head = ("FILE", "NAME", "TYPE", "BYTES", "SHA-256", "SPOOLED")
        names = ("name", "filename", "content_type", "size", "sha256")
        table(
            file_head, [(*(each[name] for name in names), "freed" if each["freed_at"] else each["spooled"]) for each in files]
        )
        click.echo()
    if not attempts:
        click.echo("no attempt yet")
        return
    head = ("ATTEMPT", "STARTED", "SECONDS", "OUTCOME", "LATE", "STATUS", "CODE", "ANSWER", "REQUEST ID", "DELIVERY", "WORKER")
    cells = []
    for each in attempts:
        seconds = (each["finished_at"] - each["started_at"]).total_seconds() if each["started_at"] else None
        cells.append(
            (
                each["number"],
                each["started_at"],
                f"{seconds:.2f}" if seconds is not None else None,
                each["outcome"],
                each["late_outcome"],
                each["status"],
                each["code"],
                each["text"],
                each["request_id"],
                each["delivery_id"],
                (each["worker"] or "")[-8:],
            )
        )
    table(head, cells)
