"""Hooks: functions of a program that are told what becomes of its messages, or that change a request before it is sent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from sqlalchemy import Connection

from outbox.committed import after_commit, waiting
from outbox.entering import Entered
from outbox.errors import ConfigurationError
from outbox.exchange import Upload
from outbox.model import Batch, Outcome, Reason, State
from outbox.store.claiming import Expired
from outbox.verdict import Verdict, fit_for_a_row
from outbox.watching import Recorded, Watcher

log = logging.getLogger("outbox.hooks")


@dataclass(frozen=True, slots=True)
class News:
    """What a hook is told of one message.

    `state` is what it has become: pending, delivered or dead. The rest comes from its last attempt; of a message that was just
    enqueued, or whose time was over, there is none to tell of, and it is None.
    """

    id: int
    key: str
    destination: str
    state: State
    reason: Reason | None = None  #: why it is dead
    attempt: int = 0  #: the number of its last attempt, from 1; 0 before the first
    outcome: Outcome | None = None  #: of the attempt
    status: int | None = None  #: HTTP's, of the answer
    code: int | None = None  #: the answer's own, for destinations that have such
    words: str | None = None  #: what the answer said, or what stood in its way; cleaned, and without secrets
    seconds: float | None = None  #: that the upload took; None for one of a worker that is gone
    delivery: int | None = None  #: the id of the upload, as `outbox deliveries` lists it
    messages: int = 0  #: so many were in it
    worker: str | None = None


Hook = Callable[[News], object]
Middleware = Callable[[Upload, Batch], Upload]
H = TypeVar("H", bound=Hook)
M = TypeVar("M", bound=Middleware)


class Hooks:
    """The functions that an outbox calls, by what they want to hear of."""

    def __init__(self) -> None:
        self.enqueued: tuple[Hook, ...] = ()
        self.attempt: tuple[Hook, ...] = ()
        self.delivered: tuple[Hook, ...] = ()
        self.dead: tuple[Hook, ...] = ()
        self.middlewares: tuple[Middleware, ...] = ()
        self.watcher: Watcher = _Telling(self)
        self._lock = threading.Lock()

    def add(self, kind: str, hook: Callable[..., object]) -> None:
        """One more for `enqueued`, `attempt`, `delivered`, `dead` or `middlewares`; called in the order of their coming."""
        if not callable(hook):
            raise ConfigurationError(f"expected a function to call, got {type(hook).__name__}")
        with self._lock:
            setattr(self, kind, (*getattr(self, kind), hook))

    @contextmanager
    def listening(self, hook: Hook) -> Iterator[None]:
        """Tell a function of what is enqueued, for a while."""
        self.add("enqueued", hook)
        try:
            yield
        finally:
            with self._lock:
                self.enqueued = tuple(each for each in self.enqueued if each is not hook)

    def note(self, connection: Connection, destination: str, entered: Iterable[Entered]) -> None:
        """Messages were added in this transaction: tell when it is committed."""
        news = [News(each.enqueued.id, each.key, destination, each.enqueued.state) for each in entered if each.enqueued.new]
        if news:
            after_commit(connection, _Promise(self, news))

    def withdraw(self, connection: Connection, ids: Sequence[int]) -> None:
        """They were taken back, in the same transaction."""
        for each in waiting(connection):
            if isinstance(each, _Promise) and each.hooks is self:
                each.news = [news for news in each.news if news.id not in ids]

    def finished(self, upload: Upload, batch: Batch) -> Upload:
        """The request as it goes out, after every middleware.

        Raises ConfigurationError when one of them gives back what cannot be sent in its place; and whatever one raises.
        """
        for each in self.middlewares:
            # Of its own: what is changed in place must not go unnoticed.
            changed = each(replace(upload, parts=tuple(upload.parts), headers=dict(upload.headers)), batch)
            _require_same_content(upload, changed, _name(each))
            upload = changed
        return upload


class _Promise:
    """What will be told when a transaction is committed."""

    def __init__(self, hooks: Hooks, news: list[News]) -> None:
        self.hooks = hooks
        self.news = news

    def __call__(self) -> None:
        for each in self.news:
            _tell(self.hooks.enqueued, each)


class _Telling(Watcher):
    """Tells the hooks what a worker does."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._seconds: dict[int, float] = {}

    def upload_ended(self, batch: Batch, verdict: Verdict, seconds: float) -> None:
        if self._hears():
            self._seconds[batch.delivery] = seconds

    def recorded(self, recorded: Recorded) -> None:
        if not self._hears():
            return
        result = recorded.result
        seconds = self._seconds.pop(result.delivery, None)
        facts = fit_for_a_row(result.verdict.facts)
        for message in result.messages:
            became = recorded.settled.get(message.id)
            if became is None:
                continue  # the claim was lost: whoever has it by now tells
            self._say(
                News(
                    message.id,
                    message.key,
                    result.destination,
                    became.state,
                    became.reason,
                    message.attempt,
                    became.outcome,
                    facts.status,
                    facts.code,
                    facts.text,
                    seconds,
                    result.delivery,
                    result.size,
                    result.worker,
                )
            )

    def expired(self, messages: Sequence[Expired]) -> None:
        for each in messages:
            words = "its expires_at passed before it could be delivered"
            news = News(each.id, each.key, each.destination, State.DEAD, Reason.EXPIRED, each.attempt, words=words)
            _tell(self._hooks.dead, news)

    def _hears(self) -> bool:
        hooks = self._hooks
        return bool(hooks.attempt or hooks.delivered or hooks.dead)

    def _say(self, news: News) -> None:
        _tell(self._hooks.attempt, news)
        if news.state is State.DELIVERED:
            _tell(self._hooks.delivered, news)
        elif news.state is State.DEAD:
            _tell(self._hooks.dead, news)


