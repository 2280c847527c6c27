"""`outbox worker` and `outbox drain`: the background process, and the same until nothing is left to do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rich_click as click

from outbox.cli.context import LEFT_BEHIND, outbox_and_worker
from outbox.cli.options import command, json_option
from outbox.cli.printing import emit, say

if TYPE_CHECKING:
    from outbox.worker import Worker


def _worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
        ),
        click.option("--stop-grace", type=float, metavar="SECONDS", help="Time for uploads in hand at a stop. [30]"),
        click.option(
            "--gone-after", type=float, metavar="SECONDS", help="Another worker's silence that frees its claims. [15]"
        ),
        click.option("--destination", "destinations", multiple=True, help="Serve only this one; may be given again. [all]"),
    ):
        command = option(command)
    return command


def _worker(
    ctx: click.Context,
    destinations: tuple[str, ...],
    gone_after: float | None,
    stop_grace: float | None,
    log_level: str,
) -> Worker:
    from outbox.worker import Worker

    logging.basicConfig(stream=sys.stderr, level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    outbox, settings = outbox_and_worker(ctx)
    return Worker(
        outbox,
        destinations=destinations or None,
        gone_after=settings.gone_after if gone_after is None else gone_after,
        stop_grace=settings.stop_grace if stop_grace is None else stop_grace,
        poll=settings.poll,
    )


@command(example="outbox worker --destination enos")
@_worker_options
@click.pass_context
def worker(ctx: click.Context, /, **options: Any) -> None:
    """Deliver until told to stop. SIGTERM and SIGINT finish the uploads in hand; what was not begun goes back unharmed."""
    _worker(ctx, **options).run()


@command(example="*/15 * * * * outbox drain (in a crontab)")
@_worker_options
@json_option
@click.pass_context
def drain(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Deliver until nothing is due and nothing is claimed, then end.

    A destination that is left alone for now (its breaker is open, it is paused, our credentials are refused) is not waited
    for: exit code 4 says that messages are left.
    """
    from outbox.store import looking

    working = _worker(ctx, **options)
    working.run(until_idle=True)
    outbox = working.outbox
    with outbox.database.read() as connection:
        counts = looking.counts(connection, outbox.ambient.now())
        put_off = looking.put_off(connection, working.destinations)
    left = {name: counts.get(name, {}).get("due", 0) for name in working.destinations}
    put_off = {name: put_off.get(name, 0) for name in working.destinations}
    if as_json:
        emit({"left": left, "put_off": put_off})
    else:
        for name in working.destinations:
            later = f", {put_off[name]} put off to a later try" if put_off[name] else ""
            say(f"{name}: {left[name] or 'nothing'} left{later}")
    if any(left.values()) or any(put_off.values()):
        ctx.exit(LEFT_BEHIND)
