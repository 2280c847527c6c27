"""A worker as a service: probes, metrics, log lines, traces, systemd, and a stop through the database."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler, SamplingResult
from prometheus_client.parser import text_string_to_metric_families

from outbox import ConfigurationError, Outbox, OutOfRoom, Policy, Refused, State, Worker, logs, migrate, secret, telemetry
from outbox.health import Glance, Health, NoAnswerYet
from outbox.metrics import Metrics
from outbox.policy import MIB
from outbox.port import Page, Port
from outbox.service import Service
from outbox.spool import DirectorySpool
from outbox.store import living
from outbox.systemd import Notifier
from outbox.tables import audit, worker
from outbox.telemetry import context_of
from outbox.testing import Answer, HangUp, Hold, Status
from outbox.tracing import Tracing
from outbox.watching import Recorded, Watcher, Watchers
from tests.factories import an_outbox, column, count, states
from tests.postgres import Postgres
from tests.story.conftest import Hand, Place, eventually

ROOT = Path(__file__).parents[2]
CONTEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
#: A probe asks for an answer within two seconds; the machine may be busy.
SOON = 3.0


class Got:
    """An answer of the HTTP port."""

    def __init__(self, url: str, path: str, method: str = "GET") -> None:
        began = time.monotonic()
        request = urllib.request.Request(url + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                self.status, self.headers, self.body = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                self.status, self.headers, self.body = error.code, error.headers, error.read()
        self.seconds = time.monotonic() - began

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


class Running:
    """A service at work on a thread of its own."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.thread = threading.Thread(target=service.run)

    def __enter__(self) -> Running:
        self.thread.start()
        eventually(lambda: self.service.worker.id)
        return self

    def __exit__(self, *_: object) -> None:
        self.service.worker.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def get(self, path: str, method: str = "GET") -> Got:
        assert self.service.url is not None
        return Got(self.service.url, path, method)

    def samples(self) -> dict[tuple[str, ...], float]:
        return samples_of(self.get("/metrics").body)


def samples_of(text: bytes) -> dict[tuple[str, ...], float]:
    """Every sample as a parser of somebody else's reads it, by its name and the values of its labels."""
    families = list(text_string_to_metric_families(text.decode()))
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def served(outbox: Outbox, **options: Any) -> Running:
    return Running(Service(outbox, http="127.0.0.1:0", **({"poll": 0.05, "gone_after": 1.5} | options)))


# Probes


def test_a_worker_tells_that_it_is_alive_and_ready(place: Place) -> None:
    with served(place.outbox()) as running:
        live, ready = running.get("/livez"), running.get("/readyz")

        assert (200, {"live": True, "worker": running.service.worker.id, "ailments": []}) == (live.status, live.json)
        fine = {"ok": True, "text": None}
        assert (200, {"ready": True, "database": fine, "schema": fine, "spool": fine}) == (ready.status, ready.json)


def test_a_look_makes_no_spool(sqlite_place: Place) -> None:
    with served(sqlite_place.outbox()) as running:
        ready = running.get("/readyz").status

    assert 200 == ready
    assert not sqlite_place.spool.exists(), "its disk may only be unmounted"


def test_readiness_names_the_part_that_is_missing(place: Place) -> None:
    (place.spool / ".unfinished").mkdir(parents=True)
    with served(place.outbox()) as running, another_schema(place):
        (place.spool / ".unfinished").rename(place.folder / "elsewhere")
        place.spool.chmod(0o500)
        (place.spool / ".unfinished").write_text("in the way")
        eventually(lambda: not running.get("/readyz").json["schema"]["ok"])
        eventually(lambda: not running.get("/readyz").json["spool"]["ok"], 30)

        ready, parts = running.get("/readyz"), running.get("/readyz").json

        assert 503 == ready.status
        assert parts["database"]["ok"]
        assert "outbox_0001" in parts["schema"]["text"]
        assert str(place.spool) in parts["spool"]["text"]
        assert 200 == running.get("/livez").status
        samples = running.samples()
        assert 0 == samples[("outbox_database_up",)]
        assert ("outbox_messages_due", "enos") not in samples  # nobody knows what another schema's figures mean


@contextlib.contextmanager
def another_schema(place: Place) -> Iterator[None]:
    """The database says that it is at the first revision."""
    say = sa.text("UPDATE outbox_alembic_version SET version_num = :it")
    with place.engine.begin() as connection:
        connection.execute(say, {"it": "outbox_0001"})
    try:
        yield
    finally:
        with place.engine.begin() as connection:
            connection.execute(say, {"it": migrate.newest()})


@pytest.mark.long
def test_a_pulse_that_stands_still_is_not_alive_until_it_goes_on(place: Place) -> None:
    outbox = place.outbox()
    with served(outbox, stuck_after=0.5) as running, place.engine.connect() as somebody:
        eventually(lambda: running.get("/livez").status == 200)
        # Whoever holds the worker's row, or SQLite's write lock, holds up its beat.
        somebody.execute(sa.update(worker).values(host="held"))
        eventually(lambda: running.get("/livez").status == 503)

        ailing = running.get("/livez")
        somebody.rollback()

        assert "the pulse has stood still" in ailing.json["ailments"][0]
        assert ailing.seconds < SOON
        eventually(lambda: running.get("/livez").status == 200)


