"""JSON: what is refused at the door, and what is believed when it comes back."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import payload
from outbox.errors import Fault
from outbox.payload import DEPTH, MEMBERS, believed, faults, has_controls, integer, shown, strings, text, unbounded, written


def nested(depth: int, kind: type = list) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**70,
        1.5,
        "",
        "größe 🙂",
        "nul \x00",
        [],
        {},
        (1, 2),
        {"a": [{"b": None}]},
        nested(DEPTH),
        nested(DEPTH, dict),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_is_json_passes_and_comes_back(value: object) -> None:
    assert [] == list(faults(value))
    assert json.loads(text(value)) == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        (math.nan, "", "not JSON"),
        (math.inf, "", "not JSON"),
        ({"a": {"b": [1, -math.inf]}}, "a.b[1]", "not JSON"),
        ({"a": b"bytes"}, "a", "a bytes is not JSON"),
        ({"a": datetime(2026, 1, 1, tzinfo=UTC)}, "a", "a datetime is not JSON"),
        ({"a": Decimal("1.5")}, "a", "a Decimal is not JSON"),
        ({"a": UUID(int=1)}, "a", "a UUID is not JSON"),
        ({"a": {1, 2}}, "a", "a set is not JSON"),
        ({"a": {1: 2}}, "a", "the name 1 is not a string"),
        ({None: 2}, "", "the name None is not a string"),
        ({"a": "\ud800"}, "a", "surrogate"),
        ({"a": {"x\x00": 1}}, "a", "control characters"),
        ({"a\nb": 1}, "", "control characters"),
        ({"a\udc80": 1}, "", "control characters"),
        ({"a": object}, "a", "a type is not JSON"),
        ({"n": 10**5000}, "n", "digits"),
        ({"n": -(10**5000)}, "n", "digits"),
    ],
    ids=lambda value: ascii(value)[:30] if isinstance(value, str) else None,
)
def test_what_is_not_json_is_told_with_its_place(value: object, path: str, words: str) -> None:
    (fault,) = faults(value)

    assert path == fault.path
    assert words in fault.text


def test_every_fault_is_told_not_only_the_first() -> None:
    found = list(faults({"a": math.nan, "b": [1, {2}, b""], "c": {3: 1}}))

    assert ["a", "b[1]", "b[2]", "c"] == [fault.path for fault in found]


def circle() -> object:
    """A list that holds itself twice: walked through, it would have 2 to the power of its depth members."""
    around: list[Any] = []
    around += [around, around]
    return around


@pytest.mark.parametrize("value", [nested(DEPTH + 1), nested(5000), circle(), [0] * (MEMBERS + 1)], ids=range(4))
def test_what_cannot_be_walked_through_is_not(value: object) -> None:
    fault = unbounded(value)

    assert fault is not None
    assert "nested more than 32 deep" in fault.text


def test_a_payload_may_be_as_deep_as_it_may() -> None:
    assert unbounded(nested(DEPTH)) is None
    assert [] == list(faults(nested(DEPTH)))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=4) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(ANYTHING)
def test_what_has_no_fault_can_be_written_and_read_back(value: object) -> None:
    if list(faults(value)):
        return

    written = text(value).encode()

    assert value == json.loads(written)
    assert "\x00" not in written.decode()


@given(ANYTHING)
def test_what_is_written_at_a_glance_is_what_a_close_look_would_have_let_pass(value: object) -> None:
    at_a_glance = written(value)

    if at_a_glance is not None:
        assert [] == list(faults(value))
        assert unbounded(value) is None
        assert text(value) == at_a_glance


class Words(str):
    """A string of somebody's own."""

    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        *(
            {"a": each}
            for each in (math.nan, -math.inf, b"", {1}, "\ud800", ["\udfff"], 2**63, -(2**63) - 1, Decimal(1), object)
        ),
        *({"a": [each]} for each in ({1: 2}, {None: 2}, {True: 2}, {1.5: 2}, {"\n": 1}, {"\x7f": 1}, {"\ud800": 1}, {b"": 1})),
        *({"a": each} for each in (Counter("a"), defaultdict(list), Words("a"), [Words("a")])),
        *(nested(DEPTH + 1), nested(DEPTH + 1, dict), nested(5000), circle(), [0] * (MEMBERS + 1), [[0] * MEMBERS]),
        *("a", 1, None, Counter("a")),
    ],
    ids=lambda value: ascii(value)[:30] if not isinstance(value, list) else None,
)
def test_what_is_unusual_is_looked_at_more_closely(value: object) -> None:
    assert written(value) is None


