"""A file that stands in its message: it arrives whole, and the same message enqueued again is the one that is there."""

from __future__ import annotations

import hashlib
import io
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from outbox import Entry, Event, File, KeyConflict, Outbox, Refused
from tests.factories import ORIGIN, states
from tests.story.conftest import Place

MOMENT = datetime.fromtimestamp(ORIGIN / 1000, UTC)


@pytest.fixture
def outbox(place: Place) -> Outbox:
    return place.outbox()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "img_0042.jpg"
    path.write_bytes(os.urandom(100_000))
    return path


def struct(photo: Any, asset: str = "turbine-7") -> dict[str, Any]:
    return {"assetId": asset, "time": MOMENT, "events": {"crack": {"severity": 3, "photo": photo}}}


def built(photo: Any, asset: str = "turbine-7") -> Event:
    return Event(asset_id=asset, time=ORIGIN, events={"crack": {"severity": 3, "photo": photo}})


@pytest.mark.parametrize("make", [struct, built])
def test_it_arrives_whole_and_under_its_name(place: Place, outbox: Outbox, photo: Path, make: Any) -> None:
    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", make(File(photo)), key="turbine-7")

    assert place.hand(outbox).turn()

    (accepted,) = place.receiver.accepted
    arrived = accepted.files_by_path["events/crack/photo"]
    assert hashlib.sha256(photo.read_bytes()).hexdigest() == arrived.sha256
    assert ("img_0042.jpg", "crack") == (arrived.original_filename, arrived.feature_id)
    assert ORIGIN == accepted.struct["time"]


def test_enqueued_again_it_is_the_message_that_is_there(place: Place, outbox: Outbox, photo: Path) -> None:
    with place.engine.begin() as connection:
        first = outbox.enqueue(connection, "enos", struct(File(photo)), key="k")

    with place.engine.begin() as connection:
        again = outbox.enqueue(connection, "enos", struct(File(str(photo))), key="k")
        third = outbox.enqueue(connection, "enos", built(File(photo)), key="k")

    assert [(first.id, True), (first.id, False), (first.id, False)] == [(each.id, each.new) for each in (first, again, third)]
    assert 1 == len(place.spooled())


def test_with_other_bytes_it_is_another_message(place: Place, outbox: Outbox) -> None:
    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", struct(File(b"one")), key="k")

        with pytest.raises(KeyConflict):
            outbox.enqueue(connection, "enos", struct(File(b"two")), key="k")

    assert 1 == len(place.spooled())


def test_many_may_have_files_in_place(place: Place, outbox: Outbox, photo: Path) -> None:
    ahead = outbox.spool(photo)
    given = [
        struct(File(ahead), "a"),
        built(File(io.BytesIO(b"stream"), "s.bin"), "b"),
        Entry(built(File(photo), "c"), key="k"),
    ]

    with place.engine.begin() as connection:
        outbox.enqueue_many(connection, "enos", given)
    place.hand(outbox).turn_while_it_moves()

    arrived = {each.struct["assetId"]: each.files_by_path["events/crack/photo"].size for each in place.receiver.accepted}
    assert {"a": 100_000, "b": 6, "c": 100_000} == arrived


def test_of_many_each_fault_is_told_at_its_place(place: Place, outbox: Outbox, tmp_path: Path) -> None:
    with place.engine.begin() as connection, pytest.raises(Refused) as caught:
        outbox.enqueue_many(connection, "enos", [struct(File(b"x")), struct(File(tmp_path / "gone")), built(File(""))])

    assert ["messages[1].events.crack.photo", "messages[2].events.crack.photo"] == [path for path, _ in caught.value.faults]
    assert {} == states(place.database)
    assert [] == place.spooled()


class TextStream(io.RawIOBase):
    """One whose bytes are none: only copying tells."""

    def read(self, size: int = -1) -> Any:
        return "text"


def test_what_only_copying_tells_is_told_at_its_place_too(place: Place, outbox: Outbox) -> None:
    with place.engine.begin() as connection, pytest.raises(Refused) as caught:
        outbox.enqueue(connection, "enos", struct(File(TextStream())))  # type: ignore[arg-type]

    assert ["events.crack.photo"] == [path for path, _ in caught.value.faults]
    assert {} == states(place.database)


def test_a_file_that_is_too_long_is_told_at_its_place(place: Place) -> None:
    outbox = place.outbox(max_file_bytes=5)

    with place.engine.begin() as connection, pytest.raises(Refused) as caught:
        outbox.enqueue(connection, "enos", built(File(io.BytesIO(b"123456"))))

    assert [("events.crack.photo", "has more than 5 bytes, which is the most allowed")] == [*map(tuple, caught.value.faults)]


def test_the_callers_struct_stays_as_it_is(place: Place, outbox: Outbox) -> None:
    file = File(b"x")
    given = struct(file)

    with place.engine.begin() as connection:
        outbox.enqueue(connection, "enos", given)

    assert struct(file) == given


def test_a_stream_that_was_read_or_written_and_left_at_its_end_is_not_taken_for_an_empty_file(
    place: Place, outbox: Outbox
) -> None:
    """As an upload is that somebody has looked at, or a temporary file that was just written."""
    stream = io.BytesIO()
    stream.write(b"a picture")
    with place.engine.begin() as connection:
        with pytest.raises(Refused) as refused:
            outbox.enqueue(connection, "enos", struct(File(stream)))
        outbox.enqueue(connection, "enos", struct(File(io.BytesIO(b""))), key="empty")
        stream.seek(0)
        outbox.enqueue(connection, "enos", struct(File(stream)), key="whole")

    told = "events.crack.photo: is a stream at its end, and nothing is left to read; seek(0) first"
    assert [told] == [str(each) for each in refused.value.faults]
    assert {"empty", "whole"} == set(states(place.database))
    assert 2 == len(place.spooled())
