"""A durable store-and-forward outbox: what must be sent rests next to the data it belongs to, until the other side has it."""

import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.ambient import Ambient
    from outbox.app import Outbox
    from outbox.database import prepare
    from outbox.destinations import (
        Credentials,
        Destination,
        EnosAttributes,
        EnosEvents,
        EnosMeasurePoints,
        Form,
        StaticToken,
        Token,
        Webhook,
    )
    from outbox.destinations.builders import Attribute, Event, MeasurePoint
    from outbox.errors import (
        ConfigurationError,
        DatabaseDamaged,
        DurabilityWarning,
        Fault,
        FileChanged,
        FileMissing,
        KeyConflict,
        NoAnswer,
        NoSuchMessage,
        NotDurable,
        NotSent,
        OutboxError,
        OutOfRoom,
        Refused,
        SchemaError,
        SpoolError,
        TransportError,
        UnknownDestination,
    )
    from outbox.explaining import Cause
    from outbox.hooks import News
    from outbox.model import Enqueued, Entry, File, Lane, Reason, Selection, SpooledFile, State
    from outbox.policy import Policy, Retention
    from outbox.route import Route
    from outbox.secret import Secret, env, secret_file
    from outbox.settings import from_settings
    from outbox.spool import DirectorySpool, Spool
    from outbox.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Ambient",
    "Attribute",
    "Cause",
    "ConfigurationError",
    "Credentials",
    "DatabaseDamaged",
    "Destination",
    "DirectorySpool",
    "DurabilityWarning",
    "EnosAttributes",
    "EnosEvents",
    "EnosMeasurePoints",
    "Enqueued",
    "Entry",
    "Event",
    "Fault",
    "File",
    "FileChanged",
    "FileMissing",
    "Form",
    "KeyConflict",
    "Lane",
    "MeasurePoint",
    "News",
    "NoAnswer",
    "NoSuchMessage",
    "NotDurable",
    "NotSent",
    "OutOfRoom",
    "Outbox",
    "OutboxError",
    "Policy",
    "Reason",
    "Refused",
    "Retention",
    "Route",
    "SchemaError",
    "Secret",
    "Selection",
    "Spool",
    "SpoolError",
    "SpooledFile",
    "State",
    "StaticToken",
    "Token",
    "TransportError",
    "UnknownDestination",
    "Webhook",
    "Worker",
    "env",
    "from_settings",
    "prepare",
    "secret_file",
]

#: Where each name lives. It is imported when it is asked for: a producer needs no scheduler, and `outbox --help` no database.
_HOMES = {
    "outbox.ambient": ["Ambient"],
    "outbox.app": ["Outbox"],
    "outbox.database": ["prepare"],
    "outbox.destinations": [
        "Credentials",
        "Destination",
        "EnosAttributes",
        "EnosEvents",
        "EnosMeasurePoints",
        "Form",
        "StaticToken",
        "Token",
        "Webhook",
    ],
    "outbox.destinations.builders": ["Attribute", "Event", "MeasurePoint"],
    "outbox.errors": [
        "ConfigurationError",
        "DatabaseDamaged",
        "DurabilityWarning",
        "Fault",
        "FileChanged",
        "FileMissing",
        "KeyConflict",
        "NoAnswer",
        "NoSuchMessage",
        "NotDurable",
        "NotSent",
        "OutOfRoom",
        "OutboxError",
        "Refused",
        "SchemaError",
        "SpoolError",
        "TransportError",
        "UnknownDestination",
    ],
    "outbox.explaining": ["Cause"],
    "outbox.hooks": ["News"],
    "outbox.model": ["Enqueued", "Entry", "File", "Lane", "Reason", "Selection", "SpooledFile", "State"],
    "outbox.policy": ["Policy", "Retention"],
    "outbox.route": ["Route"],
    "outbox.secret": ["Secret", "env", "secret_file"],
    "outbox.settings": ["from_settings"],
    "outbox.spool": ["DirectorySpool", "Spool"],
    "outbox.worker": ["Worker"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    collecting = gc.isenabled()
    gc.disable()  # nothing that is imported is rubbish, and looking for some among it is a seventh of the time
    try:
        value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    finally:
        if collecting:
            gc.enable()
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
