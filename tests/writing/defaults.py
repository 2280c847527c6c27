"""docs/defaults.md: every default, and where it is changed."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from outbox import declaring, policy, settings, units
from outbox.app import Outbox
from outbox.faults import PREFIX, STEP
from outbox.policy import Policy, Retention
from outbox.worker import Worker
from tests.writing import source

OPENING = """\
# Defaults

**Every number and every switch that has a default, and where it is changed.** `make docs` writes this page from the code.

A setting can be said in three places. In Python it is an argument. In `outbox.toml` it is a key, `destinations.NAME` for each
destination. In the environment it is a variable, which wins over the file; `NAME` is the destination's name there, too. Times
are in seconds and sizes in bytes, unless something else is said. What belongs to one command alone, such as `--log-level`, is
in [cli.md](cli.md), with its variable.
"""

#: What a reader of the page is told where a value is made by a function, or is no literal.
_FIXED = ("ATTEMPTS_KEPT", "WORKERS_KEPT", "RESERVE_INSIDE", "LONG_TRANSACTION", "SILENT_AFTER", "HANDFUL", "SWEEP_GRACE")
_NAMES = re.compile(r"\b[A-Z][A-Z_]+\b")


def page() -> str:
    """The whole page."""
    return "\n".join(_page()).rstrip() + "\n"


def _page() -> Iterator[str]:
    yield OPENING
    yield "## An outbox\n"
    yield _paragraphs(source.doc(source.class_of(Outbox))) + "\n"
    yield _table(
        ("argument of `Outbox`", "default"),
        _arguments(Outbox, skip={"database", "spool", "destinations", "retention", "ambient"}),
    )
    yield "## How a destination is treated: `Policy`\n"
    yield "Arguments of `Policy`, which is the `policy` of a destination; keys of `[destinations.NAME.policy]`.\n"
    yield _table(("name", "default", "means"), _fields(Policy))
    yield "## Destinations\n"
    yield "What every type of destination has, or all of EnOS; keys of `[destinations.NAME]`.\n"
    kinds = dict.fromkeys(
        each for kind in declaring.TYPES.values() for each in reversed(kind.__mro__) if dataclasses.is_dataclass(each)
    )
    for kind in kinds:
        if rows := list(_fields(kind)):
            yield f"### `{kind.__name__}`\n"
            yield _table(("name", "default", "means"), rows)
    yield "## How long what is over is kept: `Retention`\n"
    yield _paragraphs(source.doc(source.class_of(Retention))) + "\n"
    yield _table(("name", "default", "means"), _fields(Retention))
    yield "## A worker\n"
    yield _paragraphs(source.doc(source.class_of(Worker))) + "\n"
    yield _table(("argument of `Worker`", "default"), _arguments(Worker, skip={"outbox", "transport", "watcher"}))
    yield "## Every key of `outbox.toml`, and its variable\n"
    yield _table(("key", "expects", "default", "variable"), _keys(settings.Settings))
    yield "What a key means that is not told here, the table of its name above tells.\n"
    yield "## What is not set\n"
    yield "Numbers that nobody has needed to change, from [policy.py](../outbox/policy.py).\n"
    yield _table(("name", "is", "means"), _constants())


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"


def _fields(kind: type) -> Iterator[tuple[str, str, str]]:
    """The fields that a dataclass adds to what it inherits."""
    text = source.home(kind)
    values = {each.name: each for each in dataclasses.fields(kind)}
    for member in text.members(source.class_of(kind).body):
        if (found := values.get(member.name)) is None:
            continue
        if found.default is not dataclasses.MISSING:
            default = shown(found.default)
        else:
            default = (
                "must be given" if found.default_factory is dataclasses.MISSING else f"`{found.default_factory.__name__}()`"
            )
        yield f"`{member.name}`", default, member.words


def _arguments(kind: type, skip: set[str]) -> Iterator[tuple[str, str]]:
    text, made = source.home(kind), next(e for e in source.class_of(kind).body if getattr(e, "name", "") == "__init__")
    assert isinstance(made, source.Function)
    known = vars(__import__(kind.__module__, fromlist=["_"]))
    for each in text.parameters(made):
        if each.default and each.name not in skip:
            yield f"`{each.name}`", shown(eval(each.default, dict(known)))


def _keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        path = (*above, name)
        if tables := list(_tables(field.annotation)):
            several = typing.get_origin(field.annotation) is dict
            found = {row[0]: row for each in tables for row in _keys(each, (*path, "NAME") if several else path)}
            yield from found.values()
            continue
        variable = f"{PREFIX}{STEP.join(path)}".upper()
        default = "must be given" if field.is_required() else shown(field.default)
        yield f"`{'.'.join(path)}`", _expected(field.annotation, field.metadata), default, f"`{variable}`"
        if name == "policy":
            yield f"`{'.'.join(path)}.KEY`", "as in `Policy`", "as in `Policy`", f"`{variable}{STEP}KEY`"


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a key may open, if it opens any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in typing.get_args(annotation):
        yield from _tables(each)


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", timedelta: 'a time such as `"7d"`'}


def _expected(annotation: Any, metadata: Sequence[Any]) -> str:
    checks = {getattr(each, "func", None).__name__ for each in metadata if getattr(each, "func", None)}
    if "_number_of_bytes" in checks:
        return 'a size such as `"20 GiB"`'
    if "_seconds" in checks:
        return "seconds"
    if "_place_of_secret" in checks:
        return "`env:NAME` or `file:PATH`"
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin is list:
        return "a list"
    if origin is dict:
        return "a table"
    if origin in (types.UnionType, typing.Union, typing.Annotated):
        kinds = [each for each in inner if each is not types.NoneType]
        more = [*metadata, *(inner[1:] if origin is typing.Annotated else ())]
        return f'{_expected(kinds[0], more)}, or `"forever"`' if kinds[0] is timedelta else _expected(kinds[0], more)
    return _WORDS.get(annotation, str(annotation))


def _constants() -> Iterator[tuple[str, str, str]]:
    text = source.text_of(policy.__name__)
    for member in text.members(text.tree.body):
        if member.name in _FIXED:
            yield f"`{member.name}`", shown(getattr(policy, member.name)), member.words


def shown(value: object) -> str:
    """A default as people write it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case timedelta():
            return units.in_words(value)
        case int() if value >= 64 * 1024 and value % 1024 == 0:
            return f"{value:,} ({units.bytes_in_words(value)})"
        case int() | float():
            return f"{value:,g}" if isinstance(value, float) else f"{value:,}"
        case str():
            return f'`"{value}"`' if value else '`""`'
        case list() | tuple() | dict() if not value:
            return "nothing"
        case _:
            return f"`{value!r}`"
