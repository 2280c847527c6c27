"""A form body: parsed without loss by parsers that are not ours, and never whole when a file is not what was enqueued."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import random
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import multipart as defnull
import pytest
import python_multipart
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.multipart import parse_options_header
from werkzeug.datastructures import Headers
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData, Preamble

from outbox.destinations import EnosEvents
from outbox.digests import WORTH_A_THREAD
from outbox.errors import FileChanged, FileMissing, Refused
from outbox.model import Batch, SpooledFile
from outbox.multipart import BLOCK, LARGE_BLOCK, FieldPart, FilePart, Form, Part, head
from tests.pure.making import NOW, TIME, Crate, batch, carrying, shelf, spooled

BOUNDARY = "0123456789abcdef0123456789abcdef"
ENOS = EnosEvents(name="enos", url="https://integration.example", org_id="o1")


class Parsed(NamedTuple):
    name: str
    filename: str | None
    content: bytes
    headers: dict[str, str]


# Three parsers that are not ours.


def by_defnull(body: bytes, block: int) -> list[Parsed]:
    parser: Any = defnull.PushMultipartParser(BOUNDARY, content_length=len(body), strict=True, max_segment_count=10_000)
    parts: list[Parsed] = []
    content = b""
    segment: Any = None
    # A line end after the closing boundary is allowed, yet this parser takes it for junk when it comes alone.
    ends = [*range(block, len(body) - 4, block), len(body)]
    for start, end in itertools.pairwise([0, *ends]):
        for event in parser.parse(body[start:end]):
            if isinstance(event, defnull.MultipartSegment):
                segment, content = event, b""
            elif event:
                content += event
            else:
                headers = {name.lower(): value for name, value in segment.headerlist}
                parts.append(Parsed(segment.name, segment.filename, content, headers))
    parser.close()
    return parts


def by_werkzeug(body: bytes, block: int) -> list[Parsed]:
    decoder = MultipartDecoder(BOUNDARY.encode(), max_parts=10_000)
    parts: list[Parsed] = []
    content: list[bytes] = []
    found: Field | File | None = None
    # In one piece: this parser mistakes a line end that is torn between two pieces for content.
    for piece in (body, None):
        decoder.receive_data(piece)
        while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
            if isinstance(event, Field | File):
                found, content = event, []
            elif isinstance(event, Data):
                content.append(event.data)
                if not event.more_data:
                    assert found is not None
                    filename = found.filename if isinstance(found, File) else None
                    parts.append(Parsed(found.name, filename, b"".join(content), lowered(found.headers)))
            else:
                assert isinstance(event, Preamble)
                assert event.data == b""
    assert isinstance(event, Epilogue)
    assert event.data.strip() == b""
    return parts


def lowered(headers: Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def by_python_multipart(body: bytes, block: int) -> list[Parsed]:
    parts: list[Parsed] = []
    headers: dict[str, str] = {}
    field, value, content = bytearray(), bytearray(), bytearray()
    ended = []

    def header_ended() -> None:
        assert field.decode().lower() not in headers
        headers[field.decode().lower()] = value.decode()
        field.clear()
        value.clear()

    def part_ended() -> None:
        _, options = parse_options_header(headers["content-disposition"].encode())
        filename = options.get(b"filename")
        parts.append(Parsed(options[b"name"].decode(), filename.decode() if filename else None, bytes(content), dict(headers)))
        headers.clear()
        content.clear()

    parser = python_multipart.MultipartParser(
        BOUNDARY,
        {
            "on_header_field": lambda data, start, end: field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: value.extend(data[start:end]),
            "on_header_end": header_ended,
            "on_part_data": lambda data, start, end: content.extend(data[start:end]),
            "on_part_end": part_ended,
            "on_end": lambda: ended.append(True),
        },
    )
    for start in range(0, len(body), block):
        assert parser.write(body[start : start + block]) == len(body[start : start + block])
    parser.finalize()
    assert ended == [True]
    return parts


Parser = Callable[[bytes, int], list[Parsed]]
PARSERS: list[Parser] = [by_defnull, by_werkzeug, by_python_multipart]
each_parser = pytest.mark.parametrize("parse", PARSERS)


def form(parts: list[Part], open_file: Callable[[str], BinaryIO] | None = None, **options: Any) -> Form:
    return Form(parts, BOUNDARY, open_file or shelf({}), **options)


def read(body: Form, block: int = -1) -> bytes:
    return b"".join(iter(lambda: body.read(block), b""))


# Bytes compared whole.


def test_a_form_is_these_bytes() -> None:
    crate = Crate()
    photo = crate.attach("photo", "img.jpg", b"\xff\xd8\r\n--").file
    parts: list[Part] = [
        FieldPart("enos-message", b'{"a":1}'),
        FilePart("enos-file", "a.jpg", photo, headers={"Content-MD5": photo.md5}),
    ]

    body = form(parts, crate.open)

    expected = (
        b"--" + BOUNDARY.encode() + b"\r\n"
        b'Content-Disposition: form-data; name="enos-message"\r\n'
        b"Content-Length: 7\r\n"
        b"\r\n"
        b'{"a":1}\r\n'
        b"--" + BOUNDARY.encode() + b"\r\n"
        b'Content-Disposition: form-data; name="enos-file"; filename="a.jpg"\r\n'
        b"Content-MD5: " + photo.md5.encode() + b"\r\n"
        b"Content-Type: application/octet-stream\r\n"
        b"Content-Length: 6\r\n"
        b"\r\n"
        b"\xff\xd8\r\n--\r\n"
        b"--" + BOUNDARY.encode() + b"--\r\n"
    )
    assert expected == read(body)
    assert expected == b"".join(body)
    assert f"multipart/form-data; boundary={BOUNDARY}" == body.content_type


# Names, as three parsers see them.

NAMES = [
    "plain.jpg",
    'say "cheese".jpg',
    "line\rbreak.jpg",
    "line\nbreak.jpg",
    'x"\r\nX-Injected: yes\r\n\r\nboo.jpg',
    "semi;colon; filename=evil.exe",
    "back\\slash.jpg",
    "größe-温度-🙂.jpg",
    "x" * 200,
    "é" * 200 + ".bin",
    "no-extension",
    ".hidden",
    "trailing.",
    "a b  c",
    "percent%22.jpg",
    "equals=sign,comma",
    f"--{BOUNDARY}--",
    "'single'",
]


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:40])
def test_a_name_arrives_as_a_browser_would_send_it(name: str, block: int) -> None:
    crate = Crate()
    parts: list[Part] = [
        FieldPart("message", b"{}"),
        FilePart("file", name, crate.attach("a", name, b"one\r\n").file),
        FilePart("file", "last.bin", crate.attach("b", "last.bin", b"").file),
    ]

    body = read(form(parts, crate.open), block)

    understood = 0
    for parse in PARSERS:
        message, named, last = parse(body, block)
        assert ("message", None, b"{}") == message[:3]
        assert ("file", b"one\r\n", "5") == (named.name, named.content, named.headers["content-length"])
        assert {"content-disposition", "content-type", "content-length"} == named.headers.keys()
        assert ("file", "last.bin", b"") == last[:3]
        understood += as_browsers_say(name) == as_browsers_say(named.filename or "")
    # The third takes a backslash for an escape, as nobody's browser means it.
    assert understood == (2 if "\\" in name else 3)


def as_browsers_say(name: str) -> str:
    """The HTML standard's escapes, which some parsers undo and others show."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


