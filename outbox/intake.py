"""The door: a message and its files are checked, and refused with every fault at once, before anything is written."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

from outbox import payload as json_payload
from outbox.destinations.base import Destination
from outbox.destinations.unfolding import unfold
from outbox.errors import Fault, Refused
from outbox.model import NAME_LIMIT, Attachment, Draft, Entry, File, Lane, SpooledFile
from outbox.telemetry import context_of
from outbox.timekeeping import plausible

KEY_LIMIT = 255
OCTETS = "application/octet-stream"

_CONTENT_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Letters of a path that are told.
_SHOWN = 200
#: What is wrong with a file that has several names, where it matters which folder it is in.
_LINKED = "has more than one name (hard links), and another may lie outside the allowed roots; give a copy of it"
_NONE = re.compile(r"(?<![A-Za-z0-9])None(?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True)
class Offered:
    """A file at the door, looked at and not yet copied."""

    name: str
    source: Path | bytes | BinaryIO | SpooledFile
    filename: str
    content_type: str
    size: int | None  #: None for a stream: only copying tells
    rooted: bool = False  #: it must lie in one of the allowed roots, and nowhere else
    place: str = ""  #: where it stood in the payload, of one that did

    @property
    def where(self) -> str:
        """How it is called in faults: as the caller gave it."""
        return self.place or f"files.{self.name}"


@dataclass(slots=True)
class Request:
    """What `enqueue` was asked for, found to be in order."""

    destination: Destination
    text: str
    size: int
    files: Sequence[Offered]
    key: str | None
    ordering_key: str | None
    ordered: bool
    due_at: datetime | None
    expires_at: datetime | None
    lane: Lane | None
    traceparent: str | None


#: Faults that are told of many messages: whoever sends thousands that are wrong learns no more from the rest.
_TOLD = 100


def examine_all(
    destination: Destination,
    entries: Sequence[Entry],
    roots: Sequence[Path],
    now: datetime,
    traceparent: str | None = None,
    numbers: Sequence[int] | None = None,
) -> list[Request]:
    """The requests in order, or Refused with all their faults; those of many as `messages[n]`, where `numbers` has each n."""
    if numbers is None:
        return [examine(destination, each, roots, now, traceparent) for each in entries]
    found: list[Request] = []
    faults: list[Fault] = []
    for number, each in zip(numbers, entries, strict=True):
        try:
            found.append(examine(destination, each, roots, now, traceparent))
        except Refused as refused:
            faults += [Fault(f"messages[{number}]{f'.{path}' if path else ''}", text) for path, text in refused.faults]
            if len(faults) >= _TOLD:
                break
    if faults:
        raise Refused(faults)
    return found


def examine(
    destination: Destination, entry: Entry, roots: Sequence[Path], now: datetime, traceparent: str | None = None
) -> Request:
    """The request in order, or Refused with all its faults. Reads no file's content. `traceparent` is for one that has none."""
    payload = entry.payload
    text = json_payload.written(payload)
    folded = None
    faults: list[Fault] = []
    if text is None:
        folded = unfold(destination, payload, entry.files if isinstance(entry.files, Mapping) else ())
        payload, text, faults = folded.payload, folded.text, folded.faults
    if entry.key is not None:
        faults += _key_faults("key", entry.key)
    if entry.ordering_key is not None:
        faults += _key_faults("ordering_key", entry.ordering_key)
    if entry.due_at is not None or entry.expires_at is not None:
        faults += _time_faults(entry.due_at, entry.expires_at, now)
    ordered: object = entry.ordered
    if ordered is not None and not isinstance(ordered, bool):
        faults.append(
            Fault("ordered", f"expected True, False or None for the destination's own, got {json_payload.brief(ordered)}")
        )
    if entry.lane is not None and entry.lane not in list(Lane):
        faults.append(Fault("lane", f"no lane named {json_payload.brief(entry.lane)}; known: {', '.join(Lane)}"))
    context, given_context = traceparent, entry.traceparent
    if given_context is not None:
        own: object = given_context
        context = context_of(own) if isinstance(own, str) else None
        if context is None:
            wanted = "expected the W3C's form, 00-TRACE-SPAN-FLAGS"
            faults.append(Fault("traceparent", f"{wanted}, got {json_payload.brief(given_context)}"))
    offered: list[Offered] = []
    given: dict[str, str] = {}
    if entry.files is not None:
        files: object = entry.files  # whatever a caller gives
        if not isinstance(files, Mapping):
            wanted = f"expected names and files as in {{'photo': path}}, got {json_payload.brief(files)}"
            raise Refused([*faults, Fault("files", wanted)])
        offered, wrong = _offers(files, destination, roots)
        faults += wrong
        given = {str(name): "" for name in files}
    if folded is not None and folded.files:
        placed, wrong = _offers(folded.files, destination, roots, folded.places)
        offered, faults = offered + placed, faults + wrong
        given |= dict.fromkeys(folded.files, "")
    if offered:
        given |= {each.name: each.filename for each in offered}
    draft = Draft(payload, text or "", given, {each.name: each.size for each in offered} if offered else {})
    if folded is None or not folded.hopeless:
        # The destination looks even at what is not quite JSON, so that all faults come out together.
        faults += destination.check(draft)
    if faults:
        shown = (Fault(json_payload.printable(path), json_payload.printable(text)) for path, text in faults)
        raise Refused(list(dict.fromkeys(shown)))
    if text is None:
        text = draft.text = json_payload.text(payload)
    size = destination.weigh(draft)
    limit = destination.text_limit
    if limit is not None and size > limit:
        raise Refused([Fault("payload", f"makes {size} bytes of a request's text; {destination.name} takes at most {limit}")])
    max_age = destination.policy.max_age
    return Request(  # by place: names would cost a fiftieth of an enqueue
        destination,
        text,
        size,
        offered,
        entry.key,
        entry.ordering_key,
        destination.policy.ordered if ordered is None else bool(ordered),
        entry.due_at,
        None if entry.expires_at is None and max_age is None else _earliest(entry.expires_at, max_age, now),
        Lane(str(entry.lane)) if entry.lane else None,
        context,
    )


