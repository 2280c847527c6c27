"""Doctor: everything around an outbox that is known to go wrong, each looked at by itself, each with its remedy."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import literal, select

from outbox import migrate
from outbox.app import Outbox
from outbox.checkup import network, places
from outbox.checkup.findings import Finding, Level, in_words
from outbox.checkup.probe import BEAT_OLD_AFTER
from outbox.checkup.shelf import Shelf, older_than
from outbox.database import not_power_safe
from outbox.destinations.base import Destination, seconds_until
from outbox.destinations.token import CredentialsRefused
from outbox.errors import ConfigurationError, FileChanged, FileMissing, OutboxError, SpoolError, TransportError
from outbox.patience import Stop
from outbox.policy import HANDFUL, SWEEP_GRACE
from outbox.secret import conceal
from outbox.spool.directory import DirectorySpool
from outbox.store import checking
from outbox.timekeeping import SKEW, plausible
from outbox.transport import Answer, RequestsTransport, Transport
from outbox.units import bytes_in_words
from outbox.units import in_words as length_in_words

MIB = 1024 * 1024
#: Seconds that a look around this machine, and one over the network, may take.
_DEADLINE, _NETWORK_DEADLINE, _CONNECT = 10.0, 12.0, 5.0
#: The first SQLite whose checkpointers cannot lose a race with each other, and the repaired releases before it.
_WAL_MENDED = (3, 51, 3)
#: A log that is cut after each checkpoint is far shorter than this.
_LONG_WAL = 160 * MIB
#: Less free than this is soon none; less than that, or than so much of the whole, deserves a word.
_FREE_AT_LEAST, _FREE_WORD, _FREE_SHARE = 64 * MIB, 1024 * MIB, 0.05
_FREE_FILES = 10_000
#: Of a quota, what is nearly all of it.
_NEARLY = 0.9
#: So many files are looked at, from either end; verify looks at all.
_SAMPLE = 500
_LISTED = 20_000
#: A larger database is for verify to read.
_QUICK = 64 * MIB
_OLD_TRANSACTION = 60.0


class _Look(Protocol):
    def __call__(self) -> Iterable[Finding]: ...


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    look: _Look
    deadline: float = _DEADLINE
    database: bool = False  #: it needs one that answers
    network: bool = False


def _ok(text: str) -> Finding:
    return Finding("", Level.OK, text)


def _warning(text: str, remedy: str) -> Finding:
    return Finding("", Level.WARNING, text, remedy)


def _problem(text: str, remedy: str) -> Finding:
    return Finding("", Level.PROBLEM, text, remedy)


class Doctor:
    """Looks around an outbox and changes nothing. `settings_file` is where it was described, if anywhere.

    `offline` leaves out what goes over the network to destinations; the database is asked in any case. `mounts` is the text of
    /proc/self/mountinfo, read when it is needed.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        offline: bool = False,
        settings_file: Path | None = None,
        transport: Transport | None = None,
        mounts: Callable[[], str | None] = places.mounts,
    ) -> None:
        self._outbox = outbox
        self._database = outbox.database
        self._offline = offline
        self._settings_file = settings_file
        self._transport = transport or RequestsTransport()
        self._mounts = mounts
        self._shelf = Shelf(outbox.spool_store)

    def run(self) -> Iterator[Finding]:
        """Every finding, in a fixed order. All looks begin at once, and none is waited for longer than its own deadline."""
        database = _Running(_Check("database", self._answers))
        answered = list(database.findings())
        well = all(each.level is not Level.PROBLEM for each in answered)
        checks = [each for each in self._checks() if not (each.network and self._offline)]
        running = [_Running(each) for each in checks if well or not each.database]
        yield from answered
        for each in running:
            yield from each.findings()
        if not well:
            left_out = ", ".join(each.name for each in checks if each.database)
            yield Finding("left_out", Level.WARNING, f"not looked at: {left_out}", "run this again when the database answers")

    def _checks(self) -> list[_Check]:
        lite = self._database.kind == "sqlite"
        of_database = (
            [
                _Check("integrity", self._integrity, database=True),
                _Check("vacuum", self._vacuum, database=True),
                _Check("wal_race", self._wal_race, database=True),
                _Check("wal", self._wal),
            ]
            if lite
            else [
                _Check("checksums", self._checksums, database=True),
                _Check("transactions", self._transactions, database=True),
            ]
        )
        each_destination = [
            check
            for destination in self._outbox.destinations.values()
            for check in (
                _Check("reach", _bound(self._reach, destination), _NETWORK_DEADLINE, network=True),
                _Check("token", _bound(self._token, destination), _NETWORK_DEADLINE, network=True),
            )
        ]
        return [
            _Check("schema", self._schema, database=True),
            _Check("power", self._power, database=True),
            *of_database,
            _Check("clock", self._clock, database=not lite),
            _Check("settings", self._settings),
            _Check("permissions", self._permissions),
            _Check("spool", self._spool),
            _Check("file_system", self._file_system),
            _Check("disk", self._disk),
            _Check("quota", self._quota, database=True),
            _Check("reserve", self._reserve, database=True),
            _Check("workers", self._workers, database=True),
            _Check("served", self._served, database=True),
            _Check("stops", self._stops, database=True),
            _Check("dead", self._dead, database=True),
            _Check("orphans", self._orphans, database=True),
            _Check("files", self._files, database=True),
            *each_destination,
        ]

    # The database

    def _answers(self) -> Iterator[Finding]:
        path = self._database.path
        try:
            with self._database.read() as connection:
                connection.execute(select(literal(1)))
        except Exception as error:  # noqa: BLE001 (a driver may raise anything)
            where = str(path) if path is not None else repr(self._database)
            remedy = (
                "run: outbox verify, keep a copy of the file with its -wal, and restore a backup"
                if path is not None and path.exists()
                else "look whether it is up and whether its address in the settings is right"
            )
            yield _problem(f"{where} cannot be read: {in_words(error)}", remedy)
        else:
            yield _ok(f"{self._database.kind} answers")

    def _schema(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            found = migrate.current(connection)
        if found == migrate.newest():
            yield _ok(f"the schema is {found}, as this code needs")
        elif found is None or found < migrate.newest():
            yield _problem(f"the schema is {found or 'missing'}, this code needs {migrate.newest()}", "run: outbox db upgrade")
        else:
            text = f"the schema is {found}, newer than this code ({migrate.newest()}): its workers refuse to start"
            yield _problem(text, "upgrade durable-outbox here")

    def _power(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            fault = not_power_safe(connection, select(literal(1)))
        if fault is None:
            yield _ok("a commit of ours survives a power cut")
        else:
            text, _, remedy = fault.partition("; ")
            yield _problem(text, remedy)

    def _integrity(self) -> Iterator[Finding]:
        path = self._database.path
        if path is None:
            return
        size = path.stat().st_size
        if size > _QUICK:
            yield _ok(f"not read through: the database has {bytes_in_words(size)}; outbox verify does")
            return
        with self._database.inspecting() as engine, engine.begin() as connection:
            faults = checking.unsound(connection, quick=True)
        if faults:
            remedy = "stop the workers, keep a copy of the database with its -wal file, and run: outbox verify"
            yield _problem(f"the database is damaged: {faults[0].splitlines()[0]}", remedy)
        else:
            yield _ok("SQLite's quick check finds nothing")

    def _vacuum(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            said = checking.pragmas(connection)
        free = bytes_in_words(said["freelist_count"] * said["page_size"])
        if said["auto_vacuum"] == 0:
            yield _warning(
                f"the database keeps the space of what is purged ({free} of it now); new messages use it again",
                "to have it back, stop everything that uses the file and run once: "
                f'sqlite3 {self._database.path} "PRAGMA auto_vacuum=INCREMENTAL; VACUUM;"',
            )
        else:
            yield _ok(f"purged space is given back; {free} are free for now")

    def _wal_race(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            version = checking.pragmas(connection)["version"]
        if tuple(int(part) for part in version.split(".")[:3]) >= _WAL_MENDED:
            yield _ok(f"SQLite {version} has no race between checkpointers")
        else:
            yield _warning(
                f"SQLite {version} may damage a database, very rarely, when two connections checkpoint at the same time "
                "(mended in 3.51.3)",
                "let one worker process alone checkpoint: call outbox.prepare(engine) for your own engines, run one worker for "
                "this file, and upgrade SQLite",
            )

    def _wal(self) -> Iterator[Finding]:
        path = self._database.path
        if path is None:
            return
        log = path.with_name(path.name + "-wal")
        size = log.stat().st_size if log.exists() else 0
        if size > _LONG_WAL:
            yield _warning(
                f"{log.name} has grown to {bytes_in_words(size)}: it is not moved into the database",
                "start a worker; if one runs, end the program that has kept a transaction open on this database",
            )
        else:
            yield _ok(f"the write-ahead log has {bytes_in_words(size)}")

    def _checksums(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            on = checking.checksums(connection)
        if on:
            yield _ok("the server notices pages that changed on its disk")
        else:
            yield _warning(
                "the server would not notice a page that changed on its disk", "stop it and run: pg_checksums --enable"
            )

    def _transactions(self) -> Iterator[Finding]:
        oldest = self._database.oldest_transaction()
        if oldest is None or oldest.seconds < _OLD_TRANSACTION:
            yield _ok("no transaction has been open for longer than a minute")
            return
        yield _warning(
            f"{oldest.what} has been open for {length_in_words(oldest.seconds)}: what was deleted since cannot be cleaned up, "
            "and claims grow slow",
            "let that program commit or roll back; if nobody misses it, end it with pg_terminate_backend or ROLLBACK PREPARED",
        )

    # The machine

    def _clock(self) -> Iterator[Finding]:
        now = self._outbox.ambient.now()
        if not plausible(now):
            text = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC: it has not been set"
            yield _problem(text, "set the clock, or let it be set by the network (chrony, systemd-timesyncd)")
            return
        if self._database.kind == "sqlite":
            yield _ok(f"it is {now:%Y-%m-%d %H:%M:%S} UTC here")
            return
        with self._database.read() as connection:
            connection.execute(select(literal(1)))  # so that connecting does not count
            asked = self._outbox.ambient.now()
            theirs = checking.clock(connection)
        yield self._compared("the database's", (theirs - asked).total_seconds(), Level.PROBLEM)

    def _compared(self, whose: str, ahead: float, level: Level = Level.WARNING) -> Finding:
        if abs(ahead) <= SKEW:
            return _ok(f"this machine's clock agrees with {whose} to {length_in_words(abs(ahead))}")
        text = f"this machine's clock is {length_in_words(abs(ahead))} {'behind' if ahead > 0 else 'ahead of'} {whose}"
        return Finding("", level, text, "set the clocks by the network (chrony, systemd-timesyncd)")

    def _settings(self) -> Iterator[Finding]:
        path = self._settings_file
        if path is None or not path.exists():
            yield _ok("there is no settings file")
            return
        mode = path.stat().st_mode & 0o777
        if os.name != "nt" and mode & 0o002:
            text = f"everybody may write to {path} ({mode:04o}), and so send the messages elsewhere"
            yield _problem(text, f"run: chmod o-w {path}")
        else:
            yield _ok(f"{path} is not everybody's to write")

    def _permissions(self) -> Iterator[Finding]:
        if os.name == "nt":
            yield _ok("not looked at: this system has no modes")
            return
        faults = [*places.permission_faults(self._database_files()), *places.permission_faults(self._spool_paths())]
        for each in faults:
            yield (_problem if each.grave else _warning)(each.text, each.remedy)
        if not faults:
            yield _ok("the database and the spool are their owner's alone")

    def _database_files(self) -> list[Path]:
        path = self._database.path
        suffixes = ("", "-wal", "-shm", "-reserve")
        return [path.with_name(path.name + suffix) for suffix in suffixes] if path is not None else []

    def _spool_paths(self) -> Iterator[Path]:
        """The spool, its folders, and some of its files."""
        root = self._root()
        if root is None or not root.is_dir():
            return
        folders = [root, *sorted(each for each in root.iterdir() if each.is_dir() and not each.is_symlink())]
        yield from folders
        for folder in folders[1:]:
            yield from itertools.islice((each for each in folder.iterdir() if each.is_file()), 4)

    def _root(self) -> Path | None:
        spool = self._outbox.spool_store
        return spool.root if isinstance(spool, DirectorySpool) else None

    def _spool(self) -> Iterator[Finding]:
        root = self._root()
        if root is None:
            yield _ok("the spool is no directory")
        elif self._shelf.is_there():
            yield _ok(f"{root} is a spool")
        else:
            with self._database.read() as connection:
                files, _ = checking.spooled(connection)
            text = f"{root} is not a spool" if root.exists() else f"there is no spool {root}"
            if files:
                yield _problem(f"{text}, and {files} files should be in it", "look whether its disk is mounted")
            else:
                yield _warning(text, "run: outbox init, or look whether its disk is mounted; the first file makes it too")

    def _file_system(self) -> Iterator[Finding]:
        told = self._mounts()
        here = [each for each in (self._database.path, self._root()) if each is not None]
        if told is None:
            yield _ok(f"not looked at: {sys.platform} does not say what is mounted in Linux' way")
            return
        for path in here:
            mount = places.mount_of(places.nearest(path).resolve(), told)
            if mount is None:
                yield _ok(f"{path} is on a file system that is not listed")
            elif mount.remote:
                yield _problem(
                    f"{path} is on {mount.kind}, mounted at {mount.point}: its locks and its fsync cannot be counted on",
                    "move it to a disk of this machine; for several machines use Postgres",
                )
            elif mount.kind in ("tmpfs", "ramfs"):
                yield _problem(f"{path} is on {mount.kind}: it is gone after a restart", "move it to a disk")
            else:
                yield _ok(f"{path} is on {mount.kind}")

    def _disk(self) -> Iterator[Finding]:
        for what, path in (("database", self._database.path), ("spool", self._root())):
            if path is None:
                continue
            left = places.room(path)
            text = f"{bytes_in_words(left.free)} of {bytes_in_words(left.total)} are free for the {what}"
            remedy = f"make room on the disk of {path}: outbox purge, or anything else that is not needed"
            if left.free < _FREE_AT_LEAST:
                yield _problem(text, remedy)
            elif left.free < min(_FREE_WORD, _FREE_SHARE * left.total):
                yield _warning(text, remedy)
            elif left.files is not None and left.files < _FREE_FILES:
                yield _warning(f"the file system of the {what} takes only {left.files} more files", remedy)
            else:
                yield _ok(text)

    def _quota(self) -> Iterator[Finding]:
        most = self._outbox.room.quota
        if most is None:
            yield _warning("the spool may grow until its disk is full", 'set a quota in the settings, such as quota = "20 GiB"')
            return
        with self._database.read() as connection:
            _, spooled = checking.spooled(connection)
        text = f"{bytes_in_words(spooled)} of the spool's quota of {bytes_in_words(most)} are used"
        remedy = "find out why so much waits (outbox status), or raise the quota"
        if spooled >= most:
            yield _problem(f"{text}: new files are refused", remedy)
        elif spooled >= _NEARLY * most:
            yield _warning(text, remedy)
        else:
            yield _ok(text)

    def _reserve(self) -> Iterator[Finding]:
        size, path = self._outbox.room.reserve, self._database.path
        if path is None:
            return
        kept = path.with_name(f"{path.name}-reserve")
        if not size:
            text = "nothing is reserved for finishing what is there when the disk is full"
            yield _warning(text, 'leave out reserve = 0 in the settings, or say reserve = "16 MiB"')
        elif kept.exists():
            yield _ok(f"{bytes_in_words(size)} are kept in {kept.name} for when the disk is full")
        elif self._alive():
            text = f"{kept.name} is not there: its room was needed, or could not be had"
            yield _warning(text, f"make room on the disk of {path}; the worker takes it again by itself")
        else:
            yield _ok(f"a worker will keep {bytes_in_words(size)} for when the disk is full")

    # Who delivers

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
            if age > BEAT_OLD_AFTER:
                yield _warning(
                    f"{who} last gave a sign of life {length_in_words(age)} ago",
                    "if it runs, look at its log and at its clock; if not, the next worker that starts takes back what it held",
                )
                continue
            alive += 1
            if age < -BEAT_OLD_AFTER:
                yield self._compared(f"that of {each.host}", -age)
            ours = _version()
            if each.version is not None and ours is not None and each.version != ours:
                text = f"{who} runs durable-outbox {each.version}, and this is {ours}"
                yield _warning(text, "restart it with the version that is meant")
        if alive:
            yield _ok(f"{alive} worker{'s are' if alive > 1 else ' is'} alive")
        elif work:
            yield _problem(f"no worker is alive, and {work} messages are due", "start one with: outbox worker")
        else:
            yield _warning("no worker is alive; nothing is due", "start one with: outbox worker")
        if left:
            yield (_warning if alive else _problem)(
                f"{left} deliveries were left behind by workers that are gone",
                "a worker that serves their destination takes them back within seconds; start one if none runs",
            )

    def _alive(self) -> list[checking.Beating]:
        """The workers that gave a sign of life of late."""
        now = self._outbox.ambient.now()
        with self._database.read() as connection:
            return [each for each in checking.workers(connection) if (now - each.beat_at).total_seconds() <= BEAT_OLD_AFTER]

    def _served(self) -> Iterator[Finding]:
        alive = self._alive()
        with self._database.read() as connection:
            backlog = checking.backlog(connection, self._outbox.ambient.now())
        known = self._outbox.destinations
        for name in sorted({*known, *backlog}):
            each = backlog.get(name)
            unfinished = each.due + each.waiting + each.claimed if each is not None else 0
            if name not in known:
                if unfinished:
                    text = f"{unfinished} messages are for {name}, which nobody declares here"
                    yield _problem(
                        text, f"declare {name} in the settings again, or cancel them: outbox cancel --destination {name}"
                    )
            elif any(one.serving(name) for one in alive):
                yield _ok(f"a worker serves {name}")
            elif alive:
                yield (_problem if unfinished else _warning)(
                    f"no worker that is alive serves {name}; {unfinished} messages wait",
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
                    text = f"{name} is in trouble: {each['failures']} failures in a row; {next_try}"
                    yield _warning(text, f"run: outbox explain {name}")
                case None:
                    yield _ok(f"{name} is not stopped")
                case Stop.PAUSE:
                    text = (
                        f"{name} has been paused since {each['stopped_at']:%Y-%m-%d %H:%M} UTC by {each['stopped_by']}: {why}"
                    )
                    yield _warning(text, f"when it may go on: outbox resume {name}")
                case Stop.CREDENTIALS:
                    text = f"{name} refuses our credentials: {why}"
                    yield _problem(
                        text, f"mend the key or the secret; it is tried every 15 minutes, at once with: outbox resume {name}"
                    )
                case _:
                    text = f"{name} is stopped, since it refuses one message after the other: {why}"
                    yield _problem(text, f"look at its address and orgId, then: outbox resume {name}")

    def _dead(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            backlog = checking.backlog(connection, self._outbox.ambient.now())
        dead = {name: each.dead for name, each in sorted(backlog.items()) if each.dead}
        for name, number in dead.items():
            remedy = f"see why with: outbox list --state dead --destination {name}; then outbox replay or outbox cancel"
            yield _warning(f"{number} messages for {name} are dead", remedy)
        if not dead:
            yield _ok("no message is dead")

    # The spool's rows and files

    def _orphans(self) -> Iterator[Finding]:
        now, ends = self._outbox.ambient.now(), time.monotonic() + _DEADLINE / 2
        grace = SWEEP_GRACE + timedelta(hours=2)  # a running worker sweeps once an hour
        looked = orphans = 0
        found = (each for each in self._shelf.files() if not each.swept)
        while looked < _LISTED and time.monotonic() < ends and (some := list(itertools.islice(found, HANDFUL))):
            looked += len(some)
            old = [each.name for each in some if older_than(each, now, grace.total_seconds())]
            with self._database.read() as connection:
                orphans += len(set(old) - checking.vouched(connection, old))
        seen = f"among {looked} files" if looked else "in an empty spool"
        if orphans:
            remedy = "a running worker sets them aside within the hour and deletes them after a week; start one"
            yield _warning(f"no row refers to {orphans} old files {seen}", remedy)
        else:
            yield _ok(f"no file without a row {seen}")

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
            text = (
                f"{len(wrong)} of {len(sample)} files that were looked at are missing or not as long as they were ({wrong[0]})"
            )
            yield _problem(text, "run: outbox verify, which names the messages; look at the disk")
        else:
            yield _ok(f"the {len(sample)} files that were looked at are there")

    def _lies_there(self, name: str, size: int) -> bool:
        try:
            return self._shelf.size(name) == size
        except (FileMissing, FileChanged, SpoolError):
            return False

    # The other side

    def _reach(self, destination: Destination) -> Iterator[Finding]:
        try:
            reached = network.reach(destination.url, _CONNECT, datetime.now(UTC))
        except OSError as error:
            why, remedy = network.in_words(error)
            yield _problem(f"{destination.name} cannot be reached at {destination.url}: {why}", remedy)
            return
        yield _ok(f"{destination.name} is reached at {reached.host} in {length_in_words(reached.seconds)}")
        if reached.ahead is not None:
            yield self._compared(f"that of {destination.name}", reached.ahead)

    def _token(self, destination: Destination) -> Iterator[Finding]:
        credentials = destination.credentials
        if credentials is None:
            yield _ok(f"{destination.name} needs no credentials")
            return
        listening = _Listening(self._transport)
        ambient = self._outbox.ambient
        try:
            credentials.headers(listening, ambient.now(), ambient.monotonic())
        except CredentialsRefused as error:
            yield _problem(f"{destination.name}: {error}", "mend the app key or the secret, or set this machine's clock")
        except ConfigurationError as error:
            yield _problem(f"{destination.name}: {error}", "give the secret where the settings say it is")
        except TransportError as error:
            yield _problem(f"{destination.name}: {error}", "look at the token service's address, and at the network")
        except OutboxError as error:
            yield _problem(f"{destination.name}: {error}", "look at the settings of its token")
        else:
            yield _ok(f"{destination.name} gives us a token")
        ahead = seconds_until(listening.date, ambient.now())
        if ahead is not None:
            yield self._compared(f"that of {destination.name}'s token service", ahead)


class _Listening:
    """A transport that remembers what time the last answer said it is."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.date = ""

    def send(self, *request: Any, **named: Any) -> Answer:
        return self._transport.send(*request, **named)

    def post_json(self, url: str, body: bytes, deadline: float, connect: float) -> Answer:
        answer = self._transport.post_json(url, body, min(deadline, _CONNECT), min(connect, _CONNECT))
        self.date = answer.headers.get("date", "")
        return answer

    def cut(self) -> None:
        self._transport.cut()


class _Running:
    """A look under way, on a thread of its own: one that hangs is left hanging."""

    def __init__(self, check: _Check) -> None:
        self._check = check
        self._found: list[Finding] = []
        self._error: Exception | None = None
        self._ends = time.monotonic() + check.deadline
        self._thread = threading.Thread(target=self._look, name=f"outbox-doctor-{check.name}", daemon=True)
        self._thread.start()

    def findings(self) -> list[Finding]:
        """What was found; that it failed or took too long is a finding too."""
        self._thread.join(max(0.0, self._ends - time.monotonic()))
        if self._thread.is_alive():
            text = f"not finished within {self._check.deadline:g} s"
            found = [_problem(text, "look at the disk and the network: something does not answer")]
        elif self._error is not None:
            text = f"cannot be looked at: {in_words(self._error)}"
            found = [*self._found, _problem(text, "look at the log of this machine; if the database is damaged: outbox verify")]
        else:
            found = self._found
        return [replace(each, check=self._check.name, text=conceal(each.text)) for each in found]

    def _look(self) -> None:
        try:
            self._found.extend(self._check.look())
        except Exception as error:  # noqa: BLE001 (it becomes a finding)
            self._error = error


def _bound(look: Callable[[Destination], Iterable[Finding]], destination: Destination) -> _Look:
    def bound() -> Iterable[Finding]:
        return look(destination)

    return bound


def _version() -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version("durable-outbox")
    except importlib.metadata.PackageNotFoundError:
        return None
