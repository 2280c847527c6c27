"""Numbers for Prometheus: gauges as the database has them, counters and histograms as this process saw them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from outbox import telemetry
from outbox.app import Outbox
from outbox.errors import ConfigurationError
from outbox.health import WITHIN, Glance, Health, NoAnswerYet
from outbox.model import Batch, Outcome, Reason
from outbox.patience import Stop
from outbox.sights import DestinationStatus, Status
from outbox.telemetry import Metric
from outbox.verdict import NotSent, Unknown, Verdict, outcome
from outbox.watching import Recorded, Watcher

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

_MISSING = "metrics need prometheus-client; pip install 'durable-outbox[metrics]'"
#: Seconds that what the database said is said again, and for which it stands in for an answer that takes longer.
_FRESH = 5.0
_GOOD_FOR = 120.0


class Metrics(Watcher):
    """Watches a worker, and has a registry to be scraped; by default one of its own, with what it knows of this process.

    The gauges come from the database, so every worker on it says the same: take the maximum, not the sum. While the database is
    away `outbox_database_up` is 0 and they are absent; a scrape takes two seconds at most. Raises ConfigurationError when
    prometheus-client is not installed.
    """

    def __init__(self, outbox: Outbox, *, registry: CollectorRegistry | None = None, health: Health | None = None) -> None:
        try:
            import prometheus_client
        except ImportError:
            raise ConfigurationError(_MISSING) from None
        if registry is None:
            registry = prometheus_client.CollectorRegistry()
            prometheus_client.ProcessCollector(registry=registry)
            prometheus_client.GCCollector(registry=registry)
        self.registry = registry
        health = health or Health(outbox.database, outbox.spool_store, outbox.ambient)
        registry.register(_Gauges(outbox, health))

        def counter(of: Metric) -> prometheus_client.Counter:
            return prometheus_client.Counter(of.name, of.help, of.labels, registry=registry)

        def histogram(of: Metric, buckets: tuple[float, ...]) -> prometheus_client.Histogram:
            return prometheus_client.Histogram(of.name, of.help, of.labels, registry=registry, buckets=buckets)

        self._deliveries = counter(telemetry.DELIVERIES)
        self._attempts = counter(telemetry.ATTEMPTS)
        self._sent_bytes = counter(telemetry.SENT_BYTES)
        self._claims_lost = counter(telemetry.CLAIMS_LOST)
        self._rescues = counter(telemetry.RESCUES)
        self._loop_errors = counter(telemetry.LOOP_ERRORS)
        self._upload_seconds = histogram(telemetry.UPLOAD_SECONDS, telemetry.UPLOAD_BUCKETS)
        self._batch_messages = histogram(telemetry.BATCH_MESSAGES, telemetry.BATCH_BUCKETS)
        for name in outbox.destinations:  # a rate needs a zero to begin with
            for each in (self._sent_bytes, self._claims_lost, self._rescues):
                each.labels(name)
            for word in Outcome:
                self._deliveries.labels(name, word.value)
                self._attempts.labels(name, word.value)

    def scrape(self) -> bytes:
        """Everything in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

    def upload_ended(self, batch: Batch, verdict: Verdict, seconds: float) -> None:
        if _went_out(verdict):
            self._sent_bytes.labels(batch.destination).inc(batch.size)
            self._upload_seconds.labels(batch.destination).observe(seconds)
            self._batch_messages.labels(batch.destination).observe(len(batch.messages))

    def recorded(self, recorded: Recorded) -> None:
        result = recorded.result
        name = result.destination
        self._deliveries.labels(name, outcome(result.verdict).value).inc()
        for what, number in Counter(settlement.outcome.value for settlement in recorded.settled.values()).items():
            self._attempts.labels(name, what).inc(number)
        if lost := len(result.messages) - len(recorded.settled):
            self._claims_lost.labels(name).inc(lost)
        if isinstance(result.verdict, Unknown) and result.verdict.gone:
            self._rescues.labels(name).inc()

    def loop_failed(self, name: str) -> None:
        self._loop_errors.labels(name).inc()


class _Gauges:
    """Asked by the registry at each scrape."""

    def __init__(self, outbox: Outbox, health: Health) -> None:
        self._health = health
        self._figures = Glance(outbox.status, "look-figures", _FRESH)

    def describe(self) -> list[Family]:
        """Nothing yet: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[Family]:
        """The gauges; without an answer in time only whether the database is there."""
        by = time.monotonic() + WITHIN
        up = self._health.database_is_there(WITHIN)
        yield _family(telemetry.DATABASE_UP, [((), float(up))])
        status = self._status(by) if up else None
        if status is not None:
            yield from _of_status(status)

    def _status(self, by: float) -> Status | None:
        self._figures.begin()
        try:
            return self._figures.end(by)
        except NoAnswerYet:
            return self._figures.latest(_GOOD_FOR)  # it counts long; what it said last is near enough
        except Exception:  # noqa: BLE001 (the database went away in between; the next scrape says so)
            return None


def _of_status(status: Status) -> Iterator[Family]:
    of = status.destinations
    yield _per_destination(telemetry.PENDING, {name: each.due + each.waiting for name, each in of.items()})
    yield _per_destination(telemetry.DUE, {name: each.due for name, each in of.items()})
    yield _per_destination(telemetry.CLAIMED, {name: each.claimed for name, each in of.items()})
    died = [((name, reason.value), each.dead_by_reason.get(reason, 0)) for name, each in of.items() for reason in Reason]
    yield _family(telemetry.DEAD, died)
    yield _per_destination(telemetry.OLDEST_DUE, {name: _age(each, status) for name, each in of.items()})
    stopped = [((name, stop.value), float(each.stop == stop)) for name, each in of.items() for stop in Stop]
    yield _family(telemetry.STOPPED, stopped)
    yield _per_destination(telemetry.BREAKER, {name: float(each.open_until is not None) for name, each in of.items()})
    yield _family(telemetry.WORKERS, [((), status.workers)])
    yield _family(telemetry.SPOOL_FILES, [((), status.spool.files)])
    yield _family(telemetry.SPOOL_BYTES, [((), status.spool.bytes)])
    if status.spool.free_bytes is not None:
        yield _family(telemetry.SPOOL_FREE, [((), status.spool.free_bytes)])
    if status.spool.full_in_seconds is not None:
        yield _family(telemetry.SPOOL_FULL_IN, [((), status.spool.full_in_seconds)])


def _age(of: DestinationStatus, status: Status) -> float:
    return max(0.0, (status.at - of.oldest_due_at).total_seconds()) if of.oldest_due_at else 0.0


def _per_destination(metric: Metric, values: Mapping[str, float]) -> Family:
    return _family(metric, [((name,), value) for name, value in values.items()])


def _family(metric: Metric, samples: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples:
        family.add_metric(list(labels), value)
    return family


def _went_out(verdict: Verdict) -> bool:
    """Whether a whole request did: then there was an answer, or its lack is what the verdict is about."""
    return not isinstance(verdict, NotSent) and (verdict.facts.status is not None or isinstance(verdict, Unknown))
