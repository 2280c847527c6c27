"""What a test suite needs: an EnOS receiver that is strict with every request and misbehaves when asked."""

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
from outbox.testing.ledger import Accepted, Received, ReceivedFile, read_ledger
from outbox.testing.receiver import Receiver

__all__ = [
    "Accepted",
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
    "Received",
    "ReceivedFile",
    "Receiver",
    "Silence",
    "Slow",
    "SlowRead",
    "Status",
    "Truncated",
    "parse_behaviour",
    "read_ledger",
]
