"""Whose transaction it is: the sessions and connections of SQLAlchemy that a producer may hand in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import Connection

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    Caller: TypeAlias = Session | Connection | scoped_session[Any]
    AsyncCaller: TypeAlias = AsyncSession | AsyncConnection | async_scoped_session[Any]

#: The ORM is a fifth of what a producer without it imports, and asyncio's half needs another package: they are not imported to
#: know a session by. Whoever has one has imported them. And threads that begin to import them at once trip over each other.
_ORM, _ASYNCIO = "sqlalchemy.orm", "sqlalchemy.ext.asyncio"


def require_sync(session: Any) -> Caller:
    """The same. Raises TypeError for anything but a Session or Connection."""
    if isinstance(session, Connection) or _is_one_of(session, _ORM, "Session", "scoped_session"):
        checked: Caller = session
        return checked
    wanted = "expected a SQLAlchemy Session or Connection"
    if _is_asynchronous(session):
        raise TypeError(f"{wanted}, got {type(session).__name__}; that one goes with: await outbox.aenqueue(…)")
    raise TypeError(f"{wanted}, got {type(session).__name__}")


def require_async(session: Any) -> AsyncSession | AsyncConnection:
    """The same, or the one that it stands for. Raises TypeError for anything but an AsyncSession or AsyncConnection."""
    if _is_one_of(session, _ASYNCIO, "async_scoped_session"):
        session = session()
    if _is_asynchronous(session):
        checked: AsyncSession | AsyncConnection = session
        return checked
    wanted = "expected a SQLAlchemy AsyncSession or AsyncConnection"
    if isinstance(session, Connection) or _is_one_of(session, _ORM, "Session", "scoped_session"):
        raise TypeError(f"{wanted}, got {type(session).__name__}; that one goes with: outbox.enqueue(…)")
    raise TypeError(f"{wanted}, got {type(session).__name__}")


def connection_of(session: Caller) -> Connection:
    """The connection that a caller's transaction is on."""
    return session if isinstance(session, Connection) else session.connection()


def _is_asynchronous(given: Any) -> bool:
    return _is_one_of(given, _ASYNCIO, "AsyncSession", "AsyncConnection", "async_scoped_session")


def _is_one_of(given: Any, module: str, *names: str) -> bool:
    found = sys.modules.get(module)
    kinds = (getattr(found, name, None) for name in names)
    return isinstance(given, tuple(kind for kind in kinds if kind is not None))
