"""Structs of the EnOS API, built with names and types: what an editor completes, and what is wrong is told where it is made.

A program that enqueues plain dicts never imports this, and so no pydantic.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

from outbox import payload
from outbox.destinations.base import Builder
from outbox.destinations.enos_struct import (
    ATTRIBUTE,
    DEVICE,
    EVENT,
    LOCAL,
    MEASURE_POINT,
    Action,
    struct_faults,
    with_plain_time,
)
from outbox.destinations.unfolding import Unfolded, put_references, teller
from outbox.errors import Fault


class _Struct(Builder, BaseModel):
    """One device, and what is to be said of it: what the three have in common."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # the sentences say what was got, shortly
    )
    action: ClassVar[Action]

    asset_id: str | None = None
    """The device, by its asset's id; or give `product_key` and `device_key`."""
    product_key: str | None = None
    """The device's product; only with `device_key`."""
    device_key: str | None = None
    """The device's key within its product; only with `product_key`."""

    def plain(self) -> dict[str, Any]:
        """The struct as it is enqueued, with the names of the API; a time and files in it are as they were given."""
        said = {to_camel(name): getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in said.items() if value is not None}

    @model_validator(mode="wrap")
    @classmethod
    def _with_every_fault(cls, given: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Whatever the door would say of it, but for what is given in `files=`, is said here."""
        if isinstance(given, Mapping) and (faults := cls._faults(given)):
            raise ValidationError.from_exception_data(cls.__name__, [_detail(each) for each in dict.fromkeys(faults)])
        return build(given)

    @classmethod
    def _faults(cls, given: Mapping[Any, Any]) -> list[Fault]:
        struct: dict[Any, Any] = {}
        faults: list[Fault] = []
        for name, value in given.items():
            wired = to_camel(name) if name in cls.model_fields else name
            if wired in struct:
                faults.append(Fault(str(wired), f"is given twice, as {name!r} too"))
            elif value is not None or wired not in DEVICE:
                struct[wired] = value
        if endless := payload.unbounded(struct):
            return [endless]
        struct, wrong = with_plain_time(cls.action, struct)
        found = Unfolded(struct, faults=faults + wrong)
        put_references(found, LOCAL)
        faults = found.faults + list(payload.faults(found.payload, told=teller(LOCAL)))
        faults += struct_faults(cls.action, found.payload)
        # Where a file stands is told now; what it refers to, and whether that can be read, when it is enqueued.
        places = (path for path, text in payload.strings(found.payload) if text.startswith(LOCAL))
        return faults + [
            Fault(payload.shown(each), cls.action.no_file_here) for each in places if not cls.action.may_hold_file(each)
        ]


class Event(_Struct):
    """Events of one device at one time, for a destination of type `EnosEvents`.

    `Event(asset_id="turbine-7", time=datetime.now(UTC), events={"crack": {"severity": 3, "photo": File("crack.jpg")}})`.
    The names of the API are taken, too: `assetId`. Values may be whatever JSON has, and stay what they are.

    Raises pydantic's ValidationError, which lists everything that is wrong with its place.
    """

    action: ClassVar[Action] = EVENT
    made_for: ClassVar[str] = EVENT.made_for

    time: datetime | int
    """When it was: a datetime with a time zone, or milliseconds since 1970."""
    events: dict[str, dict[str, Any]]
    """The events by their ids, and of each its parameters. A `File` may be the value of a parameter."""


class MeasurePoint(_Struct):
    """Measure points of one device at one time, for a destination of type `EnosMeasurePoints`.

    `MeasurePoint(asset_id="turbine-7", time=datetime.now(UTC), measurepoints={"power": 1.5})`. Otherwise like `Event`.
    """

    action: ClassVar[Action] = MEASURE_POINT
    made_for: ClassVar[str] = MEASURE_POINT.made_for

    time: datetime | int
    """When it was: a datetime with a time zone, or milliseconds since 1970."""
    measurepoints: dict[str, Any]
    """The values by the points' ids. A `File` may be a value, or stand one level inside it: a member, or an element."""


class Attribute(_Struct):
    """Attributes of one device, for a destination of type `EnosAttributes`. They have no time. Otherwise like `Event`.

    `Attribute(asset_id="turbine-7", attributes={"manual": File("manual.pdf")})`.
    """

    action: ClassVar[Action] = ATTRIBUTE
    made_for: ClassVar[str] = ATTRIBUTE.made_for

    attributes: dict[str, Any]
    """The values by the attributes' ids. A `File` may be a value, or stand one level inside it: a member, or an element."""


_STEP = re.compile(r"\[(\d+)\]|[^.\[]+")


def _detail(fault: Fault) -> InitErrorDetails:
    """A fault as pydantic tells it: its place in steps."""
    kind = PydanticCustomError("outbox", "{text}", {"text": fault.text})
    steps = tuple(int(step[1]) if step[1] else step[0] for step in _STEP.finditer(fault.path))
    return InitErrorDetails(type=kind, loc=() if fault.path == "payload" else steps, input=None)
