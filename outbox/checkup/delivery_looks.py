"""What a doctor looks at in the work itself: who does it, what stops it, and whether its files are there."""

from __future__ import annotations

import importlib.metadata
import itertools
import time
from collections.abc import Iterator
from datetime import timedelta

from outbox.app import Outbox
from outbox.checkup.findings import Check, Finding, compared, ok, problem, warning
from outbox.checkup.monitoring import alive
from outbox.checkup.shelf import Shelf, older_than
from outbox.counting import counted, verb
from outbox.errors import FileChanged, FileMissing, SpoolError
from outbox.patience import Stop
from outbox.policy import HANDFUL, SILENT_AFTER, SWEEP_GRACE
from outbox.store import checking
from outbox.units import in_words as length_in_words

#: So many files are looked at, from either end of their rows, and in the spool; verify looks at all.
_SAMPLE = 500
_LISTED = 20_000


class DeliveryLooks:
    """Workers, destinations, messages, files. `deadline` is how many seconds a look may take."""

    def __init__(self, outbox: Outbox, deadline: float) -> None:
        self._outbox = outbox
        self._database = outbox.database
        self._deadline = deadline
        self._shelf = Shelf(outbox.spool_store)

    def checks(self) -> list[Check]:
        """What can be looked at in a database that answers, and in the spool."""
        looks = {
            "workers": self._workers,
            "served": self._served,
            "stops": self._stops,
            "dead": self._dead,
            "orphans": self._orphans,
            "files": self._files,
        }
        return [Check(name, look, database=True) for name, look in looks.items()]

    def _workers(self) -> Iterator[Finding]:
        now = self._outbox.ambient.now()
        with self._database.read() as connection:
            workers = checking.workers(connection)
            left = checking.left_behind(connection)
            work = sum(each.due + each.claimed for each in checking.backlog(connection, now).values())
        alive = 0
        for each in workers:
            who = f"worker {each.id[-8:]} ({each.host}, pid {each.pid})"
            age = (now - each.beat_at).total_seconds()
            if age > SILENT_AFTER:
                yield warning(
                    f"{who} last gave a sign of life {length_in_words(age)} ago",
                    "if it runs, look at its log and at its clock; if not, the next worker that starts takes back what it held",
                )
                continue
            alive += 1
            if age < -SILENT_AFTER:
                yield compared(f"that of {each.host}", -age)
            ours = _version()
            if each.version is not None and ours is not None and each.version != ours:
                text = f"{who} runs durable-outbox {each.version}, and this is {ours}"
                yield warning(text, "restart it with the version that is meant")
        if alive:
            yield ok(f"{counted(alive, 'worker')} {verb(alive, 'is', 'are')} alive")
        elif work:
            text = f"no worker is alive, and {counted(work, 'message')} {verb(work, 'is', 'are')} due"
            yield problem(text, "start one with: outbox worker")
        else:
            yield warning("no worker is alive; nothing is due", "start one with: outbox worker")
        if left:
            yield (warning if alive else problem)(
                f"{counted(left, 'delivery')} {verb(left, 'was', 'were')} left behind by workers that are gone",
                "a worker that serves their destination takes them back within seconds; start one if none runs",
            )

    def _served(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            living = alive(checking.workers(connection), self._outbox.ambient.now())
            backlog = checking.backlog(connection, self._outbox.ambient.now())
        known = self._outbox.destinations
        for name in sorted({*known, *backlog}):
            each = backlog.get(name)
            unfinished = each.due + each.waiting + each.claimed if each is not None else 0
            messages = counted(unfinished, "message")
            if name not in known:
                if unfinished:
                    yield problem(
                        f"{messages} {verb(unfinished, 'is', 'are')} for {name}, which nobody declares here",
                        f"declare {name} in the settings again, or cancel them: outbox cancel --destination {name}",
                    )
            elif any(one.serving(name) for one in living):
                yield ok(f"a worker serves {name}")
            elif living:
                wait = f"{messages} {verb(unfinished, 'waits', 'wait')}" if unfinished else "nothing waits"
                yield (problem if unfinished else warning)(
                    f"no worker that is alive serves {name}; {wait}",
                    f"start one with: outbox worker --destination {name}",
                )

    def _stops(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            standings = checking.standings(connection)
        for each in standings:
            name, why = each["name"], each["stop_text"] or ""
            if name not in self._outbox.destinations:
                continue
            match each["stop"]:
                case None if each["open_until"] is not None:
                    next_try = f"next try {each['open_until']:%H:%M:%S} UTC"
                    text = f"{name} is in trouble: {counted(each['failures'], 'failure')} in a row; {next_try}"
                    yield warning(text, f"run: outbox explain {name}")
                case None:
                    yield ok(f"{name} is not stopped")
                case Stop.PAUSE:
                    text = (
                        f"{name} has been paused since {each['stopped_at']:%Y-%m-%d %H:%M} UTC by {each['stopped_by']}: {why}"
                    )
                    yield warning(text, f"when it may go on: outbox resume {name}")
                case Stop.CREDENTIALS:
                    text = f"{name} refuses our credentials: {why}"
                    yield problem(
                        text, f"mend the key or the secret; it is tried every 15 minutes, at once with: outbox resume {name}"
                    )
                case _:
                    text = f"{name} is stopped, since it {why or 'refuses one message after the other'}"
                    yield problem(text, f"look at its address and orgId, then: outbox resume {name}")

    def _dead(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            backlog = checking.backlog(connection, self._outbox.ambient.now())
        dead = {name: each.dead for name, each in sorted(backlog.items()) if each.dead}
        for name, number in dead.items():
            remedy = f"see why with: outbox list --state dead --destination {name}; then outbox replay or outbox cancel"
            yield warning(f"{counted(number, 'message')} for {name} {verb(number, 'is', 'are')} dead", remedy)
        if not dead:
            yield ok("no message is dead")

    def _orphans(self) -> Iterator[Finding]:
        now, ends = self._outbox.ambient.now(), time.monotonic() + self._deadline / 2
        grace = SWEEP_GRACE + timedelta(hours=2)  # a running worker sweeps once an hour
        looked = orphans = 0
        found = (each for each in self._shelf.files() if not each.swept)
        while looked < _LISTED and time.monotonic() < ends and (some := list(itertools.islice(found, HANDFUL))):
            looked += len(some)
            old = [each.name for each in some if older_than(each, now, grace.total_seconds())]
            with self._database.read() as connection:
                orphans += len(set(old) - checking.vouched(connection, old))
        seen = f"among {counted(looked, 'file')}" if looked else "in an empty spool"
        if orphans:
            remedy = "a running worker sets such files aside within the hour and deletes them after a week; start one"
            yield warning(f"no row refers to {counted(orphans, 'old file')} {seen}", remedy)
        else:
            yield ok(f"no file without a row {seen}")

    def _files(self) -> Iterator[Finding]:
        if not self._shelf.is_there():
            return
        with self._database.read() as connection:
            sample = checking.some_files(connection, _SAMPLE)
        wrong = [name for name, size in sample.items() if not self._lies_there(name, size)]
        if wrong:
            with self._database.read() as connection:
                wrong = sorted(checking.vouched(connection, wrong))  # the others were freed meanwhile
        if wrong:
            looked = f"{len(wrong):,} of {counted(len(sample), 'file')} that {verb(len(sample), 'was', 'were')} looked at"
            are = f"{verb(len(wrong), 'is', 'are')} missing or not as long as when enqueued"
            text = f"{looked} {are} ({wrong[0]})"
            yield problem(text, "run: outbox verify, which names the messages; look at the disk")
        else:
            seen = f"the {counted(len(sample), 'file')} that {verb(len(sample), 'was', 'were')} looked at"
            yield ok(f"{seen} {verb(len(sample), 'is', 'are')} there" if sample else "no file is kept")

    def _lies_there(self, name: str, size: int) -> bool:
        try:
            return self._shelf.size(name) == size
        except (FileMissing, FileChanged, SpoolError):
            return False


def _version() -> str | None:
    try:
        return importlib.metadata.version("durable-outbox")
    except importlib.metadata.PackageNotFoundError:
        return None
