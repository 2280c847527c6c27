"""What a recorded program was told and did, written among its file operations: a promise counts from its line on."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outbox.model import FINAL

NAME = "notes"

#: How far a message has come: it was replayed so often, tried so often, and is claimed (0), pending (1) or final (2).
Progress = tuple[int, int, int]


def progress(replays: int, attempt: int, state: str) -> Progress:
    """No message ever goes back behind what was committed of it."""
    return replays, attempt, 2 if state in FINAL else 1 if state == "pending" else 0


class Notes:
    """The recorded program's side: each line is one write."""

    def __init__(self, root: Path) -> None:
        self._descriptor = os.open(root / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with contextlib.suppress(AttributeError):  # nobody records this
            ctypes.CDLL(None).power_spare(self._descriptor)

    def say(self, fact: str, **more: Any) -> None:
        os.write(self._descriptor, json.dumps({"fact": fact} | more).encode() + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class Promised:
    """What must be true of everything that a power cut may leave from now on."""

    schema: str | None = None  #: the database has at least this revision
    begun: dict[str, dict[str, str]] = field(default_factory=dict)  #: may be there: key, and its files' SHA-256 by name
    committed: set[str] = field(default_factory=set)  #: must be there
    never: set[str] = field(default_factory=set)  #: must not: their transactions are rolled back
    may_go: set[str] = field(default_factory=set)  #: being purged
    progress: dict[str, Progress] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)  #: a request of this attempt may have gone out
    deliveries: set[int] = field(default_factory=set)  #: and it was part of one of these
    deliveries_may_go: bool = False
    spooled: set[str] = field(default_factory=set)  #: names of files that were spooled ahead
    requests: int = 0  #: that the receiver had begun to read by then
    tried: list[dict[str, Any]] = field(default_factory=list)  #: what was said when a file operation failed
    facts: int = 0

    def hear(self, line: str) -> None:
        said = json.loads(line)
        self.facts += 1
        match said["fact"]:
            case "schema":
                self.schema = said["revision"]
            case "begins":
                self.begun[said["key"]] = said["files"]
                if not said["commits"]:
                    self.never.add(said["key"])
            case "committed":
                self.committed.add(said["key"])
            case "spooled":
                self.spooled.add(said["name"])
            case "purges":
                self.may_go.update(said["keys"])
            case "sends":
                self.attempts.update(said["attempts"])
                self.deliveries.add(said["delivery"])
                self.requests = said["requests"] + 1
            case "forgets deliveries":
                self.deliveries.clear()
                self.deliveries_may_go = True
            case "tried":
                self.tried.append(said)
            case "kept":
                self.progress.update({key: (each[0], each[1], each[2]) for key, each in said["messages"].items()})

    def acknowledged(self, there: Collection[str]) -> dict[str, dict[str, str]]:
        """What a ledger shall expect where these keys are there: nobody was told of some of them, and that is right, too."""
        return {key: files for key, files in self.begun.items() if key in self.committed - self.may_go or key in there}


def kept(rows: Iterable[Any]) -> Mapping[str, Progress]:
    """For a note: how far these messages have come."""
    return {row.key: progress(row.replays, row.attempt, row.state) for row in rows}
