"""What a struct of the EnOS API may be: one device's events, measure points or attributes, and where files may stand in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from outbox import payload
from outbox.errors import Fault

#: What stands for a file, before the attachment's name.
LOCAL = "local://"

#: What names a device: the first, or the other two together.
DEVICE = ("assetId", "productKey", "deviceKey")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Action(NamedTuple):
    """One of the sibling APIs: same address, same body, same answer."""

    query: str
    method: str
    member: str
    timed: bool
    reference_depths: frozenset[int]  #: how deep below the struct a `local://` may stand
    members: dict[str, None]  #: what a struct may have, in the order in which people are told
    made_for: str  #: the type of destination that a builder of such a struct names

    def may_hold_file(self, path: payload.Path) -> bool:
        """Whether a file may stand there: for events only as a parameter's own value, so not in an array."""
        right_depth = path[0] == self.member and len(path) in self.reference_depths
        return right_depth and (self is not EVENT or isinstance(path[-1], str))

    @property
    def no_file_here(self) -> str:
        """What is said of a file in another place."""
        here = "the value of an event's parameter" if self is EVENT else f"a value in {self.member}, or one level inside it"
        return f"a file cannot stand here; it is {here}"


def _action(query: str, method: str, member: str, depths: set[int], made_for: str, *, timed: bool = True) -> Action:
    known = (*DEVICE, member, *(("time",) if timed else ()))
    return Action(query, method, member, timed, frozenset(depths), dict.fromkeys(known), made_for)


EVENT = _action("postEvent", "integration.event.post", "events", {3}, "EnosEvents")
MEASURE_POINT = _action("postMeasurepoint", "integration.measurepoint.post", "measurepoints", {2, 3}, "EnosMeasurePoints")
ATTRIBUTE = _action("postAttribute", "integration.attribute.post", "attributes", {2, 3}, "EnosAttributes", timed=False)


def with_plain_time(action: Action, struct: dict[Any, Any]) -> tuple[dict[Any, Any], list[Fault]]:
    """The struct with its time in milliseconds if that was a datetime, and what is wrong with one that was."""
    moment = struct.get("time")
    if not action.timed or not isinstance(moment, datetime):
        return struct, []
    plain = struct | {"time": 0}
    if moment.utcoffset() is None:
        return plain, [Fault("time", "has no time zone, so nobody knows when it was; write datetime.now(UTC), for instance")]
    plain["time"] = time = int((moment - _EPOCH) // _MILLISECOND)
    if time < 0:
        return plain | {"time": 0}, [Fault("time", f"expected a datetime since 1970, got one in {moment.year}")]
    return plain, []


def struct_faults(action: Action, struct: dict[Any, Any]) -> Iterator[Fault]:
    """Everything that is wrong with a struct, but for the files that it refers to and what is not JSON in it."""
    yield from _unknown_members(action, struct)
    yield from _device_faults(struct)
    if action.timed:
        yield from _time_faults(struct)
    yield from _member_faults(action, struct)


def _unknown_members(action: Action, struct: dict[Any, Any]) -> Iterator[Fault]:
    known = action.members
    for name in struct:
        if name not in known:
            shown: str = name if isinstance(name, str) else payload.brief(name)
            near = difflib.get_close_matches(shown, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            yield Fault(shown, f"is not a member of this message; {hint}")


def _device_faults(struct: dict[str, Any]) -> Iterator[Fault]:
    asset, product, device = "assetId" in struct, "productKey" in struct, "deviceKey" in struct
    if asset and (product or device):
        yield Fault("assetId", "expected one way to name the device: assetId, or productKey and deviceKey, not both")
    elif not (asset or product or device):
        yield Fault("assetId", "no device is named; expected assetId, or productKey and deviceKey")
    elif product != device:
        there, other = ("productKey", "deviceKey") if product else ("deviceKey", "productKey")
        yield Fault(other, f"is missing; {there} names a device only together with it")
    for name in DEVICE:
        if name in struct:
            value = struct[name]
            if not isinstance(value, str) or not value.strip():
                yield Fault(name, f"expected a string that is not empty, got {payload.brief(value)}")
            elif payload.has_controls(value):
                yield Fault(name, "holds control characters")


def _time_faults(struct: dict[str, Any]) -> Iterator[Fault]:
    if "time" not in struct:
        yield Fault("time", "is missing; expected milliseconds since 1970 as an integer")
        return
    time = struct["time"]
    if not isinstance(time, int) or isinstance(time, bool):
        yield Fault("time", f"expected milliseconds since 1970 as an integer, got {payload.brief(time)}")
    elif not 0 <= time < 2**63:
        yield Fault("time", "expected milliseconds since 1970, got a number out of range")


def _member_faults(action: Action, struct: dict[str, Any]) -> Iterator[Fault]:
    name = action.member
    member = struct.get(name)
    if not isinstance(member, dict) or not member:
        yield Fault(name, f"expected an object with at least one of the device's {name}")
        return
    for feature, value in member.items():
        if isinstance(feature, str) and not feature.strip():
            yield Fault(name, "a name in it is empty")
        if action is EVENT and not isinstance(value, dict):
            shown = feature if isinstance(feature, str) else payload.brief(feature)
            yield Fault(f"{name}.{shown}", "expected an object of the event's parameters")
