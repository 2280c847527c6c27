"""A database and the spool that has its files know each other by a mark, so that nobody sweeps what is another's."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from outbox.ambient import Ambient
from outbox.database import Database, in_our_words
from outbox.errors import ConfigurationError, SchemaError
from outbox.spool.base import Spool
from outbox.store import marking

T = TypeVar("T")


class ForeignSpool(ConfigurationError):
    """The spool belongs to another database, or to this one before it was lost; nothing was written.

    `text` says so, `remedy` what to do.
    """

    def __init__(self, text: str, remedy: str) -> None:
        self.text = text
        self.remedy = remedy
        super().__init__(f"{text}: nothing was written; {remedy}")


class Step(Enum):
    """What is to be done about two marks."""

    NOTHING = auto()
    MARK_BOTH = auto()  #: neither has one: both take a new one
    MARK_SPOOL = auto()  #: it takes the database's
    ADOPT = auto()  #: the spool takes the database's instead of its own; a database without one takes a new one
    REFUSE = auto()


class Marks(NamedTuple):
    """The mark of a database and that of its spool; None where there is none."""

    database: str | None
    spool: str | None

    def step(self, *, adopt: bool = False) -> Step:
        """What is to be done. `adopt`: a person says that the database shall have the spool, whosever it was."""
        if self.spool is None:
            return Step.MARK_BOTH if self.database is None else Step.MARK_SPOOL
        if self.spool == self.database:
            return Step.NOTHING
        return Step.ADOPT if adopt else Step.REFUSE


class Marking:
    """Looks at the marks of a database and of its spool, and writes those that are missing."""

    def __init__(self, database: Database, spool: Spool, ambient: Ambient) -> None:
        self._database = database
        self._spool = spool
        self._ambient = ambient

    def look(self) -> Marks:
        """The marks as they are. Nothing is written, and no writer is waited for. Raises SpoolError for what is no mark."""
        spool = self._spool.mark()  # first: the row was written before it, so whoever sees one sees the other
        return Marks(self._ask(marking.mark, otherwise=None), spool)

    def check(self, *, adopt: bool = False) -> Step:
        """What is to be done about the marks. Raises ForeignSpool where nothing may be."""
        return self.judge(self.look(), adopt=adopt)

    def check_at_door(self) -> None:
        """The same for a producer, who also works on the schema before, in which no mark can be."""
        try:
            self.check()
        except ForeignSpool:
            if not self._ask(marking.is_of_before, otherwise=False):
                raise

    def judge(self, found: Marks, *, adopt: bool = False) -> Step:
        """What is to be done about marks that were read already. Raises ForeignSpool where nothing may be."""
        step = found.step(adopt=adopt)
        if step is Step.REFUSE:
            raise self._refusal(found)
        return step

    def settle(self, *, adopt: bool = False) -> None:
        """Write what is missing. Raises ForeignSpool where nothing may be written.

        A spool that is adopted gets a mark it did not have before: should the database that had it still be in use, that one is
        refused from then on. A spool that is not there is left alone, and so is a database whose schema has no place for a
        mark, if the spool has none either. It has a short transaction of its own: not for the middle of a caller's.
        """
        found = self.look()
        step = self.judge(found, adopt=adopt)
        if step is Step.NOTHING or not self._spool.is_there():
            return
        mark = found.database or self._give(self._ambient.new_id(), must=found.spool is not None)
        if mark is None:
            return
        # Others may have been faster, here or in another database.
        self.judge(Marks(mark, self._spool.set_mark(mark, replace=step is Step.ADOPT)))

    def _refusal(self, found: Marks) -> ForeignSpool:
        if found.database is None:
            whose = f"another database, or to this one before it was lost (its mark is {found.spool}, this database has none)"
            first = "restore the database whose files it has, or point this outbox at a spool of its own"
        else:
            whose = f"another database (its mark is {found.spool}, this database's {found.database})"
            first = "point each outbox at a spool of its own"
        remedy = f"{first}; or, if this database shall have it, run: outbox init --adopt-spool"
        return ForeignSpool(f"the spool {self._spool} belongs to {whose}", remedy)

    def _ask(self, question: Callable[[Connection], T], otherwise: T) -> T:
        """An answer of the database; `otherwise` if it is a file that is not there."""
        path = self._database.path
        if path is None:
            with self._database.read() as connection:
                return question(connection)
        if not path.exists():
            return otherwise
        try:
            # Not through our reader, which would make an empty file a database, and bring one into WAL mode: it could not while
            # a caller writes to it.
            with self._database.inspecting() as engine, engine.begin() as connection:
                return question(connection)
        except DBAPIError as error:
            if (known := in_our_words(error, path)) is not None:
                raise known from error
            raise

    def _give(self, mark: str, *, must: bool) -> str | None:
        """Give the database a mark, unless it has one; returns the one it has now, None where there is no place for one."""
        with self._database.begin() as connection:
            if marking.can_be_marked(connection):
                return marking.give(connection, mark, self._ambient.now())
        if must:
            raise SchemaError("the database has no place for the mark of its spool yet; run: outbox db upgrade")
        return None
