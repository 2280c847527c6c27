"""What a spool must do; names are ours, 32 hexadecimal digits, never a user's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO, NamedTuple, Protocol

from outbox.errors import FileMissing, SpoolError
from outbox.model import SpooledFile

_NAME = re.compile(r"[0-9a-f]{32}")


class SpoolEntry(NamedTuple):
    """A file found in the spool."""

    name: str
    modified_at: datetime


class Spool(Protocol):
    """Bytes by name. Every method raises SpoolError, or a subclass, when it cannot do what it says."""

    def prepare(self) -> None:
        """Create what the spool needs, durably. Doing it again is no error."""

    def is_there(self) -> bool:
        """Whether it was prepared, and can be seen now."""

    def mark(self) -> str | None:
        """The mark of the database that it belongs to; None when it has none. SpoolError for what is no mark."""

    def set_mark(self, mark: str, *, replace: bool = False) -> str:
        """Write a mark, durably and all of it or nothing; returns the one that is there afterwards.

        One that is there already is left alone, however many write at once, unless `replace`.
        """

    def put(self, name: str, source: BinaryIO, limit: int | None = None) -> SpooledFile:
        """Copy `source` to its end under a fresh name; when this returns, the bytes survive a power cut.

        Raises Oversize when there are more than `limit` bytes, and SpoolFull when there is no room for them. Whatever goes
        wrong, nothing is left under that name.
        """

    def open(self, name: str) -> BinaryIO:
        """The bytes, for reading. Raises FileMissing, or FileChanged for what is no file of ours any more."""

    def size(self, name: str) -> int:
        """Length in bytes. Raises FileMissing, or FileChanged for what is no file of ours any more."""

    def touch(self, name: str) -> None:
        """Mark as used now, so that no sweep takes it for rubbish. Raises FileMissing."""

    def delete(self, name: str) -> None:
        """Remove; a missing file is no error."""

    def list(self) -> Iterator[SpoolEntry]:
        """Every file that a row may refer to, in no order."""

    def park(self, name: str) -> None:
        """Set aside a file that no row seems to refer to; `open` still finds it."""

    def parked(self) -> Iterator[SpoolEntry]:
        """Every file that was set aside, with the time of that."""

    def clean(self, before: datetime) -> None:
        """Delete what a `put` that was interrupted before that instant has left."""

    def left(self) -> int | None:
        """How many bytes may still come before its disk is full; None where nobody knows."""


class Oversize(SpoolError):
    """The source has more bytes than allowed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the file has more than {limit} bytes")


def checked_name(name: str) -> str:
    """A name that is ours; anything else (a row edited to `../../x`) raises FileMissing: that costs its message, no other."""
    if not _NAME.fullmatch(name):
        raise FileMissing(name, f"{name!r} is not the name of a spooled file")
    return name
