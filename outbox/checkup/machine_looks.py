"""What a doctor looks at on the machine: its clock, its files, its disks."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import literal, select

from outbox.app import Outbox
from outbox.checkup import places
from outbox.checkup.findings import Check, Finding, Level, about_mark, compared, ok, problem, warning
from outbox.checkup.monitoring import alive
from outbox.checkup.shelf import Shelf
from outbox.counting import counted
from outbox.errors import SpoolError
from outbox.marks import ForeignSpool, Step
from outbox.spool.directory import DirectorySpool
from outbox.store import checking
from outbox.timekeeping import plausible
from outbox.units import bytes_in_words

MIB = 1024 * 1024
#: Less free than this is soon none; less than that, or than so much of the whole, deserves a word.
_FREE_AT_LEAST, _FREE_WORD, _FREE_SHARE = 64 * MIB, 1024 * MIB, 0.05
_FREE_FILES = 10_000
#: Of a quota, what is nearly all of it.
_NEARLY = 0.9


class MachineLooks:
    """Where the database and the spool are. `mounts` gives the text of /proc/self/mountinfo."""

    def __init__(self, outbox: Outbox, settings_file: Path | None, mounts: Callable[[], str | None]) -> None:
        self._outbox = outbox
        self._database = outbox.database
        self._settings_file = settings_file
        self._mounts = mounts
        self._shelf = Shelf(outbox.spool_store)

    def checks(self) -> list[Check]:
        """What can be looked at here."""
        return [
            Check("clock", self._clock, database=self._database.kind != "sqlite"),
            Check("settings", self._settings),
            Check("permissions", self._permissions),
            Check("spool", self._spool),
            Check("mark", self._mark),
            Check("file_system", self._file_system),
            Check("disk", self._disk),
            Check("quota", self._quota, database=True),
            Check("reserve", self._reserve, database=True),
        ]

    def _clock(self) -> Iterator[Finding]:
        now = self._outbox.ambient.now()
        if not plausible(now):
            text = f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC: it has not been set"
            yield problem(text, "set the clock, or let it be set by the network (chrony, systemd-timesyncd)")
            return
        if self._database.kind == "sqlite":
            yield ok(f"it is {now:%Y-%m-%d %H:%M:%S} UTC here")
            return
        with self._database.read() as connection:
            connection.execute(select(literal(1)))  # so that connecting does not count
            asked = self._outbox.ambient.now()
            theirs = checking.clock(connection)
        yield compared("the database's", (theirs - asked).total_seconds(), Level.PROBLEM)

    def _settings(self) -> Iterator[Finding]:
        path = self._settings_file
        if path is None or not path.exists():
            yield ok("there is no settings file")
            return
        mode = path.stat().st_mode & 0o777
        if os.name != "nt" and mode & 0o002:
            text = f"everybody may write to {path} ({mode:04o}), and so send the messages elsewhere"
            yield problem(text, f"run: chmod o-w {path}")
        else:
            yield ok(f"{path} is not everybody's to write")

    def _permissions(self) -> Iterator[Finding]:
        if os.name == "nt":
            yield ok("not looked at: this system has no modes")
            return
        faults = [*places.permission_faults(self._database_files()), *places.permission_faults(self._spool_paths())]
        for each in faults:
            yield (problem if each.grave else warning)(each.text, each.remedy)
        if not faults:
            yield ok("the database and the spool are their owner's alone")

    def _database_files(self) -> list[Path]:
        path = self._database.path
        if path is None or path.is_dir():
            return []  # that it is none is told already
        return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-reserve")]

    def _spool_paths(self) -> Iterator[Path]:
        """The spool, its folders, and some of its files."""
        root = self._root()
        if root is None or not root.is_dir():
            return
        folders = [root, *sorted(each for each in root.iterdir() if each.is_dir() and not each.is_symlink())]
        yield from (*folders, root / ".outbox")
        for folder in folders[1:]:
            with contextlib.suppress(PermissionError):  # told of the folder itself
                yield from itertools.islice((each for each in folder.iterdir() if each.is_file()), 4)

    def _root(self) -> Path | None:
        spool = self._outbox.spool_store
        return spool.root if isinstance(spool, DirectorySpool) else None

    def _spool(self) -> Iterator[Finding]:
        root = self._root()
        if root is None:
            yield ok("the spool is no directory")
        elif self._shelf.is_there():
            yield ok(f"{root} is a spool")
        else:
            with self._database.read() as connection:
                files, _ = checking.spooled(connection)
            text = f"{root} is not a spool" if root.exists() else f"there is no spool {root}"
            if files:
                yield problem(f"{text}, and {counted(files, 'file')} should be in it", "look whether its disk is mounted")
            else:
                yield warning(text, "run: outbox init, or look whether its disk is mounted; the first file makes it too")

    def _mark(self) -> Iterator[Finding]:
        """Whether the spool is this database's."""
        try:
            step = self._outbox.marks.check()
        except (ForeignSpool, SpoolError) as error:
            yield problem(*about_mark(error))
        else:
            yield ok(
                "the spool is this database's" if step is Step.NOTHING else "a worker will mark the spool as this database's"
            )

    def _file_system(self) -> Iterator[Finding]:
        told = self._mounts()
        here = [each for each in (self._database.path, self._root()) if each is not None]
        if told is None:
            yield ok(f"not looked at: {sys.platform} does not say what is mounted in Linux' way")
            return
        for path in here:
            mount = places.mount_of(places.nearest(path).resolve(), told)
            if mount is None:
                yield ok(f"{path} is on a file system that is not listed")
            elif mount.remote:
                yield problem(
                    f"{path} is on {mount.kind}, mounted at {mount.point}: its locks and its fsync cannot be counted on",
                    "move it to a disk of this machine; for several machines use Postgres",
                )
            elif mount.kind in ("tmpfs", "ramfs"):
                yield problem(f"{path} is on {mount.kind}: it is gone after a restart", "move it to a disk")
            else:
                yield ok(f"{path} is on {mount.kind}")

    def _disk(self) -> Iterator[Finding]:
        for what, path in (("database", self._database.path), ("spool", self._root())):
            if path is None:
                continue
            left = places.room(path)
            text = f"{bytes_in_words(left.free)} of {bytes_in_words(left.total)} are free for the {what}"
            remedy = f"make room on the disk of {path}: outbox purge, or anything else that is not needed"
            if left.free < _FREE_AT_LEAST:
                yield problem(text, remedy)
            elif left.free < min(_FREE_WORD, _FREE_SHARE * left.total):
                yield warning(text, remedy)
            elif left.files is not None and left.files < _FREE_FILES:
                yield warning(f"the file system of the {what} takes only {left.files} more files", remedy)
            else:
                yield ok(text)

    def _quota(self) -> Iterator[Finding]:
        most = self._outbox.room.quota
        if most is None:
            yield warning("the spool may grow until its disk is full", 'set a quota in the settings, such as quota = "20 GiB"')
            return
        with self._database.read() as connection:
            _, spooled = checking.spooled(connection)
        text = f"{bytes_in_words(spooled)} of the spool's quota of {bytes_in_words(most)} are used"
        remedy = "find out why so much waits (outbox status), or raise the quota"
        if spooled >= most:
            yield problem(f"{text}: new files are refused", remedy)
        elif spooled >= _NEARLY * most:
            yield warning(text, remedy)
        else:
            yield ok(text)

    def _reserve(self) -> Iterator[Finding]:
        size, path = self._outbox.room.reserve, self._database.path
        if path is None:
            return
        kept = path.with_name(f"{path.name}-reserve")
        if not size:
            text = "nothing is reserved for finishing what is there when the disk is full"
            yield warning(text, 'leave out reserve = 0 in the settings, or say reserve = "16 MiB"')
        elif kept.exists():
            yield ok(f"{bytes_in_words(size)} are kept in {kept.name} for when the disk is full")
        elif self._is_served():
            text = f"{kept.name} is not there: its room was needed, or could not be had"
            yield warning(text, f"make room on the disk of {path}; the worker takes it again by itself")
        else:
            yield ok(f"a worker will keep {bytes_in_words(size)} for when the disk is full")

    def _is_served(self) -> bool:
        with self._database.read() as connection:
            return bool(alive(checking.workers(connection), self._outbox.ambient.now()))
