"""Everything that can be measured, one file for each part of a message's way."""

from bench.figures import enqueueing, idling, waking
from bench.harness import REGISTER

__all__ = ["REGISTER", "enqueueing", "idling", "waking"]
