"""After the commit: whoever asked is called when a caller's transaction has been committed, and never for one that was not.

SQLAlchemy tells of a commit before it is done, and for a Session even where its transaction is only a part of another one. What
it calls to do one is its dialect's `do_commit`, whoever asks for it: a Session, a Connection, or one of asyncio's, which works
with the same. That is where we listen, and to what takes a transaction, or a savepoint in it, back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import Dialect

Call = Callable[[], None]

#: What a connection of the driver's remembers: what is to be called, and the savepoints of its transaction.
_WAITING, _SAVEPOINTS = "outbox.after-commit", "outbox.savepoints"
_lock = threading.Lock()


def after_commit(connection: Connection, call: Call) -> None:
    """Have something called when the present transaction of a connection is committed, on the thread that commits it.

    Never, if it is rolled back, be it to a savepoint; if the process dies; or if nobody knows whether it was committed. A
    savepoint counts if SQLAlchemy made it, and not if it was written as SQL. What is called must not raise, nor use this
    connection: its commit has just been done, and not yet been told to whoever asked for it.
    """
    if not getattr(connection.dialect, "_outbox_listens", False):  # and no lock, which a child might inherit locked
        _listen(connection.dialect)
    connection.info.setdefault(_WAITING, []).append(call)


def waiting(connection: Connection) -> list[Call]:
    """What will be called, unless somebody takes it out."""
    found: list[Call] = connection.info.get(_WAITING, [])
    return found


def _listen(dialect: Dialect) -> None:
    """Once for each dialect, which is as long-lived as its engine."""
    with _lock:
        if getattr(dialect, "_outbox_listens", False):
            return
        wrap = _Wraps(dialect)
        for name in ("do_commit", "do_rollback", "do_commit_twophase", "do_rollback_twophase"):
            setattr(dialect, name, wrap.ending(name, committed="commit" in name))
        for name in ("do_savepoint", "do_rollback_to_savepoint"):
            setattr(dialect, name, wrap.savepoint(name, back="rollback" in name))
        setattr(dialect, "_outbox_listens", True)  # noqa: B010 (it is not ours to declare)


class _Wraps:
    """What stands in the place of a dialect's own methods: does what they do, and then what waits for that."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def ending(self, name: str, *, committed: bool) -> Callable[..., None]:
        """For the end of a transaction. The connection is a pool's, or SQLAlchemy's: both have the same `info`."""
        original: Callable[..., None] = getattr(self._dialect, name)

        def end(connection: Any, *args: Any, **named: Any) -> None:
            known: dict[str, Any] = connection.info
            # Out of the way: to commit in two phases, some roll back what they began for the second.
            calls: list[Call] = known.pop(_WAITING, [])
            try:
                original(connection, *args, **named)
            except BaseException:
                if calls:  # what raises is followed by a rollback, or tried again
                    known[_WAITING] = calls
                raise
            known.pop(_SAVEPOINTS, None)
            if committed:
                for call in calls:
                    call()

        return end

    def savepoint(self, name: str, *, back: bool) -> Callable[..., None]:
        """For a savepoint that is made, or gone back to."""
        original: Callable[..., None] = getattr(self._dialect, name)

        def make(connection: Connection, label: str) -> None:
            original(connection, label)
            known = connection.info
            waiting = known.get(_WAITING, [])
            made: list[tuple[str, int]] = known.setdefault(_SAVEPOINTS, [])
            if not back:
                made.append((label, len(waiting)))
                return
            # One that is not known was made before anything waited.
            at = next((at for at in reversed(range(len(made))) if made[at][0] == label), None)
            del waiting[0 if at is None else made[at][1] :]

        return make
