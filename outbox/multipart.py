"""A form body that is never held in memory and can be read twice."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO

from outbox import digests
from outbox.errors import Fault, FileChanged, Refused
from outbox.model import SpooledFile
from outbox.payload import has_controls

#: Bytes handed to the socket at a time: measured to be within 15 % of the best for files of every size.
BLOCK = 256 * 1024
#: The same of a file whose digest has a thread of its own: with a quarter of the hand-overs, to that thread and to the kernel,
#: all of it is a sixth less work. For a smaller file the kernel would take more to find fresh memory than that saves.
LARGE_BLOCK = 1024 * 1024
#: How many of those may wait to be hashed: with the one that is read meanwhile three are in memory.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class FieldPart:
    """A part whose bytes are at hand."""

    name: str
    body: bytes
    filename: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.body)


@dataclass(frozen=True, slots=True)
class FilePart:
    """A part whose bytes rest in the spool."""

    name: str
    filename: str
    file: SpooledFile
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.file.size


Part = FieldPart | FilePart


@lru_cache(maxsize=256)
def _disposition(name: str, filename: str | None) -> str:
    """A part's name and its file's, quoted by urllib3 as browsers do (HTML living standard)."""
    from urllib3.fields import RequestField  # here: a producer sends nothing, and urllib3 is a tenth of what it would import

    request_field = RequestField(name, b"", filename, None)
    request_field.make_multipart()
    return str(request_field.headers["Content-Disposition"])


def head(part: Part) -> bytes:
    """The part's header block, empty line included."""
    lines = [f"Content-Disposition: {_disposition(part.name, part.filename)}"]
    lines += [f"{key}: {value}" for key, value in part.headers.items()]
    if isinstance(part, FilePart):
        lines.append(f"Content-Type: {part.content_type}")
    lines.append(f"Content-Length: {part.size}")
    for line in lines:
        # urllib3 escapes quotes and line ends in names, but lets NUL pass and never looks at other header values.
        if has_controls(line):
            raise Refused([Fault(part.name, "a part header must not hold control characters")])
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Form:
    """A `multipart/form-data` body of known length, for requests to stream.

    `open_file` gives a spooled file by its name and is called anew each time the form is read. `check` is called before each
    block: the place where a total deadline is enforced. A form has what requests and urllib3 ask
    of a body (`__len__`, `__iter__`, `read`, `seek`, `tell`), holds one block at a time, and opens one file at a time.

    Reading raises FileMissing or FileChanged before the last block of a file whose bytes are not those that were enqueued,
    so the request that carries it can never complete.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        boundary: str,
        open_file: Callable[[str], BinaryIO],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.boundary = boundary
        self._open_file = open_file
        self._check = check
        self._parts = [(part, b"--" + boundary.encode() + b"\r\n" + head(part)) for part in parts]
        self._tail = b"--" + boundary.encode() + b"--\r\n"
        self._length = sum(len(before) + part.size + 2 for part, before in self._parts) + len(self._tail)
        self._blocks: Iterator[bytes] | None = None
        self._rest = b""
        self._position = 0
        self.sent_whole = False  #: the reader came back for more after the last block: all of it went out

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self.boundary}"

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        """The body anew, in blocks of at most LARGE_BLOCK bytes."""
        for part, before in self._parts:
            yield before
            if isinstance(part, FilePart):
                yield from _proven(part.file, self._open_file)
            elif part.body:
                yield part.body
            yield b"\r\n"
        yield self._tail

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes. Small parts are joined up to BLOCK bytes, so that a thousand tiny files are not a thousand tiny
        sends; a block that would have to be cut for that, or would make it too much, goes by itself, as it is.
        """
        if size and self._position == self._length:
            # Before the check: all of it is out, also when the deadline or a cut falls into this very moment.
            self.sent_whole = True
        self._check()
        if self._blocks is None:
            self._blocks = iter(self)
        wanted = self._length if size < 0 else size
        together = wanted if size < 0 else min(size, BLOCK)
        gathered: list[bytes] = []
        have = 0
        while have < wanted:
            if not (piece := self._rest or next(self._blocks, b"")):
                break
            self._check()  # a file that is slow to read is under the deadline as well
            room = wanted - have
            if gathered and have + len(piece) > together and len(piece) <= wanted:
                self._rest = piece
                break
            if len(piece) > room:
                piece, self._rest = piece[:room], piece[room:]
            else:
                self._rest = b""
            gathered.append(piece)
            have += len(piece)
        self._position += have
        return gathered[0] if len(gathered) == 1 else b"".join(gathered)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Back to the start: the one place a request is ever repeated from."""
        if offset != 0 or whence != 0:
            raise ValueError("a form can only be read again from its start")
        self.close()
        self._rest = b""
        self._position = 0
        self.sent_whole = False
        return 0

    def close(self) -> None:
        """Close the file that is being read, if any."""
        if self._blocks is not None:
            self._blocks.close()  # type: ignore[attr-defined]  # it is the generator of __iter__
            self._blocks = None


def _proven(file: SpooledFile, open_file: Callable[[str], BinaryIO]) -> Iterator[bytes]:
    """A file's bytes, bounded by its recorded size, the last block held back until length and digest agree."""
    held = b""
    left = file.size
    most = LARGE_BLOCK if file.size >= digests.WORTH_A_THREAD else BLOCK
    with open_file(file.name) as source, contextlib.ExitStack() as ending:
        digest = _digest(file.size)
        ending.callback(digests.close, digest)
        while left:
            block = source.read(min(most, left))
            if not block:
                raise FileChanged(file.name, f"{left} of its {file.size} bytes are missing")
            digest.update(block)
            if held:
                yield held
            held = block
            left -= len(block)
        if source.read(1):
            raise FileChanged(file.name, f"it is longer than its {file.size} bytes")
        if digest.hexdigest() != file.sha256:
            raise FileChanged(file.name, "its SHA-256 digest differs")
    if held:
        yield held


def _digest(size: int) -> digests.Digest:
    """For a file of this size."""
    digest = hashlib.sha256()
    return digest if size < digests.WORTH_A_THREAD else digests.beside(digest, ahead=_AHEAD)
