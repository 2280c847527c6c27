"""Outboxes for tests: a fresh one, or a program's own, made sure to be fit for a test."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from outbox import migrate
from outbox.app import Outbox
from outbox.database import Database
from outbox.destinations.base import Destination
from outbox.errors import SchemaError
from outbox.testing.draining import KitError


def template(folder: Path) -> Path:
    """A migrated SQLite database without a row."""
    path = folder / "outbox.db"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database)
    database.close()
    return path


def fresh(database: Path, folder: Path, destinations: Iterable[Destination]) -> Outbox:
    """An outbox on a copy of a database, with a spool beside it. Raises KitError for what are no destinations."""
    given = [destinations] if isinstance(destinations, Destination) else list(destinations)
    if not given or not all(isinstance(each, Destination) for each in given):
        raise KitError(f"expected outbox_destinations to be a list of destinations, got {destinations!r}")
    shutil.copy2(database, folder)
    url = f"sqlite:///{folder / database.name}"
    return Outbox(url, spool=folder / "spool", destinations=given, durability="ignore", reserve=0)


@contextmanager
def in_place(outbox: Outbox, database: Path, folder: Path) -> Iterator[Outbox]:
    """A program's outbox as it may be tested: for as long, one on a SQLite file is moved to a database of the test's alone.

    One that is below pytest's own temporary folder is the test's already, and on Postgres nobody here can make another one.
    """
    if not isinstance(outbox, Outbox):
        raise KitError(f"expected outbox_app to be an Outbox, got {type(outbox).__name__}")
    path = outbox.database.path
    if path is None or path.resolve().is_relative_to(folder.parent.resolve()):
        yield ready(outbox)
        return
    shutil.copy2(database, folder)
    moved = outbox.at(f"sqlite:///{folder / database.name}", spool=folder / "spool")
    # The very object that the program has: it may be known by many names.
    known = dict(vars(outbox))
    vars(outbox).update(vars(moved))
    try:
        yield outbox
    finally:
        outbox.close()
        vars(outbox).clear()
        vars(outbox).update(known)


def ready(outbox: Outbox) -> Outbox:
    """A program's outbox, whose SQLite database is made if there is none. Raises KitError when it is not migrated."""
    path = outbox.database.path
    if path is not None and not path.exists():
        migrate.upgrade(outbox.database)
    try:
        migrate.require_current(outbox.database)
    except SchemaError as error:
        raise KitError(f"{error}; in the fixture outbox_app: outbox.migrate.upgrade(app.database)") from None
    return outbox
