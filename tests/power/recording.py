"""A program of ours runs with every file operation written down; what came of that, operation by operation."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.power.building import recorder

ROOT = Path(__file__).parents[2]
_HEADER = struct.Struct("<BBHHIQq")
_CREATED, _FOLDER = 1, 2


class What(StrEnum):
    """What an operation did; the letters are the recorder's."""

    OPENED = "o"
    WROTE = "w"
    CUT = "t"
    GREW = "a"
    SYNCED = "s"
    SYNC_FAILED = "f"
    RENAMED = "r"
    LINKED = "l"
    REMOVED = "u"
    FOLDER_MADE = "m"
    FOLDER_REMOVED = "d"


@dataclass(frozen=True, slots=True)
class Operation:
    """One file operation that succeeded, or a sync that did not. Paths begin with a slash, which is the recorded folder."""

    what: What
    inode: int = 0
    at: int = 0  #: where it wrote, or the new length
    path: str = ""
    other: str = ""
    data: bytes = b""
    created: bool = False
    folder: bool = False


def read(log: Path) -> Iterator[Operation]:
    """The operations of a recording, in order."""
    raw = log.read_bytes()
    at = 0
    while at < len(raw):
        what, flags, first, second, length, inode, offset = _HEADER.unpack_from(raw, at)
        at += _HEADER.size
        path, at = raw[at : at + first].decode(), at + first
        other, at = raw[at : at + second].decode(), at + second
        data, at = raw[at : at + length], at + length
        yield Operation(What(chr(what)), inode, offset, path, other, data, bool(flags & _CREATED), bool(flags & _FOLDER))


def record(root: Path, log: Path, program: str, story: Mapping[str, Any]) -> list[Operation]:
    """Run a program of tests/power/workloads.py and return every file operation of its below `root`, which is empty or new.

    The recorder is built beside it. Raises Unavailable where that cannot be done.
    """
    library = recorder(root.parent.parent / "built")
    root.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "POWER_ROOT": str(root.resolve()),
        "POWER_LOG": str(log),
        "STORY": json.dumps({"program": program, "root": str(root.resolve())} | dict(story)),
        "PYTHONWARNINGS": "error::ResourceWarning",
    }
    command = [sys.executable, "-m", "tests.power.workloads"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return list(read(log))
