"""A worker with what a machine wants of a service: probes, metrics, traces, and a word to systemd."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from outbox import tracing
from outbox.app import Outbox
from outbox.errors import ConfigurationError
from outbox.health import Health
from outbox.metrics import Metrics
from outbox.port import Page, Port
from outbox.systemd import Notifier
from outbox.watching import Watcher, Watchers
from outbox.worker import Worker

log = logging.getLogger("outbox.service")

_JSON = "application/json"


class Service:
    """Runs one worker; `options` are the worker's.

    `http` is where `/livez`, `/readyz` and `/metrics` are (`127.0.0.1:9464`; port 0 is any; None for nowhere). `traced` makes a
    span for each upload: None does so if this process has imported OpenTelemetry by now. Raises ConfigurationError when the
    address cannot be had, or when something asked for is not installed.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        http: str | None = None,
        traced: bool | None = None,
        watcher: Watcher | None = None,
        **options: Any,
    ) -> None:
        health = Health(outbox.database, outbox.spool_store, outbox.ambient)
        self._metrics: Metrics | None = None
        self._no_metrics = ""
        if http is not None:
            try:
                self._metrics = Metrics(outbox, health=health)
            except ConfigurationError as error:
                self._no_metrics = str(error)
        self._notifier = Notifier(lambda: not self.worker.ailments())
        watchers = [self._metrics, tracing.Tracing() if _traced(traced) else None, _Announcer(self._notifier), watcher]
        self.worker = Worker(outbox, watcher=Watchers(each for each in watchers if each is not None), **options)
        self._health = health
        pages: dict[str, Callable[[], Page]] = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._scrape}
        self._port = Port(http, pages) if http is not None else None

    @property
    def url(self) -> str | None:
        """Where its pages are."""
        return self._port.url if self._port else None

    def run(self) -> None:
        """Work until SIGTERM, SIGINT, `outbox worker stop` or `worker.stop()`; once. Raises what `Worker.run` does."""
        try:
            if self._port is not None:
                self._port.start()
                log.info("probes and metrics are at %s", self.url)
            self.worker.run()
        finally:
            self._notifier.close()
            if self._port is not None:
                self._port.close()

    def _livez(self) -> Page:
        ailments = self.worker.ailments()
        return _page(not ailments, {"live": not ailments, "worker": self.worker.id or None, "ailments": ailments})

    def _readyz(self) -> Page:
        parts = self._health.parts()
        ready = all(part.ok for part in parts.values())
        return _page(ready, {"ready": ready, **{name: part._asdict() for name, part in parts.items()}})

    def _scrape(self) -> Page:
        if self._metrics is None:
            return Page(501, f"{self._no_metrics}\n".encode())
        return Page(200, self._metrics.scrape(), "text/plain; version=0.0.4; charset=utf-8")


class _Announcer(Watcher):
    """Tells systemd how far the worker is."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def started(self, worker_id: str) -> None:
        self._notifier.ready(f"worker {worker_id} delivers")

    def stopping(self) -> None:
        self._notifier.stopping("finishes the uploads in hand")


def _traced(asked: bool | None) -> bool:
    return tracing.in_use() if asked is None else asked


def _page(good: bool, said: dict[str, Any]) -> Page:
    return Page(200 if good else 503, json.dumps(said).encode() + b"\n", _JSON)
