"""What a doctor looks at in the database itself."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import literal, select

from outbox import migrate
from outbox.app import Outbox
from outbox.checkup.findings import AS_ITS_USER, Check, Finding, in_words, ok, problem, warning
from outbox.database import not_power_safe
from outbox.errors import DatabaseDamaged
from outbox.store import checking
from outbox.units import bytes_in_words
from outbox.units import in_words as length_in_words

MIB = 1024 * 1024
#: The first SQLite whose checkpointers cannot lose a race with each other.
_WAL_MENDED = (3, 51, 3)
#: A log that is cut after each checkpoint is far shorter than this.
_LONG_WAL = 160 * MIB
#: A larger database is for verify to read.
_QUICK = 64 * MIB
#: Seconds after which a transaction has been open for long.
_OLD_TRANSACTION = 60.0
#: Seconds for which SQLite's write lock is waited for: who works with short transactions gives it back in a hundredth of that.
_LOCK_KEPT = 2.0


class DatabaseLooks:
    """Its schema, its settings, its soundness."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._database = outbox.database
        self.has_tables = False  #: those that this code asks: known once the schema was looked at

    def checks(self) -> list[Check]:
        """What can be looked at in a database that answers, besides its schema."""
        if self._database.kind == "sqlite":
            return [
                Check("power", self._power, database=True),
                Check("lock", self._lock, database=True),
                Check("integrity", self._integrity, database=True),
                Check("vacuum", self._vacuum, database=True),
                Check("wal_race", self._wal_race, database=True),
                Check("wal", self._wal),
            ]
        return [
            Check("power", self._power, database=True),
            Check("checksums", self._checksums, database=True),
            Check("transactions", self._transactions, database=True),
        ]

    def answers(self) -> Iterator[Finding]:
        """Whether it can be asked at all."""
        path = self._database.path
        try:
            with self._database.read() as connection:
                connection.execute(select(literal(1)))
        except Exception as error:  # noqa: BLE001 (a driver may raise anything)
            yield self._unreadable(error, path)
        else:
            yield ok(f"{self._database.kind} answers")

    def _unreadable(self, error: Exception, path: Path | None) -> Finding:
        if path is None:
            remedy = "look whether it is up, and at its address, its user and its password in the settings"
            return problem(f"the database cannot be read: {in_words(error)}", remedy)
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            remedy = "if there was one, look first whether its disk is mounted; for a new one run: outbox init"
            return problem(f"there is no database {path}", remedy)
        except OSError as unseen:
            return problem(f"{path} cannot be looked at: {unseen.strerror}", AS_ITS_USER)
        if stat.S_ISDIR(mode):
            return problem(f"{path} is a directory", "name the file of the database itself in the settings")
        if isinstance(error, DatabaseDamaged):
            remedy = "stop what uses it, keep its files (-wal and -shm too), run: outbox verify, and restore a copy"
        else:
            remedy = "look whether we may read and write it and its folder, and at its disk"
        return problem(f"{path} cannot be read: {in_words(error)}", remedy)

    def schema(self) -> Iterator[Finding]:
        """Whether it is the one of this code. A newer one has all that this code asks for, an older one has not."""
        with self._database.read() as connection:
            standing = migrate.standing(connection)
        found = standing.revision
        self.has_tables = found is not None and found >= migrate.newest()
        if found == migrate.newest():
            yield ok(f"the schema is {found}, as this code needs")
        elif found is None or found < migrate.newest():
            text = f"the schema is {found or 'missing'}, this code needs {migrate.newest()}"
            yield problem(text, f"run: {standing.remedy}")
        else:
            text = f"the schema is {found}, newer than this code ({migrate.newest()}): its workers refuse to start"
            yield problem(text, "upgrade durable-outbox here")

    def _power(self) -> Iterator[Finding]:
        if self._database.kind == "sqlite" and not self.has_tables:
            return  # who makes the schema makes that safe, too
        with self._database.read() as connection:
            fault = not_power_safe(connection, select(literal(1)))
        if fault is None:
            yield ok("a commit of ours survives a power cut")
        else:
            text, _, remedy = fault.partition("; ")
            yield problem(text, remedy)

    def _lock(self) -> Iterator[Finding]:
        if self._database.takes_writers(_LOCK_KEPT):
            yield ok("whoever writes gets a turn")
        else:
            text = f"somebody has kept the write lock for {_LOCK_KEPT:g} s: meanwhile nothing is enqueued, claimed or recorded"
            yield problem(text, "find out which program has a transaction open there (fuser, lsof), and have it end")

    def _integrity(self) -> Iterator[Finding]:
        path = self._database.path
        if path is None:
            return
        size = path.stat().st_size
        if size > _QUICK:
            yield ok(f"not read through: the database has {bytes_in_words(size)}; outbox verify does")
            return
        with self._database.inspecting() as engine, engine.begin() as connection:
            faults = checking.unsound(connection, quick=True)
        if faults:
            remedy = "stop what uses it, keep its files (-wal and -shm too), run: outbox verify, and restore a copy"
            yield problem(f"the database is damaged: {faults[0].splitlines()[0]}", remedy)
        else:
            yield ok("SQLite's quick check finds nothing")

    def _vacuum(self) -> Iterator[Finding]:
        if not self.has_tables:
            return
        with self._database.read() as connection:
            said = checking.pragmas(connection)
        free = bytes_in_words(said["freelist_count"] * said["page_size"])
        if said["auto_vacuum"] == 0:
            yield warning(
                f"the database keeps the space of what is purged ({free} of it now); new messages use it again",
                "to have it back, stop everything that uses the file and run once: "
                f'sqlite3 {self._database.path} "PRAGMA auto_vacuum=INCREMENTAL; VACUUM;"',
            )
        else:
            yield ok(f"purged space is given back; {free} are free for now")

    def _wal_race(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            version = checking.pragmas(connection)["version"]
        if tuple(int(part) for part in version.split(".")[:3]) >= _WAL_MENDED:
            yield ok(f"SQLite {version} has no race between checkpointers")
        else:
            yield warning(
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
            yield warning(
                f"{log.name} has grown to {bytes_in_words(size)}: it is not moved into the database",
                "start a worker; if one runs, end the program that has kept a transaction open on this database",
            )
        else:
            yield ok(f"the write-ahead log has {bytes_in_words(size)}")

    def _checksums(self) -> Iterator[Finding]:
        with self._database.read() as connection:
            on = checking.checksums(connection)
        if on:
            yield ok("the server notices pages that changed on its disk")
        else:
            yield warning(
                "the server would not notice a page that changed on its disk", "stop it and run: pg_checksums --enable"
            )

    def _transactions(self) -> Iterator[Finding]:
        oldest = self._database.oldest_transaction()
        if oldest is None or oldest.seconds < _OLD_TRANSACTION:
            yield ok("no transaction has been open for longer than a minute")
            return
        yield warning(
            f"{oldest.what} has been open for {length_in_words(oldest.seconds)}: what was deleted since cannot be cleaned up, "
            "and claims grow slow",
            "let that program commit or roll back; if nobody misses it, end it with pg_terminate_backend or ROLLBACK PREPARED",
        )
