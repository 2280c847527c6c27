"""A fault gets into the product while it is imported: a snippet of its source is replaced, and no file changes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

PACKAGE = Path(__file__).parents[2] / "outbox"
#: Names the fault that a process, and every process it starts, shall have.
PLANTED = "OUTBOX_PLANTED"


class PlantError(Exception):
    """A fault cannot be planted, so that what runs would be the product as it is."""


@dataclass(frozen=True)
class Edit:
    """A snippet of a module that stands in it exactly once, and what a careless author would have written."""

    module: str
    before: str
    after: str

    def made_in(self, source: str) -> str:
        found = source.count(self.before)
        if found != 1:
            raise PlantError(f"{self.module} has this {found} times, expected once; plant it anew:\n{self.before}")
        return source.replace(self.before, self.after)


@dataclass(frozen=True)
class Fault:
    """Something that is broken on purpose, and the tests each of which must catch it."""

    name: str
    broken: str  #: in a sentence
    edits: tuple[Edit, ...]
    detectors: tuple[str, ...]  #: by their pytest ids: the one that the programme names first, the quickest last


def source_of(module: str) -> str:
    """The source of one of the product's modules."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def planted_source(edits: Iterable[Edit], module: str) -> str:
    """A module's source with the edits that are for it."""
    source = source_of(module)
    for edit in edits:
        if edit.module == module:
            source = edit.made_in(source)
    return source


class _Loader(SourceFileLoader):
    """Loads a module from its source with the fault in it. Bytecode is neither read nor written: it is the product's."""

    def __init__(self, fullname: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(fullname, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        return compile(planted_source(self._edits, fullname), self.path, "exec", dont_inherit=True)


class Planter(MetaPathFinder):
    """Finds the modules that a fault is in."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._modules = {edit.module for edit in fault.edits}

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self._modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            raise PlantError(f"there is no module {fullname}")
        spec.loader = _Loader(fullname, spec.origin, self.fault.edits)
        return spec


def plant(fault: Fault) -> None:
    """Plant a fault into this process, which must not have imported what it is in."""
    late = {edit.module for edit in fault.edits} & set(sys.modules)
    if late:
        raise PlantError(f"{fault.name} comes too late: {', '.join(sorted(late))} is imported already")
    for module in {edit.module for edit in fault.edits}:
        planted_source(fault.edits, module)
    sys.meta_path.insert(0, Planter(fault))


def plant_what_is_asked_for() -> None:
    """Plant the fault that the environment names, if it names one: the first thing that a program of the tests does."""
    if name := os.environ.get(PLANTED):
        from tests.planted.faults import FAULTS

        if name not in FAULTS:
            raise PlantError(f"there is no fault {name!r}; known: {', '.join(FAULTS)}")
        plant(FAULTS[name])


def has_grown() -> bool:
    """Whether something with a fault in it was imported into this process."""
    return any(isinstance(getattr(module, "__loader__", None), _Loader) for module in list(sys.modules.values()))
