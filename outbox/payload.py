"""JSON: what may go in, and what is believed when it comes back."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from outbox.errors import Fault

#: Nesting that a payload, or an answer, may have.
DEPTH = 32
#: Members that a payload may have, at every depth together.
MEMBERS = 300_000

#: Bits of a number with a thousand digits; Python itself refuses to write more than 4300.
_LONGEST_INTEGER = 3322

#: As a pattern, and not letter by letter: who sends a megabyte where a name belongs shall not cost a second.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATES = re.compile("[\ud800-\udfff]")

Path = tuple[str | int, ...]


def shown(path: Path) -> str:
    """A path as people write it: `events.crack.sizes[2]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def has_controls(text: str) -> bool:
    """Whether a name holds control characters (C0, DEL, C1) or half a surrogate pair."""
    return not text.isprintable() and _CONTROLS.search(text) is not None


def printable(text: str) -> str:
    """Text for a terminal or a log: what would steer it, or no UTF-8 can carry, is written as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def brief(value: object) -> str:
    """A value for an error: short, whatever it is."""
    try:
        text = reprlib.repr(value)
    except Exception:  # noqa: BLE001 (somebody else's __repr__, or a number too long to write)
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"


def written(value: object) -> str | None:
    """Compact JSON of a value that is JSON beyond doubt, told at a glance; of others `unbounded` and `faults` tell the rest."""
    try:
        _room_left(value, DEPTH, MEMBERS)
        found = _as_text(value)
    except (ValueError, TypeError):
        return None
    return found if found.isascii() or not _SURROGATES.search(found) else None


def _room_left(value: Any, depth: int, members: int) -> int:
    """How many members there may still be, of so many, behind those of a list or an object that may be so deep.

    Raises ValueError or TypeError unless all in it is plainly JSON, but for what writing it tells. Lists of numbers may be
    long, and so the steps for each are few.
    """
    if type(value) is dict:
        if not "".join(value).isprintable():  # a TypeError if a name is not a string
            raise ValueError
        value = value.values()
    elif type(value) is not list and type(value) is not tuple:
        raise TypeError
    members -= len(value)
    if depth == 0 or members < 0:
        raise ValueError
    for member in value:
        kind = type(member)
        if kind is str or kind is float:
            continue
        if kind is int:
            if not -(2**63) <= member < 2**63:
                raise ValueError
        elif member is not None and kind is not bool:
            members = _room_left(member, depth - 1, members)
    return members


def unbounded(value: object) -> Fault | None:
    """What keeps a value from being walked through at all: too deep, too many members, or a circle."""
    members = 0
    waiting = [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        if not isinstance(each, dict | list | tuple):
            continue
        members += len(each)
        if depth >= DEPTH or members > MEMBERS:
            return Fault("payload", f"is nested more than {DEPTH} deep, has more than {MEMBERS} members, or holds itself")
        waiting += [(member, depth + 1) for member in (each.values() if isinstance(each, dict) else each)]
    return None


def not_json(value: object) -> str:
    """What is said of a value that is no JSON, whatever it is for."""
    return f"a {type(value).__name__} is not JSON; turn it into a string or a number first"


def faults(value: object, path: Path = (), told: Callable[[object], str] = not_json) -> Iterator[Fault]:
    """Everything in a value that is not JSON, with its path; for one that is not `unbounded`."""
    match value:
        case None | bool():
            return
        case int():
            if value.bit_length() > _LONGEST_INTEGER:
                yield Fault(shown(path), "is a number of more than a thousand digits, which few can read; send a string")
        case str():
            if not value.isascii() and _SURROGATES.search(value):
                yield Fault(shown(path), "holds half of a surrogate pair, which no UTF-8 text can carry")
        case float():
            if not math.isfinite(value):
                yield Fault(shown(path), f"{value} is not JSON; leave the member out or send null")
        case dict() | list() | tuple():
            steps = value.items() if isinstance(value, dict) else enumerate(value)
            for step, member in steps:
                if isinstance(value, dict) and not isinstance(step, str):
                    yield Fault(shown(path), f"the name {brief(step)} is not a string")
                elif isinstance(step, str) and has_controls(step):
                    yield Fault(shown(path), f"the name {brief(step)} holds control characters")
                else:
                    yield from faults(member, (*path, step), told)
        case _:
            yield Fault(shown(path), told(value))


def _writer() -> Callable[[object], str]:
    """What writes a value as compact JSON.

    The standard library makes its encoder anew for each text, a quarter of what a short one takes. We keep one; unless there is
    none in this Python, or another than we know.
    """
    usual = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return usual.encode
    probe = {"ö": [1, 1.5, True, None, {"a": '"'}]}
    try:
        kept = make(None, usual.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)
        same = "".join(kept(probe, 0)) == usual.encode(probe)
    except (TypeError, ValueError):
        same = False
    return (lambda value: "".join(kept(value, 0))) if same else usual.encode


_as_text = _writer()


def text(value: object) -> str:
    """Compact JSON, as it travels and rests, of a value that is not `unbounded`.

    Raises ValueError for what `faults` would report.
    """
    return _as_text(value)


def strings(value: object, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every string in a value that is not `unbounded`, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from strings(member, (*path, name))
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            yield from strings(member, (*path, index))


def believed(body: bytes) -> dict[str, Any] | None:
    """An answer's JSON object; None when it is anything else, repeats a name, or plays tricks with numbers or depth."""
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unrepeated, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def integer(value: object) -> int | None:
    """An integer given as a number or as decimal digits; nothing else counts as one."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    if isinstance(value, str) and len(value) < 19 and value.removeprefix("-").isascii() and value.removeprefix("-").isdigit():
        return int(value)
    return None


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name is repeated")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
