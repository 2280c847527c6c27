"""Waking: how long an event waits for an idle worker to begin with it."""

from __future__ import annotations

import contextlib
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from os import environ

from bench.ground import NAME, ROOT, Ground, Kind, Sink, folder
from bench.harness import Figure, Target, absolute, benchmark, percentile
from outbox import Worker

#: How many events of each kind, and the seconds that a worker is left alone before each: it shall be idle indeed.
SAMPLES = 80
PAUSE = (0.15, 0.65)
_BODY = b'{"code":0,"msg":"OK","requestId":"r","data":{}}'
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Doorbell(Sink):
    """A receiver in this process: tells when the first byte of each request came."""

    def __init__(self) -> None:
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.rang: queue.Queue[float] = queue.Queue()

    def __enter__(self) -> Doorbell:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while got := connection.recv(65536):
                came = time.perf_counter()
                while b"\r\n\r\n" not in got:
                    got += connection.recv(65536)
                head, _, body = got.partition(b"\r\n\r\n")
                left = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]) - len(body)
                while left > 0:
                    left -= len(connection.recv(left))
                self.rang.put(came)
                connection.sendall(_ANSWER)


@contextlib.contextmanager
def process(ground: Ground, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m outbox worker` on a ground, once it is there; it ends in order."""
    where = {"BENCH_DATABASE": ground.url, "BENCH_RECEIVER": ground.receiver.url, "BENCH_SPOOL": str(folder() / "spool")}
    command = [sys.executable, "-m", "outbox", "--app", "bench.idle_app:outbox", "worker", "--log-level", "warning"]
    worker = subprocess.Popen(command, cwd=ROOT, env=environ | where | more)
    try:
        while not ground.scalar("SELECT count(*) FROM outbox_worker WHERE NOT gone"):
            assert worker.poll() is None, "the worker has ended"
            time.sleep(0.05)
        yield worker
    finally:
        worker.terminate()
        worker.wait()


def _waited(ground: Ground, bell: Doorbell) -> list[float]:
    """Milliseconds from the end of a commit to the first byte of its request, of one event after the other."""
    found = []
    for number in range(SAMPLES + 3):
        time.sleep(random.uniform(*PAUSE) if number > 3 else 1.0)
        (event,) = ground.events(1)
        with ground.engine.begin() as connection:
            ground.outbox.enqueue(connection, NAME, event)
        committed = time.perf_counter()
        found.append(max(0.0, bell.rang.get(timeout=60) - committed) * 1000)
    return found[3:]


def _figures(name: str, found: list[float], p50: Target | None, p99: Target, kind: Kind, what: str) -> Iterator[Figure]:
    middle = absolute(f"{name}_p50", found, p50, what=f"{what}, the median", unit="ms", database=kind)
    yield middle
    late = percentile(found, 99)
    asked = {"target": p99.floor, "stretch": p99.stretch, "better": "lower"}
    yield replace(middle, name=f"{name}_p99", ratio=late, measure=late, what=f"{what}, 99 of 100", **asked)


@benchmark("wake_pg", "from a committed enqueue to the first byte of its request, on an idle worker, Postgres")
def wake_pg() -> Iterator[Figure]:
    with Doorbell() as bell, Ground("postgresql", receiver=bell) as ground, process(ground):
        found = _waited(ground, bell)
    what = "commit to the first byte of the request, a worker in another process"
    yield from _figures("wake_pg", found, Target(10, 5, "lower"), Target(30, 25, "lower"), "postgresql", what)


@benchmark("wake_sqlite", "the same on SQLite: from the worker's own process, and from another one")
def wake_sqlite() -> Iterator[Figure]:
    with Doorbell() as bell, Ground("sqlite", receiver=bell) as ground:
        with Worker(ground.outbox):
            same = _waited(ground, bell)
        with process(ground):
            other = _waited(ground, bell)
    what = "commit to the first byte of the request, a worker in"
    yield from _figures(
        "wake_sqlite_same", same, Target(10, 5, "lower"), Target(30, 15, "lower"), "sqlite", f"{what} the same process"
    )
    yield from _figures("wake_sqlite_other", other, None, Target(75, 60, "lower"), "sqlite", f"{what} another process")
