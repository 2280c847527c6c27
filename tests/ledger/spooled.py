"""I12: the spool and its rows agree, and nobody keeps a file of it open."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from outbox.database import Database
from outbox.model import Reason
from outbox.tables import attachment, file, message

_NAME = re.compile(r"[0-9a-f]{32}")
#: What belongs to the spool and is no file of anybody: whose it is.
_MARK = ".outbox"


def spool_agrees(
    database: Database, spool: Path, *, swept: bool = False, harmed: bool = False, thorough: bool = True
) -> Iterator[str]:
    """Rows without bytes; after a sweep with no grace, `swept`, bytes without rows, too.

    `harmed`: somebody harms files on purpose, so nothing is said of those that a message died of. `thorough`: every byte is
    read, else the lengths are compared.
    """
    with database.read() as connection:
        rows = {row.name: row for row in connection.execute(sa.select(file).where(file.c.freed_at.is_(None)))}
        needed = sa.select(attachment.c.file, message.c.key, message.c.state).join(
            message, attachment.c.message_id == message.c.id
        )
        freed = needed.join(file, attachment.c.file == file.c.name).where(file.c.freed_at.is_not(None))
        for row in connection.execute(freed.where(message.c.state.in_(["pending", "claimed"]))):
            yield f"{row.key} is {row.state} and its file {row.file} was freed"
        died_of = sa.select(attachment.c.file).join(message, attachment.c.message_id == message.c.id)
        known = died_of.where(message.c.reason.in_([Reason.FILE_MISSING, Reason.FILE_CHANGED]))
        for name in connection.execute(known).scalars() if harmed else ():
            rows.pop(name, None)
    for row in rows.values():
        yield from _fault(spool, row, thorough=thorough)
    if swept:
        for path in sorted(spool.rglob("*")) if spool.is_dir() else ():
            if path.is_file() and path.name not in rows and path.name != _MARK:
                yield f"{path.relative_to(spool)} is in the spool and no row knows of it"


def _fault(spool: Path, row: Any, *, thorough: bool) -> Iterator[str]:
    """Where a file is by our rules, looked up without our code; one that was swept is taken back from where it lies."""
    places = (spool / row.name[-2:] / row.name, spool / ".swept" / row.name)
    path = next((each for each in places if each.is_file()), None)
    if path is None:
        yield f"{row.name} has a row and no bytes"
    elif path.stat().st_size != row.size:
        yield f"{row.name} has {path.stat().st_size} bytes in the spool and {row.size} by its row"
    elif thorough:
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != row.sha256:
                yield f"{row.name} has other bytes in the spool than were given"


def left_open(pid: int, spool: Path) -> list[str]:
    """Files of the spool that a process which is idle still has open."""
    found, below = [], f"{spool.resolve()}/"
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            target = str(descriptor.readlink())
            if target.startswith(below):
                found.append(f"process {pid} keeps {target.removeprefix(below)} open")
    return sorted(found)