def test_a_loop_that_is_never_run_again_is_not_alive(place: Place) -> None:
    with served(place.outbox(), stuck_after=0.3) as running:
        worker = running.service.worker
        loop = worker._loops[0]
        eventually(lambda: not loop.running)
        with loop.lock:  # its next round cannot begin, and is late by and by
            worker._metronome.arm(loop, 0.0)
            eventually(lambda: running.get("/livez").status == 503)
            ailments = running.get("/livez").json["ailments"]

        assert any(f"the loop {loop.name} is" in each for each in ailments)


def test_a_pulse_that_has_ended_is_not_alive(sqlite_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(sqlite_place.outbox()) as running:
        monkeypatch.setattr(running.service.worker, "_stop_pulse", lambda: True)

        eventually(lambda: running.get("/livez").status == 503)

        assert ["the pulse has ended"] == running.get("/livez").json["ailments"]


def test_a_worker_that_has_not_begun_or_is_ending_ails_of_nothing(sqlite_place: Place) -> None:
    working = Worker(sqlite_place.outbox(), poll=0.05)

    before = working.ailments()
    with working:
        pass

    assert [] == before == working.ailments()


def test_only_what_is_there_can_be_read_and_nothing_else_be_done(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with served(place.outbox()) as running:
        caplog.clear()
        answers = {
            what: running.get(path, method)
            for what, (path, method) in {
                "another path": ("/", "GET"),
                "a folder": ("/livez/", "GET"),
                "a question": ("/livez?verbose", "GET"),
                "the head": ("/readyz", "HEAD"),
                "a change": ("/livez", "POST"),
                "a wish": ("/metrics", "BREW"),
            }.items()
        }

    assert {"another path": 404, "a folder": 404, "a question": 200, "the head": 200, "a change": 405, "a wish": 405} == {
        what: got.status for what, got in answers.items()
    }
    assert b"" == answers["the head"].body
    assert int(answers["the head"].headers["Content-Length"]) > 0
    assert "GET, HEAD" == answers["a change"].headers["Allow"]
    assert "outbox" == answers["another path"].headers["Server"].strip()
    assert [] == [record.getMessage() for record in caplog.records if "port" in record.name]


def test_a_port_that_is_taken_is_said_before_anything_begins(sqlite_place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(ConfigurationError, match=f"cannot listen on {address}: Address already in use"):
            Service(sqlite_place.outbox(), http=address)

    assert 0 == count(sqlite_place.database, worker)


@pytest.mark.parametrize("address", ["9464", "localhost", "localhost:http", "127.0.0.1:99999", "::1:9464", ""])
def test_an_address_that_is_none_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"such as 127\.0\.0\.1:9464"):
        Port(address, {})


@pytest.mark.parametrize(("address", "host"), [("127.0.0.1:0", "127.0.0.1"), (":0", "127.0.0.1"), ("[::1]:0", "[::1]")])
def test_it_listens_where_it_is_told_to(address: str, host: str) -> None:
    if "::1" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    served = Port(address, {"/page": lambda: Page(200, b"here")})
    served.start()
    try:
        assert served.url.startswith(f"http://{host}:")
        assert b"here" == Got(served.url, "/page").body
    finally:
        served.close()


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def test_more_clients_than_places_are_turned_away_and_the_rest_served() -> None:
    enough, entered = threading.Event(), threading.Semaphore(0)

    def slow() -> Page:
        entered.release()
        enough.wait(20)
        return Page(200, b"done")

    served = Port("127.0.0.1:0", {"/slow": slow})
    served.start()
    host, port = served.url.removeprefix("http://").split(":")
    clients = [HTTPConnection(host, int(port), timeout=20) for _ in range(16)]
    try:
        for each in clients:
            each.request("GET", "/slow")
        for _ in clients:
            assert entered.acquire(timeout=20)

        with pytest.raises((ConnectionError, urllib.error.URLError)):
            Got(served.url, "/slow")
        enough.set()

        assert [200] * 16 == [each.getresponse().status for each in clients]
        assert b"done" == Got(served.url, "/slow").body
    finally:
        enough.set()
        for each in clients:
            each.close()
        served.close()


def pages_answer_without_the_database(running: Running) -> dict[str, Any]:
    """All three in time, and the parts of readiness."""
    eventually(lambda: running.get("/readyz").status == 503)
    answers = {path: running.get(path) for path in ("/livez", "/readyz", "/metrics")}
    assert {"/livez": 200, "/readyz": 503, "/metrics": 200} == {path: got.status for path, got in answers.items()}
    assert max(got.seconds for got in answers.values()) < SOON
    samples = samples_of(answers["/metrics"].body)
    assert 0 == samples[("outbox_database_up",)]
    assert 1 == samples[("outbox_deliveries_total", "enos", "delivered")]
    assert ("outbox_messages_due", "enos") not in samples
    parts: dict[str, Any] = answers["/readyz"].json
    assert (False, True) == (parts["database"]["ok"], parts["spool"]["ok"])
    return parts


def and_comes_back(running: Running, place: Place, outbox: Outbox) -> None:
    place.engine.dispose()
    eventually(lambda: running.get("/readyz").status == 200, 60)
    eventually(lambda: running.samples().get(("outbox_messages_due", "enos")) is not None, 30)
    place.enqueue(outbox, "after")
    eventually(lambda: states(place.database)["after"] == State.DELIVERED, 60)


def deliver_one(place: Place, outbox: Outbox) -> None:
    place.enqueue(outbox, "before")
    eventually(lambda: states(place.database) == {"before": State.DELIVERED})


@pytest.mark.slow
def test_the_pages_answer_while_postgres_is_down(private_place: Place, private_postgres: Postgres) -> None:
    outbox = private_place.outbox()
    with served(outbox) as running:
        deliver_one(private_place, outbox)
        eventually(lambda: running.samples()[("outbox_deliveries_total", "enos", "delivered")] == 1)
        private_postgres.stop("immediate")

        parts = pages_answer_without_the_database(running)
        private_postgres.start_again()

        assert "OperationalError" in parts["database"]["text"]
        and_comes_back(running, private_place, outbox)


@pytest.mark.slow
def test_the_pages_answer_while_postgres_is_frozen(private_place: Place, private_postgres: Postgres) -> None:
    outbox = private_place.outbox()
    with served(outbox) as running:
        deliver_one(private_place, outbox)
        eventually(lambda: running.samples()[("outbox_deliveries_total", "enos", "delivered")] == 1)
        with frozen(private_postgres):
            threads = threading.active_count()
            parts = pages_answer_without_the_database(running)
            for _ in range(3):
                running.get("/readyz")

            assert "no answer for" in parts["database"]["text"]
            assert threading.active_count() <= threads + 5  # the question is asked once, however often one looks

        and_comes_back(running, private_place, outbox)


@contextlib.contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """Every process of a server stopped; the kernel still takes what is sent to it."""
    import psutil

    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    everyone = [postmaster, *postmaster.children(recursive=True)]
    for each in everyone:
        each.suspend()
    try:
        yield
    finally:
        for each in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()


#: Holds every lock that a reader of a WAL needs, until its input ends: what a database on a broken network file system is like.
LOCK_READERS_OUT = """
import fcntl, sys
with open(sys.argv[1] + "-shm", "r+b") as shared:
    fcntl.lockf(shared, fcntl.LOCK_EX, 8, 120)
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_the_pages_answer_while_nobody_can_read_sqlite(sqlite_place: Place) -> None:
    outbox = sqlite_place.outbox()
    with served(outbox) as running:
        deliver_one(sqlite_place, outbox)
        eventually(lambda: running.samples()[("outbox_deliveries_total", "enos", "delivered")] == 1)
        command = [sys.executable, "-c", LOCK_READERS_OUT, str(sqlite_place.engine.url.database)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            holder.stdout.readline()

            pages_answer_without_the_database(running)
            holder.stdin.close()

        and_comes_back(running, sqlite_place, outbox)


@pytest.mark.merge
def test_the_pages_answer_while_somebody_has_sqlite_to_himself(sqlite_place: Place) -> None:
    with served(sqlite_place.outbox()) as running:
        raw = sqlite_place.engine.raw_connection()
        raw.cursor().execute("BEGIN EXCLUSIVE")
        eventually(lambda: running.service.worker._ticked_at is not None)

        answers = [running.get(path) for path in ("/livez", "/readyz", "/metrics")]
        raw.rollback()
        raw.close()
        eventually(lambda: running.get("/readyz").status == 200)

    assert [200, 503, 200] == [got.status for got in answers], "who works is well, but there is nothing that it can do"
    assert "write lock" in answers[1].json["database"]["text"]
    assert max(got.seconds for got in answers) < SOON


def test_who_asks_too_shortly_hears_that_the_lock_is_what_nobody_knows_of(sqlite_place: Place) -> None:
    outbox = sqlite_place.outbox()
    health = Health(outbox.database, outbox.spool_store, outbox.ambient)
    assert health.database_is_there(), "which it says again for two seconds"
    with contextlib.closing(sqlite_place.engine.raw_connection()) as raw:
        raw.cursor().execute("BEGIN IMMEDIATE")
        database = health.parts(within=0.2)["database"]
        raw.rollback()

    assert not database.ok
    assert str(database.text).startswith("it answers; whether its write lock is free, nobody knows: no answer for 0.")


def test_a_question_that_nobody_has_asked_has_no_answer() -> None:
    with pytest.raises(NoAnswerYet, match="nobody has asked yet"):
        Glance(lambda: 1, "look", fresh=60.0).end(by=math.inf)


# Metrics


def test_every_metric_that_has_a_name_is_served_with_its_help_and_kind(place: Place) -> None:
    outbox = place.outbox()
    place.enqueue(outbox, "a", {"photo": b"bytes"})
    with served(outbox) as running:
        running.service._metrics.loop_failed("sweep")  # type: ignore[union-attr]
        families = {each.name: each for each in text_string_to_metric_families(running.get("/metrics").body.decode())}

    for metric in telemetry.METRICS:
        if metric is telemetry.SPOOL_FULL_IN:
            continue  # nothing is filling here
        family = families[metric.name.removesuffix("_total")]
        assert (metric.kind, metric.help) == (family.type, family.documentation), metric.name
        assert all(set(metric.labels) <= set(each.labels) for each in family.samples)


def test_the_gauges_say_what_status_says(place: Place) -> None:
    outbox = place.outbox(Policy(max_failures=1, reject_streak=50))
    place.receiver.refuse(lambda struct: struct["assetId"] == "bad")
    hand = place.hand(outbox)
    place.enqueue(outbox, "bad")
    hand.turn_while_it_moves()
    for key in ("a", "b"):
        place.enqueue(outbox, key, {"photo": b"bytes"})
    outbox.pause("enos", "maintenance", "ada")
    metrics = Metrics(outbox)

    samples = samples_of(metrics.scrape())

    status = outbox.status()
    assert {
        ("outbox_database_up",): 1,
        ("outbox_messages_pending", "enos"): 2,
        ("outbox_messages_due", "enos"): 2,
        ("outbox_messages_claimed", "enos"): 0,
        ("outbox_messages_dead", "enos", "rejected"): 1,
        ("outbox_messages_dead", "enos", "exhausted"): 0,
        ("outbox_destination_stopped", "enos", "pause"): 1,
        ("outbox_destination_stopped", "enos", "credentials"): 0,
        ("outbox_breaker_open", "enos"): 0,
        ("outbox_workers_alive",): 1,
        ("outbox_spool_files",): 2,
        ("outbox_spool_bytes",): 10,
    }.items() <= samples.items()
    assert status.destinations["enos"].due == samples[("outbox_messages_due", "enos")]
    assert samples[("outbox_oldest_due_age_seconds", "enos")] > 0
    assert samples[("outbox_spool_free_bytes",)] > 0


def test_a_question_that_found_no_thread_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    look = Glance(lambda: 7, "look", fresh=0.0)
    with monkeypatch.context() as crowded:
        crowded.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            look(within=20.0)

    assert 7 == look(within=20.0)


def test_figures_that_let_one_wait_are_those_of_the_last_time_for_a_while(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.health._FRESH", 60.0)  # that the database answers is known
    monkeypatch.setattr("outbox.metrics._FRESH", 0.0)
    pending, outbox, enough = ("outbox_messages_pending", "enos"), sqlite_place.outbox(), threading.Event()
    sqlite_place.hand(outbox)
    metrics = Metrics(outbox)
    before = samples_of(metrics.scrape())[pending]
    sqlite_place.enqueue(outbox, "a")
    assert outbox.database._reader is not None
    sa.event.listen(outbox.database._reader, "before_cursor_execute", lambda *_: enough.wait(20))

    with monkeypatch.context() as hasty:
        hasty.setattr("outbox.metrics.WITHIN", 0.05)
        meanwhile = samples_of(metrics.scrape())[pending]
        hasty.setattr("outbox.metrics._GOOD_FOR", 0.0)
        too_old = samples_of(metrics.scrape())
    enough.set()

    assert (0, 0) == (before, meanwhile)
    assert (1, False) == (too_old[("outbox_database_up",)], pending in too_old)
    eventually(lambda: samples_of(metrics.scrape())[pending] == 1)


def test_a_spool_that_fills_has_a_gauge_and_one_whose_room_nobody_knows_has_none(sqlite_place: Place) -> None:
    class Elsewhere(DirectorySpool):
        def left(self) -> int | None:
            return None

    outbox = an_outbox(sqlite_place.url, Elsewhere(sqlite_place.spool), quota=1000)
    sqlite_place.enqueue(outbox, "a", {"photo": bytes(100)})

    filling = samples_of(Metrics(outbox).scrape())
    outbox.room.quota = None
    unknown = samples_of(Metrics(outbox).scrape())
    outbox.close()

    of_room = (("outbox_spool_free_bytes",), ("outbox_spool_full_in_seconds",))
    assert [None, 9 * 3600] == [filling.get(each) for each in of_room]
    assert [None, None] == [unknown.get(each) for each in of_room]


def test_an_open_breaker_is_a_gauge_too(place: Place) -> None:
    place.receiver.always(Status(503))
    outbox = place.outbox(Policy(breaker_after=1))
    place.enqueue(outbox, "a")
    place.hand(outbox).turn()

    assert 1 == samples_of(Metrics(outbox).scrape())[("outbox_breaker_open", "enos")]


def watched(place: Place, hand: Hand, *watchers: Watcher) -> None:
    """Let them watch a hand."""
    hand.dispatcher._watcher = Watchers(watchers)


def test_counters_tell_deliveries_messages_bytes_and_how_long_it_took(place: Place) -> None:
    outbox = place.outbox(Policy(batch_bytes=10_000_000))
    place.receiver.misbehave(HangUp("before_body"), Answer(99500, "trouble"))
    metrics, hand = Metrics(outbox), place.hand(outbox)
    watched(place, hand, metrics)
    for key in ("a", "b"):
        place.enqueue(outbox, key, {"photo": bytes(3_000_000)})
    for _ in range(3):
        hand.turn()

    samples = samples_of(metrics.scrape())

    size = sum(column(place.database, key, "size") + 3_000_000 for key in ("a", "b"))
    assert {
        ("outbox_deliveries_total", "enos", "delivered"): 1,
        ("outbox_deliveries_total", "enos", "not_sent"): 1,
        ("outbox_deliveries_total", "enos", "retry"): 1,
        ("outbox_deliveries_total", "enos", "unknown"): 0,
        ("outbox_attempts_total", "enos", "delivered"): 2,
        ("outbox_attempts_total", "enos", "not_sent"): 2,
        ("outbox_attempts_total", "enos", "retry"): 2,
        ("outbox_sent_bytes_total", "enos"): 2 * size,  # what broke off is not counted
        ("outbox_upload_seconds_count", "enos"): 2,
        ("outbox_batch_messages_count", "enos"): 2,
        ("outbox_batch_messages_sum", "enos"): 4,
        ("outbox_batch_messages_bucket", "enos", "1.0"): 0,
        ("outbox_batch_messages_bucket", "enos", "2.0"): 2,
    }.items() <= samples.items()


def test_a_lost_claim_and_a_rescue_are_counted_where_they_are_seen(place: Place) -> None:
    outbox = place.outbox()
    place.receiver.misbehave(Hold())
    slow, other = place.hand(outbox), place.hand(outbox)
    losing, rescuing = Metrics(outbox), Metrics(outbox)
    watched(place, slow, losing)
    watched(place, other, rescuing)
    place.enqueue(outbox, "a")
    sending = threading.Thread(target=slow.turn)
    sending.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)
    with place.database.begin() as connection:
        beat = living.beats(connection)[slow.presence.id]
        assert living.declare_gone(connection, slow.presence.id, beat)
    other.dispatcher.rescue()
    place.receiver.release()
    sending.join()

    lost, rescued = samples_of(losing.scrape()), samples_of(rescuing.scrape())

    assert (1, 0) == (lost[("outbox_claims_lost_total", "enos")], lost[("outbox_rescues_total", "enos")])
    assert (0, 1) == (rescued[("outbox_claims_lost_total", "enos")], rescued[("outbox_rescues_total", "enos")])
    assert 0 == lost[("outbox_attempts_total", "enos", "delivered")]
    assert 1 == rescued[("outbox_attempts_total", "enos", "unknown")]


def test_a_round_that_fails_is_counted_by_the_name_of_its_loop(place: Place) -> None:
    outbox = place.outbox()
    with served(outbox) as running:
        with place.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE outbox_share RENAME TO outbox_hidden"))
        try:
            eventually(lambda: running.samples().get(("outbox_loop_errors_total", "lookout"), 0) > 0)
        finally:
            with place.engine.begin() as connection:
                connection.execute(sa.text("ALTER TABLE outbox_hidden RENAME TO outbox_share"))


def test_many_scrapes_ask_the_database_now_and_then(sqlite_place: Place, statements: Callable[[sa.Engine], list[str]]) -> None:
    outbox = sqlite_place.outbox()
    metrics = Metrics(outbox)
    metrics.scrape()
    assert outbox.database._reader is not None
    heard = statements(outbox.database._reader)

    for _ in range(20):
        assert 1 == samples_of(metrics.scrape())[("outbox_database_up",)]

    assert [] == heard


def test_metrics_can_join_a_registry_that_is_there(sqlite_place: Place) -> None:
    from prometheus_client import CollectorRegistry, Counter, generate_latest

    registry = CollectorRegistry()
    Counter("shop_orders_total", "Orders.", registry=registry)

    Metrics(sqlite_place.outbox(), registry=registry)

    names = {name for name, *_ in samples_of(generate_latest(registry))}
    assert {"shop_orders_total", "outbox_database_up", "outbox_messages_due"} <= names


def test_without_prometheus_client_the_other_pages_are_there_and_metrics_says_what_to_install(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with served(sqlite_place.outbox()) as running:
        got = running.get("/metrics")

        assert (501, b"metrics need prometheus-client; pip install 'durable-outbox[metrics]'\n") == (got.status, got.body)
        assert [200, 200] == [running.get(path).status for path in ("/livez", "/readyz")]


def test_a_watcher_that_fails_is_told_of_and_harms_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Watcher):
        def recorded(self, recorded: Recorded) -> None:
            raise RuntimeError("no more paper")

    outbox = place.outbox()
    metrics, hand = Metrics(outbox), place.hand(outbox)
    watched(place, hand, Broken(), metrics)
    place.enqueue(outbox, "a")

    hand.turn()

    assert "Broken failed; the work goes on" in caplog.text
    assert {"a": State.DELIVERED} == states(place.database)
    assert 1 == samples_of(metrics.scrape())[("outbox_deliveries_total", "enos", "delivered")]


# Traces


@pytest.fixture
def spans() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


def test_an_upload_has_one_span_that_is_linked_to_where_its_messages_came_from(
    place: Place, spans: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    provider, exporter = spans
    outbox = place.outbox()
    with provider.get_tracer("shop").start_as_current_span("order") as order:
        first = place.enqueue(outbox, "in a span")
    second = place.enqueue(outbox, "told", traceparent=CONTEXT)
    place.enqueue(outbox, "of nowhere")
    hand = place.hand(outbox)
    watched(place, hand, Tracing(provider))

    with provider.get_tracer("shop").start_as_current_span("not its parent"):
        hand.turn()

    (span,) = [each for each in exporter.get_finished_spans() if each.name == "send enos"]
    assert span.parent is None
    assert {
        (f"{order.get_span_context().trace_id:032x}", str(first)),
        (TRACE, str(second)),
    } == {(f"{link.context.trace_id:032x}", link.attributes["messaging.message.id"]) for link in span.links}
    assert {
        "messaging.system": "outbox",
        "messaging.destination.name": "enos",
        "messaging.batch.message_count": 3,
        "outbox.outcome": "delivered",
        "http.response.status_code": 200,
        "outbox.answer.code": 0,
    }.items() <= dict(span.attributes).items()
    (request,) = place.receiver.requests
    assert (
        f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
        == (request.headers["traceparent"])
    )
    assert () == request.faults
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_failed_upload_is_a_failed_span_without_secrets(
    place: Place, spans: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    provider, exporter = spans
    secret.remember("canary-in-a-span")
    place.receiver.misbehave(Answer(99500, "it was canary-in-a-span"))
    outbox = place.outbox()
    hand = place.hand(outbox)
    watched(place, hand, Tracing(provider))
    place.enqueue(outbox, "a")

    hand.turn()

    (span,) = exporter.get_finished_spans()
    assert (trace.StatusCode.ERROR, "99500") == (span.status.status_code, span.attributes["error.type"])
    assert "***" in (span.status.description or "")
    assert "canary" not in span.to_json()


def test_no_header_travels_when_the_span_is_not_recorded(place: Place) -> None:
    outbox = place.outbox()
    hand = place.hand(outbox)
    watched(place, hand, Tracing(TracerProvider(sampler=ALWAYS_OFF)))
    place.enqueue(outbox, "a", traceparent=CONTEXT)

    hand.turn()

    assert "traceparent" not in place.receiver.requests[0].headers
    assert {"a": State.DELIVERED} == states(place.database)


def test_an_upload_whose_span_cannot_begin_is_sent_without_one(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Sampler):
        def should_sample(self, *given: Any, **more: Any) -> SamplingResult:
            raise RuntimeError("no dice")

        def get_description(self) -> str:
            return "broken"

    outbox = place.outbox()
    hand = place.hand(outbox)
    watched(place, hand, Tracing(TracerProvider(sampler=Broken())))
    place.enqueue(outbox, "a")

    hand.turn()

    assert ["Tracing failed; the work goes on"] == [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert "traceparent" not in place.receiver.requests[0].headers
    assert {"a": State.DELIVERED} == states(place.database)


def test_a_context_is_kept_with_its_message_whatever_becomes_of_it(place: Place) -> None:
    outbox = place.outbox()
    place.enqueue(outbox, "told", traceparent=CONTEXT)
    place.enqueue(outbox, "of nowhere")

    assert [CONTEXT, None] == [column(place.database, key, "traceparent") for key in ("told", "of nowhere")]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nonsense",
        CONTEXT.upper(),
        CONTEXT.replace("00-", "ff-", 1),
        CONTEXT.replace(TRACE, "0" * 32),
        CONTEXT.replace("00f067aa0ba902b7", "0" * 16),
        CONTEXT + "-more",
        CONTEXT + "\n",
        CONTEXT[:-1],
        7,
    ],
)
def test_a_context_that_is_none_is_refused_when_it_is_given(sqlite_place: Place, bad: Any) -> None:
    with pytest.raises(Refused, match="traceparent: expected the W3C's form"):
        sqlite_place.enqueue(sqlite_place.outbox(), "a", traceparent=bad)

    assert {} == states(sqlite_place.database)


def test_of_a_later_version_the_part_that_stays_is_kept() -> None:
    assert CONTEXT == context_of(f"01{CONTEXT[2:]}-what-a-later-version-adds")


def test_a_span_that_is_none_is_nobodys_context(sqlite_place: Place) -> None:
    with trace.use_span(trace.INVALID_SPAN):
        sqlite_place.enqueue(sqlite_place.outbox(), "a")

    assert column(sqlite_place.database, "a", "traceparent") is None


def test_a_worker_traces_by_itself_where_opentelemetry_is_in_use_and_not_when_told_so(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(wish: bool | None) -> bool:
        watchers = Service(sqlite_place.outbox(), traced=wish).worker._watcher._all[0]._all  # type: ignore[attr-defined]
        return any(isinstance(each, Tracing) for each in watchers)

    assert [True, True, False] == [traced(wish) for wish in (None, True, False)]
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert not traced(None)


def test_asking_for_traces_without_opentelemetry_says_what_to_install(
    sqlite_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'durable-outbox\[otel\]'"):
        Service(sqlite_place.outbox(), traced=True)


USED = """
import sys
import sqlalchemy as sa
from outbox import EnosEvents, Outbox, Worker, migrate
enos = EnosEvents(name="enos", url="http://127.0.0.1:9", org_id="o", allow_plain_http=True)
box = Outbox("sqlite:///box.db", spool="spool", destinations=[enos], durability="ignore")
migrate.upgrade(box.database)
with box.database.begin() as connection:
    box.enqueue(connection, "enos", {"assetId": "a", "time": 1, "events": {"e": {"p": 1}}})
from outbox.service import Service
Service(box)
print(sorted(name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "prometheus_client")))
"""


@pytest.mark.merge
def test_who_asks_for_neither_metrics_nor_traces_imports_neither(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    run = subprocess.run([sys.executable, "-c", USED], cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert "[]\n" == run.stdout, run.stderr


# Stopping through the database


@pytest.mark.long
def test_a_worker_that_is_asked_to_stop_finishes_what_it_has_and_ends_well(place: Place) -> None:
    place.receiver.misbehave(Hold())
    outbox = place.outbox()
    for key in ("in hand", "waiting"):
        place.enqueue(outbox, key)
    policy = {"batch_messages": 1, "senders": 1}
    process = place.run("work", policy=policy, worker={"poll": 0.05, "gone_after": 1.5})
    place.receiver.wait_for(lambda receiver: receiver.held == 1, 20)
    with place.database.read() as connection:
        (known,) = living.beats(connection)

    asked = outbox.stop_workers("ada@desk", [known])
    process.until_logged("was asked to stop")
    place.receiver.release()

    assert ([known], 0) == (asked, process.ended(20))
    assert {"in hand": State.DELIVERED, "waiting": State.PENDING} == states(place.database)
    with place.database.read() as connection:
        (row,) = connection.execute(sa.select(audit)).all()
        assert {} == living.beats(connection)
    assert ("ada@desk", "stop", f"workers {known}", 0) == (row.actor, row.action, row.selection, row.messages)


def test_every_worker_is_asked_and_nobody_who_is_not_there(place: Place) -> None:
    outbox = place.outbox()
    here, there, gone = (place.hand(outbox) for _ in range(3))
    gone.presence.leave()

    asked = outbox.stop_workers("ada")
    nobody = outbox.stop_workers("ada", ["nobody", gone.presence.id])

    assert (sorted([here.presence.id, there.presence.id]), []) == (asked, nobody)
    assert 1 == count(place.database, audit)


def test_who_was_asked_and_then_declared_gone_ends_all_the_same(place: Place) -> None:
    outbox = place.outbox()
    with Worker(outbox, poll=0.05, gone_after=1.5) as working:
        known = working.id
        with place.database.begin() as connection:
            living.ask_to_stop(connection, [known])
            connection.execute(sa.update(worker).where(worker.c.id == known).values(gone=True))

        eventually(working._stop.is_set)


# systemd


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(20)

    def heard(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def until(self, line: str) -> None:
        while line not in self.heard():
            pass

    def hears_nothing_for(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(4096)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(20)
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    address = f"@outbox-test-{os.getpid()}-{time.monotonic_ns()}" if request.param == "abstract" else str(tmp_path / "notify")
    manager = Manager(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    yield manager
    manager.close()


def test_systemd_hears_that_it_is_ready_alive_and_stopping(sqlite_place: Place, manager: Manager) -> None:
    with served(sqlite_place.outbox()) as running:
        ready = manager.heard()
        manager.until("WATCHDOG=1")
        began = time.monotonic()
        for _ in range(3):
            manager.until("WATCHDOG=1")
        took = time.monotonic() - began
        running.service.worker.stop()

        manager.until("STOPPING=1")

    assert ["READY=1", f"STATUS=worker {running.service.worker.id} delivers"] == ready
    assert 0.2 < took < 3  # three times half of the interval


def test_the_watchdog_is_fed_only_while_the_worker_lives(manager: Manager) -> None:
    alive = True
    notifier = Notifier(lambda: alive)
    notifier.ready("here")
    manager.until("WATCHDOG=1")

    alive = False
    with contextlib.suppress(TimeoutError):  # what was under way
        manager._socket.settimeout(0.15)
        manager.heard()

    assert manager.hears_nothing_for(0.5)
    notifier.close()


def test_a_watchdog_for_another_process_is_not_ours(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    notifier = Notifier()
    notifier.ready("here")

    assert ["READY=1", "STATUS=here"] == manager.heard()
    assert manager.hears_nothing_for(0.4)
    notifier.close()


def test_a_manager_that_is_not_there_is_told_of_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notifier = Notifier()

    notifier.tell("READY=1")
    notifier.tell("STATUS=still here")

    assert 1 == caplog.text.count("cannot tell systemd")


# Log lines


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the log says, as it would be written."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers), {name: logging.getLogger(name).level for name in ("apscheduler", "alembic")})
    stream = io.StringIO()
    yield stream
    logging.captureWarnings(capture=False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in before[2].items():
        logging.getLogger(name).setLevel(level)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_delivery_is_a_line_with_every_id_and_each_message_has_one_of_its_own(place: Place, written: io.StringIO) -> None:
    outbox = place.outbox()
    hand = place.hand(outbox)
    ids = [place.enqueue(outbox, key, traceparent=CONTEXT) for key in ("a", "b")]
    logs.configure("debug", "json", written)

    hand.turn()

    lines = [line for line in lines_of(written) if line["logger"] == "outbox.dispatcher"]
    delivery, *messages = lines
    assert {
        "level": "info",
        "delivery_id": 1,
        "destination": "enos",
        "worker_id": hand.presence.id,
        "status": 200,
        "code": 0,
        "outcome": "delivered",
        "message_ids": ids,
    }.items() <= delivery.items()
    assert [(ids[0], "a", TRACE, "delivered", 1), (ids[1], "b", TRACE, "delivered", 1)] == [
        (each["message_id"], each["message_key"], each["trace_id"], each["outcome"], each["delivery_id"]) for each in messages
    ]
    assert {"debug"} == {each["level"] for each in messages}
    assert all(each["time"].endswith("+00:00") for each in lines)


def test_a_line_of_a_traced_delivery_names_its_trace(
    place: Place, written: io.StringIO, spans: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    provider, exporter = spans
    outbox = place.outbox()
    hand = place.hand(outbox)
    watched(place, hand, Tracing(provider))
    place.enqueue(outbox, "a")
    logs.configure("info", "json", written)

    hand.turn()

    (span,) = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == lines_of(written)[0]["trace_id"]


def test_a_rescued_message_has_a_line_too(place: Place, written: io.StringIO) -> None:
    outbox = place.outbox()
    place.receiver.misbehave(Hold())
    slow, other = place.hand(outbox), place.hand(outbox)
    first = place.enqueue(outbox, "a", traceparent=CONTEXT)
    sending = threading.Thread(target=slow.turn)
    sending.start()
    place.receiver.wait_for(lambda receiver: receiver.held == 1)
    with place.database.begin() as connection:
        living.declare_gone(connection, slow.presence.id, living.beats(connection)[slow.presence.id])
    logs.configure("debug", "json", written)
    other.dispatcher.rescue()
    said = [line for line in lines_of(written) if line.get("message_id") == first]
    place.receiver.release()
    sending.join()

    assert [("unknown", TRACE)] == [(line["outcome"], line["trace_id"]) for line in said]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_holds_a_secret_wherever_in_it_it_would_be(written: io.StringIO, form: logs.Form) -> None:
    canary = 'ca"na\\ry/+1%'
    secret.remember(canary)
    logs.configure("debug", form, written)
    log = logging.getLogger("shop")

    log.info("said %s", canary)
    log.info("%r as Python says it", canary)
    log.info("in a URL: https://x/?t=ca%22na%5Cry%2F%2B1%25")
    log.info("in what came along", extra={"ids": [1, canary], "deep": {"a": {canary: canary}}, "odd": {canary}})
    log.info("and another thing", extra={"object": Path(canary)})
    try:
        raise RuntimeError(canary)
    except RuntimeError:
        log.exception("it failed")
    log.warning("with a stack", stack_info=True)

    text = written.getvalue()
    assert (4 if form == "text" else 9) == text.count("***")
    assert "na%5Cry" not in text
    assert not any("ry/+1%" in line for line in text.replace("\\\\", "\\").splitlines() if "canary =" not in line)
    assert "Traceback" in text


def test_a_traceback_is_one_field_of_one_line(written: io.StringIO) -> None:
    logs.configure("info", "json", written)
    try:
        raise ValueError("no\nsuch thing")
    except ValueError:
        logging.getLogger("shop").exception("it failed")

    (line,) = lines_of(written)

    assert ("error", "it failed") == (line["level"], line["text"])
    assert "Traceback" in line["exception"]
    assert line["exception"].endswith("no\nsuch thing")


def test_a_line_that_cannot_be_written_is_not_written_in_another_way(
    written: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    secret.remember("canary-in-arguments")
    logs.configure("info", "json", written)

    logging.getLogger("shop").info("%d", "canary-in-arguments")

    assert ("", "") == tuple(capsys.readouterr())


def test_secrets_are_known_before_they_are_used_for_the_first_time(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_TEST_SECRET", "canary-not-yet-used")
    held = secret.env("OUTBOX_TEST_SECRET")
    logs.configure("info", "json", written)

    logging.getLogger("shop").info("canary-not-yet-used")

    assert "***" == lines_of(written)[0]["text"]
    assert "canary" not in repr(held)


def test_a_password_of_the_database_is_remembered_however_many_tokens_come_and_go() -> None:
    outbox = Outbox("postgresql+psycopg://ada:canary-p%40ss@127.0.0.1/x", spool="nowhere", destinations=[])

    for number in range(300):
        secret.remember(f"canary-token-{number}")

    assert "no *** and no ***" == secret.conceal("no canary-p@ss and no canary-p%40ss")
    outbox.close()


@pytest.mark.parametrize(
    ("option", "value"), [("gone_after", math.inf), ("gone_after", math.nan), ("poll", 0.0), ("stop_grace", math.nan)]
)
def test_a_worker_is_refused_a_time_that_is_none(sqlite_place: Place, option: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"expected {option} to be"):
        Worker(sqlite_place.outbox(), **{option: value})


def test_a_worker_without_a_destination_is_refused(sqlite_place: Place) -> None:
    outbox = Outbox(sqlite_place.url, spool=sqlite_place.spool, destinations=[])

    with pytest.raises(ConfigurationError, match="nothing to do: no destination is declared"):
        Worker(outbox)

    outbox.close()


# When the database says no


def errors_of(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [each.getMessage() for each in caplog.records if (each.name, each.levelno) == ("outbox.worker", level)]


def test_a_database_that_is_away_when_a_name_is_needed_or_idleness_asked_is_asked_again(
    sqlite_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    working = Worker(sqlite_place.outbox())
    working._arrive()
    first = working.id
    with sqlite_place.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE outbox_worker RENAME TO away_worker")
        connection.exec_driver_sql("ALTER TABLE outbox_message RENAME TO away_message")

    idle = working._nothing_left()
    working._start_anew(first)
    meanwhile = working.id
    with sqlite_place.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away_worker RENAME TO outbox_worker")
        connection.exec_driver_sql("ALTER TABLE away_message RENAME TO outbox_message")
    working._start_anew(first)

    assert (False, True) == (idle, working._nothing_left())
    assert first == meanwhile != working.id
    said = [words.split(": ")[0] for words in errors_of(caplog, logging.WARNING)]
    again = f"worker {first} was declared gone; it goes on under a new name"
    assert ["cannot look at the database", again, "cannot take a new name yet", again] == said


def test_a_database_that_is_found_lost_by_one_after_the_other_ends_the_worker_and_is_told_of_once(
    sqlite_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    working = Worker(sqlite_place.outbox())
    working._arrive()
    sqlite_place.damaged = True
    (sqlite_place.folder / "outbox.db").unlink()

    idle = working._nothing_left()
    working._start_anew(working.id)

    assert not idle
    assert working._stop.is_set()
    (said,) = errors_of(caplog, logging.CRITICAL)
    assert "was deleted or replaced" in said


def test_a_worker_that_ends_on_a_full_disk_gives_way_and_begins_nothing(sqlite_place: Place) -> None:
    outbox = sqlite_place.outbox(reserve=MIB)
    working = Worker(outbox)
    outbox.care.keep_room()

    def record() -> None:
        raise OutOfRoom("database or disk is full")

    working.stop()
    working._attempt(record)

    assert not (sqlite_place.folder / "outbox.db-reserve").exists()
    assert math.inf == working._room_loop.due
