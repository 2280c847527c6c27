"""Waiting for SQLite's write lock, with a look at it every other millisecond.

SQLite's own waiting comes to sleep for 0.1 s between two looks, and is not fair: a worker that drains a backlog takes the lock
again a moment after it let go, and a producer that looks ten times a second finds it taken for seconds.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

#: Milliseconds that SQLite waits by itself, in which it looks after 1, 2 and 2; and seconds before we have it look again.
_BY_ITSELF = 5
_REST = 0.001
#: SQLite's codes: somebody else has the lock, or recovers the WAL; and not even patience helps, what was read is outdated.
_BUSY, _OUTDATED = 5, 517
_WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE")
#: What a connection of the driver's remembers: that a transaction has begun on it that has not written yet; its busy_timeout.
_BEGAN = "outbox.began"
_PATIENCE = "outbox.patience"


def look_often(engine: Engine) -> None:
    """Have the first write of an engine's transactions wait like this, for as long as its busy_timeout says.

    The first write of a transaction that the driver has begun by itself (`autocommit=False`) is not told from others.
    """

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        known: dict[str, Any] = context.root_connection.info
        if not _begins_to_write(cursor, statement, known):
            return False
        _wait(cursor.connection, known, lambda: cursor.execute(statement, parameters))
        return True

    @event.listens_for(engine, "do_executemany")
    def execute_many(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        known: dict[str, Any] = context.root_connection.info
        if not _begins_to_write(cursor, statement, known):
            return False
        _wait(cursor.connection, known, lambda: cursor.executemany(statement, parameters))
        return True


def comes_free(path: Path, within: float) -> bool:
    """Whether the write lock of a SQLite database can be had within so many seconds; nothing is written."""
    ends = time.monotonic() + within
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None)) as driver:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != _BUSY:
                    raise
                if time.monotonic() >= ends:
                    return False
                time.sleep(_REST)
            else:
                driver.execute("ROLLBACK")
                return True


def _begins_to_write(cursor: Any, statement: str, known: dict[str, Any]) -> bool:
    """Whether a statement takes the write lock."""
    if not isinstance(cursor, sqlite3.Cursor):  # an asynchronous driver, whose loop must not stand still
        return False
    words = statement[:20].lstrip().upper()
    if not words.startswith(_WRITES):
        if words.startswith("BEGIN"):
            known[_BEGAN] = True
        return False
    return bool(known.pop(_BEGAN, False)) or not cursor.connection.in_transaction


def _wait(driver: sqlite3.Connection, known: dict[str, Any], execute: Callable[[], object]) -> None:
    """Do it as soon as the lock is free. Nothing has happened when SQLite says that it is not."""
    if _PATIENCE not in known:
        known[_PATIENCE] = driver.execute("PRAGMA busy_timeout").fetchone()[0]
    patience: int = known[_PATIENCE]
    ends = time.monotonic() + patience / 1000
    driver.execute(f"PRAGMA busy_timeout = {min(_BY_ITSELF, patience)}")
    try:
        while True:
            try:
                execute()
            except sqlite3.OperationalError as error:
                code = error.sqlite_errorcode
                if code & 0xFF != _BUSY or code == _OUTDATED or time.monotonic() >= ends:
                    raise
                time.sleep(_REST)
            else:
                return
    finally:
        driver.execute(f"PRAGMA busy_timeout = {patience}")
