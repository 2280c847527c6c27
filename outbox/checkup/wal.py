"""SQLite's write-ahead log, read as bytes: what SQLite passes over in silence, since to it a damaged frame is the log's end.

Format: https://www.sqlite.org/fileformat2.html#walformat and https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_MAGIC = (0x377F0682, 0x377F0683)
_HEADER, _FRAME_HEADER, _INDEX_HEADER = 32, 24, 48
_PAGES = frozenset(2**power for power in range(9, 17))


class _Log(NamedTuple):
    """The header of a WAL."""

    order: str  #: of the bytes that are added up: "<" or ">"
    page: int
    salts: bytes
    sums: tuple[int, int]


class _Index(NamedTuple):
    """What the index beside a WAL says about it: the last frame that was committed, and the last that was moved out."""

    salts: bytes
    frames: int
    moved: int


class Looked(NamedTuple):
    """What a WAL says of itself: frames that are in order from its beginning on, and commits behind the first that is not."""

    frames: int
    commits_behind: int
    commits: int
    salts: bytes
    header_whole: bool = True


def faults(database: Path, pulse: Callable[[], None] = lambda: None) -> list[str]:
    """What is wrong with the log beside a database. Ask before anybody opens it: whoever does so first cuts the log.

    What is said is found twice in a row: a log that somebody writes to at this moment looks damaged at its end.
    """
    found = _faults(database, pulse)
    return [each for each in found if each in _faults(database, pulse)] if found else []


def _faults(database: Path, pulse: Callable[[], None]) -> list[str]:
    log_path, index_path = (database.with_name(database.name + suffix) for suffix in ("-wal", "-shm"))
    index = _index(index_path)  # first: a commit goes into the log before it goes into the index
    looked = _look(log_path, pulse)
    if looked is not None and looked.commits_behind > 1:
        where = f"frame {looked.frames + 1}" if looked.header_whole else "the header"
        lost = f"SQLite ends the log there, and at least {looked.commits_behind} commits behind it are lost"
        return [f"{where} of {log_path.name} is damaged: {lost}"]
    if index is None or index.frames <= index.moved:
        return []
    of_this_log = looked is None or not looked.header_whole or looked.salts == index.salts
    frames = looked.frames if looked is not None else 0
    if of_this_log and frames < index.frames:
        return [f"{log_path.name} has {frames} frames in order, and {index.frames} were written: its end is lost"]
    return []


def _look(path: Path, pulse: Callable[[], None]) -> Looked | None:
    """None when there is no log, or nothing in it."""
    try:
        with path.open("rb") as log:
            raw = log.read(_HEADER)
            if len(raw) < _HEADER:
                return None
            header = _header(raw)
            if header is not None:
                return _walk(header, iter(lambda: log.read(_FRAME_HEADER + header.page), b""), pulse)
            first = log.read(_FRAME_HEADER)
            log.seek(_HEADER)
            likely = _likely(raw, first)
            walked = _walk(likely, iter(lambda: log.read(_FRAME_HEADER + likely.page), b""), pulse)
            return Looked(0, walked.commits + walked.commits_behind, 0, likely.salts, header_whole=False)
    except OSError:
        return None


def _likely(raw: bytes, first: bytes) -> _Log:
    """What the header of a log must have been, going by what is left of it and by its first frame."""
    magic, _, page, _ = struct.unpack_from(">4I", raw)
    sums = struct.unpack_from(">2I", raw, 24)
    order = {_MAGIC[0]: "<", _MAGIC[1]: ">"}.get(magic, "<")
    return _Log(order, page if page in _PAGES else 4096, first[8:16], (sums[0], sums[1]))


def _header(raw: bytes) -> _Log | None:
    magic, _, page, _ = struct.unpack_from(">4I", raw)
    sums = struct.unpack_from(">2I", raw, 24)
    order = ">" if magic == _MAGIC[1] else "<"
    if magic not in _MAGIC or page not in _PAGES or _added(order, raw[:24], (0, 0)) != sums:
        return None
    return _Log(order, page, raw[16:24], (sums[0], sums[1]))


def _walk(header: _Log, frames: Iterator[bytes], pulse: Callable[[], None]) -> Looked:
    """Each frame's sums go on from those of the one before it; from what it says of them, the next can be told again."""
    before = header.sums
    in_order, commits, behind, broken = 0, 0, 0, False
    for number, frame in enumerate(frames):
        if number % 256 == 0:
            pulse()
        if len(frame) < _FRAME_HEADER + header.page:
            break
        sums = struct.unpack_from(">2I", frame, 16)
        whole = frame[8:16] == header.salts and sums == _added(
            header.order, frame[_FRAME_HEADER:], _added(header.order, frame[:8], before)
        )
        if not whole and frame[8:16] != header.salts and broken:
            break  # left from before the log began anew
        commit = whole and struct.unpack_from(">I", frame, 4)[0] > 0
        behind += commit and broken
        commits += commit and not broken
        in_order += whole and not broken
        broken = broken or not whole
        before = (sums[0], sums[1])
    return Looked(in_order, behind, commits, header.salts)


def _added(order: str, raw: bytes, start: tuple[int, int]) -> tuple[int, int]:
    first, second = start
    words = struct.unpack(f"{order}{len(raw) // 4}I", raw)
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def _index(path: Path) -> _Index | None:
    """The header of the index; None when there is none, or somebody is writing it at this moment."""
    try:
        with path.open("rb") as source:
            raw = source.read(2 * _INDEX_HEADER + 4)
    except OSError:
        return None
    if len(raw) < 2 * _INDEX_HEADER + 4 or raw[:_INDEX_HEADER] != raw[_INDEX_HEADER : 2 * _INDEX_HEADER]:
        return None
    native = "<" if struct.pack("=I", 1)[0] == 1 else ">"
    if not raw[12] or _added(native, raw[:40], (0, 0)) != struct.unpack_from(f"{native}2I", raw, 40):
        return None
    frames = struct.unpack_from(f"{native}I", raw, 16)[0]
    return _Index(raw[32:40], frames, struct.unpack_from(f"{native}I", raw, 2 * _INDEX_HEADER)[0])
