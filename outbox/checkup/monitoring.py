"""One look at the numbers that matter, for a monitor that asks every minute."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any

from sqlalchemy import Connection

from outbox import migrate
from outbox.app import Outbox
from outbox.checkup.findings import in_words
from outbox.patience import Stop
from outbox.policy import SILENT_AFTER
from outbox.store import checking
from outbox.store.checking import Backlog, Beating
from outbox.units import bytes_in_words
from outbox.units import in_words as length_in_words


class Alarm(IntEnum):
    """What Nagios and its kin understand: the exit code."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still well; None for what is not minded. Sizes in bytes."""

    max_age: timedelta | None = None  #: of the oldest message that is due
    max_dead: int | None = None
    max_pending: int | None = None
    max_spool: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look found: the worst of it, each reason in words, and the numbers of each destination."""

    alarm: Alarm
    reasons: tuple[str, ...]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    destinations: Mapping[str, Backlog] = field(default_factory=dict)


def monitor(outbox: Outbox, limits: Limits, names: Collection[str] = (), *, deadline: float = 5.0) -> Reading:
    """Look once. Never raises and never lasts longer than `deadline` seconds: what cannot be told is UNKNOWN."""
    done: list[Reading] = []

    def look() -> None:
        try:
            done.append(_look(outbox, limits, names))
        except Exception as error:  # noqa: BLE001 (a monitor is told whatever it is)
            done.append(Reading(Alarm.UNKNOWN, (in_words(error),)))

    thread = threading.Thread(target=look, name="outbox-monitor", daemon=True)
    thread.start()
    thread.join(deadline)
    return done[0] if done else Reading(Alarm.UNKNOWN, (f"the database did not answer within {deadline:g} s",))


def _look(outbox: Outbox, limits: Limits, names: Collection[str]) -> Reading:
    chosen = [outbox.destination(name).name for name in names]
    migrate.require_current(outbox.database)
    now = outbox.ambient.now()
    with outbox.database.read() as connection:
        backlog = checking.backlog(connection, now, chosen)
        beating = checking.workers(connection)
        stops = _stops(connection)
        files, spooled = checking.spooled(connection)
    for name in chosen or outbox.destinations:
        backlog.setdefault(name, Backlog())
    living = alive(beating, now)
    numbers = {
        "due": sum(each.due for each in backlog.values()),
        "waiting": sum(each.waiting for each in backlog.values()),
        "claimed": sum(each.claimed for each in backlog.values()),
        "dead": sum(each.dead for each in backlog.values()),
        "oldest_seconds": round(_oldest(backlog, stops, now), 3),
        "workers": len(living),
        "files": files,
        "spool_bytes": spooled,
    }
    critical = [*_over(numbers, limits), *_unserved(backlog, living)]
    warning: list[str] = []
    for name, said in sorted(stops.items()):
        if name in backlog:
            (warning if said["stop"] == Stop.PAUSE else critical).append(_stopped(said))
    alarm = Alarm.CRITICAL if critical else Alarm.WARNING if warning else Alarm.OK
    return Reading(alarm, (*critical, *warning), numbers, backlog)


def alive(workers: Collection[Beating], now: datetime) -> list[Beating]:
    """The workers that gave a sign of life of late."""
    return [each for each in workers if (now - each.beat_at).total_seconds() <= SILENT_AFTER]


def _stops(connection: Connection) -> dict[str, Mapping[str, Any]]:
    return {each["name"]: dict(each) for each in checking.standings(connection) if each["stop"]}


def _oldest(backlog: Mapping[str, Backlog], stops: Mapping[str, Mapping[str, Any]], now: datetime) -> float:
    """Seconds that the oldest message has been due. A person who pauses a destination knows that its messages grow old."""
    paused = {name for name, said in stops.items() if said["stop"] == Stop.PAUSE}
    due = [each.oldest_due_at for name, each in backlog.items() if each.oldest_due_at and name not in paused]
    return max(0.0, (now - min(due)).total_seconds()) if due else 0.0


def _over(numbers: Mapping[str, Any], limits: Limits) -> list[str]:
    found = []
    if limits.max_age is not None and numbers["oldest_seconds"] > limits.max_age.total_seconds():
        oldest = length_in_words(numbers["oldest_seconds"])
        found.append(f"the oldest message has been due for {oldest}, more than {length_in_words(limits.max_age)}")
    if limits.max_dead is not None and numbers["dead"] > limits.max_dead:
        found.append(f"{numbers['dead']} dead, more than {limits.max_dead}")
    unfinished = numbers["due"] + numbers["waiting"]
    if limits.max_pending is not None and unfinished > limits.max_pending:
        found.append(f"{unfinished} pending, more than {limits.max_pending}")
    if limits.max_spool is not None and numbers["spool_bytes"] > limits.max_spool:
        found.append(f"{bytes_in_words(numbers['spool_bytes'])} in the spool, more than {bytes_in_words(limits.max_spool)}")
    return found


def _unserved(backlog: Mapping[str, Backlog], living: Collection[Beating]) -> list[str]:
    """Destinations with work that no living worker does."""
    unserved = sorted(
        name for name, each in backlog.items() if each.due + each.claimed and not any(one.serving(name) for one in living)
    )
    if not unserved:
        return []
    if not living:
        return ["no worker is alive, and messages wait for one"]
    return [f"no worker that is alive serves {', '.join(unserved)}, where messages wait for one"]


def _stopped(said: Mapping[str, Any]) -> str:
    if said["stop"] == Stop.PAUSE:
        return f"{said['name']} is paused by {said['stopped_by']}: {said['stop_text']}"
    why = {Stop.CREDENTIALS: "our credentials are refused", Stop.REJECT_STREAK: "it refuses one message after the other"}
    said_so = said["stop_text"] if said["stop"] == Stop.CREDENTIALS else None  # of a streak it says the same once more
    return f"{said['name']} is stopped: {why[Stop(said['stop'])]}" + (f" ({said_so})" if said_so else "")
