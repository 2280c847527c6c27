"""`outbox list`, `deliveries` and `workers`: what there is, newest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from outbox.cli.context import NOTHING_MATCHED, outbox_of
from outbox.cli.options import Moment, OneOf, Whole, command, complete_destination, json_option, selection_of, selection_options
from outbox.cli.printing import emit, say, table
from outbox.model import MOST, Outcome

if TYPE_CHECKING:
    from outbox.sights import DeliveryView

V = TypeVar("V")


@command("list", example="outbox list --state dead --destination enos --since 2h")
@selection_options(limit=50)
@json_option
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Messages, newest first: all that fit everything given. Exit code 3 when none does."""
    from outbox.units import bytes_in_words

    outbox = outbox_of(ctx)
    limit: int = options["limit"]
    selection = selection_of(outbox, options)
    found, more = _at_most(limit, lambda most: outbox.messages(replace(selection, limit=most)))
    if as_json:
        for each in found:
            emit(asdict(each))
    elif found:
        head = (
            "ID",
            "DESTINATION",
            "KEY",
            "STATE",
            "REASON",
            "ATTEMPT",
            "FILES",
            "BYTES",
            "ENQUEUED",
            "DUE AT",
            "ORDERING KEY",
            "ANSWER",
        )
        rows = [
            (
                each.id,
                each.destination,
                each.key,
                each.state,
                each.reason,
                each.attempt,
                each.files,
                bytes_in_words(each.size + each.file_bytes),
                each.created_at,
                each.due_at,
                each.ordering_key,
                each.reason_text,
            )
            for each in found
        ]
        table(head, rows, spare=("ENQUEUED", "ORDERING KEY", "FILES", "BYTES", "ATTEMPT", "DUE AT"), wrap="ANSWER")
    else:
        say("no message matches")
    if more:
        _say_more(found)
    if not found:
        ctx.exit(NOTHING_MATCHED)


@command(example="outbox deliveries --destination enos --outcome unknown --since 2h")
@click.option("--destination", help="Uploads to this destination.", shell_complete=complete_destination)
@click.option("--outcome", type=OneOf([each.value for each in Outcome]), help="Uploads that ended so.")
@click.option("--open", "under_way", is_flag=True, help="Only those that are under way.")
@click.option("--since", type=Moment(), metavar="TIME", help="Begun at that time or later: 2h ago, or 2026-11-22T18:00:00Z.")
@click.option("--until", type=Moment(), metavar="TIME", help="Begun before that. So long ago, or ISO.")
@click.option("--limit", type=Whole(1), default=50, show_default=True, help="At most so many.")
@json_option
@click.pass_context
def deliveries(
    ctx: click.Context,
    destination: str | None,
    outcome: str | None,
    under_way: bool,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """Upload requests, newest first: what each carried, how it ended and what was answered. Exit code 3 when there is none.

    What a message was answered at each of its tries is in: outbox show ID.
    """
    if under_way and outcome:
        raise click.UsageError("an upload that is under way has no outcome yet; give --open or --outcome")
    look = partial(
        outbox_of(ctx).deliveries,
        destination=destination,
        outcome=Outcome(outcome) if outcome else None,
        under_way=under_way,
        since=since,
        until=until,
    )
    found, more = _at_most(limit, lambda most: look(limit=most))
    if as_json:
        for each in found:
            emit(asdict(each))
    elif found:
        _deliveries_table(found)
    else:
        say("no upload matches")
    if more:
        _say_more(found)
    if not found:
        ctx.exit(NOTHING_MATCHED)


def _at_most(limit: int, look: Callable[[int], list[V]]) -> tuple[list[V], bool]:
    """What a look finds, and whether there is more of it than the limit."""
    found = look(min(limit + 1, MOST))
    return found[:limit], len(found) > limit


def _say_more(found: Sequence[object]) -> None:
    say(f"--limit {len(found)} leaves out older ones; see them with a larger --limit, or with --until")


def _deliveries_table(found: list[DeliveryView]) -> None:
    from outbox.units import bytes_in_words

    head = (
        "ID",
        "DESTINATION",
        "LANE",
        "MESSAGES",
        "BYTES",
        "BEGUN",
        "SECONDS",
        "OUTCOME",
        "STATUS",
        "CODE",
        "ANSWER",
        "REQUEST ID",
        "WORKER",
    )
    rows = [
        (
            each.id,
            each.destination,
            f"{each.lane}, probe" if each.probe else each.lane,
            each.messages,
            bytes_in_words(each.bytes),
            each.started_at,
            f"{each.seconds:.2f}",
            each.outcome or "under way",
            each.status,
            each.code,
            each.text,
            each.request_id,
            each.worker[-8:],
        )
        for each in found
    ]
    table(head, rows, spare=("REQUEST ID", "LANE", "WORKER", "BYTES", "CODE", "SECONDS"), wrap="ANSWER")


@command(example="outbox workers --all")
@click.option("--all", "gone", is_flag=True, help="Also those that are gone.")
@json_option
@click.pass_context
def workers(ctx: click.Context, gone: bool, as_json: bool) -> None:
    """Who delivers: since when, for which destinations, the last beat and what each holds. Exit code 3 when nobody does.

    A worker that has not said a word for long and is not GONE may be frozen: the next one that looks takes its messages back.
    """
    from outbox.units import in_words

    found = outbox_of(ctx).workers(gone=gone)
    if as_json:
        for each in found:
            emit(asdict(each))
    elif found:
        head = ("ID", "HOST", "PID", "VERSION", "SINCE", "LAST BEAT", "CLAIMS", "UPLOADS", "STATE", "SERVES")
        rows = [
            (
                each.id[-8:] if each.id else None,
                each.host,
                each.pid,
                each.version,
                each.started_at,
                f"{in_words(each.silent_seconds)} ago",
                each.claims,
                each.deliveries,
                "gone" if each.gone else "silent" if each.silent else "asked to stop" if each.stop_asked else "works",
                ", ".join(each.serves) or None,
            )
            for each in found
        ]
        table(head, rows, spare=("VERSION", "UPLOADS", "SINCE"), wrap="SERVES")
    else:
        say("no worker is running; start one with: outbox worker")
    if not found:
        ctx.exit(NOTHING_MATCHED)
