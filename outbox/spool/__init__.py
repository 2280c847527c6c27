"""Where files rest between enqueue and delivery."""

from outbox.spool.base import Spool, SpoolEntry
from outbox.spool.directory import DirectorySpool

__all__ = ["DirectorySpool", "Spool", "SpoolEntry"]