def _offers(
    files: Mapping[Any, object], destination: Destination, roots: Sequence[Path], places: Mapping[str, str] | None = None
) -> tuple[list[Offered], list[Fault]]:
    """The files at the door that are in order, and what is wrong with the others."""
    offered: list[Offered] = []
    faults: list[Fault] = []
    limit = destination.file_limit
    for name, source in files.items():
        found = offer(name, source, roots, places[name] if places else "")
        if isinstance(found, Offered):
            offered.append(found)
            if limit is not None and found.size is not None and found.size > limit:
                faults.append(Fault(found.where, f"has {found.size} bytes; {destination.name} takes at most {limit}"))
        else:
            faults += found
    return offered, faults


def digest(text: str, attachments: Sequence[Attachment], ordering_key: str | None) -> str:
    """What a repeated key must match: the payload, its place, and each file's name and bytes, wherever it came from."""
    sha256 = hashlib.sha256(f"{text}\0{ordering_key or ''}".encode())
    for each in sorted(attachments, key=lambda attachment: attachment.name) if attachments else ():
        sha256.update(b"\0".join(part.encode() for part in ("", each.name, each.filename, each.content_type, each.file.sha256)))
    return sha256.hexdigest()


def open_source(offered: Offered) -> BinaryIO:
    """The bytes to copy. A path is opened once, without following a link put anywhere in it meanwhile, and looked at again.

    Raises Refused when it is not the regular file any more that was looked at.
    """
    source = offered.source
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, Path):
        return cast("BinaryIO", source)
    path = offered.where
    try:
        descriptor, found, named = _open_in_place(source)
    except OSError as error:
        raise Refused([Fault(path, f"cannot be read: {error.strerror}")]) from None
    same = named is not None and os.path.samestat(found, named)
    exchanged = not stat.S_ISREG(found.st_mode) or not (same or (_WALKS and not offered.rooted))
    # As its name says it: what was opened by a link to something outside has one name less when the link is gone again.
    linked = offered.rooted and max(found.st_nlink, named.st_nlink if named else 0) > 1
    if exchanged or linked:
        os.close(descriptor)
        raise Refused([Fault(path, "was exchanged while it was being read" if exchanged else _LINKED)])
    return os.fdopen(descriptor, "rb", buffering=0)


#: Whether a path can be walked folder by folder; elsewhere a folder on the way could become a link in between.
_WALKS = hasattr(os, "O_PATH") and os.open in os.supports_dir_fd


