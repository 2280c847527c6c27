"""Millions of messages: what replaying, looking and starting cost then, and what live deliveries notice of it.

    make scale                      both databases, 1,000,000 dead and as many delivered messages, 100,000 files
    OUTBOX_SCALE=50000 make scale   a quick look
    python -m bench.scale sqlite    one database

Everything is real: databases on disk, files in a spool, `outbox` as processes, a receiver on 127.0.0.1. It takes a few GB in
the folder for temporary files, and leaves nothing behind. Ends with exit code 1 when a figure misses its target.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from outbox import EnosEvents, Outbox, migrate, prepare
from outbox.database import Database
from outbox.policy import Retention
from outbox.tables import attachment, attempt, audit, delivery, file, message, worker
from outbox.testing import Receiver
from outbox.units import bytes_in_words, in_words
from tests.factories import Clock
from tests.postgres import Postgres, create_database

ROOT = Path(__file__).parents[1]
NUMBER = int(os.environ.get("OUTBOX_SCALE", "1000000"))
FILES = NUMBER // 10
#: Live messages a second, and for how many seconds they are looked at.
LIVE, A_WHILE = 20, 60.0
PHOTO = b"\xff\xd8" + bytes(1022)
#: What is old is for one destination, what comes now for another.
OLD, NEW = "hub", "enos"
DEAD = ("--state", "dead", "--destination", OLD)


@dataclass
class Figures:
    """What was measured, with what was hoped for."""

    missed: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, what: str, value: str, target: str = "", *, good: bool = True) -> None:
        """One line of the report."""
        self.missed += not good
        mark = "" if not target else "ok    " if good else "MISSED"
        line = f"{mark:<7}{what:<58}{value:>16}" + (f"   (target {target})" if target else "")
        self.lines.append(line)
        print(line, flush=True)


@dataclass
class Place:
    """A database with a spool, and a receiver that is a process of its own."""

    url: str
    folder: Path
    receiver: str

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        here = {"SCALE_DATABASE": self.url, "SCALE_SPOOL": str(self.spool), "SCALE_URL": self.receiver}
        return kept | here

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @functools.cached_property
    def database(self) -> Database:
        return Database(self.url)

    @functools.cached_property
    def producer(self) -> sa.Engine:
        return prepare(sa.create_engine(self.url))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`outbox` as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "outbox", "--app", "bench.place:outbox", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[float, str]:
        """How many seconds a command takes from its start to its end, and what it says."""
        began = time.perf_counter()
        process = self.start(*arguments)
        said, errors = process.communicate()
        took = time.perf_counter() - began
        assert process.returncode == 0, errors
        return took, said

    def scalar(self, statement: sa.Select[Any]) -> Any:
        with self.database.read() as connection:
            return connection.execute(statement).scalar()

    def close(self) -> None:
        self.producer.dispose()
        self.database.close()


# Filling.


def fill(place: Place) -> None:
    """Rows and files as years of work leave them, written at once."""
    migrate.upgrade(place.database)
    Outbox(place.url, spool=place.spool, destinations=[]).spool_store.prepare()
    write = _writer(place)
    digests = {"sha256": hashlib.sha256(PHOTO).hexdigest(), "md5": hashlib.md5(PHOTO).hexdigest()}
    now = datetime.now(UTC)
    write(place, delivery, _deliveries(now))
    write(place, message, _messages(now))
    write(place, attempt, _attempts(now))
    named = [f"{number:032x}" for number in range(1, FILES + 1)]
    for folder in range(256):
        (place.spool / f"{folder:02x}").mkdir(exist_ok=True, mode=0o700)
    for name in named:
        (place.spool / name[-2:] / name).write_bytes(PHOTO)
    write(place, file, ({"name": name, "size": len(PHOTO), "created_at": _at(now), **digests} for name in named))
    write(place, attachment, _attachments(named))
    if place.database.path is None:  # as autovacuum does after a while
        with place.producer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))
    else:
        place.database.checkpoint()


def _is_dead(number: int) -> bool:
    return number % 2 == 0


def _has_file(number: int) -> bool:
    return number % 20 == 0


def _at(now: datetime, ago: float = 0) -> str:
    return f"{now - timedelta(seconds=ago):%Y-%m-%d %H:%M:%S.%f}"


def _messages(now: datetime) -> Iterator[dict[str, Any]]:
    """Every second one is dead, and every tenth of those has a file."""
    total = 2 * NUMBER
    for number in range(1, total + 1):
        ended = _at(now, 60 + 3600 * 24 * (total - number) / total)
        fields = {"severity": 3, **({"photo": "local://photo"} if _has_file(number) else {})}
        payload = {"assetId": f"turbine-{number % 997}", "time": 1579580182824 + number, "events": {"crack": fields}}
        dead = _is_dead(number)
        text = json.dumps(payload, separators=(",", ":"))
        yield {
            "id": number,
            "destination": OLD,
            "lane": "normal",
            "key": f"inspection-{number}",
            "payload": text,
            "digest": "d" * 64,
            "size": len(text),
            "file_bytes": len(PHOTO) if _has_file(number) else 0,
            "files": int(_has_file(number)),
            "state": "dead" if dead else "delivered",
            "reason": "exhausted" if dead else None,
            "reason_text": "the model service is not available" if dead else None,
            "attempt": 20 if dead else 1,
            "failures": 20 if dead else 0,
            "unknowns": int(dead and number % 100 == 0),
            "created_at": ended,
            "due_at": ended,
            "clock_plausible": True,
            "finished_at": ended,
        }


def _deliveries(now: datetime) -> Iterator[dict[str, Any]]:
    for number in range(1, 2 * NUMBER // 100 + 1):
        at = _at(now, 3600 * 24 * (1 - number / (NUMBER / 50)))
        good = number % 2 == 0
        yield {
            "id": number,
            "destination": OLD,
            "lane": "normal",
            "worker": "w" * 32,
            "messages": 100,
            "bytes": 20_000,
            "probe": False,
            "started_at": at,
            "finished_at": at,
            "outcome": "delivered" if good else "retry",
            "status": 200 if good else 503,
        }


def _upload(at: str) -> dict[str, Any]:
    sent = {"destination": OLD, "lane": "normal", "worker": "w" * 32, "messages": 100, "bytes": 20_000, "probe": False}
    return {**sent, "started_at": at, "finished_at": at}


def _attempts(now: datetime) -> Iterator[dict[str, Any]]:
    for number in range(1, 2 * NUMBER + 1):
        dead = _is_dead(number)
        yield {
            "message_id": number,
            "number": 20 if dead else 1,
            "delivery_id": (number - 1) // 100 + 1,
            "finished_at": _at(now, 60),
            "outcome": "retry" if dead else "delivered",
        }


def _attachments(named: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, name in enumerate(named, 1):
        photo = {"name": "photo", "file": name, "filename": "photo.jpg", "content_type": "image/jpeg"}
        yield {"message_id": 20 * number, "position": 0, **photo}


def _writer(place: Place) -> Callable[[Place, sa.Table, Iterator[dict[str, Any]]], None]:
    return _copy if place.database.path is None else _many


def _many(place: Place, table: sa.Table, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    names = ", ".join(first)
    with contextlib.closing(sqlite3.connect(place.database.engine.url.database or "")) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        statement = f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' * len(first))})"
        connection.execute(statement, tuple(first.values()))
        connection.executemany(statement, (tuple(row.values()) for row in rows))


def _copy(place: Place, table: sa.Table, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    raw = place.producer.raw_connection()
    try:
        cursor: Any = raw.cursor()
        with cursor.copy(f"COPY {table.name} ({', '.join(first)}) FROM STDIN") as copy:
            copy.write_row(tuple(first.values()))
            for row in rows:
                copy.write_row(tuple(row.values()))
        if "id" in first:
            cursor.execute(f"SELECT setval('{table.name}_id_seq', (SELECT max(id) FROM {table.name}))")
        raw.commit()
    finally:
        raw.close()


# Live deliveries.


class Look(NamedTuple):
    """What became of the live messages of a time. Seconds."""

    delays: list[float]  #: from enqueue to the record of the delivery
    commits: list[float]  #: how long the producer's transactions took


class Live:
    """A producer that commits so many messages a second, each in a transaction of its own."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._outbox = Outbox(
            place.url,
            spool=place.spool,
            destinations=[EnosEvents(name=NEW, url=place.receiver, org_id="o1", allow_plain_http=True)],
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="live")
        self.commits: list[tuple[datetime, float]] = []

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._outbox.close()

    def look(self, seconds: float, since: datetime | None = None) -> Look:
        """What happens from now on, or since then, for so many seconds more."""
        since = since or datetime.now(UTC)
        time.sleep(seconds)
        until = datetime.now(UTC)
        time.sleep(5)  # the last ones shall arrive too
        mine = (message.c.destination == NEW, message.c.id > 2 * NUMBER, message.c.created_at.between(since, until))
        with self._place.database.read() as connection:
            rows = connection.execute(sa.select(message.c.created_at, message.c.finished_at).where(*mine)).all()
        late = datetime.now(UTC)
        delays = [((finished or late) - created).total_seconds() for created, finished in rows]
        return Look(delays, [took for at, took in self.commits if since <= at < until])

    def _produce(self) -> None:
        due = time.monotonic()
        for number in range(10_000_000):
            due += 1 / LIVE
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            event = {"assetId": "live", "time": 1579580182824 + number, "events": {"crack": {"severity": 3}}}
            began = time.monotonic()
            with self._place.producer.begin() as connection:
                self._outbox.enqueue(connection, NEW, event, key=f"live-{number}")
            self.commits.append((datetime.now(UTC), time.monotonic() - began))


