"""`outbox status`: what waits, what died, what is stopped and when the disk is full, once or again and again."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import rich_click as click

from outbox.cli.context import outbox_of, require_spool
from outbox.cli.options import Number, command, json_option
from outbox.cli.printing import colourful, columns, emit, is_terminal, say, shown, width
from outbox.counting import counted, verb

if TYPE_CHECKING:
    from outbox.sights import DestinationStatus, SpoolStatus, Status

#: Seconds that a Postgres transaction may be open before it is worth a word here.
_LONG = 600
_EVERY = 2.0


@command(example="outbox status --watch 5")
@click.option(
    "--watch",
    type=Number(0.1, 86_400),
    is_flag=False,
    flag_value=_EVERY,
    metavar="[SECONDS]",
    help="Look again every so many seconds (2 when none are said), until Ctrl-C.",
)
@json_option
@click.pass_context
def status(ctx: click.Context, watch: float | None, as_json: bool) -> None:
    """Per destination what waits, what died and why it is stopped; the spool and when it is full; who works.

    DUE counts the messages whose time has come, also of a destination that is stopped; OLDEST is for how long the first of them
    is due; DELIVERED/H is the last hour. With --watch and a terminal the screen is drawn anew, without one it is printed again.
    """
    outbox = outbox_of(ctx)
    require_spool(outbox)
    look = outbox.status
    if watch is None:
        _print(look(), as_json=as_json)
        return
    try:
        if as_json or not (is_terminal(sys.stdout) and colourful()):
            _print_again(look, watch, as_json=as_json)
        else:
            _redraw(look, watch)
    except KeyboardInterrupt:
        return


def _print(found: Status, *, as_json: bool) -> None:
    if as_json:
        emit(asdict(found))
        return
    for number, line in enumerate(_report(found, width())):
        click.echo(click.style(line, bold=True) if number == 0 and is_terminal(sys.stdout) and colourful() else line)


def _print_again(look: Callable[[], Status], seconds: float, *, as_json: bool) -> None:
    while True:
        found = _looked(look)
        if isinstance(found, str):
            say(f"outbox: {found}")
        else:
            if not as_json:
                click.echo(shown(found.at))
            _print(found, as_json=as_json)
            if not as_json:
                click.echo()
        sys.stdout.flush()
        time.sleep(seconds)


def _redraw(look: Callable[[], Status], seconds: float) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(screen=True, auto_refresh=False) as live:
        while True:
            found = _looked(look)
            told = [found] if isinstance(found, str) else [*_report(found, width()), "", f"{shown(found.at)}; Ctrl-C ends"]
            live.update(Text("\n".join(told), no_wrap=True, overflow="crop"), refresh=True)
            time.sleep(seconds)


def _looked(look: Callable[[], Status]) -> Status | str:
    """The status, or why there is none just now: a database that is away comes back."""
    from sqlalchemy.exc import SQLAlchemyError

    from outbox.checkup.findings import in_words
    from outbox.errors import OutboxError

    try:
        return look()
    except (OutboxError, SQLAlchemyError) as error:
        return f"cannot look: {shown(in_words(error))}; trying again"


def _report(found: Status, room: int | None) -> Iterator[str]:
    """The status for a person, a line at a time."""
    head = ("DESTINATION", "DUE", "WAITING", "CLAIMED", "DEAD", "DELIVERED/H", "OLDEST", "STOPPED")
    rows = []
    for name, each in found.destinations.items():
        numbers = (each.due, each.waiting, each.claimed, each.dead, each.delivered_last_hour)
        rows.append((name, *numbers, _since(each.oldest_due_at, found.at), _stop(each)))
    yield from columns(head, rows, spare=("CLAIMED",), room=room)
    remarks = (remark for name, each in found.destinations.items() for remark in _remarks(shown(name), each, found))
    for block in (_wrapped(remarks, room), _blocked(found, room), _wrapped(_around(found), room)):
        yield from ["", *block] if block else []


def _wrapped(lines: Iterable[str], room: int | None) -> list[str]:
    if room is None:
        return list(lines)
    return [piece for line in lines for piece in textwrap.wrap(line, room, subsequent_indent="  ", break_on_hyphens=False)]


def _stop(each: DestinationStatus) -> str:
    return each.stop.replace("_", " ") if each.stop else "breaker" if each.open_until else "no"


def _remarks(name: str, each: DestinationStatus, found: Status) -> Iterator[str]:
    """What is to be said of a destination besides its numbers."""
    from outbox.units import bytes_in_words

    if each.stop or each.open_until:
        yield f"{name}: {_why(name, each, found.at)}"
    elif each.ramp is not None:
        yield f"{name}: recovers from trouble; {counted(each.ramp, 'upload')} at a time for now"
    if each.paused_keys:
        keys = f"{counted(each.paused_keys, 'ordering key')} {verb(each.paused_keys, 'is', 'are')}"
        yield f"{name}: {keys} paused; see: outbox explain {name}"
    if each.dead:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in each.dead_by_reason.items())
        dead = f"{counted(each.dead, 'message')} {verb(each.dead, 'is', 'are')} dead"
        yield f"{name}: {dead} ({reasons}); see: outbox list --state dead --destination {name}"
    if each.learned_bytes:
        yield f"{name}: refused larger requests: at most {bytes_in_words(each.learned_bytes)} go into one for now"
    if not each.declared:
        yield f"{name}: no destination of that name is in these settings"


def _why(name: str, each: DestinationStatus, now: datetime) -> str:
    """Why a destination is stopped: who, since when, and when the next try is."""
    since = f", since {shown(each.stopped_at)} ({_since(each.stopped_at, now)})" if each.stopped_at else ""
    words = f": {shown(each.stop_text)}" if each.stop_text else ""
    if each.stop == "pause":
        return f"pause by {shown(each.stopped_by)}{words}{since}; go on with: outbox resume {name}"
    if each.stop == "credentials":
        why = f"credentials are refused{words}{since}"
    elif each.stop == "reject_streak":
        refused = shown(each.stop_text or f"refused {counted(each.reject_streak, 'message')}, one after the other")
        why = f"reject streak: it {refused}{since}"
    elif each.stop:
        why = f"{each.stop}{words}{since}"
    else:
        last = f"; the last: {shown(each.last_failure)}" if each.last_failure else ""
        why = f"breaker, after {counted(each.failures, 'failure')}{last}"
    then = f"; once that is mended, go on with: outbox resume {name}" if each.stop == "reject_streak" else ""
    return f"{why}; next try {_until(each.open_until, now)}{then}"


def _until(when: datetime | None, now: datetime) -> str:
    from outbox.units import in_words

    if when is None or when <= now:
        return "as soon as a worker looks"
    return f"in {in_words(when - now)}, {shown(when)}"


def _since(when: datetime | None, now: datetime) -> str | None:
    from outbox.units import in_words

    return None if when is None else in_words(max(timedelta(0), now - when))


def _blocked(found: Status, room: int | None) -> list[str]:
    if not found.blocked_keys:
        return []
    advice = "blocked by a dead message; replay it, cancel it, or: outbox resume DESTINATION --key KEY"
    head = ("DESTINATION", "ORDERING KEY", "MESSAGE", "REASON", "ANSWER")
    rows = [(each.destination, each.ordering_key, each.message, each.reason, each.reason_text) for each in found.blocked_keys]
    total = sum(each.blocked_keys for each in found.destinations.values())
    more = [f"and {total - len(rows)} more"] if total > len(rows) else []
    return [*_wrapped([advice], room), *columns(head, rows, wrap="ANSWER", room=room), *more]


def _around(found: Status) -> Iterator[str]:
    """The spool, the last hour, the workers, and whoever is in the way of all."""
    from outbox.units import bytes_in_words, in_words

    yield f"spool: {counted(found.spool.files, 'file')}, {bytes_in_words(found.spool.bytes)}{_room_left(found.spool)}"
    hour = found.last_hour
    came = f"{counted(hour.arrived_messages, 'message')} came, {bytes_in_words(hour.arrived_bytes)}"
    went = f"{hour.delivered_messages:,} {verb(hour.delivered_messages, 'was', 'were')} delivered"
    left = f"{went}, {bytes_in_words(hour.delivered_bytes)}"
    yield f"last hour: {came}; {left}{_backlog(found)}"
    yield f"workers: {found.workers}" if found.workers else "workers: none is running; start one with: outbox worker"
    oldest = found.oldest_transaction
    if oldest is not None and oldest.seconds >= _LONG:
        yield f"Postgres cannot clean up since {in_words(oldest.seconds)} ago, which slows claims: {shown(oldest.what)}; end it"


def _room_left(spool: SpoolStatus) -> str:
    """Quota, free disk, and when there is none left."""
    from outbox.units import bytes_in_words, in_words

    said = ""
    if spool.quota_bytes:
        said += f", {spool.quota_percent:g} % of its quota of {bytes_in_words(spool.quota_bytes)}"
    if spool.free_bytes is not None:
        said += f"; {bytes_in_words(spool.free_bytes)} free on its disk"
    if spool.full_in_seconds == 0:
        said += "; full"
    elif spool.full_in_seconds is not None:
        rate = bytes_in_words(spool.growth_per_hour)
        said += f"; full in {in_words(spool.full_in_seconds)} at the present rate ({rate} an hour)"
    elif spool.filling is False:
        said += "; not filling"
    return said


def _backlog(found: Status) -> str:
    """When what is due will be gone, if more leaves than comes."""
    from outbox.units import in_words

    if any(each.stop or each.open_until for each in found.destinations.values()):
        return ""  # what goes on elsewhere says nothing of what waits there
    due = sum(each.due for each in found.destinations.values())
    faster = found.last_hour.delivered_messages - found.last_hour.arrived_messages
    return f"; what is due is gone in {in_words(due / faster * 3600)} at that rate" if due and faster > 0 else ""
