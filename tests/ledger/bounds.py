"""I15 and I16: how long it took from the last fault until all was done, and how large a process and its files became.

began = Size.of(process.pid, database_file)
...
balance = balance.plus("I15", in_time(last_fault, drained, within=30))
balance = balance.plus("I16", within(Size.of(process.pid, database_file), Size(memory=150_000, descriptors=60)))
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


def in_time(since: float, until: float, within: float) -> list[str]:
    """I15: what is against a recovery that took from one monotonic moment to another."""
    took = until - since
    return [f"it took {took:.1f} s until all was done, and may take {within:.1f} s"] if took > within else []


@dataclass(frozen=True)
class Size:
    """How large a process is; or may become, where None is as large as it likes."""

    memory: int | None = None  #: KiB that are resident
    descriptors: int | None = None
    threads: int | None = None
    log: int | None = None  #: bytes of SQLite's write-ahead log

    @classmethod
    def of(cls, pid: int, database: Path | None = None) -> Size:
        """A process as it is now, and the log of a SQLite database."""
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        said = {name: value.split()[0] for name, _, value in (line.partition(":") for line in status) if value.strip()}
        log = database.with_name(f"{database.name}-wal") if database is not None else None
        return cls(
            memory=int(said["VmRSS"]),
            descriptors=sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
            threads=int(said["Threads"]),
            log=log.stat().st_size if log is not None and log.exists() else None,
        )


_UNITS = {"memory": "KiB of memory", "descriptors": "descriptors", "threads": "threads", "log": "bytes of log"}


def within(size: Size, most: Size, who: str = "it") -> list[str]:
    """I16: what is larger than it may be."""
    pairs = ((each.name, getattr(size, each.name), getattr(most, each.name)) for each in fields(Size))
    return [
        f"{who} has {found} {_UNITS[name]}, and may have {limit}"
        for name, found, limit in pairs
        if found is not None and limit is not None and found > limit
    ]
