"""Files that stand in a payload: the same request as one written by hand, the same names each time, faults at their places."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import Destination, EnosAttributes, EnosEvents, EnosMeasurePoints, Entry, Event, File, Refused, SpooledFile
from outbox.exchange import Answer, Upload
from outbox.intake import Request, examine
from outbox.model import Attachment, Batch
from outbox.multipart import FieldPart
from outbox.verdict import Delivered, Facts, Verdict
from tests.pure.making import NOW, TIME, batch, event, message, spooled


def enos(kind: type[EnosEvents] = EnosEvents, **options: Any) -> EnosEvents:
    return kind(name="enos", url="https://a.example", org_id="o", **options)


def at_the_door(payload: Any, destination: Destination | None = None, **options: Any) -> Request:
    return examine(destination or enos(), Entry(payload, **options), (), NOW)


def refused(payload: Any, destination: Destination | None = None, **options: Any) -> dict[str, str]:
    with pytest.raises(Refused) as caught:
        at_the_door(payload, destination, **options)
    return dict(caught.value.faults)


def sent(request: Request) -> tuple[str, list[Any]]:
    """The text part and the file parts of a request with this message; what it spooled is told apart by its content."""
    attachments = []
    for each in request.files:
        assert isinstance(each.source, bytes)
        file = spooled(each.source, int.from_bytes(each.source))
        attachments.append(Attachment(each.name, file, each.filename, each.content_type))
    carried = message(1, text=request.text, attachments=tuple(attachments))
    head, *files = request.destination.encode(batch(carried)).parts
    assert isinstance(head, FieldPart)
    return head.body.decode(), list(files)


NAMES = st.text("ab/~.é[]0", min_size=1, max_size=4) | st.text("x", min_size=250, max_size=300)
FILES = st.binary(min_size=1, max_size=3).map(File)
PLAIN = st.none() | st.integers() | st.text("aé") | st.lists(st.integers(), max_size=2)


@st.composite
def structs(draw: st.DrawFn) -> tuple[type[EnosEvents], dict[str, Any]]:
    """A struct with files wherever one may stand, each with content of its own."""
    kind = draw(st.sampled_from([EnosEvents, EnosMeasurePoints, EnosAttributes]))
    inner = st.dictionaries(NAMES, FILES | PLAIN, max_size=3)
    value = inner if kind is EnosEvents else inner | FILES | PLAIN | st.lists(FILES | PLAIN, max_size=3)
    time = {"time": draw(st.sampled_from([TIME, NOW]))} if kind.action.timed else {}
    return kind, {"assetId": "a"} | time | {kind.action.member: draw(st.dictionaries(NAMES, value, min_size=1, max_size=3))}


def by_hand(value: Any, files: dict[str, File], path: tuple[Any, ...] = ()) -> Any:
    """The same, with `local://` where a file stands and the file beside it."""
    if isinstance(value, dict):
        return {name: by_hand(each, files, (*path, name)) for name, each in value.items()}
    if isinstance(value, list):
        return [by_hand(each, files, (*path, index)) for index, each in enumerate(value)]
    if isinstance(value, datetime):
        return round(value.timestamp() * 1000)
    if not isinstance(value, File):
        return value
    name = f"file{len(files)}"
    files[name] = File(value.source, next(step for step in reversed(path) if isinstance(step, str))[:255])
    return f"local://{name}"


@given(structs())
def test_files_in_place_make_the_request_that_references_make(drawn: tuple[type[EnosEvents], dict[str, Any]]) -> None:
    kind, struct = drawn
    files: dict[str, File] = {}
    plain = by_hand(struct, files)

    in_place, written = at_the_door(struct, enos(kind)), at_the_door(plain, enos(kind), files=files or None)

    assert sent(written) == sent(in_place)


@given(structs())
def test_every_place_has_a_name_and_the_same_one_each_time(drawn: tuple[type[EnosEvents], dict[str, Any]]) -> None:
    kind, struct = drawn
    before = copy.deepcopy(struct)

    once, again = at_the_door(struct, enos(kind)), at_the_door(copy.deepcopy(struct), enos(kind))

    assert (once.text, once.files) == (again.text, again.files)
    names = [each.name for each in once.files]
    assert len(names) == len(set(names)) == str(struct).count("File(source=")
    assert before == struct


def test_it_is_named_by_its_place() -> None:
    request = at_the_door(event(events={"crack": {"a/b~c": File(b"x"), "photo": File(b"y", "p.jpg", "image/jpeg")}}))

    assert "local://events/crack/a~1b~0c" in request.text
    assert [("events/crack/a~1b~0c", "a/b~c"), ("events/crack/photo", "p.jpg")] == [(e.name, e.filename) for e in request.files]
    assert "image/jpeg" == request.files[1].content_type


def test_it_may_stand_beside_files_that_are_referred_to() -> None:
    struct = event(events={"crack": {"photo": File(b"1"), "log": "local://events/crack/photo"}})

    request = at_the_door(struct, files={"events/crack/photo": b"2"})

    crack = json.loads(request.text)["events"]["crack"]
    assert {"photo": "local://events/crack/photo~", "log": "local://events/crack/photo"} == crack
    assert {"events/crack/photo": b"2", "events/crack/photo~": b"1"} == {each.name: each.source for each in request.files}


def test_a_reference_to_nothing_is_not_taken_for_one_to_a_file_in_place() -> None:
    found = refused(event(events={"crack": {"photo": File(b"1"), "log": "local://events/crack/photo"}}))

    assert ["events.crack.log"] == list(found)


def test_a_spooled_file_keeps_its_name(tmp_path: Path) -> None:
    spooled_ahead = SpooledFile("f" * 32, 3, "5" * 64, "3" * 32, "crack.jpg")

    request = at_the_door(event(events={"crack": {"photo": File(spooled_ahead)}}))

    assert [("crack.jpg", spooled_ahead)] == [(each.filename, each.source) for each in request.files]


def test_what_is_wrong_with_a_file_is_told_where_it_stands(tmp_path: Path) -> None:
    parameters = {
        "gone": File(tmp_path / "gone"),
        "long": File(b"123456"),
        "odd": File(b"", content_type="no type"),
        "folder": File(tmp_path),
        "none": File(None),  # type: ignore[arg-type]
    }

    found = refused(event(events={"crack": parameters}, tint=File(b"")), enos(max_file_bytes=5))

    assert {
        "events.crack.gone": f"cannot be read: No such file or directory ({tmp_path / 'gone'})",
        "events.crack.long": "has 6 bytes; enos takes at most 5",
        "events.crack.odd": "'no type' is not a content type such as image/jpeg",
        "events.crack.folder": "is not a regular file but a directory",
        "events.crack.none": "expected a path, bytes, a binary stream or a SpooledFile, got NoneType",
    } == {path: text for path, text in found.items() if path != "tint"}
    assert "is not a member" in found["tint"] or "cannot stand here" in found["tint"]


@pytest.mark.parametrize(
    ("struct", "place"),
    [
        (event(events={"crack": {"photos": [File(b"")]}}), "events.crack.photos[0]"),
        (event(events={"crack": {"photos": {"front": File(b"")}}}), "events.crack.photos.front"),
        (event(events={"crack": File(b"")}), "events.crack"),
        (event(events={"crack": [File(b"")]}), "events.crack[0]"),
        (event(time=File(b"")), "time"),
        (event(assetId=File(b"")), "assetId"),
        (File(b""), "payload"),
        ([File(b"")], "payload"),
        (event(events={"crack": {3: File(b"")}}), "events.crack"),
    ],
)
def test_a_file_may_not_stand_anywhere(struct: Any, place: str) -> None:
    assert place in refused(struct)


def test_a_payload_without_an_end_is_looked_at_no_closer() -> None:
    circle: dict[str, Any] = {"photo": File(b"x")}
    circle["again"] = circle

    found = refused(event(events={"crack": circle}), key="")

    assert ["payload", "key"] == list(found)


def test_a_stream_can_stand_in_one_place_only() -> None:
    stream = io.BytesIO(b"x")

    found = refused(event(events={"crack": {"front": File(stream), "back": File(stream)}}))

    assert ["events.crack.back"] == list(found)
    assert "stands at events.crack.front, too" in found["events.crack.back"]


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), Path("x"), io.BytesIO(), SpooledFile("f", 1, "a", "b")])
def test_what_was_meant_for_a_file_gets_a_remedy(value: Any) -> None:
    assert refused(event(events={"crack": {"photo": value}}))["events.crack.photo"].endswith("write File(…) around it")


class Plain(Destination):
    """A destination that has no references to files."""

    def encode(self, batch: Batch) -> Upload:
        return Upload(self.url, [])

    def judge(self, answer: Answer, batch: Batch, now: datetime) -> Verdict:
        return Delivered(Facts())


PLAIN_ONE = Plain(name="erp", url="https://a.example")


def test_elsewhere_files_are_given_beside_the_payload() -> None:
    found = refused({"photo": File(b"x"), "log": b"y"}, PLAIN_ONE)

    assert {
        "photo": "a File cannot stand in a payload of erp; give it in files=",
        "log": "a bytes is not JSON; to send it as a file, give it in files=",
    } == found


def test_elsewhere_a_struct_of_enos_is_refused() -> None:
    built = Event(asset_id="a", time=TIME, events={"crack": {}})

    said = "this Event is for a destination of type EnosEvents; erp is of type Plain"
    assert {"payload": said} == refused(built, PLAIN_ONE)


class Listing(Plain):
    """One that refers to files in its own way, and takes a list of pairs for an object."""

    reference = "attachment:"

    def unfold(self, payload: Any) -> tuple[Any, list[Any]]:
        return (dict(payload), []) if isinstance(payload, zip) else super().unfold(payload)


def test_a_destination_may_have_references_and_comforts_of_its_own() -> None:
    request = at_the_door(zip(["photo"], [File(b"x")], strict=True), Listing(name="own", url="https://a.example"))

    assert ('{"photo":"attachment:photo"}', ["photo"]) == (request.text, [each.name for each in request.files])


def test_plain_json_is_not_unfolded() -> None:
    class Strict(Plain):
        def unfold(self, payload: Any) -> Any:
            raise AssertionError("nobody should ask")

    given: Mapping[str, Any] = {"a": [1, 1.5, "é", None, True]}
    assert at_the_door(given, Strict(name="own", url="https://a.example")).text == '{"a":[1,1.5,"é",null,true]}'
