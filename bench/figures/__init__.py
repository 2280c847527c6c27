"""Everything that can be measured, one file for each part of a message's way."""

from bench.figures import claiming, delivering, enqueueing, importing, peers, spooling, uploading
from bench.harness import REGISTER

__all__ = [
    "REGISTER",
    "claiming",
    "delivering",
    "enqueueing",
    "importing",
    "peers",
    "spooling",
    "uploading",
]