@each_parser
@pytest.mark.parametrize("block", [5, BLOCK])
@pytest.mark.parametrize(
    "name",
    [*NAMES, "C:\\Users\\ada\\photo.jpg", "\\\\server\\share", "two\\\\slashes", 'a\\"b'],
    ids=lambda name: ascii(name)[:40],
)
def test_the_true_name_of_an_enos_file_arrives_without_loss(name: str, block: int, parse: Parser) -> None:
    crate = Crate()
    struct = {"assetId": "a", "time": TIME, "events": {"e": {"photo": "local://photo"}}}
    sent = batch(carrying(1, struct, crate.attach("photo", name, b"bytes of it")))

    message, file = parse(upload_body(sent, crate), block)

    document = json.loads(message.content)
    assert ("enos-message", None) == message[:2]
    assert {"content-disposition", "content-length"} == message.headers.keys()
    assert ("enos-file", b"bytes of it") == (file.name, file.content)
    assert [file.filename] == list(document["files"])
    assert name == document["files"][file.filename]["originalFilename"]
    assert f"local://{file.filename}" == document["params"][0]["events"]["e"]["photo"]
    assert (file.filename or "").isascii()


def upload_body(sent: Batch, crate: Crate) -> bytes:
    return read(form(list(ENOS.encode(sent).parts), crate.open))


