"""Reading one upload as it arrives: the body block by block, the form part by part, never a whole file in memory."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final

from multipart import (  # type: ignore[import-untyped, unused-ignore]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from outbox.testing.wire import FILE_PART, MESSAGE_PART, Part

BLOCK: Final = 1 << 18
_MANY_PARTS: Final = 10_000


class BodyLost(Exception):
    """The body ended early: the client is gone, nobody is left to answer."""


class BadFraming(BodyLost):
    """The body does not say where it ends, or says it wrongly: nothing after it can be read."""


def body_blocks(stream: BufferedReader, length: int | None, *, block: int = BLOCK) -> Iterator[bytes]:
    """The body in blocks of at most ``block`` bytes, as they come; chunked if it has no length. May raise BodyLost."""
    if length is not None:
        yield from _exactly(stream, length, block)
        return
    while size := _chunk_size(stream):
        yield from _exactly(stream, size, block)
        if _line(stream) != b"":
            raise BadFraming("a chunk is longer than it says")
    while _line(stream) != b"":
        pass


def _exactly(stream: BufferedReader, length: int, block: int) -> Iterator[bytes]:
    while length:
        # read1 waits for some bytes, not for a whole block: a hang-up after n bytes, or a slow client, is seen at once.
        data = stream.read1(min(length, block))
        if not data:
            raise BodyLost(f"the client left {length} bytes early")
        length -= len(data)
        yield data


def _chunk_size(stream: BufferedReader) -> int:
    digits = _line(stream).partition(b";")[0].strip()
    if not digits or digits.strip(b"0123456789abcdefABCDEF") or len(digits) > 15:
        raise BadFraming(f"{digits!r} is not the size of a chunk")
    return int(digits, 16)


def _line(stream: BufferedReader) -> bytes:
    line = stream.readline(8192)
    if len(line) == 8192:
        raise BadFraming("a line of the framing of chunks is too long")
    if not line.endswith(b"\r\n"):
        raise BodyLost("the client left within the framing of chunks")
    return line[:-2]


def boundary_of(content_type: str | None) -> str | None:
    """The boundary of a multipart/form-data Content-Type, or None if it is anything else."""
    kind, options = parse_options_header(content_type or "")
    boundary = options.get("boundary")
    return boundary if kind == "multipart/form-data" and isinstance(boundary, str) and boundary else None


class FormReader:
    """Takes a form block by block and keeps of each part its headers, size and digests.

    The message is kept whole while it is smaller than ``message_limit`` bytes. With ``keep_files`` the bytes of each
    file part end up in that folder, named by their sha256. A form that breaks off its rules is read no further;
    ``fault`` then says why.
    """

    def __init__(self, boundary: str, *, message_limit: int, keep_files: Path | None) -> None:
        self._parser: Any = PushMultipartParser(boundary, strict=True, max_segment_count=_MANY_PARTS)
        self._opening = f"--{boundary}\r\n".encode()
        self._closing = f"\r\n--{boundary}--".encode()
        self._head = b""
        self._tail = b""
        self._ended = False
        self._message_limit = message_limit
        self._keep_files = keep_files
        self._open: _OpenPart | None = None
        self.parts: list[Part] = []
        self.fault: str | None = None

    def feed(self, block: bytes) -> None:
        """Take the next block; blocks after a fault are dropped."""
        if self.fault is not None:
            return
        if len(self._head) < len(self._opening):
            self._head += block[: len(self._opening)]
        # Long enough for the closing boundary and its line end, and one byte more to notice what comes after.
        self._tail = (self._tail + block[-len(self._closing) - 4 :])[-len(self._closing) - 4 :]
        if self._ended:
            # A line end after the closing boundary is allowed, yet the parser takes it for junk when it comes alone.
            return
        try:
            for event in self._parser.parse(block):
                self._take(event)
        except MultipartError as error:
            self._break_off(str(error))
        self._ended = self._closing in self._tail

    def finish(self) -> None:
        """Say that the body has ended."""
        if self.fault is None:
            try:
                self._parser.close()
            except MultipartError as error:
                self._break_off(str(error))
        if self.fault is None:
            if not self._head.startswith(self._opening):
                self.fault = "the form does not begin with its boundary"
            elif not self._tail.removesuffix(b"\r\n").endswith(self._closing):
                self.fault = "the form does not end with its closing boundary"

    def abandon(self) -> None:
        """Forget the part that is still open; harmless if there is none."""
        if self._open is not None:
            self._open.discard()
            self._open = None

    def _take(self, event: MultipartSegment | bytes | None) -> None:
        if event is None:
            assert self._open is not None
            self.parts.append(self._open.close())
            self._open = None
        elif isinstance(event, bytes):
            assert self._open is not None
            self._open.write(event)
        else:
            self._open = _OpenPart(event, self._message_limit, self._keep_files)

    def _break_off(self, words: str) -> None:
        self.fault = f"part {len(self.parts) + 1}: {words}"
        self.abandon()


class _OpenPart:
    """A part whose end has not come yet."""

    def __init__(self, segment: Any, message_limit: int, keep_files: Path | None) -> None:
        self._segment = segment
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._size = 0
        self._content: bytearray | None = bytearray() if segment.name == MESSAGE_PART else None
        self._message_limit = message_limit
        self._keep_files = keep_files if segment.name == FILE_PART else None
        self._kept: IO[bytes] | None = None
        if self._keep_files is not None:
            arriving = self._keep_files / f".arriving-{uuid.uuid4()}"
            self._kept = arriving.open("wb")

    def write(self, data: bytes) -> None:
        self._size += len(data)
        self._sha256.update(data)
        self._md5.update(data)
        if self._content is not None:
            self._content += data
            if len(self._content) >= self._message_limit:
                self._content = None
        if self._kept is not None:
            self._kept.write(data)

    def close(self) -> Part:
        sha256 = self._sha256.hexdigest()
        if self._kept is not None and self._keep_files is not None:
            self._kept.close()
            Path(self._kept.name).replace(self._keep_files / sha256)
        return Part(
            name=self._segment.name,
            filename=self._segment.filename,
            headers=tuple(self._segment.headerlist),
            size=self._size,
            sha256=sha256,
            md5=self._md5.hexdigest(),
            content=None if self._content is None else bytes(self._content),
        )

    def discard(self) -> None:
        if self._kept is not None:
            self._kept.close()
            Path(self._kept.name).unlink()
