"""What a receiver writes down about each upload request, in memory and as lines of JSON another process can read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from outbox.testing.behaviours import SUCCESS_CODES
from outbox.testing.wire import ACTIONS, references_of, structs_of


@dataclass(frozen=True)
class ReceivedFile:
    """One file part: its bytes by size and digests, and what the message says about it."""

    size: int
    sha256: str
    md5: str
    original_filename: str | None = None
    feature_id: str | None = None


@dataclass(frozen=True)
class Accepted:
    """One struct the receiver took and said so, with the files it refers to."""

    struct: dict[str, Any]
    #: By transfer name, the text after ``local://``.
    files: dict[str, ReceivedFile]
    request_number: int

    @property
    def files_by_path(self) -> dict[str, ReceivedFile]:
        """The same files by where they stand in the struct, for instance ``events/eventId1/fileParam1``."""
        return {
            "/".join((member, *reference.path)): self.files[reference.transfer_name]
            for member in ("events", "measurepoints", "attributes")
            for reference in references_of(self.struct, member)
        }


@dataclass(frozen=True)
class Received:
    """One upload request, from its first byte to the last byte of its answer."""

    #: 1 for the first request the receiver began to read.
    number: int
    action: str | None
    query: dict[str, str]
    #: By lower-case name; the ledger file hides the access token.
    headers: dict[str, str]
    #: The whole body of the declared length arrived and the form ended as it should.
    complete: bool
    #: Everything the strict check has against it.
    faults: tuple[str, ...]
    #: Complete, faultless, and not refused: the service has it, whether or not the client got to know.
    stored: bool
    #: HTTP status of the answer, None if none was begun.
    status: int | None
    #: EnOS code in the answer, None if there was none.
    code: int | None
    #: The whole answer was handed to the network while the client was still there.
    answered: bool
    #: Monotonic seconds; from one clock for all processes of a machine, unless the receiver was given another.
    started: float
    finished: float
    #: Bytes of the body that were read, without the framing of chunks.
    wire_bytes: int
    #: The misbehaviour it met, as text; None for none.
    behaviour: str | None
    #: The parsed ``enos-message``.
    message: dict[str, Any] | None
    #: By transfer name.
    files: dict[str, ReceivedFile]
    #: The structs the service has after this request: all if stored, the good ones if it kept those of a batch that it
    #: refused, else none. The ledger file names them by their places in params.
    kept: tuple[dict[str, Any], ...] = ()

    @property
    def structs(self) -> tuple[dict[str, Any], ...]:
        """The message's params."""
        return structs_of(self.message)

    @property
    def seconds(self) -> float:
        """How long the request took."""
        return self.finished - self.started

    @property
    def accepted(self) -> tuple[Accepted, ...]:
        """Its structs, if the client was told that they were taken; otherwise nothing."""
        told = self.answered and self.status is not None and 200 <= self.status < 300 and self.code in SUCCESS_CODES
        if not (self.stored and told):
            return ()
        member = ACTIONS[self.action or ""].member
        return tuple(
            Accepted(
                struct,
                {reference.transfer_name: self.files[reference.transfer_name] for reference in references_of(struct, member)},
                self.number,
            )
            for struct in self.structs
        )


class Ledger:
    """A file that gains one line of JSON per finished request; closing it is all the care it needs."""

    def __init__(self, path: Path) -> None:
        # One write per line on a file opened for appending: a killed process leaves at most a torn last line.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._file = os.open(path, flags, 0o600)

    def write(self, received: Received) -> None:
        """Append the request; it is in the operating system's hands when this returns."""
        # Not asdict for the whole: it copies every value of every struct.
        entry = {name: getattr(received, name) for name in _FIELDS}
        entry["files"] = {name: asdict(file) for name, file in received.files.items()}
        entry["kept"] = _places(received)
        if "apim-accesstoken" in received.headers:
            entry["headers"] = {**received.headers, "apim-accesstoken": "(hidden)"}
        rest = memoryview(json.dumps(entry, allow_nan=False).encode("ascii") + b"\n")
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_ledger(path: Path) -> list[Received]:
    """Every request in a ledger file, in the order they finished; a torn last line is left out."""
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_received(json.loads(line)) for line in lines]


def peak_of(requests: Iterable[Received]) -> int:
    """The most of these requests that were under way at once; they may come from several receivers' ledgers."""
    turns = sorted(turn for each in requests for turn in ((each.started, 1), (each.finished, -1)))
    return max(accumulate((change for _, change in turns), initial=0))


def rate_of(moments: Iterable[float], window: float) -> int:
    """The most of these moments that lie within any ``window`` seconds, of which the last instant is left out.

    ValueError if the window is not longer than nothing.
    """
    if not window > 0:
        raise ValueError(f"a window of {window} s holds nothing; give more than 0")
    ordered = sorted(moments)
    most = first = 0
    for last, moment in enumerate(ordered, start=1):
        while moment - ordered[first] >= window:
            first += 1
        most = max(most, last - first)
    return most


_FIELDS: Final = tuple(each.name for each in fields(Received))


def _places(received: Received) -> list[int]:
    structs = received.structs
    if len(received.kept) == len(structs):
        return list(range(len(structs)))
    return [structs.index(struct) for struct in received.kept]


def _received(entry: Mapping[str, Any]) -> Received:
    structs = structs_of(entry["message"])
    return Received(
        **{
            **entry,
            "faults": tuple(entry["faults"]),
            "files": {name: ReceivedFile(**file) for name, file in entry["files"].items()},
            "kept": tuple(structs[place] for place in entry["kept"]),
        }
    )
