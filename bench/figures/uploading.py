"""Uploads: how fast a file goes out, what memory that takes, and what one small request costs."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import requests

from bench import memory
from bench.ground import Sink, event, folder, sink
from bench.harness import Figure, Slice, Target, absolute, benchmark, compare, rate
from bench.peers import NotInstalled, Peer
from outbox import DirectorySpool, SpooledFile, multipart
from outbox.ambient import uuid7
from outbox.multipart import FieldPart, FilePart
from outbox.payload import text
from outbox.transport import RequestsTransport, Upload

MB = 1_000_000
LARGE = 100 * MB
HUGE = 2_000 * MB
#: Seconds that no upload here takes.
_DEADLINE, _CONNECT = 600.0, 10.0


class Source(NamedTuple):
    """A file in a spool, and where that is."""

    spool: DirectorySpool
    file: SpooledFile

    @property
    def path(self) -> Path:
        return self.spool.where(self.file.name)

    def read(self) -> None:
        """Once through: from now on it comes from memory, whoever reads it."""
        with self.path.open("rb") as source:
            hashlib.file_digest(source, "md5")


def spooled(size: int) -> Source:
    """A file of zeros that takes no room on the disk, in a spool as if it had been put there."""
    spool = DirectorySpool(folder() / "spool")
    spool.prepare()
    name = uuid7().replace("-", "")
    path = spool.where(name)
    path.parent.mkdir(mode=0o700)
    with path.open("xb") as target:
        target.truncate(size)
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return Source(spool, SpooledFile(name, size, digest, ""))


def ours(url: str, source: Source, ca_file: str | None = None) -> Slice:
    """Megabytes a second, as a worker sends."""
    transport = RequestsTransport(ca_file=ca_file)
    upload = Upload(url, [FilePart("file", "file.bin", source.file)])

    def once() -> int:
        answer = transport.send(upload, source.spool.open, _DEADLINE, _CONNECT)
        if answer.status != 200 or not answer.sent_whole:
            raise RuntimeError(f"the upload was answered with {answer.status}")
        return source.file.size

    return lambda seconds: rate(once, seconds) / MB


def curl(url: str, source: Source, ca_file: str | None = None) -> Slice:
    """The same, each by a `curl -F` of its own; it checks nothing."""
    if (program := shutil.which("curl")) is None:
        raise NotInstalled("there is no curl; make bench-setup")
    command = [program, "--silent", "--show-error", "--fail", "--output", "/dev/null", "--noproxy", "*"]
    command += ["--cacert", ca_file] if ca_file else []
    command += ["--form", f"file=@{source.path};filename=file.bin", url]

    def once() -> int:
        subprocess.run(command, check=True)
        return source.file.size

    return lambda seconds: rate(once, seconds) / MB


def _process_cost(step: Callable[[], int], seconds: float) -> float:
    """Seconds of CPU that one unit takes, on whichever of this process's threads."""
    ends = time.perf_counter() + seconds
    began = time.process_time()
    done = 0
    while time.perf_counter() < ends:
        done += step()
    return (time.process_time() - began) / done


def _no_files(name: str) -> BinaryIO:
    raise FileNotFoundError(name)


@contextlib.contextmanager
def unchecked(source: Source) -> Iterator[None]:
    """Nobody looks whether the bytes are those that were enqueued. For a figure only: the product always looks."""

    class Believed:
        def update(self, _: bytes, /) -> None: ...

        def hexdigest(self) -> str:
            return source.file.sha256

    looked = multipart._digest  # noqa: SLF001
    multipart._digest = lambda _: Believed()  # noqa: SLF001
    try:
        yield
    finally:
        multipart._digest = looked  # noqa: SLF001


def _without_check(measure: Slice, source: Source) -> Slice:
    def slice_(seconds: float) -> float:
        with unchecked(source):
            return measure(seconds)

    return slice_


@benchmark("upload_vs_curl", "uploads of 100 MB and of 2 GB over http, as a part of what `curl -F` does, which checks nothing")
def upload_vs_curl() -> Iterator[Figure]:
    url = sink().url
    for size, words, rounds in ((LARGE, "100mb", 9), (HUGE, "2gb", 5)):
        source = spooled(size)
        source.read()
        measure = ours(url, source)
        against = f"curl -F of the same file, a process for each upload, {size // MB} MB"
        for name, slice_, target, what in (
            (f"upload_vs_curl_{words}", measure, Target(0.65, 0.9), "the digest looked at while sending"),
            (f"upload_vs_curl_{words}_unchecked", _without_check(measure, source), None, "nothing looked at"),
        ):
            yield compare(
                name,
                slice_,
                curl(url, source),
                target,
                what=f"a spooled file of {size // MB} MB in a form, {what}",
                against=against,
                unit="MB/s",
                rounds=rounds,
            )


