"""Something that goes wrong at the n-th step of a database's transactions, for real: the database itself says no.

interference = Interference(outbox.database.engine)
interference.strike(7, "40001")          # the seventh statement or COMMIT from now fails so
...
assert interference.over() is not None   # what was struck; None: there were fewer steps
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

_RAISE = "DO $$ BEGIN RAISE EXCEPTION 'interference' USING ERRCODE = '{}'; END $$"
_END_SESSION = "SELECT pg_terminate_backend(pg_backend_pid())"

#: What can be done instead of a step: serialisation failure, deadlock, lock timeout, the server ends the session; and of a
#: COMMIT, that it is done and nobody is told.
POSTGRES = {name: _RAISE.format(name) for name in ("40001", "40P01", "55P03")} | {"ended": _END_SESSION, "untold": _END_SESSION}
#: SQLite: an error like any other, in the middle of a transaction.
SQLITE = {"refused": "SELECT abs(-9223372036854775808)"}


@dataclass(frozen=True)
class Struck:
    """What was struck: a statement's first words, or COMMIT."""

    words: str
    how: str


class Interference:
    """Counts the steps of engines, those of all their threads, and makes one of them fail."""

    def __init__(self, *engines: sa.Engine) -> None:
        self.kinds = POSTGRES if engines[0].dialect.name == "postgresql" else SQLITE
        self._lock = threading.Lock()
        self._left: int | None = None
        self._how = ""
        self._struck: Struck | None = None
        self.steps = 0  #: so far
        for engine in engines:
            sa.event.listen(engine, "before_cursor_execute", self._before_statement, retval=True)
            sa.event.listen(engine, "commit", self._before_commit)

    def strike(self, at: int, how: str) -> None:
        """Make the n-th step from now fail. `untold` leaves statements alone, and strikes the COMMIT after the n-th step."""
        assert how in self.kinds, how
        with self._lock:
            self._left, self._how, self._struck = at, how, None

    def over(self) -> Struck | None:
        """Strike no more; what was struck."""
        with self._lock:
            self._left = None
            return self._struck

    def _is_it(self, words: str) -> bool:
        with self._lock:
            self.steps += 1
            if self._left is None:
                return False
            self._left -= 1
            if self._left > 0 or (self._how == "untold" and words != "COMMIT"):
                return False
            self._left, self._struck = None, Struck(words, self._how)
            return True

    def _before_statement(
        self, _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> tuple[str, Any]:
        if statement in self.kinds.values() or not self._is_it(" ".join(statement.split())[:60]):
            return statement, parameters
        return self.kinds[self._how], [()] if many else ()

    def _before_commit(self, connection: sa.Connection) -> None:
        if not self._is_it("COMMIT"):
            return
        if self._how == "untold":
            driver: Any = connection.connection.dbapi_connection
            driver.commit()
        connection.exec_driver_sql(self.kinds[self._how])
