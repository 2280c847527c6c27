"""What a process may do that is not root: root, under which a test may run, reads and writes whatever it likes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def like_anybody(work: Callable[[], T]) -> T:
    """What it returns without root's right to read and write whatever it likes, on a thread that has given it up for good.

    access(2) goes by what a thread might take back.
    """

    def give_up_and_work() -> T:
        if os.geteuid() == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert 0 == libc.capget(header, rights)
            rights[0] &= ~0b110  # Linux: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
            rights[1] &= ~0b110
            assert 0 == libc.capset(header, rights)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(give_up_and_work).result()
