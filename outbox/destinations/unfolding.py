"""What producers may write and JSON cannot say: builders, times, and files in place; unfolded into plain values and files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from outbox import payload as json_payload
from outbox.errors import Fault, Refused
from outbox.model import NAME_LIMIT, File, SpooledFile

if TYPE_CHECKING:
    from outbox.destinations.base import Destination


@dataclass(slots=True)
class Unfolded:
    """A payload as it will be enqueued, the files that stood in it, and what is wrong with it.

    `text` is its JSON, None if it is none. One that is `hopeless` need not be looked at any closer.
    """

    payload: Any
    text: str | None = None
    files: dict[str, File] = field(default_factory=dict)  #: attachment name -> file
    places: dict[str, str] = field(default_factory=dict)  #: attachment name -> where it stood, as people write it
    faults: list[Fault] = field(default_factory=list)
    hopeless: bool = False


def unfold(destination: Destination, payload: Any, taken: Collection[str]) -> Unfolded:
    """What is enqueued for a payload that is not beyond doubt JSON. Nothing in it is changed. `taken`: names of attachments."""
    try:
        plain, faults = destination.unfold(payload)
    except Refused as refused:
        return Unfolded(payload, faults=list(refused.faults), hopeless=True)
    if endless := json_payload.unbounded(plain):
        return Unfolded(plain, faults=[*faults, endless], hopeless=True)
    found = Unfolded(plain, faults=faults)
    if destination.reference:
        put_references(found, destination.reference, taken)
    found.text = json_payload.written(found.payload)
    if found.text is None:
        found.faults += json_payload.faults(found.payload, told=teller(destination.reference, destination.name))
    return found


def put_references(found: Unfolded, reference: str, taken: Collection[str] = ()) -> None:
    """Take the files out of a payload that is not endless, and leave references to them.

    Each is named by its place, so that the same payload has the same names whenever it is enqueued.
    """
    if not _holds_file(found.payload):
        return
    said = (text.removeprefix(reference) for _, text in json_payload.strings(found.payload) if text.startswith(reference))
    found.payload = _Placing(found, reference, {*taken, *said}).placed(found.payload, ())


class _Placing:
    """The files of one payload, as they are found in it."""

    def __init__(self, found: Unfolded, reference: str, taken: Collection[str]) -> None:
        self._found = found
        self._reference = reference
        self._taken = taken
        self._streams: dict[int, str] = {}

    def placed(self, value: Any, path: json_payload.Path) -> Any:
        """The same value with references in place of files."""
        if isinstance(value, File):
            return self._reference + self._name(value, path)
        if isinstance(value, dict):
            # Below a name that is none nothing can be said; that it is none is said elsewhere.
            return {key: self.placed(each, (*path, key)) if isinstance(key, str) else each for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.placed(each, (*path, index)) for index, each in enumerate(value)]
        return value

    def _name(self, file: File, path: json_payload.Path) -> str:
        name, shown = _name_of(path), json_payload.shown(path) or "payload"
        while name in self._taken:
            name += "~"  # which is at the end of no other place's name
        self._found.files[name], self._found.places[name] = _with_filename(file, path), shown
        if callable(getattr(file.source, "read", None)):
            there = self._streams.setdefault(id(file.source), shown)
            if there != shown:
                said = f"is the stream that stands at {there}, too, and can be read only once; spool it first (outbox.spool)"
                self._found.faults.append(Fault(shown, said))
        return name


def _name_of(path: json_payload.Path) -> str:
    """A name that no other place in a payload has: its JSON pointer, without the first slash (RFC 6901)."""
    name = "/".join(str(step).replace("~", "~0").replace("/", "~1") for step in path)
    if 0 < len(name) <= NAME_LIMIT - 8 and not json_payload.has_controls(name):
        return name
    return "~sha256-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _with_filename(file: File, path: json_payload.Path) -> File:
    """What has no name of its own is called as the member is that it stands for."""
    source = file.source
    named = isinstance(source, str | os.PathLike) or (isinstance(source, SpooledFile) and bool(source.filename))
    if named or file.filename is not None:
        return file
    members = [step for step in path if isinstance(step, str) and step]
    return dataclasses.replace(file, filename=members[-1][:NAME_LIMIT] if members else None)


def _holds_file(value: object) -> bool:
    """Whether a file stands anywhere in a value that is not endless."""
    if isinstance(value, dict):
        return any(map(_holds_file, value.values()))
    return any(map(_holds_file, value)) if isinstance(value, list | tuple) else isinstance(value, File)


def teller(reference: str, destination: str = "") -> Callable[[object], str]:
    """What says of a value that is not JSON what to do about it, where files are referred to so, or not at all."""

    def told(value: object) -> str:
        kind = type(value).__name__
        if isinstance(value, File):
            return f"a File cannot stand in a payload of {destination}; give it in files="
        if isinstance(value, bytes | bytearray | memoryview | os.PathLike | SpooledFile) or callable(
            getattr(value, "read", None)
        ):
            remedy = "write File(…) around it" if reference else "give it in files="
            return f"a {kind} is not JSON; to send it as a file, {remedy}"
        if isinstance(value, datetime):
            return "a datetime is not JSON; write it here as the destination expects it, a string or a number"
        if callable(getattr(value, "model_dump", None)):
            return f"a {kind} is not JSON; give its model_dump()"
        return json_payload.not_json(value)

    return told
