"""What a test suite needs: a tester of producers, a receiver that misbehaves when asked, a look at one's own destination."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox.testing.behaviours import (
        Answer,
        ApimExpired,
        Behaviour,
        Body,
        Drip,
        EarlyStatus,
        Expired,
        GzipBomb,
        HangUp,
        Hold,
        Silence,
        Slow,
        SlowRead,
        Status,
        Truncated,
        parse_behaviour,
    )
    from outbox.testing.blackhole import BlackHole, refused_url
    from outbox.testing.checking import check_destination
    from outbox.testing.clock import Clock
    from outbox.testing.draining import KitError
    from outbox.testing.kept import KeptFile, KeptMessage
    from outbox.testing.ledger import Accepted, Received, ReceivedFile, peak_of, rate_of, read_ledger
    from outbox.testing.lenient import Lenient
    from outbox.testing.receiver import Receiver
    from outbox.testing.sent import Sent, SentPart
    from outbox.testing.tester import OutboxTester

__all__ = [
    "Accepted",
    "Answer",
    "ApimExpired",
    "Behaviour",
    "BlackHole",
    "Body",
    "Clock",
    "Drip",
    "EarlyStatus",
    "Expired",
    "GzipBomb",
    "HangUp",
    "Hold",
    "KeptFile",
    "KeptMessage",
    "KitError",
    "Lenient",
    "OutboxTester",
    "Received",
    "ReceivedFile",
    "Receiver",
    "Sent",
    "SentPart",
    "Silence",
    "Slow",
    "SlowRead",
    "Status",
    "Truncated",
    "check_destination",
    "parse_behaviour",
    "peak_of",
    "rate_of",
    "read_ledger",
    "refused_url",
]

#: Where each name lives: pytest loads this package in every project that has outbox installed, and most need nothing of it.
_HOMES = {
    "behaviours": [
        "Answer",
        "ApimExpired",
        "Behaviour",
        "Body",
        "Drip",
        "EarlyStatus",
        "Expired",
        "GzipBomb",
        "HangUp",
        "Hold",
        "Silence",
        "Slow",
        "SlowRead",
        "Status",
        "Truncated",
        "parse_behaviour",
    ],
    "blackhole": ["BlackHole", "refused_url"],
    "checking": ["check_destination"],
    "clock": ["Clock"],
    "draining": ["KitError"],
    "kept": ["KeptFile", "KeptMessage"],
    "ledger": ["Accepted", "Received", "ReceivedFile", "peak_of", "rate_of", "read_ledger"],
    "lenient": ["Lenient"],
    "receiver": ["Receiver"],
    "sent": ["Sent", "SentPart"],
    "tester": ["OutboxTester"],
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