def p99(values: Sequence[float]) -> float:
    """The value that one in a hundred exceeds."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


# Measuring.


def measure(place: Place, figures: Figures) -> None:
    """Everything, one after the other."""
    dry = min(place.run("replay", *DEAD, "--dry-run", "--json") for _ in range(3))
    preview = json.loads(dry[1])
    figures.add("replay --dry-run, start of the process included", f"{dry[0]:.2f} s", "< 2 s", good=dry[0] < 2)
    counted = (preview["messages"], preview["files"], preview["may_be_duplicates"])
    figures.add("  it counted", f"{counted[0]:,}", f"{NUMBER:,}", good=counted == (NUMBER, FILES, NUMBER // 50))
    status = min(place.run("status", "--json") for _ in range(3))[0]
    figures.add("status, start of the process included", f"{status:.2f} s", "<= 1 s", good=status <= 1)
    place.run("pause", OLD, "--reason", "first the handfuls alone")
    with _worker(place, figures) as process, Live(place) as live:
        time.sleep(3)
        quiet = live.look(A_WHILE)
        began = datetime.now(UTC)
        _interrupted(place, figures)
        replaying = live.look(1, began)
        _compare(figures, "before", quiet, "while a million are replayed", replaying, target="<= 1.5 x")
        place.run("resume", OLD)
        draining = live.look(A_WHILE)
        began = datetime.now(UTC)
        both = place.start("replay", "--state", "delivered", "--destination", OLD, "--yes")
        draining_too = live.look(A_WHILE, began)
        both.send_signal(signal.SIGINT)
        both.communicate()
        _compare(figures, "while they are delivered", draining, "and others are replayed too", draining_too)
        _compare(figures, "before", quiet, "while they are delivered and replayed", draining_too, target="<= 1.5 x")
        peak = _memory(process.pid, "VmHWM")
        figures.add("the worker's memory, at most", bytes_in_words(peak), "<= 150 MiB", good=peak <= 150 * 2**20)


@contextlib.contextmanager
def _worker(place: Place, figures: Figures) -> Iterator[subprocess.Popen[str]]:
    with (place.folder / "worker.log").open("w") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "outbox", "--app", "bench.place:outbox", "worker"],
            cwd=ROOT,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        alive = sa.select(sa.func.count()).select_from(worker).where(worker.c.pid == process.pid)
        _until(lambda: place.scalar(alive), process)
        took = time.perf_counter() - began
        figures.add("a worker starts in", f"{took:.2f} s", "<= 5 s", good=took <= 5)
        time.sleep(2)
        size = _memory(process.pid, "VmRSS")
        figures.add("with", bytes_in_words(size), "<= 150 MiB", good=size <= 150 * 2**20)
        yield process  # type: ignore[misc]
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


def _memory(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _until(predicate: Callable[[], object], process: subprocess.Popen[Any], within: float = 3600) -> None:
    ends = time.monotonic() + within
    while not predicate():
        assert process.poll() is None, "the process ended"
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.02)


def _interrupted(place: Place, figures: Figures) -> None:
    """A replay that is interrupted at a third of its way, and gone on with."""
    began = time.monotonic()
    first = place.start("replay", *DEAD, "--yes", "--by", "scale", "--json")
    last = sa.select(audit.c.messages).order_by(audit.c.id.desc()).limit(1)
    _until(lambda: (place.scalar(last) or 0) > NUMBER // 3, first)
    first.send_signal(signal.SIGINT)
    stopping = time.monotonic()
    _, words = first.communicate(timeout=30)
    stopped = time.monotonic() - stopping
    done = place.scalar(last)
    found = re.search(r"outbox replay --continue (\d+)", words)
    assert found is not None, words
    good = first.returncode == 1 and stopped < 2
    figures.add(f"Ctrl-C ended it after {done:,} messages, in", f"{stopped:.2f} s", "< 2 s", good=good)
    place.run("replay", "--continue", found[1], "--json")
    took = time.monotonic() - began
    with place.database.read() as connection:
        (row,) = connection.execute(sa.select(audit).where(audit.c.action == "replay")).all()
        old = (message.c.id <= 2 * NUMBER,)
        how_often = sa.select(message.c.replays, sa.func.count()).where(*old).group_by(message.c.replays)
        counts: dict[int, int] = {replays: count for replays, count in connection.execute(how_often)}  # noqa: C416
    figures.add("the replay, with pauses and the interruption", in_words(took))
    figures.add("messages a second", f"{NUMBER / took:,.0f}")
    figures.add("replayed once", f"{counts.get(1, 0):,}", f"{NUMBER:,}, none twice", good=counts == {0: NUMBER, 1: NUMBER})
    right = (row.messages, row.actor, row.action, row.finished_at is not None) == (NUMBER, "scale", "replay", True)
    figures.add("its one audit row", f"{row.messages:,}", f"{NUMBER:,}, and over", good=right)


def _compare(figures: Figures, one: str, quiet: Look, other: str, busy: Look, *, target: str = "") -> None:
    for what, before, during in (("deliveries", quiet.delays, busy.delays), ("commits", quiet.commits, busy.commits)):
        asked = target if what == "deliveries" else ""
        slow, slower = 1000 * p99(before), 1000 * p99(during)
        figures.add(f"p99 of {len(before):,} live {what} {one}", f"{slow:.1f} ms")
        good = not asked or slower <= 1.5 * slow
        figures.add(f"  of {len(during):,} {other}", f"{slower:.1f} ms", asked, good=good)
        medians = [1000 * statistics.median(each) for each in (before, during)]
        figures.add("  medians, and how much more p99 is", f"{medians[0]:.1f} {medians[1]:.1f} ms, {slower / slow:.2f} x")


# A day.


def churn(place: Place, figures: Figures) -> None:
    """A day by a moved clock: messages come, are delivered and are over after some hours; the database must not grow."""
    migrate.upgrade(place.database)
    clock = Clock()
    keep = Retention(delivered=timedelta(hours=6), cancelled=timedelta(hours=6), dead=timedelta(hours=6))
    outbox = Outbox(place.url, spool=place.spool, destinations=[], retention=keep, ambient=clock.ambient)
    hourly = max(NUMBER // 100, 500)
    sizes = []
    for hour in range(24):
        _an_hour(place, hour, hourly, clock.wall)
        clock.move(hours=1)
        for step in (outbox.care.tidy, outbox.care.keep_room):
            for _ in range(10_000):
                if step() is None:
                    break
        sizes.append(_size(place))
    outbox.close()
    rows = place.scalar(sa.select(sa.func.count()).select_from(message))
    figures.add(
        f"a day with {hourly:,} messages an hour, kept for 6 h: left", f"{rows:,}", f"{6 * hourly:,}", good=rows <= 7 * hourly
    )
    growth = sizes[-1] / max(sizes[8:12])
    told = f"{bytes_in_words(sizes[11])}, {bytes_in_words(sizes[-1])}"
    figures.add("size after 12 and after 24 hours", told, "flat", good=growth <= 1.1)


def _an_hour(place: Place, hour: int, number: int, now: datetime) -> None:
    at, first = _at(now), hour * number
    base = {"destination": NEW, "lane": "normal", "digest": "d" * 64, "size": 400, "file_bytes": 0, "files": 0}
    over = {"attempt": 1, "created_at": at, "due_at": at, "clock_plausible": True, "finished_at": at}
    ids = range(first + 1, first + number + 1)
    text = "x" * 400
    write = _writer(place)
    write(
        place,
        message,
        ({"id": each, "key": f"{each}", "payload": f'"{text}"', "state": "delivered", **base, **over} for each in ids),
    )
    uploads = range(first // 100 + 1, (first + number) // 100 + 1)
    write(place, delivery, ({"id": each, **_upload(at), "outcome": "delivered", "status": 200} for each in uploads))
    done = {"number": 1, "finished_at": at, "outcome": "delivered"}
    write(place, attempt, ({"message_id": each, "delivery_id": (each - 1) // 100 + 1, **done} for each in ids))


def _size(place: Place) -> int:
    if place.database.path is not None:
        place.database.checkpoint()
        return place.database.path.stat().st_size
    with place.producer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM"))  # as autovacuum does all the time
        return int(connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one())


# Places.


@contextlib.contextmanager
def _receiver() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.scale", "receiver"], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def _serve() -> None:
    with Receiver(check_token=False, remember=100) as receiver:
        print(receiver.url, flush=True)
        sys.stdin.read()  # until whoever started us is gone


@contextlib.contextmanager
def _place(kind: str) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="outbox-scale-"))
    try:
        with contextlib.ExitStack() as stack:
            receiver = stack.enter_context(_receiver())
            if kind == "postgres":
                server = stack.enter_context(Postgres(durable=True))
                url = create_database(server.url)
            else:
                url = f"sqlite:///{folder / 'outbox.db'}"
                Database(url).create()
            place = Place(url, folder, receiver)
            try:
                yield place
            finally:
                place.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Iterable[str]) -> int:
    """Measure on the databases that are named, or on both; the exit code."""
    figures = Figures()
    for kind in list(arguments) or ["sqlite", "postgres"]:
        print(f"\n{kind}: {NUMBER:,} dead, {NUMBER:,} delivered, {FILES:,} files\n", flush=True)
        with _place(kind) as place:
            began = time.monotonic()
            fill(place)
            figures.add("filled in", in_words(time.monotonic() - began))
            measure(place, figures)
        with _place(kind) as place:
            churn(place, figures)
    print(f"\n{figures.missed} missed" if figures.missed else "\nevery target was met")
    return 1 if figures.missed else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["receiver"]:
        _serve()
    else:
        sys.exit(main(sys.argv[1:]))