def _open_in_place(path: Path) -> tuple[int, os.stat_result, os.stat_result | None]:
    """A descriptor of what lies exactly there: of a path without links, in which nobody can put one on the way any more.

    And what it is, and what its name stands for in the same folder afterwards; None if for nothing. In this order: what says
    that it has one name only, and is found by that name after that, has it there.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)
    if not _WALKS:
        descriptor = os.open(path, flags)
        return descriptor, os.fstat(descriptor), _named(path)
    through = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(path.anchor, through)
    try:
        for part in path.parts[1:-1]:
            above, folder = folder, os.open(part, through, dir_fd=folder)
            os.close(above)
        descriptor = os.open(path.name, flags, dir_fd=folder)
        found = os.fstat(descriptor)
        # Linux takes a link off a file before it takes away the name: who asks for a name that nobody knows waits for that.
        _named(f".{uuid.uuid4().hex}", folder)
        return descriptor, found, _named(path.name, folder)
    finally:
        os.close(folder)


def _named(path: str | Path, folder: int | None = None) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None


def _time_faults(due_at: object, expires_at: object, now: datetime) -> list[Fault]:
    faults = [
        Fault(what, f"expected a datetime with a time zone, got {json_payload.brief(instant)}")
        for what, instant in (("due_at", due_at), ("expires_at", expires_at))
        if instant is not None and not _in_time(instant)
    ]
    if faults or not isinstance(expires_at, datetime):
        return faults
    if isinstance(due_at, datetime) and expires_at <= due_at:
        return [Fault("expires_at", "is not after due_at: the message would expire before it is ever tried")]
    if plausible(now) and expires_at <= now:
        return [Fault("expires_at", f"has passed: it is {now:%Y-%m-%d %H:%M:%S} UTC here")]
    return []


def _in_time(instant: object) -> bool:
    """Whether an instant has a time zone, and is one that a calendar in UTC has a place for."""
    try:
        return isinstance(instant, datetime) and instant.tzinfo is not None and bool(instant.astimezone(UTC))
    except OverflowError:
        return False


def _earliest(expires_at: object, max_age: float | None, now: datetime) -> datetime | None:
    given = [expires_at] if isinstance(expires_at, datetime) else []
    return min([*given, *([now + timedelta(seconds=max_age)] if max_age else [])], default=None)


def _key_faults(what: str, key: object) -> list[Fault]:
    if key is None:
        return []
    if not isinstance(key, str):
        return [Fault(what, f"expected a string, got {json_payload.brief(key)}")]
    faults = []
    if not 0 < len(key) <= KEY_LIMIT:
        faults.append(Fault(what, f"expected 1 to {KEY_LIMIT} characters, got {len(key)}"))
    if json_payload.has_controls(key):
        faults.append(Fault(what, "holds control characters"))
    if _NONE.search(key):
        faults.append(
            Fault(what, f"{key[:60]!r} seems to be made from a None; flush the session first, so that the id is there")
        )
    return faults


def offer(name: object, source: object, roots: Sequence[Path], place: str = "") -> Offered | list[Fault]:
    """A file at the door, or what is wrong with it; `place` is where it stood in the payload, if it did."""
    where = place or f"files.{name}"
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT:
        return [Fault("files", f"expected a name of 1 to {NAME_LIMIT} characters, got {json_payload.brief(name)}")]
    if json_payload.has_controls(name):
        return [Fault("files", f"the name {name!r} holds control characters")]
    name_given: object = None
    type_given: object = OCTETS
    found = source
    if isinstance(source, File):
        found, name_given, type_given = source.source, source.filename, source.content_type or OCTETS
    faults = []
    if name_given is not None and not isinstance(name_given, str):
        return [Fault(where, f"expected its file name to be a string, got {json_payload.brief(name_given)}")]
    filename, content_type = name_given, str(type_given)
    if not _CONTENT_TYPE.fullmatch(content_type):
        faults.append(Fault(where, f"{json_payload.brief(type_given)} is not a content type such as image/jpeg"))
    size: int | None = None
    taken: Path | bytes | BinaryIO | SpooledFile
    match found:
        case SpooledFile():
            taken, filename, size = found, filename or found.filename or name, found.size
        case bytes() | bytearray() | memoryview():
            taken = bytes(found)
            filename, size = filename or name, len(taken)
        case str() | os.PathLike():
            looked = _look(where, os.fspath(found), roots)
            if isinstance(looked, Fault):
                return [*faults, looked]
            filename = filename or Path(os.fsdecode(found)).name
            taken, size = looked
        case io.TextIOBase():
            return [*faults, Fault(where, "is open as text; open it with mode 'rb'")]
        case _ if callable(getattr(found, "read", None)):
            taken, filename = cast(BinaryIO, found), filename or name
        case _:
            return [
                *faults,
                Fault(where, f"expected a path, bytes, a binary stream or a SpooledFile, got {type(found).__name__}"),
            ]
    if not 0 < len(filename) <= NAME_LIMIT:
        faults.append(Fault(where, f"expected a file name of 1 to {NAME_LIMIT} characters, got {len(filename)}"))
    if json_payload.has_controls(filename):
        faults.append(Fault(where, f"its file name {filename!r} holds control characters"))
    return faults or Offered(name, taken, filename, content_type, size, rooted=bool(roots), place=place)


def _placed(given: str | bytes) -> str:
    """A path as it was given, and where it begins if it does not say so itself; its end, if it is long."""
    path = os.fsdecode(given)
    shown = path if len(path) <= _SHOWN else f"…{path[-_SHOWN:]}"
    return shown if Path(path).is_absolute() else f"{shown} in {Path.cwd()}"


def _look(where: str, given: str | bytes, roots: Sequence[Path]) -> tuple[Path, int] | Fault:
    """The real path of a readable regular file inside the allowed roots, and its size."""
    try:
        path = Path(os.fsdecode(given)).resolve(strict=True)
        found = path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        words = getattr(error, "strerror", None)
        return Fault(where, f"cannot be read: {f'{words} ({_placed(given)})' if words else 'it is not a usable path'}")
    if roots and not any(path.is_relative_to(root) for root in roots):
        return Fault(where, "is outside the allowed roots")
    if not stat.S_ISREG(found.st_mode):
        return Fault(
            where,
            "is not a regular file but a " + ("directory" if stat.S_ISDIR(found.st_mode) else "device, pipe or socket"),
        )
    if roots and found.st_nlink > 1:
        return Fault(where, _LINKED)
    if not os.access(path, os.R_OK):
        return Fault(where, "cannot be read: permission denied")
    return path, found.st_size
