"""Everything that can be measured, one file for each part of a message's way."""

from bench.figures import claiming, counting, delivering, enqueueing, idling, importing, peers, spooling, uploading, waking
from bench.harness import REGISTER

__all__ = [
    "REGISTER",
    "claiming",
    "counting",
    "delivering",
    "enqueueing",
    "idling",
    "importing",
    "peers",
    "spooling",
    "uploading",
    "waking",
]
