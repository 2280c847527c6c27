"""What is said to the EnOS service: the same on every try, and never more text than was weighed at the door."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.destinations import EnosAttributes, EnosEvents, EnosMeasurePoints
from outbox.errors import ConfigurationError
from outbox.model import Draft
from outbox.secret import env
from tests.pure.making import TIME, Crate, batch, carrying, event, message

ENOS = EnosEvents(name="enos", url="https://integration.example/", org_id="o 1&x=y/ß")


def text_part(destination: EnosEvents, *messages: Any) -> bytes:
    part = destination.encode(batch(*messages)).parts[0]
    assert hasattr(part, "body")
    body: bytes = part.body
    return body


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)


@st.composite
def batches(draw: st.DrawFn) -> tuple[EnosEvents, list[Any]]:
    kind = draw(st.sampled_from([EnosEvents, EnosMeasurePoints, EnosAttributes]))
    destination = kind(
        name="enos",
        url="https://a.example",
        org_id="o",
        file_length_as_string=draw(st.booleans()),
        realtime=draw(st.booleans()),
    )
    crate = Crate()
    messages = []
    for number in range(draw(st.integers(1, 4))):
        attached = [
            crate.attach(name, draw(NAMES), b"x" * draw(st.integers(0, 3)))
            for name in draw(st.lists(NAMES, max_size=3, unique=True))
        ]
        device = draw(st.sampled_from([{"assetId": "a"}, {"productKey": "größe", "deviceKey": "d"}]))
        references = {f"p{index}": f"local://{each.name}" for index, each in enumerate(attached)}
        feature = draw(NAMES)
        value = {feature: references | {"said": draw(NAMES)}}
        struct = device | ({"time": TIME} if kind.action.timed else {}) | {kind.action.member: value}
        messages.append(carrying(2**62 + number, struct, *attached, weigh=destination.weigh))
    return destination, messages


@given(batches())
def test_a_requests_text_is_never_longer_than_what_was_weighed(drawn: tuple[EnosEvents, list[Any]]) -> None:
    destination, messages = drawn

    encoded = len(text_part(destination, *messages))

    assert encoded <= sum(each.size for each in messages) + destination.max_message_bytes - destination.text_limit


@given(batches())
def test_the_same_batch_makes_the_same_request_every_time(drawn: tuple[EnosEvents, list[Any]]) -> None:
    destination, messages = drawn

    assert destination.encode(batch(*messages)) == destination.encode(batch(*messages))


def test_the_query_is_encoded_and_the_address_has_no_doubled_slash() -> None:
    upload = ENOS.encode(batch(carrying(1, event())))

    expected = "https://integration.example/connect-service/v2.1/integration?action=postEvent&orgId=o+1%26x%3Dy%2F%C3%9F"
    assert expected == upload.url
    assert {} == dict(upload.headers)


def test_a_payload_travels_as_it_rests() -> None:
    odd = '{"assetId":"a","time":1,"events":{"e":{"x":1.0,"y":1e5,"ü":"<&>"}}}'

    assert odd.encode() in text_part(ENOS, message(1, text=odd))


@pytest.mark.parametrize(
    ("filename", "extension", "on_the_wire"),
    [
        ("a.jpg", ".jpg", ".jpg"),
        ("a.tar.gz", ".gz", ".gz"),
        ("none", "", ""),
        (".hidden", ".hidden", ".hidden"),
        ("trailing.", "", ""),
        ("a.größe", ".größe", ""),
        ("a.x/y", ".x/y", ""),
        ("a.thisisfartoolongtobeanextension", ".thisisfartoolongtobeanextension", ""),
    ],
)
def test_an_extension_is_told_as_it_is_and_travels_only_if_it_is_plain(filename: str, extension: str, on_the_wire: str) -> None:
    struct = event(events={"e": {"photo": "local://photo"}})
    sent = carrying(1, struct, Crate().attach("photo", filename, b""))

    ((name, entry),) = json.loads(text_part(ENOS, sent))["files"].items()

    assert (filename, extension) == (entry["originalFilename"], entry["fileExt"])
    assert on_the_wire == name.removeprefix(f"{1:032x}-1-0")


@pytest.mark.parametrize(
    "wrong",
    [
        {"org_id": ""},
        {"org_id": "o\n1"},
        {"max_message_bytes": 200},
        {"max_file_bytes": -1},
        {"url": "http://integration.example"},
        {"url": "ftp://integration.example"},
        {"url": "https://"},
        {"url": "https://ada:secret@integration.example"},
        {"url": "https://integration.example?x=1"},
        {"name": "En OS"},
        {"name": ""},
    ],
    ids=repr,
)
def test_a_destination_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        EnosEvents(**{"name": "enos", "url": "https://integration.example", "org_id": "o1"} | wrong)


@pytest.mark.parametrize("kind", [EnosMeasurePoints, EnosAttributes])
@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        ({"p": "local://f"}, True),
        ({"p": {"inner": "local://f"}}, True),
        ({"p": ["local://f"]}, True),
        ({"p": {"inner": {"deeper": "local://f"}}}, False),
        ({"p": [["local://f"]]}, False),
    ],
)
def test_a_file_may_stand_where_the_siblings_models_have_one(
    kind: type[EnosEvents], value: dict[str, Any], allowed: bool
) -> None:
    destination = kind(name="enos", url="https://a.example", org_id="o")
    struct = {"assetId": "a"} | ({"time": TIME} if kind.action.timed else {}) | {kind.action.member: value}

    faults = destination.check(Draft(struct, "", {"f": "f"}))

    assert allowed == (faults == [])


#: For each member of a struct what may stand in it, and that there is none.
ABSENT = object()
ASSETS = [ABSENT, "a", "größe", "", " ", "a\n", "\x7f", 1, None]
TIMES = [ABSENT, TIME, 0, 2**63 - 1, -1, 2**63, True, 1.5, "1", None]
FEATURES = [
    *(ABSENT, {"crack": {}}, {"crack": {"p": 1}, "rust": {}}, {"crack": {}, " ": {}}, {"": {}}, {1: {}}),
    *({"crack": 1}, {"crack": {}, "rust": []}, {"crack": None}, {}, [], "crack", None),
]
OTHERS: list[dict[Any, Any]] = [{}, {"other": 1}, {1: 1}, {"productKey": "p", "deviceKey": "d"}, {"productKey": "p"}]


@pytest.mark.parametrize("kind", [EnosEvents, EnosMeasurePoints, EnosAttributes])
def test_what_is_let_pass_at_first_sight_has_no_fault(kind: type[EnosEvents]) -> None:
    class Thorough(kind):  # type: ignore[misc, valid-type]
        def _is_usual(self, struct: dict[Any, Any]) -> bool:
            return False

    usual, thorough = (each(name="enos", url="https://a.example", org_id="o") for each in (kind, Thorough))

    for asset, time, features, others in itertools.product(ASSETS, TIMES, FEATURES, OTHERS):
        named = {"assetId": asset, "time": time, kind.action.member: features} | others
        struct = {name: value for name, value in named.items() if value is not ABSENT}
        assert thorough.check(Draft(struct, "{}")) == usual.check(Draft(struct, "{}"))


@pytest.mark.parametrize("kind", [EnosEvents, EnosMeasurePoints])
def test_most_messages_need_no_second_look(kind: type[EnosEvents]) -> None:
    destination = kind(name="enos", url="https://a.example", org_id="o")

    assert destination._is_usual({"assetId": "a", "time": TIME, kind.action.member: {"crack": {"severity": 3}}})


def test_a_secret_is_not_yet_a_token() -> None:
    with pytest.raises(ConfigurationError, match=r"expected token to be as in token=Token\(url, env.*, got a Secret$"):
        EnosEvents(name="enos", url="https://enos.example", org_id="o1", token=env("ENOS_TOKEN"))  # type: ignore[arg-type]
