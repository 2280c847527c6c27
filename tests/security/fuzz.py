"""Chance against everything that reads what others wrote: answers, forms, names, settings. `fuzz(seconds, seed)` counts."""

from __future__ import annotations

import gzip
import io
import os
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from outbox import payload
from outbox.destinations import EnosAttributes, EnosEvents, Token
from outbox.destinations.token import CredentialsRefused
from outbox.errors import ConfigurationError, FileMissing, NoAnswer, NotSent, Refused, TransportError
from outbox.multipart import FieldPart, FilePart
from outbox.settings import TEMPLATE, build, load
from outbox.spool import DirectorySpool
from outbox.spool.base import checked_name
from outbox.transport import ANSWER_LIMIT, Answer, RequestsTransport, Upload
from outbox.verdict import Delivered, Facts, fit_for_a_row
from tests.pure.making import NOW, Crate, batch, spooled
from tests.pure.recorder import read_request
from tests.pure.test_multipart import as_browsers_say, by_defnull, by_python_multipart, form, read
from tests.security.documents import DOCUMENTS, TOKENS
from tests.security.ear import Ear
from tests.security.plain import plainly_says_yes

Target = Callable[[random.Random], None]
LETTERS = "\"'\r\n\t\x00\x1b\x7f\x85\u2028\u202e\ufeff\ud800\U0001f600\u00e9aZ09 /:;=&%#@?[]{}()<>-_.,\\"
BYTES = b'\x00\xff\r\n"\\{}[]:,0129eE+-.tfnu \xef\xbb\xbf'
DESTINATIONS = [kind(name="enos", url="https://x.example", org_id="o") for kind in (EnosEvents, EnosAttributes)]