@each_parser
def test_a_thousand_files_arrive_in_order(parse: Parser) -> None:
    crate = Crate()
    attached = [crate.attach(f"f{n}", f"{n}.bin", b"\x00\r\n--" * (n % 3)) for n in range(1000)]
    struct = {"assetId": "a", "time": TIME, "events": {"e": {each.name: f"local://{each.name}" for each in attached}}}

    message, *files = parse(upload_body(batch(carrying(1, struct, *attached)), crate), BLOCK)

    entries = json.loads(message.content)["files"]
    assert [each.filename for each in files] == list(entries)
    assert [crate.contents[each.file.name] for each in attached] == [each.content for each in files]
    assert [each.filename for each in attached] == [entry["originalFilename"] for entry in entries.values()]


@each_parser
def test_the_same_name_from_two_producers_travels_under_two(parse: Parser) -> None:
    crate = Crate()
    struct = {"assetId": "a", "time": TIME, "events": {"e": {"photo": "local://photo"}}}
    one = crate.attach("photo", "image.jpg", b"one")
    two = crate.attach("photo", "image.jpg", b"two")
    sent = batch(carrying(1, struct, one), carrying(2, struct, two), carrying(3, struct, one))

    message, *files = parse(upload_body(sent, crate), BLOCK)

    assert [b"one", b"two", b"one"] == [each.content for each in files]
    assert 3 == len({each.filename for each in files}) == len(json.loads(message.content)["files"])


TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from('"\r\n\\;=:% \x00\x7f\x85\u2028\ud800'), max_size=40)


@given(name=TEXT.filter(bool), filename=TEXT.filter(bool), value=TEXT, content=st.binary(max_size=50))
def test_a_name_is_refused_or_arrives_and_never_becomes_a_header_or_a_part(
    name: str, filename: str, value: str, content: bytes
) -> None:
    part = FilePart(name, filename, spooled(content), headers={"X-Said": value})
    try:
        body = read(form([part, FieldPart("last", b"")], shelf({part.file.name: content})))
    except Refused:
        assert any(
            letter < " " or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff" for letter in name + filename + value
        )
        return

    block = head(part)
    assert body.startswith(b"--" + BOUNDARY.encode() + b"\r\n" + block + content)
    lines = block.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert ["Content-Disposition", "X-Said", "Content-Type", "Content-Length"] == [line.partition(": ")[0] for line in lines]
    assert as_browsers_say(filename) in lines[0]
    for parse in (by_defnull, by_python_multipart):
        first, last = parse(body, 13)
        assert content == first.content
        assert {"content-disposition", "x-said", "content-type", "content-length"} == first.headers.keys()
        assert ("last", b"") == (last.name, last.content)


@pytest.mark.parametrize("bad", ["a\x00b", "a\x1fb", "a\x7fb", "a\x85b", "a\ud800b"], ids=lambda name: ascii(name)[:40])
@pytest.mark.parametrize("where", ["name", "filename", "header", "content type"])
def test_control_characters_and_halves_of_characters_are_refused_with_a_sentence(bad: str, where: str) -> None:
    fields: dict[str, Any] = {"name": "file", "filename": "a.bin", "file": spooled(b"")}
    change = {"header": {"headers": {"X": bad}}, "content type": {"content_type": bad}}.get(where, {where: bad})

    with pytest.raises(Refused, match="control characters"):
        form([FilePart(**(fields | change))])


@pytest.mark.parametrize("value", ["a\r\nX-Injected: yes", "a\nb", "a\rb"])
def test_a_line_end_in_a_header_is_refused(value: str) -> None:
    with pytest.raises(Refused):
        form([FieldPart("a", b"", headers={"X": value})])
    with pytest.raises(Refused):
        form([FieldPart("a", b"", headers={value: "x"})])


# What requests and urllib3 ask of a body.

CONTENTS = [b"", b"x", b"y" * BLOCK, b"z" * (BLOCK + 1), b"q" * (3 * BLOCK - 7)]


