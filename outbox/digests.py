"""A digest that is computed beside the work that its bytes are for: hashing a large file takes longer than sending it."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import Protocol

#: From this many bytes on a thread of its own pays. It is 3 ms of hashing, and thirty times what the thread costs.
WORTH_A_THREAD = 4 * 1024 * 1024
#: Blocks that may wait to be hashed. With fewer a moment without a processor on either side holds up both.
AHEAD = 8

#: Seconds that its end is waited for when nobody wants the digest any more.
_LEAVE = 2.0


class Digest(Protocol):
    """As hashlib has them."""

    def update(self, block: bytes, /) -> None:
        """Count these bytes in."""

    def hexdigest(self) -> str:
        """Of all that was counted in."""


class Beside:
    """A digest at work on a thread of its own. Close it, whatever happens: what waits is hashed, and the thread ends.

    Blocks must not change after they were handed over. Raises RuntimeError when there is no thread to be had.
    """

    def __init__(self, digest: Digest, ahead: int) -> None:
        self._digest = digest
        self._waiting: SimpleQueue[bytes | None] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(ahead):
            self._room.put(None)
        self._thread = threading.Thread(target=self._work, name="outbox-digest", daemon=True)
        self._thread.start()

    def update(self, block: bytes) -> None:
        self._room.get()
        self._waiting.put(block)

    def hexdigest(self) -> str:
        self._waiting.put(None)
        self._thread.join()
        return self._digest.hexdigest()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(_LEAVE)  # it takes some milliseconds, and for ever while Python ends

    def _work(self) -> None:
        while (block := self._waiting.get()) is not None:
            self._digest.update(block)
            del block  # not to be kept while the next one is waited for
            self._room.put(None)


def beside(digest: Digest, ahead: int = AHEAD) -> Digest | Beside:
    """The digest on a thread of its own, where there is a processor and a thread for that; else as it is."""
    if os.cpu_count() == 1:
        return digest
    try:
        return Beside(digest, ahead)
    except RuntimeError:
        return digest


def close(digest: Digest | Beside) -> None:
    """End its thread, if it has one."""
    if isinstance(digest, Beside):
        digest.close()
