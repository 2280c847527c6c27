"""A strict EnOS receiver that checks every request and misbehaves when asked."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from outbox.testing.behaviours import SPELLING, ApimExpired, Behaviour, Expired, HangUp, SlowRead, parse_behaviour
from outbox.testing.books import Books, Predicate, Refusal
from outbox.testing.ledger import Accepted, Ledger, Received, ReceivedFile, rate_of, read_ledger
from outbox.testing.server import Rules, Server
from outbox.testing.tokens import TokenDesk

__all__ = [
    "SPELLING",
    "Accepted",
    "Behaviour",
    "Received",
    "ReceivedFile",
    "Receiver",
    "parse_behaviour",
    "read_ledger",
]


class Receiver:
    """Serves the integration address and the token service on one port, from ``start`` (or ``with``) to ``close``.

    A request that keeps every rule is answered with code 0; one that breaks any is answered with code 99400 and every
    fault, and each fault is kept in ``violations``. A token that is missing, unknown or expired gets ``token_refusal``,
    a message, file or request over its limit HTTP 413.

    ``org_id``: the only organisation to serve, None for any. ``token_lifetime`` and ``latency`` (added before each
    answer to an upload) are seconds. ``refresh_revokes``: a refresh ends the token it was given. ``max_message_bytes``
    is the first size refused, ``max_file_bytes`` the last one taken, and so is ``max_request_bytes``, which counts the
    body of an upload without the framing of chunks. With ``early_413`` such a body is refused before it is read, or where
    it passes the limit if it did not say its length; the rest is read and dropped, so that the client sees the answer.

    ``max_skew``: how many seconds the timestamp of a request for a token may be away from the service's clock, None for
    any. ``token_clock_skew``: how many seconds that clock is ahead of ``wall``, the clock it is set by; the header Date
    of its answers shows it.

    ``ledger``: a file that gains a line per upload request, see :func:`read_ledger`. ``keep_files``: a folder that gets
    the bytes of every file, named by their sha256. ``remember``: how many requests, structs and violations are kept in
    memory, None for all. ``monotonic``: the clock of token lifetimes and records. ``on_received`` is called with each
    record, on the connection's thread.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        org_id: str | None = None,
        app_key: str = "app-key",
        app_secret: str = "app-secret",  # noqa: S107 (made up, for tests)
        token_lifetime: float = 7200,
        refresh_revokes: bool = True,
        check_token: bool = True,
        token_refusal: Expired | ApimExpired = Expired(),  # noqa: B008 (frozen)
        max_message_bytes: int = 512 * 1024,
        max_file_bytes: int = 100_000_000,
        max_request_bytes: int | None = None,
        early_413: bool = False,
        max_skew: float | None = None,
        token_clock_skew: float = 0,
        latency: float = 0,
        ledger: Path | None = None,
        keep_files: Path | None = None,
        remember: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_received: Callable[[Received], None] | None = None,
    ) -> None:
        self._address = (host, port)
        self._rules = Rules(
            org_id=org_id,
            check_token=check_token,
            token_refusal=token_refusal,
            max_message_bytes=max_message_bytes,
            max_file_bytes=max_file_bytes,
            max_request_bytes=max_request_bytes,
            early_413=early_413,
            latency=latency,
            keep_files=keep_files,
            monotonic=monotonic,
        )
        self._tokens = TokenDesk(
            app_key=app_key,
            app_secret=app_secret,
            lifetime=token_lifetime,
            refresh_revokes=refresh_revokes,
            max_skew=max_skew,
            monotonic=monotonic,
            wall=lambda: wall() + token_clock_skew,
        )
        self._ledger_path = ledger
        self._ledger: Ledger | None = None
        self._books = Books(remember=remember, on_received=on_received)
        self._server: Server | None = None

    def start(self) -> Receiver:
        """Bind the port and serve; OSError if the port is taken, or the ledger or folder cannot be used.

        A receiver that was closed starts again on the same port, with all it knew: the service came back.
        """
        if self._server is not None:
            raise RuntimeError("this receiver is already running")
        if self._rules.keep_files is not None:
            self._rules.keep_files.mkdir(parents=True, exist_ok=True)
        self._ledger = None if self._ledger_path is None else Ledger(self._ledger_path)
        self._books.start(self._ledger)
        try:
            self._server = Server(self._address, rules=self._rules, books=self._books, tokens=self._tokens)
        except OSError:
            self._close_ledger()
            raise
        self._address = (self._address[0], self._server.server_port)
        return self

    def close(self) -> None:
        """End every connection and thread at once; the records stay readable. Harmless if it is not running."""
        if self._server is not None:
            self._server.stop()
            self._server = None
            self._close_ledger()

    def __enter__(self) -> Receiver:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the first start, if none was chosen."""
        return self._address[1]

    @property
    def url(self) -> str:
        """The integration address, to which a client appends the path of the service."""
        host, port = self._address
        if not port:
            raise RuntimeError("this receiver has no address before it is started")
        return f"http://{'127.0.0.1' if host in ('', '0.0.0.0') else host}:{port}"  # noqa: S104 (not a bind)

    @property
    def token_url(self) -> str:
        """The gateway address with the token service: the same server."""
        return self.url

    def misbehave(self, *behaviours: Behaviour) -> None:
        """Queue behaviours; each is used up by one upload request, in order, and goes before any standing one."""
        with self._books.changed:
            self._books.queue.extend(behaviours)

    def misbehave_for_tokens(self, *behaviours: Behaviour) -> None:
        """The same for requests to the token service, which are otherwise answered honestly."""
        with self._books.changed:
            self._books.token_queue.extend(behaviours)

    def always(self, behaviour: Behaviour | None) -> None:
        """Apply this behaviour to every upload request from now on; None ends that."""
        with self._books.changed:
            self._books.standing = behaviour

    def always_for_tokens(self, behaviour: Behaviour | None) -> None:
        """Apply this behaviour to every request to the token service that no queued one meets; None ends that."""
        with self._books.changed:
            self._books.token_standing = behaviour

    def sometimes(self, behaviour: Behaviour, probability: float, seed: int = 0) -> None:
        """Apply this behaviour to upload requests by chance; of several the one named first wins. Ended by never()."""
        with self._books.changed:
            self._books.chances.append((behaviour, probability, random.Random(seed)))

    def never(self) -> None:
        """Take back every behaviour: queued, standing, by chance and by content."""
        with self._books.changed:
            self._books.queue.clear()
            self._books.token_queue.clear()
            self._books.standing = None
            self._books.token_standing = None
            self._books.chances.clear()
            self._books.breaks.clear()

    def break_on(self, predicate: Predicate, behaviour: Behaviour) -> None:
        """Apply this behaviour to every upload request that has a struct for which the predicate holds.

        It takes the place of any other that has not acted by then, as soon as the message part and the boundary after
        it have been read; the predicate is asked before the message is checked. ``HangUp("in_body")`` leaves there and
        then: all of a short body may have been read by that time, yet the client sees the reset and never an answer.
        ``EarlyStatus`` answers there. ValueError for a behaviour that would have to begin before the message is known,
        ``HangUp("before_body")`` and ``SlowRead``. Ended by never().
        """
        if isinstance(behaviour, SlowRead) or (isinstance(behaviour, HangUp) and behaviour.when == "before_body"):
            raise ValueError(f"{behaviour} begins before the message is known; choose one that begins later")
        with self._books.changed:
            self._books.breaks.append((predicate, behaviour))

    def refuse(
        self, predicate: Predicate, code: int = 1204, msg: str = "Model validate failed", *, keep_good: bool = False
    ) -> None:
        """Answer every request with this code that has a struct for which the predicate holds.

        ``keep_good``: the service nevertheless stores the other structs of the request, see :attr:`Received.kept`. Of
        several refusals the first that fits gives the answer, and each one sees the structs that those before it left.
        """
        with self._books.changed:
            self._books.refusals.append(Refusal(predicate, code, msg, keep_good))

    def stop_refusing(self) -> None:
        """Take back every refusal."""
        with self._books.changed:
            self._books.refusals.clear()

    def release(self) -> None:
        """Answer every request that is held at this moment, see :class:`Hold`."""
        self._books.release()

    def issue_token(self) -> str:
        """A living access token, without asking the token service over HTTP."""
        return self._tokens.issue()

    def expire_tokens(self) -> None:
        """End every access token at once."""
        self._tokens.expire_all()

    def rotate_secret(self, new: str) -> None:
        """Give the application another appSecret: the old one is refused with 1003 from now on, its tokens live on."""
        self._tokens.rotate_secret(new)

    @property
    def requests(self) -> list[Received]:
        """Every upload request that is over, in the order they ended."""
        with self._books.changed:
            return list(self._books.requests)

    @property
    def accepted(self) -> list[Accepted]:
        """Every struct that was taken and whose client was told so, in that order."""
        with self._books.changed:
            return list(self._books.accepted)

    @property
    def violations(self) -> list[str]:
        """Everything any client did wrong, each with the number of its request."""
        with self._books.changed:
            return list(self._books.violations)

    @property
    def token_requests(self) -> Counter[str]:
        """How often ``get`` and ``refresh`` of the token service were asked for."""
        return self._tokens.requests

    @property
    def begun(self) -> int:
        """How many upload requests have begun, whether or not they are over."""
        with self._books.changed:
            return self._books.numbers

    @property
    def in_flight(self) -> int:
        """Upload requests that have begun and are not over."""
        with self._books.changed:
            return self._books.in_flight

    @property
    def held(self) -> int:
        """Requests that wait for :meth:`release`."""
        with self._books.changed:
            return self._books.held

    @property
    def concurrent_peak(self) -> int:
        """The largest number of upload requests that were ever in flight at once."""
        with self._books.changed:
            return self._books.peak

    def rate_over(self, window: float) -> int:
        """The most upload requests that began within any ``window`` seconds, of which the last instant is left out."""
        with self._books.changed:
            starts = list(self._books.starts)
        return rate_of(starts, window)

    def wait_for(self, predicate: Callable[[Receiver], bool], timeout: float = 10) -> None:
        """Block until the predicate holds; it is asked again whenever a request begins, is held, ends or wants a token.

        Raises TimeoutError after ``timeout`` seconds.
        """
        with self._books.changed:
            if not self._books.changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(
                    f"not so within {timeout} s; {len(self._books.requests)} requests are over, "
                    f"{self._books.in_flight} in flight, {len(self._books.accepted)} structs accepted"
                )

    def _close_ledger(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
