"""`outbox worker` and `outbox drain`: the background process, and the same until nothing is left to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import rich_click as click

from outbox.cli.context import (
    FAILED,
    LEFT_BEHIND,
    NOTHING_MATCHED,
    outbox_and_worker,
    outbox_of,
    require_database,
    require_spool,
)
from outbox.cli.options import Group, Number, OneOf, by_option, command, complete_destination, json_option
from outbox.cli.printing import emit, say

if TYPE_CHECKING:
    from outbox.app import Outbox

#: Seconds between two looks at workers that were asked to stop, and without a beat until nothing is expected of one any more.
_LOOK_EVERY = 0.5
_SILENT_FOR = 60.0


def _worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--log-format", default="text", type=OneOf(["text", "json"]), show_default=True, help="Of each line."),
        click.option(
            "--log-level",
            default="info",
            type=OneOf(["debug", "info", "warning", "error"]),
            show_default=True,
            help="At least this grave; debug has a line for each message.",
        ),
        click.option("--stop-grace", type=Number(0), metavar="SECONDS", help="Time for uploads in hand at a stop. [30]"),
        click.option(
            "--gone-after",
            type=Number(0, min_open=True),
            metavar="SECONDS",
            help="Another worker's silence that frees its claims. [15]",
        ),
        click.option(
            "--destination",
            "destinations",
            multiple=True,
            help="Serve only this one; may be given again. [all]",
            shell_complete=complete_destination,
        ),
    ):
        command = option(command)
    return command


def _made(
    ctx: click.Context,
    *,
    destinations: tuple[str, ...],
    gone_after: float | None,
    stop_grace: float | None,
    log_level: str,
    log_format: Any,
) -> tuple[Outbox, dict[str, Any], str | None]:
    """The outbox, how its worker shall behave, and where the settings want its pages to be."""
    from outbox import logs

    logs.configure(log_level, log_format)
    outbox, said = outbox_and_worker(ctx)
    logs.configure(log_level, log_format)  # once more: an app may have its own ideas, and by now its secrets are known
    require_database(outbox)
    require_spool(outbox)
    given = {"gone_after": gone_after, "stop_grace": stop_grace, "destinations": destinations or None}
    options = {**said, **{name: value for name, value in given.items() if value is not None}}
    http = options.pop("http", None)
    return outbox, options, http


@click.group(
    cls=Group,
    invoke_without_command=True,
    epilog="Example: outbox worker --http 127.0.0.1:9464 --log-format json",
)
@_worker_options
@click.option(
    "--http",
    metavar="ADDRESS",
    help="Serve /livez, /readyz and /metrics there, such as 127.0.0.1:9464; port 0 is any, and printed. [nowhere]",
)
@click.option(
    "--tracing/--no-tracing",
    "traced",
    default=None,
    help="Make an OpenTelemetry span for each upload. [if this process has OpenTelemetry]",
)
@click.pass_context
def worker(ctx: click.Context, /, http: str | None, traced: bool | None, **options: Any) -> None:
    """Deliver until told to stop. SIGTERM and SIGINT finish the uploads in hand; what was not begun goes back unharmed.

    With `stop`, tell workers to end, wherever they run.
    """
    if ctx.invoked_subcommand is not None:
        return
    from outbox.service import Service

    outbox, behaviour, from_settings = _made(ctx, **options)
    wanted = http or from_settings
    service = Service(outbox, http=wanted, traced=traced, **behaviour)
    if wanted and wanted.endswith(":0"):
        click.echo(service.url)
    service.run()


@worker.command("stop", epilog="Example: outbox worker stop --all --wait")
@click.argument("workers", metavar="[ID]...", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="Every worker that is alive.")
@click.option("--wait", is_flag=True, help="Until they have ended.")
@by_option
@json_option
@click.pass_context
def stop(ctx: click.Context, workers: tuple[str, ...], everyone: bool, wait: bool, by: str, as_json: bool) -> None:
    """Ask workers to end as on SIGTERM, through the database: where no signal reaches them.

    They see it with their next beat, within seconds. `outbox workers` lists them. Exit code 3 when none was there to be asked.
    """
    if everyone == bool(workers):
        raise click.UsageError("say which workers shall stop, by id, or --all; `outbox workers` lists them")
    outbox = outbox_of(ctx)
    asked = outbox.stop_workers(by, None if everyone else workers)
    unknown = [each for each in workers if each not in asked]
    for each in unknown:
        say(f"no worker {each} is alive; `outbox workers` lists those that are")
    if not asked and not unknown:
        say("no worker is alive")
    left = _wait_for(outbox, asked) if wait else []
    for each in left:
        say(f"worker {each} has not beaten for {_SILENT_FOR:.0f} s: it has most likely died, and another takes its claims over")
    if as_json:
        emit({"asked": asked, "unknown": unknown, "silent": left})
    else:
        for each in asked:
            click.echo(each)
            if each not in left:
                say(f"worker {each} {'has stopped' if wait else 'was asked to stop'}")
    if left:
        ctx.exit(FAILED)
    if unknown or not asked:
        ctx.exit(NOTHING_MATCHED)


def _wait_for(outbox: Outbox, asked: list[str]) -> list[str]:
    """Wait until these workers are gone; returns those whose beat has stood still for so long that they will not see it."""
    from outbox.store import living

    seen: dict[str, tuple[int, float]] = {}
    while True:
        with outbox.database.read() as connection:
            beats = {each: beat for each, beat in living.beats(connection).items() if each in asked}
        now = time.monotonic()
        seen = {each: seen[each] if each in seen and seen[each][0] == beat else (beat, now) for each, beat in beats.items()}
        if all(now - since >= _SILENT_FOR for _, since in seen.values()):
            return list(seen)
        time.sleep(_LOOK_EVERY)


@command(example="*/15 * * * * outbox drain (in a crontab)")
@_worker_options
@json_option
@click.pass_context
def drain(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Deliver until nothing is due and nothing is claimed, then end.

    A destination that is left alone for now (its breaker is open, it is paused, our credentials are refused) is not waited
    for, nor is an ordering key that is paused or that a dead message blocks: exit code 4 says that messages are left. Those
    whose time has not come are not, unless a try of theirs failed.
    """
    from outbox.store import looking
    from outbox.worker import Worker

    outbox, behaviour, _ = _made(ctx, **options)
    working = Worker(outbox, **behaviour)
    working.run(until_idle=True)
    with outbox.database.read() as connection:
        counts = looking.counts(connection, outbox.ambient.now())
        put_off = looking.put_off(connection, working.destinations)
    left = {name: counts.get(name, {}).get("due", 0) for name in working.destinations}
    put_off = {name: put_off.get(name, 0) for name in working.destinations}
    if as_json:
        emit({"left": left, "put_off": put_off})
    else:
        for name in working.destinations:
            say(f"{name}: {_left(counts.get(name) or looking.nothing(), put_off[name], name)}")
    if any(left.values()) or any(put_off.values()):
        ctx.exit(LEFT_BEHIND)


#: Why a destination sends nothing for now.
_STOPPED = {"pause": "it is paused", "credentials": "our credentials are refused", "reject_streak": "it refuses everything"}


def _left(counts: Mapping[str, Any], put_off: int, name: str) -> str:
    """What a destination has left when nothing more can be done."""
    why = ""
    if counts["due"] and (counts["stop"] or counts["open_until"]):
        stopped = _STOPPED.get(counts["stop"] or "", "it is left alone for a while, since it failed")
        why = f": {stopped} (outbox explain {name}); to try it at once: outbox resume {name}"
    elif counts["due"]:
        held = [kind for kind in ("paused", "blocked") if counts[f"{kind}_keys"]]
        why = f" behind ordering keys that are {' or '.join(held)}" if held else ""
    left = f"{counts['due']:,} left{why}" if counts["due"] else "nothing left"
    failed = min(put_off, counts["waiting"])
    waiting = f", {counts['waiting']:,} waiting for their time" if counts["waiting"] else ""
    return f"{left}{waiting}" + (f", {failed:,} of them put off after a failed try" if failed else "")
