"""What is wrong with settings, each in a sentence: which one, what was expected, and what was got."""

from __future__ import annotations

import os
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX, STEP = "OUTBOX_", "__"

_NUMBER, _WHOLE, _TABLE = "a number", "a whole number", "a table of settings"
#: What was expected, by the checker's own name for the mistake.
_EXPECTED = {
    "string_type": "text",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "is_instance_of": "a list",
    "sequence_str": "a list",
    "dict_type": _TABLE,
    "model_type": _TABLE,
    "dataclass_type": _TABLE,
}
#: Mistakes of which text that was got may be repeated. Anything else could be a secret in the wrong place.
_HARMLESS = frozenset({"int_parsing", "int_from_float", "float_parsing", "bool_parsing", "literal_error"})
_LONGEST = 60


def told(errors: Iterable[ErrorDetails], model: type[BaseModel], below: Sequence[str] = ()) -> str:
    """Every mistake that was found in a model's settings, or in those `below` a place in it, in one line."""
    return "; ".join(f"{named((*below, *each['loc']))}: {_sentence(each, model)}" for each in errors)


def step_of(model: type[BaseModel]) -> str:
    """What stands in the path of a mistake for the model that was chosen of several; no setting is called so."""
    return f"<{model.__name__}>"


def _is_choice(step: str | int) -> bool:
    return isinstance(step, str) and step.startswith("<")


def _sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"there is no such setting; known: {', '.join(_known(model, error['loc'][:-1]))}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    expected = str(error["ctx"]["expected"]) if kind == "literal_error" else _EXPECTED.get(kind)
    if expected is None:
        return error["msg"][:1].lower() + error["msg"][1:]
    return f"expected {expected}, got {_got(error['input'], repeat=kind in _HARMLESS)}"


def named(place: Sequence[str | int]) -> str:
    """A setting by its path, or by its variable if it comes from the environment."""
    path = [str(step) for step in place if not _is_choice(step)]
    variable = f"{PREFIX}{STEP.join(path)}".upper()
    return variable if variable in os.environ else ".".join(path)


def _got(value: Any, *, repeat: bool) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return repr(value)[:_LONGEST] if repeat else "text"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return type(value).__name__


def _known(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The settings that there are in a place."""
    models: list[type[BaseModel]] = []
    for step in place:
        field = model.model_fields.get(str(step))
        if field is not None:  # else it is a name that somebody chose, of one more of the same
            models = list(_models(field.annotation))
            model = models[0] if models else model
        elif _is_choice(step):
            model = next((each for each in models if step_of(each) == step), model)
    return sorted(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)
