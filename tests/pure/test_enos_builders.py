"""Structs that are built with names and types: what they stand for, and everything that is wrong told where they are made."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from outbox import Attribute, EnosAttributes, EnosEvents, EnosMeasurePoints, Entry, Event, File, MeasurePoint, Refused
from outbox.intake import Request, examine
from tests.pure.making import NOW, TIME

KINDS = {Event: EnosEvents, MeasurePoint: EnosMeasurePoints, Attribute: EnosAttributes}


def at_the_door(payload: Any, destination: type[EnosEvents] = EnosEvents, **options: Any) -> Request:
    return examine(destination(name="enos", url="https://a.example", org_id="o"), Entry(payload, **options), (), NOW)


def faults(build: type[BaseModel], **given: Any) -> dict[str, str]:
    """What is wrong, by place."""
    with pytest.raises(ValidationError) as caught:
        build(**given)
    return {".".join(map(str, each["loc"])): each["msg"] for each in caught.value.errors()}


def test_an_event_is_the_struct_that_a_hand_would_write() -> None:
    built = Event(asset_id="turbine-7", time=TIME, events={"crack": {"severity": 3}})

    by_hand = {"assetId": "turbine-7", "time": TIME, "events": {"crack": {"severity": 3}}}
    assert at_the_door(by_hand).text == at_the_door(built).text


def test_so_are_its_siblings() -> None:
    point = MeasurePoint(product_key="p", device_key="d", time=TIME, measurepoints={"power": 1.5})
    attribute = Attribute(asset_id="a", attributes={"maker": None})

    expected = f'{{"productKey":"p","deviceKey":"d","time":{TIME},"measurepoints":{{"power":1.5}}}}'
    assert expected == at_the_door(point, EnosMeasurePoints).text
    assert '{"assetId":"a","attributes":{"maker":null}}' == at_the_door(attribute, EnosAttributes).text


def test_the_names_of_the_api_are_taken_too() -> None:
    parsed = Event.model_validate({"productKey": "p", "deviceKey": "d", "time": TIME, "events": {"crack": {}}})

    assert parsed == Event(product_key="p", device_key="d", time=TIME, events={"crack": {}})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aé", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("ab", min_size=1), JSON))
def test_whatever_json_has_stays_what_it_is(parameters: dict[str, Any]) -> None:
    built = Event(asset_id="a", time=TIME, events={"crack": parameters})

    by_hand = {"assetId": "a", "time": TIME, "events": {"crack": parameters}}
    assert at_the_door(by_hand).text == at_the_door(built).text


def test_everything_that_is_wrong_is_told_at_once_with_its_place() -> None:
    found = faults(Event, produckKey="p", deviceKey="d", events={"crack": {"width": float("nan"), "tags": {1}, "photo": b"x"}})

    assert {
        "events.crack.width": "nan is not JSON; leave the member out or send null",
        "events.crack.tags": "a set is not JSON; turn it into a string or a number first",
        "events.crack.photo": "a bytes is not JSON; to send it as a file, write File(…) around it",
        "produckKey": "is not a member of this message; did you mean 'productKey'?",
        "productKey": "is missing; deviceKey names a device only together with it",
        "time": "is missing; expected milliseconds since 1970 as an integer",
    } == found


CIRCLE: dict[str, Any] = {}
CIRCLE["crack"] = {"again": CIRCLE}

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing": ({"asset_id": None}, "assetId", "no device is named"),
    "both": ({"product_key": "p", "device_key": "d"}, "assetId", "not both"),
    "twice": ({"assetId": "b"}, "assetId", "is given twice"),
    "a number": ({"asset_id": 7}, "assetId", "expected a string"),
    "a control": ({"asset_id": "a\n"}, "assetId", "control characters"),
    "text for a time": ({"time": "2026-03-01T12:00:00Z"}, "time", "expected milliseconds"),
    "a bool for a time": ({"time": True}, "time", "expected milliseconds"),
    "a float for a time": ({"time": 1.5}, "time", "expected milliseconds"),
    "too late": ({"time": 2**63}, "time", "out of range"),
    "too early": ({"time": datetime(1969, 12, 31, tzinfo=UTC)}, "time", "since 1970, got one in 1969"),
    "no zone": ({"time": datetime(2026, 3, 1)}, "time", "has no time zone"),  # noqa: DTZ001 (that is the point)
    "no events": ({"events": {}}, "events", "at least one"),
    "no object": ({"events": {"crack": 3}}, "events.crack", "the event's parameters"),
    "a file in an array": ({"events": {"crack": {"photos": [File("a")]}}}, "events.crack.photos.0", "cannot stand here"),
    "a reference in an array": ({"events": {"crack": {"photos": ["local://a"]}}}, "events.crack.photos.0", "cannot stand here"),
    "a circle": ({"events": CIRCLE}, "", "holds itself"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_faulty_event_is_not_built(case: str) -> None:
    changes, place, words = WRONG[case]

    found = faults(Event, **({"asset_id": "a", "time": TIME, "events": {"crack": {}}} | changes))

    assert [place] == list(found)
    assert words in found[place]


def test_an_attribute_has_no_time() -> None:
    assert ["time"] == list(faults(Attribute, asset_id="a", attributes={"a": 1}, time=TIME))


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=45))])
def test_a_time_with_a_zone_is_sent_in_milliseconds(zone: timezone) -> None:
    moment = datetime.fromtimestamp(TIME / 1000, UTC).astimezone(zone) + timedelta(microseconds=999)
    payload = {"assetId": "a", "time": moment, "events": {"crack": {}}}

    written = {at_the_door(each).text for each in (payload, Event(asset_id="a", time=moment, events={"crack": {}}))}

    assert {f'{{"assetId":"a","time":{TIME},"events":{{"crack":{{}}}}}}'} == written


def test_a_plain_struct_may_have_a_time_with_a_zone_but_not_elsewhere() -> None:
    with pytest.raises(Refused) as caught:
        at_the_door({"assetId": "a", "time": datetime(2026, 3, 1), "events": {"crack": {"seen": NOW}}})  # noqa: DTZ001 (that is the point)

    said = {path: text.split(";")[0] for path, text in caught.value.faults}
    assert {"time": "has no time zone, so nobody knows when it was", "events.crack.seen": "a datetime is not JSON"} == said


@pytest.mark.parametrize("build", KINDS)
@pytest.mark.parametrize("destination", KINDS.values())
def test_each_is_for_a_type_of_destination(build: type[BaseModel], destination: type[EnosEvents]) -> None:
    given: dict[Any, Mapping[str, Any]] = {
        Event: {"time": TIME, "events": {"crack": {}}},
        MeasurePoint: {"time": TIME, "measurepoints": {"power": 1}},
        Attribute: {"attributes": {"maker": "x"}},
    }
    built = build(asset_id="a", **given[build])

    if KINDS[build] is destination:
        assert at_the_door(built, destination).text
        return
    with pytest.raises(Refused) as caught:
        at_the_door(built, destination, key="")

    kinds = f"destination of type {KINDS[build].__name__}; enos is of type {destination.__name__}"
    assert [("payload", f"this {build.__name__} is for a {kinds}")] == [
        each for each in caught.value.faults if each[0] == "payload"
    ]
    assert ["payload", "key"] == [path for path, _ in caught.value.faults]


def test_what_was_spoilt_after_it_was_built_is_refused_at_the_door() -> None:
    built = Event(asset_id="a", time=TIME, events={"crack": {}})
    built.events["crack"]["width"] = float("inf")

    with pytest.raises(Refused, match="inf is not JSON"):
        at_the_door(built)


def test_what_is_built_cannot_be_assigned_to_and_leaves_alone_what_it_was_given() -> None:
    parameters = {"crack": {"photo": File(b"x"), "sizes": [1, 2]}}
    before = copy.deepcopy(parameters)
    built = Event(asset_id="a", time=NOW, events=parameters)

    at_the_door(built)

    assert before == parameters
    with pytest.raises(ValidationError):
        built.asset_id = "b"  # type: ignore[misc]
    assert built == pickle.loads(pickle.dumps(built))


def test_a_stream_may_stand_in_it() -> None:
    request = at_the_door(Event(asset_id="a", time=TIME, events={"crack": {"photo": File(io.BytesIO(b"x"))}}))

    assert [("events/crack/photo", "photo")] == [(each.name, each.filename) for each in request.files]


def test_an_editor_finds_words_for_every_field() -> None:
    without = [f"{build.__name__}.{name}" for build in KINDS for name, f in build.model_fields.items() if not f.description]

    assert [] == without


def test_a_path_or_another_model_in_it_gets_a_remedy() -> None:
    class Crack(BaseModel):
        width: float

    found = faults(Event, asset_id="a", time=TIME, events={"crack": {"photo": Path("x"), "shape": Crack(width=1)}})

    assert "write File(…) around it" in found["events.crack.photo"]
    assert "model_dump()" in found["events.crack.shape"]
