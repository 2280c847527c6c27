"""What a test suite needs: a receiver that is strict and misbehaves when asked, and a look at a destination of one's own."""

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
from outbox.testing.ledger import Accepted, Received, ReceivedFile, peak_of, rate_of, read_ledger
from outbox.testing.receiver import Receiver

__all__ = [
    "Accepted",
    "Answer",
    "ApimExpired",
    "Behaviour",
    "BlackHole",
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
    "check_destination",
    "parse_behaviour",
    "peak_of",
    "rate_of",
    "read_ledger",
    "refused_url",
]