def sample() -> Form:
    crate = Crate()
    files = [crate.attach(f"f{n}", f"{n}", content).file for n, content in enumerate(CONTENTS)]
    return form([FieldPart("a", b"{}"), FieldPart("b", b""), *(FilePart("f", file.name, file) for file in files)], crate.open)


@pytest.mark.parametrize("block", [-1, 1000, 16 * 1024, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK])
def test_its_length_is_the_bytes_it_gives_whatever_they_are_asked_in(block: int) -> None:
    whole = b"".join(sample())
    body = sample()

    pieces = list(iter(lambda: body.read(block), b""))

    assert len(body) == len(whole)
    assert whole == b"".join(pieces)
    assert all(len(piece) <= block for piece in pieces if block > 0)


@pytest.mark.parametrize("asked", [BLOCK, LARGE_BLOCK])
def test_small_parts_go_out_together(asked: int) -> None:
    tiny = form([FieldPart(f"{n}", b"x" * 100) for n in range(1000)])

    pieces = [len(piece) for piece in iter(lambda: tiny.read(asked), b"")]

    assert [len(tiny)] == pieces


@pytest.mark.parametrize("asked", [BLOCK, LARGE_BLOCK])
def test_a_whole_block_goes_out_as_it_is(asked: int) -> None:
    """To fill up with part of it would be to copy all of it, and of a large file every block."""
    content = bytes(3 * BLOCK)
    part = FilePart("f", "x", spooled(content))
    body = form([part], shelf({part.file.name: content}))

    pieces = [len(piece) for piece in iter(lambda: body.read(asked), b"")]

    assert [BLOCK] * 3 == pieces[1:-1]