@pytest.mark.parametrize(
    "value",
    [
        {"a": [None, True, 0, -(2**63), 2**63 - 1, 1.5, "größe 🙂", "nul \x00", (), {}, (1, [2])], "größe": {"b": {"c": [1]}}},
        *([], {}, nested(DEPTH), nested(DEPTH, dict), [0] * MEMBERS),
    ],
    ids=range(6),
)
def test_what_is_usual_needs_no_closer_look(value: object) -> None:
    assert text(value) == written(value)


@pytest.mark.parametrize(
    "make", [None, lambda: None, lambda *_: lambda *_: ("{}",)], ids=["absent", "of other arguments", "odd"]
)
def test_where_python_has_no_encoder_to_be_kept_the_text_is_the_same(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"größe 🙂": ['\x00"\\/', 1, -1.5e300, True, None, (), {}, [{}]]}
    kept = payload._writer()
    monkeypatch.setattr(json.encoder, "c_make_encoder", make)
    monkeypatch.setattr(json.JSONEncoder, "encode", lambda self, value: "".join(self.iterencode(value)))  # as it is without
    other = payload._writer()

    assert '{"größe 🙂":["\\u0000\\"\\\\/",1,-1.5e+300,true,null,[],{},[{}]]}' == other(value) == kept(value)
    for write, unfit in itertools.product((kept, other), (math.nan, b"", {"a": [math.inf]})):
        with pytest.raises((ValueError, TypeError), match="JSON"):
            write(unfit)


@given(ANYTHING)
def test_what_cannot_be_written_has_a_fault(value: object) -> None:
    try:
        text(value).encode()
    except (ValueError, TypeError):
        assert list(faults(value))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((), ""),
        (("a",), "a"),
        (("a", "b"), "a.b"),
        (("a", 0, 2, "b"), "a[0][2].b"),
        ((3,), "[3]"),
        (("", "a"), "a"),
    ],
)
def test_a_path_is_shown_as_people_write_it(path: tuple[str | int, ...], expected: str) -> None:
    assert expected == shown(path)


def test_a_fault_reads_as_a_sentence() -> None:
    assert "time: is missing" == str(Fault("time", "is missing"))
    assert "no destination" == str(Fault("", "no destination"))


@pytest.mark.parametrize("letter", [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\ud800", chr(0xDFFF)], ids=ascii)
def test_controls_and_half_pairs_are_noticed(letter: str) -> None:
    assert has_controls(f"a{letter}b")


@pytest.mark.parametrize("letter", [" ", "~", "\xa0", "ÿ", "🙂", "\u2028", "\ufffd"], ids=ascii)
def test_other_letters_are_none(letter: str) -> None:
    assert not has_controls(letter)


def test_strings_are_found_wherever_they_stand() -> None:
    value = {"a": "1", "b": ["2", {"c": "3"}], "d": (4, "5"), "e": None}

    assert [(("a",), "1"), (("b", 0), "2"), (("b", 1, "c"), "3"), (("d", 1), "5")] == list(strings(value))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":1}', {"a": 1}),
        (b"{}", {}),
        (b' {"a":[{"b":2}]}\n', {"a": [{"b": 2}]}),
        ('{"ü":"🙂"}'.encode(), {"ü": "🙂"}),
        (b"[]", None),
        (b"1", None),
        (b"", None),
        (b'{"a":1,"a":1}', None),
        (b'{"a":NaN}', None),
        (b'{"a":Infinity}', None),
        (b'{"a":1', None),
        (b'{"a":"\xff"}', None),
        (b"\xef\xbb\xbf{}", None),
        (b'{"a":' + b"1" * 5000 + b"}", None),
        (b"[" * 60_000, None),
        (b'{"a":' * 20_000, None),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_only_an_honest_object_is_believed(body: bytes, expected: dict[str, Any] | None) -> None:
    assert expected == believed(body)


@given(st.binary(max_size=40))
def test_no_bytes_surprise_it(body: bytes) -> None:
    assert believed(body) is None or isinstance(believed(body), dict)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (-5, -5),
        (2**63 - 1, 2**63 - 1),
        (2**63, None),
        ("12", 12),
        ("-12", -12),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, None),
        ("1" * 5000, None),
        ("", None),
        ("-", None),
        ("--1", None),
        ("+1", None),
        ("1.0", None),
        (" 1", None),
        ("1_0", None),
        ("²", None),
        ("\u0663", None),
        (1.0, None),
        (True, None),
        (None, None),
        ([1], None),
    ],
    ids=lambda value: ascii(value)[:22],
)
def test_an_integer_is_a_number_or_its_digits(value: object, expected: int | None) -> None:
    assert expected == integer(value)