def mutated(dice: random.Random, raw: bytes, others: list[bytes]) -> bytes:
    """Something like it."""
    body = bytearray(raw[:4000])
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(body) + 1)
        match dice.randrange(6):
            case 0:
                body[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                body[at:at] = bytes(dice.choices(BYTES, k=dice.randrange(1, 6)))
            case 2:
                del body[at : at + dice.randrange(1, 20)]
            case 3:
                body[at:at] = body[at : at + dice.randrange(1, 60)] * dice.randrange(1, 30)
            case 4:
                body[at:at] = dice.choice(others)[: dice.randrange(1, 200)]
            case _:
                del body[at:]
    return bytes(body)


def text(dice: random.Random, longest: int = 30) -> str:
    return "".join(dice.choices(LETTERS, k=dice.randrange(longest)))


def an_answer(dice: random.Random) -> None:
    """Judged without a surprise, fit for a row, and a success only where the plainest reader sees one."""
    body = mutated(dice, dice.choice(DOCUMENTS), DOCUMENTS)
    status = dice.choice([200, 200, 200, 201, 204, 301, 400, 401, 404, 413, 429, 500, 503, dice.randrange(100, 1000)])
    headers = {name: text(dice) for name in ("retry-after", "location", "date", "content-type") if dice.random() < 0.5}
    answer = Answer(status, headers, body, dice.random() < 0.9, dice.random() < 0.9)
    verdict = dice.choice(DESTINATIONS).judge(answer, batch(), NOW)
    facts = fit_for_a_row(verdict.facts)
    assert all(each is None or each.isprintable() for each in (facts.text, facts.request_id, facts.answer))
    if isinstance(verdict, Delivered):
        assert answer.whole
        assert answer.sent_whole
        assert 200 <= status < 300
        assert plainly_says_yes(body)


class _Saying:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def post_json(self, *_: Any) -> Answer:
        return self.answer


def a_token(dice: random.Random) -> None:
    """A token that a header may hold, or an error of ours without the secret in it."""
    body = mutated(dice, dice.choice(TOKENS), [*TOKENS, b"secret-of-the-test", b'"accessToken"', b'"expire"'])
    service: Any = _Saying(Answer(dice.choice([200, 200, 401, 500]), {"date": text(dice)}, body))
    value, said = "t", ""
    try:
        (value,) = Token("https://x.example", "key", "secret-of-the-test").headers(service, NOW, 0.0).values()
    except (TransportError, CredentialsRefused) as error:
        said = str(fit_for_a_row(Facts(text=str(error))).text)
    assert "secret-of-the-test" not in said
    assert value.isascii()
    assert value.isprintable()


def a_form(dice: random.Random) -> None:
    """Refused, or read back as it was by two parsers that are not ours."""
    contents = [dice.randbytes(dice.randrange(60)) for _ in range(dice.randrange(1, 5))]
    crate = Crate()
    parts: list[Any] = []
    for number, content in enumerate(contents):
        file = spooled(content, number + 1)
        crate.contents[file.name] = content
        name, headers = text(dice) or "n", {"X-Said": text(dice)} if dice.random() < 0.3 else {}
        parts.append(
            FilePart(name, text(dice) or "f", file, headers=headers) if dice.random() < 0.7 else FieldPart(name, content)
        )
    try:
        body = read(form(parts, crate.open), dice.choice([1, 7, 64, 1 << 16]))
    except Refused:
        assert any(
            payload.has_controls(each) for part in parts for each in (part.name, part.filename or "", *part.headers.values())
        )
        return
    assert len(form(parts, crate.open)) == len(body)
    for parse in (by_defnull, by_python_multipart):
        found = parse(body, dice.choice([13, 1 << 16]))
        assert contents == [each.content for each in found]
        assert all({"content-disposition", "content-type", "content-length", "x-said"} >= each.headers.keys() for each in found)
    names = [as_browsers_say(each.name) for each in by_defnull(body, 1 << 16)]
    assert names == [as_browsers_say(part.name) for part in parts]


def a_name(dice: random.Random) -> None:
    """Ours, or refused before it becomes part of a path."""
    length = dice.choice([0, 1, 31, 32, 32, 32, 33, 64])
    name = "".join(dice.choices("0123456789abcdef" + (LETTERS + "gA\u0661\uff11" if dice.random() < 0.5 else ""), k=length))
    ours = len(name) == 32 and set(name) <= set("0123456789abcdef")
    taken, said = True, "x"
    try:
        assert checked_name(name) == name
    except FileMissing as error:
        taken, said = False, str(error)
    assert taken == ours
    assert said.isprintable()
    if taken:
        root = Path("/nowhere/spool")
        assert root == Path(os.path.normpath(DirectorySpool(root).where(name))).parents[1]


SETTINGS = TEMPLATE.replace("# ", "").encode()
PIECES = [line + b"\n" for line in SETTINGS.splitlines()] + [b"[destinations.x]\n", b'"""', b"{}", b"[[", b"inf", b"1979-05-27"]


def a_file_of_settings(folder: Path) -> Target:
    path = folder / "outbox.toml"

    def load_and_build(dice: random.Random) -> None:
        """Settings, or one error of ours that a line can hold."""
        lines = [line for line in TEMPLATE.encode().splitlines(keepends=True) if dice.random() < 0.95]
        path.write_bytes(mutated(dice, b"".join(lines) if dice.random() < 0.8 else SETTINGS, PIECES))
        said = "x"
        try:
            build(*load(path)).close()
        except ConfigurationError as error:
            said = str(error)
        assert said
        assert "Traceback" not in said

    return load_and_build


def on_the_wire(transport: RequestsTransport, ear: Ear, saying: dict[str, bytes]) -> Target:
    def send(dice: random.Random) -> None:
        """An answer, or the one error that says there was none; never a success of a request that is not plain."""
        body = mutated(dice, dice.choice(DOCUMENTS), DOCUMENTS)
        headers = [f"Content-Length: {len(body)}".encode(), *(b"X: " + text(dice).encode("utf-8", "replace") for _ in range(2))]
        more = [b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Content-Encoding: br", b"Connection: close"]
        headers.append(dice.choice(more))
        packed = gzip.compress(body) if dice.random() < 0.2 else body
        raw = b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + packed
        saying["now"] = mutated(
            dice, raw, [b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n\r\n", b"Content-Length: 5\r\n", b"0\r\n\r\n"]
        )
        answer, said = Answer(0, {}, b""), "x"
        try:
            answer = transport.send(Upload(ear.url, [FieldPart("a", b"{}")]), lambda name: io.BytesIO(), 2.0, 2.0)
        except (NoAnswer, NotSent) as error:
            said = str(fit_for_a_row(Facts(text=str(error))).text)
        assert said
        assert len(answer.body) <= ANSWER_LIMIT
        verdict = DESTINATIONS[0].judge(answer, batch(), NOW)
        assert not isinstance(verdict, Delivered) or plainly_says_yes(answer.body)

    return send


def fuzz(seconds: float, seed: int, only: str | None = None) -> dict[str, int]:
    """Tries each target in turn for so long, or one of them; how many cases there were of each.

    Raises AssertionError, saying how to see it again: a case depends on the seed and its number alone.
    """
    counts: Counter[str] = Counter()
    saying: dict[str, bytes] = {}

    def say(connection: socket.socket, heard: bytearray) -> None:
        heard += read_request(connection)
        connection.sendall(saying["now"])

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ear, transport = stack.enter_context(Ear(say)), RequestsTransport()
        stack.callback(transport.close)
        targets: dict[str, Target] = {
            "answers": an_answer,
            "tokens": a_token,
            "forms": a_form,
            "names": a_name,
            "settings": a_file_of_settings(folder),
            "wire": on_the_wire(transport, ear, saying),
        }
        ends, number = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            for name, target in targets.items():
                if only in (None, name):
                    try:
                        target(random.Random(f"{seed}/{name}/{number}"))
                    except BaseException as error:
                        told = f"fuzz found something in {name}: case {number} of OUTBOX_TEST_SEED={seed}"
                        raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
                    counts[name] += 1
            number += 1
    return dict(counts)
