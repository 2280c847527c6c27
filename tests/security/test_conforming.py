"""S23: what the door refuses leaves nothing behind; what it lets in, a strict receiver takes word for word."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from outbox import Fault, File, Lane, Outbox, Policy, Refused, State
from outbox.tables import attachment, file, message, share, stream
from outbox.testing import Receiver
from tests.factories import in_full, states
from tests.security.documents import circle, tower
from tests.story.conftest import Place

TIME = 1579580182824
SHARP = "\"\\'\r\n\t\x00\x1b\x7f\x85\u2028\u202e\ufeff\U0001f600éA0 /:;=&%#@?[]{}<>-_."
TABLES = (message, attachment, file, stream, share)


class Producer:
    """Somebody who says whatever comes to mind, half of it right."""

    def __init__(self, dice: random.Random, folder: Path) -> None:
        self.dice = dice
        self.folder = folder

    def sometimes(self, share: float) -> bool:
        return self.dice.random() < share

    def text(self, longest: int = 12) -> str:
        return "".join(self.dice.choices(SHARP + "abc", k=self.dice.randrange(longest)))

    def word(self) -> str:
        return "".join(self.dice.choices("abcdefghijklmnopqrstuvwxyz-._ é\u4e16", k=self.dice.randrange(1, 12))).strip() or "w"

    def one_of(self, right: list[Any], wrong: list[Any]) -> Any:
        return self.dice.choice(wrong if self.sometimes(0.04) else right)

    def scalar(self) -> Any:
        return self.dice.choice(
            [
                None,
                True,
                False,
                0,
                -1,
                3,
                10**15,
                -(10**200),
                1e300,
                0.1,
                -0.0,
                5e-324,
                "",
                self.text(),
                self.word(),
                self.text(60),
            ]
        )

    def odd(self) -> Any:
        """What is no JSON, or none that anybody reads."""
        return self.dice.choice(
            [math.nan, math.inf, b"x", {1}, object(), 10**4000, {1: 1}, {"a\x00": 1}, "\ud800", tower(40, list), circle(), 1j]
        )

    def value(self, depth: int = 0) -> Any:
        if self.sometimes(0.02):
            return self.odd()
        if depth > 3 or self.sometimes(0.6):
            return self.scalar()
        if self.sometimes(0.5):
            return [self.value(depth + 1) for _ in range(self.dice.randrange(4))]
        return {self.name(): self.value(depth + 1) for _ in range(self.dice.randrange(4))}

    def name(self) -> str:
        return self.text() if self.sometimes(0.05) else self.word()

    def struct(self, attached: list[str]) -> Any:
        parameters = {self.name(): self.value() for _ in range(self.dice.randrange(4))}
        parameters |= {f"file {number}": f"local://{name}" for number, name in enumerate(attached) if not self.sometimes(0.02)}
        if self.sometimes(0.03):
            parameters["lost"] = "local://" + self.text()
        device: dict[str, Any] = (
            {"assetId": self.word()} if self.sometimes(0.7) else {"productKey": "p", "deviceKey": self.word()}
        )
        built = device | {"time": TIME + self.dice.randrange(10**9), "events": {self.word(): parameters}}
        if self.sometimes(0.15):
            built[self.dice.choice([*built, self.name()])] = self.value()
        if type(built["time"]) is int:
            built["time"] = TIME  # a box without a clock may enqueue in 1970, and the receiver of the tests would mind
        if self.sometimes(0.03):
            del built[self.dice.choice(list(built))]
        return self.value() if self.sometimes(0.02) else built

    def source(self) -> Any:
        content = self.dice.randbytes(self.dice.choice([0, 1, 100, 5000]))
        path = self.folder / f"{self.dice.randrange(10**9)}.bin"
        path.write_bytes(content)
        plain = self.dice.choice([content, io.BytesIO(content), path, str(path), bytearray(content)])
        if self.sometimes(0.06):
            return self.dice.choice(
                [None, 7, "", "/dev/null", self.folder, io.StringIO("x"), self.text(), io.BytesIO(b"x" * 20_001)]
            )
        if self.sometimes(0.4):
            kind = self.dice.choice([None, "image/jpeg", "x/y", self.text(), "a/b\r\nX: y"])
            return File(plain, filename=self.dice.choice([None, self.word() + ".", self.text(), "x" * 300]), content_type=kind)
        return plain

    def request(self) -> tuple[Any, dict[str, Any]]:
        files = {self.name(): self.source() for _ in range(self.dice.choice([0, 0, 1, 2]))}
        now = datetime.now(UTC)
        options: dict[str, Any] = {
            "files": files,
            "key": self.one_of([None, self.word() + str(self.dice.random())], [self.text(), "x" * 256, 7, "a-None", "\ud800"]),
            "ordering_key": self.one_of([None, None, self.word(), "x" * 255], [self.text(), "x" * 256, "", "\udfff"]),
            "ordered": self.one_of([None, True, False], ["yes", 2]),
            "lane": self.one_of([None, None, "express", Lane.BULK, "large"], ["fast", 7]),
            "due_at": self.one_of([None, None, now - timedelta(1)], [now.replace(tzinfo=None), "soon"]),
            "expires_at": self.one_of([None, None, now + timedelta(9)], [now - timedelta(1), 7]),
        }
        return self.struct(list(files)), options


def content_of(source: Any) -> bytes:
    source = source.source if isinstance(source, File) else source
    match source:
        case bytes() | bytearray():
            return bytes(source)
        case io.BytesIO():
            return source.getvalue()
        case _:
            return Path(source).read_bytes()


def rows(connection: sa.Connection) -> list[int]:
    return [connection.execute(sa.select(sa.func.count()).select_from(each)).scalar_one() for each in TABLES]


def with_files(value: Any, files: dict[str, str]) -> Any:
    """A payload with each reference to a file replaced by the digest of what it stands for."""
    match value:
        case dict():
            return {name: with_files(member, files) for name, member in value.items()}
        case list() | tuple():
            return [with_files(member, files) for member in value]
        case str() if value.startswith("local://"):
            return files[value.removeprefix("local://")]
        case _:
            return value


def offer(producer: Producer, outbox: Outbox, place: Place, many: int) -> tuple[list[str], int]:
    """So many requests in one go; what was let in, as it must arrive, and how many were refused."""
    let_in: list[str] = []
    refused = 0
    for number in range(many):
        payload, options = producer.request()
        with place.engine.begin() as connection:
            before, kept = rows(connection), place.spooled()
            faults: tuple[Fault, ...] = ()
            try:
                assert outbox.enqueue(connection, "enos", payload, **options).new
            except Refused as refusal:
                faults = refusal.faults
            if faults:
                refused += 1
                assert (before, kept) == (rows(connection), place.spooled()), f"{number}: {faults}"
                assert all(str(fault).isprintable() for fault in faults)
                continue
        digests = {name: hashlib.sha256(content_of(source)).hexdigest() for name, source in options["files"].items()}
        let_in.append(json.dumps(with_files(payload, digests), sort_keys=True))
    return let_in, refused


def check(place: Place, dice: random.Random, many: int) -> None:
    outbox = place.outbox(policy=Policy(batch_messages=20), max_file_bytes=20_000)
    let_in, refused = offer(Producer(dice, place.folder), outbox, place, many)

    hand = place.hand(outbox)
    assert any(not hand.turn(*Lane) for _ in range(10 * many)), "it does not come to an end"

    assert [] == place.receiver.violations
    assert {State.DELIVERED} == set(states(place.database).values())
    arrived = []
    for each in place.receiver.accepted:
        digests = {name: file.sha256 for name, file in each.files.items()}
        arrived.append(json.dumps(with_files(each.struct, digests), sort_keys=True))
    assert sorted(let_in) == sorted(arrived)
    assert min(len(let_in), refused) > many // 6, (len(let_in), refused)


@pytest.fixture
def receiver() -> Any:
    with Receiver(check_token=False, org_id="o1", max_file_bytes=20_000) as receiver:
        yield receiver


def test_whatever_is_offered_is_refused_without_a_trace_or_arrives_word_for_word(place: Place, dice: random.Random) -> None:
    check(place, dice, 120)


@pytest.mark.merge
def test_of_three_hundred_offers_each_is_refused_without_a_trace_or_arrives(place: Place, dice: random.Random) -> None:
    check(place, dice, in_full(300, 150))
