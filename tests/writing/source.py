"""The code as it was written: classes, their members and functions, with the words that stand beside them.

It is read and not asked, so that a page is the same whichever Python writes it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Member:
    """A name with a value, as it stands in a class or in a file."""

    name: str
    type: str  #: as it was written; "" where none was
    default: str  #: as it was written; "" where there is none
    words: str


@dataclass(frozen=True)
class Parameter:
    """One of a function's."""

    name: str
    type: str
    default: str


class Text:
    """One file."""

    def __init__(self, module: ModuleType) -> None:
        self._text = inspect.getsource(module)
        self.tree = ast.parse(self._text)
        self._lines = self._text.splitlines()
        self._remarks = {
            token.start[0]: token.string.removeprefix("#:").strip()
            for token in tokenize.generate_tokens(io.StringIO(self._text).readline)
            if token.type == tokenize.COMMENT and token.string.startswith("#:")
        }

    def find(self, name: str) -> ast.ClassDef | Function | None:
        """The class or function of this name; of several, the last, as Python has it."""
        found = [each for each in self.tree.body if isinstance(each, ast.ClassDef | Function) and each.name == name]
        return found[-1] if found else None

    def members(self, body: list[ast.stmt]) -> Iterator[Member]:
        """The public names that get a value, or at least a type."""
        for number, each in enumerate(body):
            match each:
                case ast.AnnAssign(target=ast.Name(id=name)):
                    kind = self.said(each.annotation)
                case ast.Assign(targets=[ast.Name(id=name)]):
                    kind = ""
                case _:
                    continue
            if not name.startswith("_"):
                below = body[number + 1] if number + 1 < len(body) else None
                yield Member(name, kind, self.said(each.value), self._words(each, below))

    def said(self, node: ast.AST | None) -> str:
        """A piece of it, on one line."""
        return "" if node is None else " ".join((ast.get_source_segment(self._text, node) or "").split())

    def parameters(self, function: Function) -> list[Parameter]:
        """All of a function's, but for `self` and `cls`; stars stand before names, as they are written."""
        given = function.args
        places = [*given.posonlyargs, *given.args]
        missing = [None] * (len(places) - len(given.defaults))
        found = [self._parameter(each, value) for each, value in zip(places, [*missing, *given.defaults], strict=True)]
        if given.posonlyargs:
            found.insert(len(given.posonlyargs), Parameter("/", "", ""))
        if given.vararg is not None:
            found.append(self._parameter(given.vararg, None, "*"))
        elif given.kwonlyargs:
            found.append(Parameter("*", "", ""))
        found += [self._parameter(each, value) for each, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
        if given.kwarg is not None:
            found.append(self._parameter(given.kwarg, None, "**"))
        return [each for each in found if each.name not in ("self", "cls")]

    def _parameter(self, given: ast.arg, default: ast.expr | None, star: str = "") -> Parameter:
        return Parameter(f"{star}{given.arg}", self.said(given.annotation), self.said(default))

    def _words(self, member: ast.stmt, below: ast.stmt | None) -> str:
        """What stands beside a member, above it, or as a text of its own below it."""
        last = member.end_lineno or member.lineno
        beside = [self._remarks[line] for line in range(member.lineno, last + 1) if line in self._remarks]
        above = member.lineno - 1
        while above in self._remarks and self._lines[above - 1].lstrip().startswith("#:"):
            above -= 1
        standing = [self._remarks[line] for line in range(above + 1, member.lineno)]
        match below:
            case ast.Expr(value=ast.Constant(value=str(text))):
                standing.append(inspect.cleandoc(text))
        return " ".join(standing + beside)


@functools.cache
def text_of(module: str) -> Text:
    """A file of ours, by the module that it is."""
    return Text(importlib.import_module(module))


def home(thing: Any) -> Text:
    """The file that something was written in."""
    return text_of(thing.__module__)


def class_of(thing: type) -> ast.ClassDef:
    """A class of ours as it was written."""
    found = home(thing).find(thing.__name__)
    assert isinstance(found, ast.ClassDef), thing
    return found


def doc(node: ast.ClassDef | Function) -> str:
    """Its docstring; "" if it has none."""
    return ast.get_docstring(node) or ""
