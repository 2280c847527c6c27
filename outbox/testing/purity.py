"""Whether `encode` depends on the batch alone: what is tried again must be the same request, tomorrow as well."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from types import FrameType
from typing import Any

from outbox.destinations import Batch, Destination, Upload

_CLOCKS = (time.time, time.time_ns)
_METHODS = frozenset({"now", "utcnow", "today"})
#: What writes the date of a header, and asks the clock for it.
_HELPERS = frozenset({"email"})


def faults(destination: Destination, batch: Batch, upload: Upload) -> Iterator[str]:
    """Whether the same batch gives the same upload, and nothing else is changed by that."""
    before = {name: copy.deepcopy(value) for name, value in vars(destination).items() if isinstance(value, dict | list | set)}
    others = {"again": batch, "of a copy of the batch": copy.deepcopy(batch)}
    for how, same in others.items():
        try:
            equal = comparable(destination.encode(same)) == comparable(upload)
        except Exception:  # noqa: BLE001 (whatever somebody else's code raises)
            equal = False
        if not equal:
            yield (
                f"encode, asked {how}, gives another upload; it must depend on the batch alone: no clock, no dice and no "
                "counter (time is batch.started_at, a name is message.key)"
            )
            break
    else:
        # Asked twice within a second, a clock of seconds or days says the same.
        if asked := _clock_asked(destination, batch):
            yield f"encode asks the clock ({asked}), and a later try would be another request; the time is batch.started_at"
    changed = [name for name, value in before.items() if getattr(destination, name) != value]
    if changed:
        yield f"encode changes {', '.join(changed)} of the destination; several threads call it at a time: build something new"


def comparable(upload: Upload) -> tuple[Any, ...]:
    """All that two uploads have in common if they are the same request."""
    parts = [(part, dict(part.headers)) for part in upload.parts]
    return upload.url, dict(upload.headers), parts, upload.json


def _clock_asked(destination: Destination, batch: Batch) -> str | None:
    """By which name the destination's own code asks for the time while it encodes; None if it does not.

    Who else does, such as a logger for the time of its line, is not meant.
    """
    own = {each.__module__.partition(".")[0] for each in type(destination).__mro__} | _HELPERS
    found: list[str] = []

    def heard(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and (name := _clock(called)) and _is_reached_by(own, frame, beginning):
            found.append(name)

    beginning, others = sys._getframe(), sys.getprofile()  # noqa: SLF001 (there is no other way to it)
    sys.setprofile(heard)
    try:
        destination.encode(batch)
    finally:
        sys.setprofile(others)
    return found[0] if found else None


def _clock(called: Callable[..., Any]) -> str | None:
    """The name of what was called, if that is a clock."""
    if called in _CLOCKS:
        return f"time.{called.__name__}"
    owner = getattr(called, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, date | datetime) and called.__name__ in _METHODS:
        return f"{owner.__name__}.{called.__name__}"
    return None


def _is_reached_by(packages: set[str], frame: FrameType | None, beginning: FrameType) -> bool:
    """Whether nothing but these packages stands between a call and the beginning."""
    while frame is not None and frame is not beginning:
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in packages:
            return False
        frame = frame.f_back
    return True
