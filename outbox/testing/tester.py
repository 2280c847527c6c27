"""What a test of a producer needs: what was enqueued, what would go out, answers as it says; no network, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine

from outbox.app import Outbox
from outbox.database import prepare
from outbox.hooks import News
from outbox.model import Selection, State
from outbox.testing import kept
from outbox.testing.asserting import Asserting
from outbox.testing.clock import Clock
from outbox.testing.draining import Drainer, KitError
from outbox.testing.memory import MemoryTransport, reply
from outbox.testing.sent import Sent

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

#: More requests than a test sends.
_AT_MOST = 10_000


class OutboxTester(Asserting):
    """An outbox in a test's hands; the fixture `outbox_tester` makes one. Its time stands still, nothing leaves the process.

    `outbox` is the outbox, `clock` its time, `sent` every request so far. Of the messages it counts those that came since the
    test began. A database that is not `lasting` is thrown away after the test, and need not be tidied.

    Raises KitError when the database has messages that are not finished: it is not a test's, and they would be lost.
    """

    def __init__(self, outbox: Outbox, *, lasting: bool = True) -> None:
        self.outbox = outbox
        self._lasting = lasting
        self.clock = Clock()
        self._transport = MemoryTransport()
        self._engine: Engine | None = None
        self._drainer: Drainer | None = None
        self._draining = False
        self._ending = ExitStack()
        self._ending.enter_context(self.clock.over(outbox.ambient))
        try:
            with outbox.database.read() as connection:
                if left := kept.left_over(connection):
                    raise KitError(
                        f"{outbox.database!r} has messages that are not finished ({len(left)}, the first is {left[0]}): "
                        "drain would take them for delivered; give the test a database of its own. If it is one, other tests "
                        "have left them: let each that enqueues have outbox_tester, and cancel these (outbox cancel)"
                    )
                self._began = kept.newest(connection)
                self._standings = kept.standings(connection)
        except BaseException:
            self._ending.close()
            raise

    def __enter__(self) -> OutboxTester:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the outbox its own time back. What came since the test began is deleted, and no destination is in trouble any
        more than it was before, so that the next test may begin.
        """
        with self._ending:
            if self._engine is not None:
                self._engine.dispose()
            if not self.outbox.database.takes_writers(0.2):
                return  # a transaction of the test's is still open, and will most likely be rolled back
            if self._drainer is not None:
                self._drainer.close()
            if not self._lasting:
                return
            with self.outbox.database.begin() as connection:
                kept.restore(connection, self._standings)
                left, over = kept.left_over(connection, self._began), kept.to_be_forgotten(connection, self._began)
            if left:
                self.outbox.cancel(Selection(ids=tuple(left), states=(State.PENDING,)), by="outbox_tester")
            if over:  # their keys would be known, and the dead would hold up their ordering keys
                self.outbox.purge(Selection(ids=tuple(over)), by="outbox_tester")

    @property
    def engine(self) -> Engine:
        """An engine on the outbox's database, for a producer that has none of its own."""
        if self._engine is None:
            self._engine = prepare(create_engine(self.outbox.database.engine.url))
        return self._engine

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A Session on it, whose transaction is committed at the end of the block."""
        from sqlalchemy.orm import Session

        with Session(self.engine) as session, session.begin():
            yield session

    @property
    def sent(self) -> Sequence[Sent]:
        """Every request so far, as a server would have seen it."""
        return tuple(self._transport.sent)

    def drain(self, *, at_most: int | None = None) -> list[Sent]:
        """Send all that is due now, and record what becomes of it; returns the requests of this call.

        It is what a worker does, on this thread. A request that failed is made again at once, as long as its message is due: a
        back-off, and the patience with a destination that fails again and again, end when the clock is moved. `at_most` is how
        many requests there shall be.

        Raises KitError when there is no end of it, or when something is in its way.
        """
        if self._draining:
            return []  # whoever drains already goes on with what has come meanwhile
        self._draining = True
        try:
            if self._drainer is None:
                self._drainer = Drainer(self.outbox, self._transport)
            sent = self._drainer.drain(_AT_MOST if at_most is None else at_most)
        finally:
            self._draining = False
        if at_most is None and len(sent) >= _AT_MOST:
            raise KitError(f"{_AT_MOST} requests, and something is still due; say drain(at_most=...) if there are more")
        return sent

    @contextmanager
    def inline(self) -> Iterator[None]:
        """Deliver what is committed within a `with` block at once: on the same thread, when its commit is done.

        For what `enqueue` and its siblings add; what plain SQL and `enqueue_dbapi` add waits for `drain`. What goes wrong is
        raised at the end of the block, since the commit that it follows is done.
        """
        failures: list[Exception] = []

        def deliver(_: News) -> None:
            try:
                self.drain()
            except Exception as error:  # noqa: BLE001 (it is raised below)
                failures.append(error)

        with self.outbox.hooks.listening(deliver):
            yield
        if failures:
            raise failures[0]

    def answer(
        self,
        error: Exception | None = None,
        *,
        status: int = 200,
        json: Any = None,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        times: int | None = None,
        when: Callable[[Sent], bool] | None = None,
    ) -> None:
        """Say what requests are answered with: all from now on, or the next so many `times`; only those that `when` holds for.

        An exception stands for no answer at all: nobody knows whether the request has arrived. Without `json` or `body` a
        success says what EnOS says. Until something is said, every request succeeds.
        """
        said = reply(error, status, json, body, headers, when)
        if times is None:
            self._transport.standing.append(said)
        else:
            self._transport.queued += [said] * times
