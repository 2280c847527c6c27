"""Who looks on while a worker works: metrics, traces, the service manager; by default nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outbox.model import Batch
from outbox.store.claiming import Expired
from outbox.verdict import Result, Settlement, Verdict

log = logging.getLogger("outbox.watching")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A delivery that is over and written down; `settled` has what became of each message whose claim still held."""

    result: Result
    settled: Mapping[int, Settlement]


class Watcher:
    """Is told what a worker does, on the thread that does it, and changes nothing. Override what is of interest; be quick."""

    def started(self, worker_id: str) -> None:
        """The worker takes turns from now on."""

    def stopping(self) -> None:
        """The worker begins no send any more; those in hand are finished."""

    def upload_begins(self, batch: Batch) -> Mapping[str, str]:
        """A claimed batch is about to be encoded and sent; returns headers to add to its request."""
        return {}

    def upload_ended(self, batch: Batch, verdict: Verdict, seconds: float) -> None:
        """The same batch, on the same thread, has its verdict; nothing of it is recorded yet."""

    def recorded(self, recorded: Recorded) -> None:
        """An outcome is committed: of a delivery of ours, or of one that a worker left behind."""

    def expired(self, messages: Sequence[Expired]) -> None:
        """These were given up because their time was over, and that is committed."""

    def loop_failed(self, name: str) -> None:
        """A round of a loop, or a step of the pulse, has failed; it goes on."""


class Watchers(Watcher):
    """Several as one. What one of them raises is logged, and harms neither the work nor the others."""

    def __init__(self, watchers: Iterable[Watcher]) -> None:
        self._all = tuple(watchers)

    def started(self, worker_id: str) -> None:
        self._tell(lambda each: each.started(worker_id))

    def stopping(self) -> None:
        self._tell(lambda each: each.stopping())

    def upload_begins(self, batch: Batch) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        self._tell(lambda each: headers.update(each.upload_begins(batch)))
        return headers

    def upload_ended(self, batch: Batch, verdict: Verdict, seconds: float) -> None:
        self._tell(lambda each: each.upload_ended(batch, verdict, seconds))

    def recorded(self, recorded: Recorded) -> None:
        self._tell(lambda each: each.recorded(recorded))

    def expired(self, messages: Sequence[Expired]) -> None:
        self._tell(lambda each: each.expired(messages))

    def loop_failed(self, name: str) -> None:
        self._tell(lambda each: each.loop_failed(name))

    def _tell(self, what: Callable[[Watcher], Any]) -> None:
        for each in self._all:
            try:
                what(each)
            except Exception:
                log.exception("%s failed; the work goes on", type(each).__name__)
