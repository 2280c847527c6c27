"""docs/reference.md: everything public, from its docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from tests.writing import source

OPENING = """\
# Reference

**Every public name, as its docstring has it.** This page is written from the code by `make docs`. What is not here is nobody's
business but ours, and may change with any release. What a class has from another that is here, is told there. Defaults and
settings are in [defaults.md](defaults.md), the command line in [cli.md](cli.md).
"""

#: The modules that are public, and what a reader finds there.
MODULES = {
    "outbox": "What a program imports; each name is loaded when it is first used.",
    "outbox.destinations": "For those who write a destination of their own: what `outbox` does not have already.",
    "outbox.migrate": "The schema of the database; `outbox db` does the same in a terminal.",
    "outbox.testing": "For test suites. It is no part of what delivers.",
}
_WIDEST = 100
#: Marks of another markup in a docstring: `:meth:` before a name.
_ROLE = re.compile(r":(?:attr|class|func|meth):(?=`)")


def page() -> str:
    """The whole page."""
    return "\n".join(_page()).rstrip() + "\n"


def public(module: ModuleType) -> list[str]:
    """What a module offers; without a list of it, what it makes itself and does not hide."""
    if listed := getattr(module, "__all__", None):
        return list(listed)
    text = source.text_of(module.__name__)
    return [each.name for each in text.tree.body if isinstance(each, source.Function) and not each.name.startswith("_")]


def _page() -> Iterator[str]:
    yield OPENING
    seen: set[int] = set()
    for name, words in MODULES.items():
        module = importlib.import_module(name)
        yield f"## `{name}`\n\n{words}\n"
        for each in sorted(public(module), key=str.casefold):
            thing = getattr(module, each)
            if id(thing) not in seen:
                seen.add(id(thing))
                yield from _entry(each, thing, module)


def _entry(name: str, thing: Any, module: ModuleType) -> Iterator[str]:
    yield f"### `{name}`\n"
    if inspect.isclass(thing):
        yield from _class(thing)
        return
    thing = inspect.unwrap(thing) if callable(thing) else thing
    found = source.home(thing).find(thing.__name__) if inspect.isfunction(thing) else None
    if isinstance(found, source.Function):
        yield _fenced(_signature(source.home(thing), found, name))
        yield _words(found) + "\n"
        return
    text = source.text_of(_maker(name, module))
    member = next(each for each in text.members(text.tree.body) if each.name == name)
    yield _fenced(f"{name} = {member.default}")
    if member.words:
        yield f"{member.words}\n"


def _maker(name: str, module: ModuleType) -> str:
    """The module that a value was made in: the one that its own imports it from."""
    for each in ast.walk(source.text_of(module.__name__).tree):  # some import what they offer only when it is asked for
        if isinstance(each, ast.ImportFrom) and each.module and name in {alias.name for alias in each.names}:
            return each.module
    return module.__name__


def _class(kind: type) -> Iterator[str]:
    text, node = source.home(kind), source.class_of(kind)
    bases = [base for each in node.bases if not (base := text.said(each)).startswith("_")]
    made = next((each for each in node.body if isinstance(each, source.Function) and each.name == "__init__"), None)
    if made is not None:
        yield _fenced(_signature(text, made, kind.__name__, returns=False))
    elif bases:
        yield _fenced(f"class {kind.__name__}({', '.join(bases)})")
    yield _words(node) + "\n"
    if rows := [*_members(kind)]:
        yield "\n".join(rows) + "\n"
    for owner, each in _methods(kind):
        home = source.home(owner)
        if "property" in {home.said(mark) for mark in each.decorator_list}:
            yield f"**`{kind.__name__}.{each.name}`**: `{home.said(each.returns)}`\n\n{_words(each)}\n"
        else:
            yield _fenced(_signature(home, each, f"{kind.__name__}.{each.name}")) + f"\n{_words(each)}\n"


def _members(kind: type) -> Iterator[str]:
    """Fields and constants; of a class that is no table of fields, those that something is said of."""
    fields = set(getattr(kind, "__dataclass_fields__", ())) | set(getattr(kind, "_fields", ()))
    found: dict[str, source.Member] = {}
    for owner in reversed(_owners(kind)):
        found |= {each.name: each for each in source.home(owner).members(source.class_of(owner).body)}
    for each in found.values():
        if issubclass(kind, BaseModel) and each.name not in kind.model_fields:
            continue
        if not (each.words or each.default or each.name in fields):
            continue  # what a mixin needs of those that it is mixed into
        typed = f": {each.type.removeprefix('ClassVar[').removesuffix(']') if 'ClassVar' in each.type else each.type}"
        default = f" = {each.default}" if each.default else ""
        words = f": {each.words}" if each.words else ""
        yield f"- `{each.name}{typed if each.type else ''}{default}`{words}"


def _methods(kind: type) -> Iterator[tuple[type, source.Function]]:
    """Its public methods and properties that have words of their own, with who made them."""
    seen: set[str] = set()
    for owner in _owners(kind):
        last = {each.name: each for each in source.class_of(owner).body if isinstance(each, source.Function)}
        for name, each in last.items():
            if not name.startswith("_") and name not in seen and source.doc(each):
                seen.add(name)
                yield owner, each


def _owners(kind: type) -> list[type]:
    """The class, and those that it inherits from and that have no entry of their own."""
    told = {getattr(importlib.import_module("outbox"), each) for each in importlib.import_module("outbox").__all__}
    ours = [each for each in kind.__mro__ if each.__module__.partition(".")[0] == "outbox"]
    return [each for each in ours if each is kind or each not in told]


def _words(node: ast.ClassDef | source.Function) -> str:
    return _ROLE.sub("", source.doc(node))


def _signature(text: source.Text, function: source.Function, name: str, *, returns: bool = True) -> str:
    parameters = []
    for each in text.parameters(function):
        typed = f": {each.type}" if each.type else ""
        default = f"{' = ' if typed else '='}{each.default}" if each.default else ""
        parameters.append(f"{each.name}{typed}{default}")
    result = f" -> {text.said(function.returns)}" if returns and function.returns is not None else ""
    before = "await " if isinstance(function, ast.AsyncFunctionDef) else ""
    line = f"{before}{name}({', '.join(parameters)}){result}"
    if len(line) <= _WIDEST:
        return line
    return "\n".join([f"{before}{name}(", *(f"    {each}," for each in parameters), f"){result}"])


def _fenced(text: str) -> str:
    return f"```\n{text}\n```\n"