class Hookable:
    """The part of an Outbox that functions are given to; each gives its function back, and so may be written as a decorator.

    What a hook raises is logged, and harms nothing. It is called on the thread that does the work, which waits for it, so be
    quick. It hears of what happens in its own process: `on_enqueued` in the producer's, the others in a worker's. A call is
    lost when the process dies between the commit and the call, and not made up for: what must not be missed is in the tables.
    """

    hooks: Hooks

    def on_enqueued(self, hook: H) -> H:
        """Have `hook(news)` called for each new message, after the caller's transaction is committed, on the same thread.

        Not for what is rolled back, be it to a savepoint, nor for a key that was there already, nor for plain SQL. Nor for
        `enqueue_dbapi`: of the commit of a driver's own connection nobody tells us.
        It must not use the caller's session or connection, whose commit is not over yet.
        """
        self.hooks.add("enqueued", hook)
        return hook

    def on_attempt(self, hook: H) -> H:
        """Have `hook(news)` called for each message of each upload that is over, after its outcome is committed.

        Also for those of a worker that is gone, by the one that takes them back (`outcome` is unknown then). Not for a message
        whose claim was lost meanwhile.
        """
        self.hooks.add("attempt", hook)
        return hook

    def on_delivered(self, hook: H) -> H:
        """Have `hook(news)` called for each message that is delivered, after that is committed, and after `on_attempt`."""
        self.hooks.add("delivered", hook)
        return hook

    def on_dead(self, hook: H) -> H:
        """Have `hook(news)` called for each message that has died, after that is committed.

        Be it after an attempt, of a worker that is gone too, or because its time was over.
        """
        self.hooks.add("dead", hook)
        return hook

    def middleware(self, middleware: M) -> M:
        """Have `middleware(upload, batch)` give back each request as it shall be sent: with other headers, or to another URL.

        Called just before the first byte would go out, after the credentials have given their headers, for each try of a
        request. It must leave the content alone, which is what was enqueued. What it raises, or gives back that cannot be sent,
        keeps the request from being sent: ConfigurationError stops the destination as refused credentials do; anything else is
        a failure that the destination is charged with, never a message.
        """
        self.hooks.add("middlewares", middleware)
        return middleware


def _tell(hooks: Sequence[Hook], news: News) -> None:
    for each in hooks:
        try:
            each(news)
        except Exception:
            log.exception(
                "the hook %s failed for message %s to %s; the work goes on",
                _name(each),
                news.id,
                news.destination,
                extra={"message_id": news.id, "message_key": news.key, "destination": news.destination},
            )


def _require_same_content(given: Upload, changed: object, name: str) -> None:
    if not isinstance(changed, Upload):
        raise ConfigurationError(
            f"the middleware {name} gave back {type(changed).__name__}; return the upload, or a changed one"
        )
    if _content(changed) != _content(given):
        raise ConfigurationError(
            f"the middleware {name} has changed the content; only the url and the headers are its to change"
        )
    if not changed.url.lower().startswith(("https://", given.url.partition("//")[0].lower() + "//")):
        raise ConfigurationError(f"the middleware {name} has made the url one that does not begin with https://")


def _content(upload: Upload) -> list[object]:
    others = (getattr(upload, each.name) for each in fields(upload) if each.name not in ("url", "headers", "parts"))
    return [tuple(upload.parts), *others]


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__name__)
