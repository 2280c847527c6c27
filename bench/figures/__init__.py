"""Everything that can be measured, one file for each part of a message's way."""

from bench.figures import enqueueing, importing, spooling, uploading
from bench.harness import REGISTER

__all__ = ["REGISTER", "enqueueing", "importing", "spooling", "uploading"]
