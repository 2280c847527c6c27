"""Whether what a power cut has left keeps every promise made before it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.power.model import Left
from tests.power.notes import Promised, progress

DATABASE = "/outbox.db"
SPOOL = "/spool"
#: What SQLite needs to find the last commit. Its index of the WAL is mapped, and rebuilt after a crash.
OF_DATABASE = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-journal")
_NEEDED = ("pending", "claimed", "dead")


class Checker:
    """Checks one state after the other, each in the same folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._beside = [folder / each.strip("/") for each in (*OF_DATABASE, f"{DATABASE}-shm")]

    def faults(self, left: Left, promised: Promised) -> list[str]:
        """Everything that should not be so, in words."""
        if DATABASE not in left:
            lost = promised.committed - promised.may_go
            return [f"{key} was committed and the database is gone" for key in sorted(lost)] + (
                ["the database was migrated and is gone"] if promised.schema else []
            )
        for path in self._beside:
            path.unlink(missing_ok=True)
        for name in OF_DATABASE:
            if name in left:
                (self._folder / name.strip("/")).write_bytes(left[name])
        try:
            with closing(sqlite3.connect(self._folder / DATABASE.strip("/"), isolation_level=None)) as connection:
                connection.row_factory = sqlite3.Row
                # Opening it writes the WAL into the database when it is closed: nobody needs that to be safe.
                connection.execute("PRAGMA synchronous = OFF")
                return _Found(connection).faults(left, promised)
        except sqlite3.DatabaseError as error:
            return [f"the database cannot be read: {error}"]


class _Found:
    """What a database says."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._tables = {row[0] for row in self._all("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def _all(self, statement: str) -> list[Any]:
        return self._connection.execute(statement).fetchall()

    def faults(self, left: Left, promised: Promised) -> list[str]:
        damage = [row[0] for row in self._all("PRAGMA integrity_check") if row[0] != "ok"]
        if damage:
            return [f"the database is damaged: {damage[0]}"]
        revision = self._revision()
        if promised.schema is not None and (revision or "") < promised.schema:
            return [f"the database was migrated to {promised.schema} and is at {revision}"]
        if revision is None:
            return []
        found = [
            f"a row of {row[0]} refers to one of {row[2]} that is not there" for row in self._all("PRAGMA foreign_key_check")
        ]
        rows = {row["key"]: dict(row) for row in self._all("SELECT * FROM outbox_message")}
        return [*found, *self._of_messages(rows, promised), *self._of_files(rows, left, promised), *self._of_mark(left)]

    def _revision(self) -> str | None:
        if "outbox_alembic_version" not in self._tables:
            return None
        return next((row[0] for row in self._all("SELECT version_num FROM outbox_alembic_version")), None)

    def _of_messages(self, rows: dict[str, dict[str, Any]], promised: Promised) -> list[str]:
        found = [f"{key} was committed and is lost" for key in sorted(promised.committed - promised.may_go - rows.keys())]
        found += [f"{key} was rolled back and is there" for key in sorted(rows.keys() & promised.never)]
        found += [f"{key} is there and nobody enqueued it" for key in sorted(rows.keys() - promised.begun.keys())]
        deliveries = {row[0] for row in self._all("SELECT id FROM outbox_delivery")}
        missing = promised.deliveries - deliveries
        found += [f"a request of delivery {each} began and there is no row of it" for each in sorted(missing)]
        for key, row in rows.items():
            reached = progress(row.get("replays", 0), row["attempt"], row["state"])
            if reached < promised.progress.get(key, (0, 0, 0)):
                found.append(f"{key} had come to {promised.progress[key]} and is back at {reached}")
            if row["attempt"] < promised.attempts.get(key, 0):
                found.append(f"a request of attempt {promised.attempts[key]} of {key} began, its row says {row['attempt']}")
        return found

    def _of_files(self, rows: dict[str, dict[str, Any]], left: Left, promised: Promised) -> list[str]:
        found = []
        files = {row["name"]: row for row in self._all("SELECT name, size, sha256, freed_at FROM outbox_file")}
        kept: dict[str, dict[str, str]] = defaultdict(dict)
        joined = "SELECT key, a.name, a.file FROM outbox_attachment a JOIN outbox_message m ON a.message_id = m.id"
        for key, name, file in self._all(joined):
            row = files.get(file)
            if row is None:
                found.append(f"{key} refers to a file that has no row")
                continue
            kept[key][name] = row["sha256"]
            if row["freed_at"] is not None and rows[key]["state"] in _NEEDED:
                found.append(f"{key} is {rows[key]['state']} and its file {name!r} was freed")
        found += [f"{key} has other files than were given" for key in rows if kept[key] != promised.begun.get(key, {})]
        found += [f"{name} was spooled and has no row" for name in sorted(promised.spooled - files.keys())]
        for name, row in files.items():
            if row["freed_at"] is None:
                content = left.get(f"{SPOOL}/{name[-2:]}/{name}", left.get(f"{SPOOL}/.swept/{name}"))
                if content is None:
                    found.append(f"there is a row of file {name} and no file")
                elif len(content) != row["size"] or hashlib.sha256(content).hexdigest() != row["sha256"]:
                    found.append(f"file {name} has {len(content)} bytes, not the {row['size']} that were given, or others")
        return found

    def _of_mark(self, left: Left) -> list[str]:
        mark = left.get(f"{SPOOL}/.outbox")
        if mark is None:
            return []
        ours = self._all("SELECT mark FROM outbox_spool") if "outbox_spool" in self._tables else []
        if not ours or ours[0][0] != mark.decode(errors="replace").strip():
            return ["the spool has the mark of another database: it would be refused"]
        return []
