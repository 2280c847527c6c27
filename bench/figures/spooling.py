"""The spool: a copy, two digests and an fsync, compared with what each of them takes at least."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.ground import folder
from bench.harness import Figure, Target, benchmark, compare, rate
from outbox import DirectorySpool
from outbox.ambient import uuid7

SIZE = 512 * 1024 * 1024
_BLOCK = 256 * 1024
_MB = 1_000_000


def source() -> Path:
    """A file of bytes that nobody can guess, in memory."""
    path = folder() / "source"
    with path.open("wb") as target:
        for _ in range(SIZE // _BLOCK):
            target.write(os.urandom(_BLOCK))
        target.flush()
        os.fsync(target.fileno())
    return path


def _slice(step: Callable[[], int]) -> Callable[[float], float]:
    return lambda seconds: rate(step, seconds) / _MB


@benchmark("spool", "copy, SHA-256, MD5 and fsync of 512 MiB, as a part of hashing alone and as a multiple of four commands")
def spool() -> Iterator[Figure]:
    path = source()
    ours = DirectorySpool(folder() / "spool")
    ours.prepare()
    copy = folder() / "copy"

    def put() -> int:
        name = uuid7().replace("-", "")
        with path.open("rb", buffering=0) as opened:
            spooled = ours.put(name, opened)
        ours.delete(name)
        return spooled.size

    def hashing() -> int:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with path.open("rb", buffering=0) as opened:
            while block := opened.read(_BLOCK):
                sha256.update(block)
                md5.update(block)
        return SIZE

    def commands() -> int:
        for command in (["cp", path, copy], ["sync", copy], ["md5sum", copy], ["sha256sum", copy]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        copy.unlink()
        return SIZE

    yield compare(
        "spool_vs_hashing",
        _slice(put),
        _slice(hashing),
        Target(0.6, 0.8),
        what="512 MiB into a spool: copied, both digests, fsync of the file and its folder",
        against="hashlib's SHA-256 and MD5 of the same file, one thread, nothing written",
        unit="MB/s",
        rounds=5,
    )
    yield compare(
        "spool_vs_commands",
        _slice(put),
        _slice(commands),
        Target(2, 2.7),
        what="512 MiB into a spool: copied, both digests, fsync of the file and its folder",
        against="cp; sync FILE; md5sum; sha256sum",
        unit="MB/s",
        rounds=5,
    )
