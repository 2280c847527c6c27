"""Everything outbox raises on purpose.

OutboxError
├── ConfigurationError     an outbox, destination, spool or worker was set up wrongly
├── Refused                bad input, refused at the door; carries every fault found
│   └── UnknownDestination nobody declared that name; says which are declared
├── KeyConflict            this key already names other content
├── NotDurable             the caller's connection would lose a commit at a power cut
├── SchemaError            the database is not migrated, or newer than this code
├── NoSuchMessage          no message has that id or key
├── OutOfRoom              the quota, a disk or the database is full
├── DatabaseDamaged        the database is damaged, or was deleted or replaced while it was in use
├── SpoolError             the spool could not take or give a file
│   ├── SpoolFull          its disk is full (also an OutOfRoom)
│   ├── FileMissing        a spooled file is not there
│   └── FileChanged        a spooled file is not what was enqueued
└── TransportError         a request got no answer
    ├── NotSent            and its declared length did not go out in full
    └── NoAnswer           although its whole body went out: the outcome is unknown
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong with an input: where, and what to do about it."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class OutboxError(Exception):
    """The root of everything outbox raises on purpose. It travels between processes as what it is."""

    def __reduce__(self) -> tuple[object, ...]:
        # Python's own way would make it anew of its words, which is not what most of them are made of.
        return _as_it_was, (type(self), self.args), self.__dict__


def _as_it_was(kind: type[OutboxError], args: tuple[object, ...]) -> OutboxError:
    return kind.__new__(kind, *args)


class ConfigurationError(OutboxError):
    """An outbox, destination, spool or worker was set up wrongly."""


class Refused(OutboxError, ValueError):
    """Bad input, refused before anything was written; the caller's transaction is still usable.

    `faults` holds every fault that was found, not only the first.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(str(fault) for fault in self.faults))


class UnknownDestination(Refused):
    """Nobody declared a destination of that name."""

    def __init__(self, name: object, declared: Iterable[str]) -> None:
        self.name = name
        self.declared = tuple(sorted(declared))
        known = ", ".join(self.declared) or "none"
        own = getattr(name, "name", None)
        wanted = f"expected the name of a destination, {own!r}, got the destination" if isinstance(own, str) else ""
        super().__init__([Fault("", f"{wanted or f'no destination named {repr(name)[:102]}'}; declared: {known}")])


class KeyConflict(OutboxError, ValueError):
    """The key already names a message with other content; nothing was written."""

    def __init__(self, destination: str, key: str, message_id: int) -> None:
        self.destination = destination
        self.key = key
        self.message_id = message_id
        super().__init__(
            f"key {key!r} already names message {message_id} of destination {destination!r} with other content; "
            "use another key, or enqueue exactly the same payload and files again"
        )


class NotDurable(OutboxError):
    """With durability="strict": the caller's connection would lose a commit at a power cut."""


class DurabilityWarning(UserWarning):
    """With durability="warn": the caller's connection would lose a commit at a power cut."""


NO_SCHEMA = "the database has no outbox schema yet; run: outbox db upgrade"


class SchemaError(OutboxError):
    """The database is not migrated, or newer than this code."""


class NoSuchMessage(OutboxError, LookupError):
    """No message has that id or key."""


class OutOfRoom(OutboxError):
    """The quota of the spool, a disk or the database is full, or would be; says which, and what to do.

    Raised at the door nothing was written and the caller's transaction is usable. A database that ran full in the middle of a
    statement may have rolled the caller's transaction back: then its connection refuses to go on until it is rolled back.
    """


class DatabaseDamaged(OutboxError):
    """The database is damaged, or was deleted or replaced while it was in use. Nothing is ever put in its place."""


class SpoolError(OutboxError):
    """The spool could not take or give a file."""


class SpoolFull(SpoolError, OutOfRoom):
    """The disk of the spool is full."""


class FileMissing(SpoolError):
    """A spooled file is not there, or a name is none that one could have."""

    def __init__(self, name: str, text: str | None = None) -> None:
        self.name = name
        super().__init__(text or f"spooled file {name} is missing")


class FileChanged(SpoolError):
    """A spooled file is not what was enqueued."""

    def __init__(self, name: str, how: str) -> None:
        self.name = name
        super().__init__(f"spooled file {name} is not what was enqueued: {how}")


class TransportError(OutboxError):
    """A request got no answer."""


class NotSent(TransportError):
    """The declared length of the request did not go out in full: the other side cannot have it.

    `begun` tells whether any of its body was handed out.
    """

    def __init__(self, text: str, *, begun: bool = False) -> None:
        self.begun = begun
        super().__init__(text)


class NoAnswer(TransportError):
    """The whole request went out and no complete answer came back: the outcome is unknown."""
