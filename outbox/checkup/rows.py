"""What is wrong with a row as it lies there, when no type and no constraint has looked at it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from sqlalchemy import Boolean, Column, Float, Integer, LargeBinary, String, Table

from outbox.intake import digest
from outbox.model import Attachment, Lane, Outcome, Reason, SpooledFile, State
from outbox.patience import Stop
from outbox.store.checking import Raw
from outbox.tables import Instant

#: As SQLite keeps an instant; Postgres gives one.
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", re.ASCII)
_EARLIEST, _LATEST = 1970, 9999
#: Columns whose numbers may be below zero: the other side's.
_SIGNED = frozenset({"code", "status"})
_HEX = {
    ("outbox_file", "name"): 32,
    ("outbox_file", "sha256"): 64,
    ("outbox_file", "md5"): 32,
    ("outbox_message", "digest"): 64,
    ("outbox_spool", "mark"): 32,
}
#: What a producer in plain SQL may write for it: SQLite has no SHA-256.
_NO_DIGEST = ("outbox_message", "digest", "")
_WORDS: Mapping[tuple[str, str], Collection[str]] = {
    ("outbox_message", "state"): frozenset(State),
    ("outbox_message", "reason"): frozenset(Reason),
    ("outbox_delivery", "outcome"): frozenset(Outcome),
    ("outbox_attempt", "outcome"): frozenset(Outcome),
    ("outbox_attempt", "late_outcome"): frozenset(Outcome),
    ("outbox_destination", "stop"): frozenset(Stop),
} | {(table, "lane"): frozenset(Lane) for table in ("outbox_message", "outbox_head", "outbox_share", "outbox_delivery")}
#: What has to be readable of an attachment to hold its message against the digest.
_OF_ATTACHMENT = {"name": str, "filename": str, "content_type": str, "sha256": str, "size": int}
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HEX_DIGITS = re.compile(r"[0-9a-f]*", re.ASCII)


def faults(table: Table, row: Raw) -> list[str]:
    """What in a row could not have been written by us, in words that name the column and never its content."""
    found = []
    for column in table.c:
        if isinstance(column.type, LargeBinary):
            continue
        value = row[column.name]
        if value is None:
            if not column.nullable:
                found.append(f"{column.name} is missing")
        elif wrong := _fault(column, value):
            found.append(f"{column.name} {wrong}")
    return found


def _fault(column: Column[object], value: object) -> str | None:
    match column.type:
        case Instant():
            return None if _is_instant(value) else "is no time"
        case Boolean():
            return None if value in (0, 1) else "is neither true nor false"
        case Integer():
            if not isinstance(value, int):
                return "is no whole number"
            return "is below zero" if value < 0 and column.name not in _SIGNED else None
        case Float():
            return None if isinstance(value, int | float) else "is no number"
        case String() as kind:
            return _text_fault(column, kind, value)
        case _:
            return None


def _is_instant(value: object) -> bool:
    if isinstance(value, str) and _INSTANT.fullmatch(value):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return False
    return isinstance(value, datetime) and _EARLIEST <= value.year <= _LATEST


def _text_fault(column: Column[object], kind: String, value: object) -> str | None:
    if not isinstance(value, str):
        return "is no text"
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return "is no UTF-8"
    if _CONTROLS.search(value):
        return "holds control characters"
    if kind.length is not None and len(value) > kind.length:
        return f"is longer than {kind.length} characters"
    place = (str(column.table.name), column.name)
    if value not in _WORDS.get(place, (value,)):
        return "is none of its words"
    digits = _HEX.get(place)
    if digits is not None and (*place, value) != _NO_DIGEST and not (len(value) == digits and _HEX_DIGITS.fullmatch(value)):
        return f"is not {digits} hexadecimal digits"
    return None


def message_faults(row: Raw, attached: Collection[Raw], ordering_key: str | None) -> Iterator[str]:
    """What contradicts itself in a message whose columns are each in order."""
    try:
        json.loads(row["payload"])
    except (ValueError, RecursionError):
        yield "its payload is no JSON"
    if any(each["sha256"] is None for each in attached):
        yield "an attachment of it has no spooled file"
        return
    if any(not isinstance(each[column], kind) for each in attached for column, kind in _OF_ATTACHMENT.items()):
        yield "the row of an attachment of it, or of its spooled file, cannot be read"
        return
    if len(attached) != row["files"]:
        yield f"it has {len(attached)} of its {row['files']} attachments"
    elif sum(each["size"] for each in attached) != row["file_bytes"]:
        yield f"its files have {sum(each['size'] for each in attached)} bytes together and not {row['file_bytes']}"
    files = [
        Attachment(each["name"], SpooledFile(each["file"], 0, each["sha256"], ""), each["filename"], each["content_type"])
        for each in attached
    ]
    # What plain SQL has put there may have none: then it cannot be told.
    if row["digest"] and digest(row["payload"], files, ordering_key) != row["digest"]:
        yield "its payload, its attachments or its ordering key are not those that were enqueued"


def file_faults(row: Raw, size: int, sha256: str | None = None, md5: str | None = None) -> str | None:
    """In what a spooled file differs from its row."""
    if size != row["size"]:
        return f"it has {size} bytes instead of {row['size']}"
    if sha256 is not None and sha256 != row["sha256"]:
        return "its bytes are not those that were enqueued"
    if md5 is not None and md5 != row["md5"]:
        return "the MD5 in its row is not the one of its bytes"
    return None
