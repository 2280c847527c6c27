"""What was enqueued, for a test to look at and to require: told with what is there instead, the nearest first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from outbox.app import Outbox
from outbox.errors import UnknownDestination
from outbox.model import Selection, State
from outbox.testing import kept
from outbox.testing.draining import KitError
from outbox.testing.kept import KeptMessage
from outbox.testing.matching import Expected, Wanted, described, explained

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, scoped_session

    #: Through whose eyes a test looks: a transaction that is not committed is seen by itself alone.
    Eyes = Session | Connection | scoped_session[Any]


class Asserting:
    """The part of a tester that looks at what was enqueued since the test began."""

    outbox: Outbox
    _began: int  #: the newest id that was there before

    def messages(
        self, *, state: State | str | None = None, destination: str | None = None, session: Eyes | None = None
    ) -> list[KeptMessage]:
        """The messages that came since the test began, oldest first: those that are committed, or those that `session` sees."""
        selection = Selection(destination=destination, states=() if state is None else (State(state),))
        return self._since(self._began, session, selection)

    @property
    def delivered(self) -> list[KeptMessage]:
        """The messages that are delivered."""
        return self.messages(state=State.DELIVERED)

    @property
    def dead(self) -> list[KeptMessage]:
        """The messages that were given up, with reasons."""
        return self.messages(state=State.DEAD)

    @property
    def pending(self) -> list[KeptMessage]:
        """The messages that wait, for their time or for another try."""
        return self.messages(state=State.PENDING)

    def assert_enqueued(
        self,
        destination: str,
        payload: Expected | Callable[[Any], object] | None = None,
        *,
        key: str | None = None,
        ordering_key: str | None = None,
        files: Collection[str] | Mapping[str, bytes] | None = None,
        count: int | None = None,
        session: Eyes | None = None,
    ) -> list[KeptMessage]:
        """Require a message that fits all that is said, or exactly `count` of them; returns those that fit.

        `payload` is a part of it (members that are not named may be anything), or a function that says whether it is right.
        `files` are the names of its files, or with each its bytes. `session` is the caller's own Session or Connection, to look
        at what it has not committed yet.

        Raises AssertionError, with what was enqueued, the nearest first.
        """
        __tracebackhide__ = True
        self._require_known(destination)
        wanted = Wanted(destination, payload, key, ordering_key, files)
        return _require(wanted, count, self._since(self._began, session))

    def assert_nothing_enqueued(self, destination: str | None = None, *, session: Eyes | None = None) -> None:
        """Require that there is no message, or none for that destination."""
        __tracebackhide__ = True
        self._require_known(destination)
        _require_none(self.messages(destination=destination, session=session))

    @contextmanager
    def assert_enqueues(
        self,
        destination: str,
        payload: Expected | Callable[[Any], object] | None = None,
        *,
        key: str | None = None,
        ordering_key: str | None = None,
        files: Collection[str] | Mapping[str, bytes] | None = None,
        count: int | None = None,
        session: Eyes | None = None,
    ) -> Iterator[list[KeptMessage]]:
        """As `assert_enqueued`, of what comes within a `with` block alone; after it, the list has those that fit."""
        __tracebackhide__ = True
        self._require_known(destination)
        wanted = Wanted(destination, payload, key, ordering_key, files)
        before = self._newest(session)
        found: list[KeptMessage] = []
        yield found
        found += _require(wanted, count, self._since(before, session))

    @contextmanager
    def assert_enqueues_nothing(self, destination: str | None = None, *, session: Eyes | None = None) -> Iterator[None]:
        """As `assert_nothing_enqueued`, of what comes within a `with` block alone."""
        __tracebackhide__ = True
        self._require_known(destination)
        before = self._newest(session)
        yield
        _require_none(self._since(before, session, Selection(destination=destination)))

    def _require_known(self, name: str | None) -> None:
        """A name that nobody declares would be found nowhere, whatever was enqueued."""
        __tracebackhide__ = True
        try:
            if name is not None:
                self.outbox.destination(name)
        except UnknownDestination as error:
            raise KitError(f"{error}; if it is your program's, let the fixture outbox_app give its outbox") from None

    def _since(self, after: int, eyes: Eyes | None, selection: Selection | None = None) -> list[KeptMessage]:
        with self._looking(eyes) as connection:
            return kept.messages(self.outbox, connection, selection or Selection(), after)

    def _newest(self, eyes: Eyes | None) -> int:
        with self._looking(eyes) as connection:
            return kept.newest(connection)

    @contextmanager
    def _looking(self, eyes: Eyes | None) -> Iterator[Connection]:
        if eyes is None:
            with self.outbox.database.snapshot() as connection:
                yield connection
        elif isinstance(eyes, Connection):
            yield eyes
        elif callable(getattr(eyes, "connection", None)) and not hasattr(eyes, "run_sync"):
            yield eyes.connection()
        else:
            raise TypeError(
                f"expected a Session or Connection, got {type(eyes).__name__}; of one of asyncio's: "
                "await session.run_sync(lambda sync: outbox_tester.assert_enqueued(..., session=sync))"
            )


def _require(wanted: Wanted, count: int | None, there: list[KeptMessage]) -> list[KeptMessage]:
    __tracebackhide__ = True
    found = [each for each in there if not wanted.differences(each)]
    if len(found) == count or (count is None and found):
        return found
    raise AssertionError(explained(wanted, count, len(found), there))


def _require_none(there: list[KeptMessage]) -> None:
    __tracebackhide__ = True
    if there:
        raise AssertionError("\n  ".join(["expected nothing to be enqueued, and this was:", *map(described, there)]))