def test_a_large_file_goes_out_in_large_blocks_each_by_itself() -> None:
    content = bytes(LARGE)
    part = FilePart("f", "x", spooled(content))
    body = form([FieldPart("a", b"{}"), part, FieldPart("b", b"{}")], shelf({part.file.name: content}))

    head_, *blocks, rest, tail = [len(piece) for piece in iter(lambda: body.read(LARGE_BLOCK), b"")]

    assert [LARGE_BLOCK] * (LARGE // LARGE_BLOCK) == blocks
    assert LARGE % LARGE_BLOCK == rest
    assert len(body) == head_ + LARGE + tail


@given(st.lists(st.integers(-1, 200), max_size=60))
def test_any_series_of_reads_gives_the_same_bytes(steps: list[int]) -> None:
    contents = {f"{n:032x}": bytes([n]) * n * 11 for n in range(8)}
    parts: list[Part] = [FilePart("f", "x", spooled(content, n)) for n, content in enumerate(contents.values())]
    body = form(parts, shelf(contents))
    whole = b"".join(body)

    got = b""
    for step in steps:
        piece = body.read(step)
        got += piece
        assert len(piece) <= step or step < 0
        assert piece or step == 0 or got == whole
        assert len(got) == body.tell()

    assert whole == got + body.read()


def test_it_can_be_read_again_from_its_start() -> None:
    body = sample()
    first = body.read(BLOCK * 2 + 5)

    position = body.seek(0)

    assert (0, 0) == (position, body.tell())
    again = read(body, 10_000)
    assert again.startswith(first)
    assert len(again) == len(body)


@pytest.mark.parametrize(("offset", "whence"), [(1, 0), (-1, 2), (0, 1), (0, 2)])
def test_it_can_be_read_again_from_nowhere_else(offset: int, whence: int) -> None:
    with pytest.raises(ValueError, match="start"):
        sample().seek(offset, whence)


def test_it_is_sent_whole_only_when_the_reader_came_back_for_more() -> None:
    body = sample()
    seen = []
    while body.read(BLOCK):
        seen.append(body.sent_whole)
    after = body.sent_whole
    body.seek(0)

    assert {False} == set(seen)
    assert [True, False] == [after, body.sent_whole]


def test_asking_for_no_bytes_does_not_make_it_sent() -> None:
    body = form([FieldPart("a", b"")])
    body.read()

    assert b"" == body.read(0)
    assert not body.sent_whole


def test_it_asks_leave_before_each_block() -> None:
    asked = itertools.count()
    checked = Form([FieldPart("a", b"x" * 1000)], BOUNDARY, shelf({}), lambda: next(asked) and None)

    blocks = len(list(iter(lambda: checked.read(100), b"")))

    assert blocks + 1 <= next(asked)


def test_it_stops_where_leave_is_refused() -> None:
    def refuse() -> None:
        raise TimeoutError

    body = form([FieldPart("a", b"x")], check=refuse)

    with pytest.raises(TimeoutError):
        body.read(1)
    assert 0 == body.tell()


def test_all_of_it_is_out_also_when_the_time_ends_with_the_last_block() -> None:
    """The other side has it: to call that not sent would make a copy that nobody counts."""
    ended = False

    def check() -> None:
        if ended:
            raise TimeoutError

    body = form([FieldPart("a", b"x")], check=check)
    body.read()
    ended = True

    with pytest.raises(TimeoutError):
        body.read(1)
    assert body.sent_whole


class Endless(io.RawIOBase):
    """A large file that is nowhere."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        given_now = min(size, self.left)
        self.left -= given_now
        return bytes(given_now)


def test_its_memory_does_not_grow_with_the_file() -> None:
    size = 64 * 1024 * 1024
    zeros = SpooledFile("0" * 32, size, ZEROS_64_MIB, "")
    body = form([FilePart("f", "x", zeros)], lambda _: Endless(size))  # type: ignore[arg-type, return-value]

    tracemalloc.start()
    sent = sum(len(block) for block in iter(lambda: body.read(LARGE_BLOCK), b""))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(body) == sent
    assert body.sent_whole
    assert peak < 3.5 * LARGE_BLOCK


#: SHA-256 of 64 MiB of zeros.
ZEROS_64_MIB = "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351"


class Watched(io.BytesIO):
    """A file that knows how many of its kind are open."""

    now_open = 0
    most_open = 0

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        Watched.now_open += 1
        Watched.most_open = max(Watched.most_open, Watched.now_open)

    def close(self) -> None:
        if not self.closed:
            Watched.now_open -= 1
        super().close()


def test_one_file_is_open_at_a_time_and_none_afterwards() -> None:
    Watched.now_open = Watched.most_open = 0
    contents = {f"{n:032x}": b"x" * BLOCK for n in range(5)}
    parts: list[Part] = [FilePart("f", "x", spooled(content, n)) for n, content in enumerate(contents.values())]
    body = form(parts, lambda name: Watched(contents[name]))

    read(body, 4096)
    open_after_reading = Watched.now_open
    body.seek(0)
    body.read(2 * BLOCK)
    body.close()

    assert (1, 0, 0) == (Watched.most_open, open_after_reading, Watched.now_open)


# A file that is not what was enqueued.


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


SIZES = [1, 1000, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5]
ALTERATIONS: dict[str, Callable[[bytes], bytes]] = {
    "one byte more": lambda content: content + b"x",
    "twice as long": lambda content: content + content,
    "one byte less": lambda content: content[:-1],
    "empty": lambda _: b"",
    "first bit": lambda content: flipped(content, 0),
    "last bit": lambda content: flipped(content, len(content) - 1),
    "middle bit": lambda content: flipped(content, len(content) // 2),
}


@pytest.mark.parametrize("block", [1 << 14, BLOCK, 10 * BLOCK])
@pytest.mark.parametrize("alter", ALTERATIONS.values(), ids=ALTERATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_the_last_block_of_an_altered_file_never_leaves(size: int, alter: Callable[[bytes], bytes], block: int) -> None:
    content = bytes(range(256)) * math.ceil(size / 256)
    content = content[:size]
    part = FilePart("f", "x", spooled(content))
    body = form([part, FieldPart("after", b"AFTER")], shelf({part.file.name: alter(content)}))

    pieces: list[bytes] = []
    with pytest.raises(FileChanged) as caught:
        pieces.extend(iter(lambda: body.read(block), b""))
    got = b"".join(pieces)

    held_back = size % BLOCK or BLOCK
    before = len(b"--" + BOUNDARY.encode() + b"\r\n" + head(part))
    assert part.file.name == caught.value.name
    assert len(got) <= before + size - held_back
    assert b"AFTER" not in got
    assert BOUNDARY.encode() + b"--" not in got
    assert not body.sent_whole


@pytest.mark.parametrize("size", [0, *SIZES])
def test_a_file_that_grew_puts_no_byte_more_on_the_wire(size: int) -> None:
    content = b"k" * size
    part = FilePart("f", "x", spooled(content))
    body = form([part], shelf({part.file.name: content + b"GET /smuggled HTTP/1.1\r\n\r\n"}))

    blocks = []
    with pytest.raises(FileChanged, match="longer"):
        blocks.extend(body)

    assert b"smuggled" not in b"".join(blocks)


# A large file's digest has a thread of its own.

LARGE = WORTH_A_THREAD + 3 * BLOCK + 5


def digesters() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "outbox-digest"]


@pytest.mark.parametrize("block", [BLOCK, LARGE_BLOCK, 10 * LARGE_BLOCK])
@pytest.mark.parametrize("alter", ALTERATIONS.values(), ids=ALTERATIONS)
def test_the_last_block_of_a_large_file_that_was_altered_never_leaves(alter: Callable[[bytes], bytes], block: int) -> None:
    content = random.Random(1).randbytes(LARGE)
    part = FilePart("f", "x", spooled(content))
    body = form([part, FieldPart("after", b"AFTER")], shelf({part.file.name: alter(content)}))

    pieces: list[bytes] = []
    with pytest.raises(FileChanged):
        pieces.extend(iter(lambda: body.read(block), b""))

    before = len(b"--" + BOUNDARY.encode() + b"\r\n" + head(part))
    assert len(b"".join(pieces)) <= before + LARGE - LARGE % LARGE_BLOCK
    assert not body.sent_whole
    assert not digesters()


def test_a_large_file_arrives_and_leaves_no_thread() -> None:
    content = random.Random(2).randbytes(LARGE)
    part = FilePart("f", "x", spooled(content))
    body = form([part], shelf({part.file.name: content}))

    whole = b"".join(iter(lambda: body.read(BLOCK), b""))

    assert content in whole
    assert not digesters()


def test_a_form_that_is_closed_in_the_midst_of_a_large_file_leaves_no_thread() -> None:
    content = bytes(LARGE)
    part = FilePart("f", "x", spooled(content))
    body = form([part], shelf({part.file.name: content}))
    body.read(BLOCK)
    body.read(BLOCK)
    at_work = len(digesters())

    body.close()

    assert (min((os.cpu_count() or 2) - 1, 1), []) == (at_work, digesters())


def test_where_there_is_no_thread_to_be_had_a_large_file_is_proven_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    content = bytes(LARGE)
    part = FilePart("f", "x", spooled(content))

    assert content in read(form([part], shelf({part.file.name: content})), BLOCK)
    with pytest.raises(FileChanged):
        read(form([part], shelf({part.file.name: flipped(content, 1000)})), BLOCK)


def test_a_missing_file_ends_the_form_before_its_bytes() -> None:
    crate = Crate()
    there = FilePart("f", "there", crate.attach("a", "there", b"1").file)
    gone = FilePart("f", "gone", spooled(b"22", 99))
    body = form([there, gone], crate.open)

    with pytest.raises(FileMissing) as caught:
        read(body, 100)

    assert f"{99:032x}" == caught.value.name
    assert not body.sent_whole


def test_after_a_failure_the_form_does_not_pretend_to_be_complete() -> None:
    part = FilePart("f", "x", spooled(b"right"))
    body = form([part], shelf({part.file.name: b"wrong"}))
    with pytest.raises(FileChanged):
        read(body, BLOCK)

    rest = body.read()

    assert b"" == rest
    assert not body.sent_whole


def test_the_digest_is_looked_at_anew_on_each_reading() -> None:
    contents = {f"{1:032x}": b"right"}
    body = form([FilePart("f", "x", spooled(b"right"))], lambda name: io.BytesIO(contents[name]))
    read(body)
    contents[f"{1:032x}"] = b"wrong"
    body.seek(0)

    with pytest.raises(FileChanged):
        read(body)


def test_the_time_of_a_batch_does_not_change_its_bytes() -> None:
    crate = Crate()
    struct = {"assetId": "a", "time": TIME, "events": {"e": {"photo": "local://photo"}}}
    sent = batch(carrying(1, struct, crate.attach("photo", "a.jpg", b"x")))
    later = Batch(9, "x" * 32, "enos", sent.lane, sent.messages, NOW.replace(year=2030), probe_until=NOW)

    assert upload_body(sent, crate) == upload_body(later, crate)