@benchmark("upload_vs_toolbelt", "uploads of 100 MB over http, as a multiple of what requests with requests-toolbelt does")
def upload_vs_toolbelt() -> Iterator[Figure]:
    source = spooled(LARGE)
    source.read()
    url = sink().url
    measure = ours(url, source)
    with Peer("toolbelt", url, str(source.path)) as toolbelt:
        for name, slice_, target, what in (
            ("upload_vs_toolbelt", measure, Target(4, 6), "the digest looked at while sending"),
            ("upload_vs_toolbelt_unchecked", _without_check(measure, source), None, "nothing looked at"),
        ):
            yield compare(
                name,
                slice_,
                lambda seconds: toolbelt.slice(seconds) / MB,
                target,
                what=f"a spooled file of {LARGE // MB} MB in a form, {what}",
                against="requests with requests-toolbelt's MultipartEncoder, the same file, which looks at nothing",
                unit="MB/s",
            )


@benchmark("upload_tls", "uploads of 100 MB over TLS, as a part of what `curl -F` does, which checks nothing")
def upload_tls() -> Iterator[Figure]:
    source = spooled(LARGE)
    source.read()
    with Sink(tls=True) as receiver:
        yield compare(
            "upload_tls",
            ours(receiver.url, source, receiver.ca_file),
            curl(receiver.url, source, receiver.ca_file),
            Target(0.7, 0.9),
            what=f"a spooled file of {LARGE // MB} MB in a form over TLS, the digest looked at while sending",
            against="curl -F of the same file, a process for each upload",
            unit="MB/s",
            rounds=9,
        )


@benchmark(
    "upload_rss", "what the peak of a process's memory grows by for a file of 2 GB; and all of a worker's that uploads it"
)
def upload_rss() -> Iterator[Figure]:
    source = spooled(HUGE)
    url = sink().url
    yield absolute(
        "upload_rss_growth",
        [memory.of_an_upload(url, source.path, source.file) for _ in range(3)],
        Target(16, 4, "lower"),
        what="what the peak of memory grows by while a file of 2 GB is uploaded, after a small one was",
        unit="MB",
    )
    yield absolute(
        "spool_rss_growth",
        [memory.of_spooling(source.path)],
        Target(16, 4, "lower"),
        what="what the peak of memory grows by while a file of 2 GB is spooled, after a small one was",
        unit="MB",
    )
    yield absolute(
        "worker_rss",
        [memory.of_a_worker(url, source.path) for _ in range(3)],
        Target(80, 64, "lower"),
        what="the peak of memory of `outbox worker`, SQLite, that uploads a file of 2 GB",
        unit="MB",
        database="sqlite",
    )


@benchmark("small_post", "CPU of one small request, as a part of what `requests.Session().post(files=)` takes for the same")
def small_post() -> Iterator[Figure]:
    url = sink().url
    transport = RequestsTransport()
    session = requests.Session()
    session.trust_env = False  # neither side looks for proxies or a netrc
    headers = {"apim-accesstoken": "a" * 40}
    for number in (1, 100):
        body = f"[{','.join(text(event(each)) for each in range(number))}]".encode()
        upload = Upload(url, [FieldPart("enos-message", body)], headers)

        def measured(upload: Upload = upload) -> int:
            transport.send(upload, _no_files, _DEADLINE, _CONNECT)
            return 1

        def compared(body: bytes = body) -> int:
            session.post(url, files={"enos-message": (None, body)}, headers=headers)
            return 1

        yield compare(
            f"small_post_{number}",
            lambda seconds, step=measured: 1 / _process_cost(step, seconds),  # type: ignore[misc]
            lambda seconds, step=compared: 1 / _process_cost(step, seconds),  # type: ignore[misc]
            Target(1.0, 1.6),
            what=f"requests that a second of this process's CPU pays for, {number} event{'s' * (number > 1)} in each",
            against="requests.Session().post(url, files=...), without a look at the environment",
            unit="requests/CPU s",
        )
    session.close()
    transport.close()
