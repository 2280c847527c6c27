"""Kills a process at its n-th system call of a kind, with strace; or lets that call fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from tests.power.report import Unavailable
from tests.power.sweep import Ended, Sweep

#: Whatever can change a file, or tell somebody else.
CALLS = (
    *("write", "pwrite64", "writev", "pwritev", "ftruncate", "fallocate", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat", "utimensat", "sendto"),
)
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")


def strace() -> str:
    """Where it is; raises Unavailable where it is not, or may not trace."""
    found = shutil.which("strace")
    if found is None:
        raise Unavailable("no strace: no process is killed at its system calls")
    tried = subprocess.run([found, "-qq", "-o", os.devnull, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise Unavailable(f"strace may not trace here: {tried.stderr.strip()}")
    return found


def calls(sweep: Sweep, operation: str, folder: Path) -> Counter[str]:
    """How many system calls of each kind an operation makes."""
    output = folder / "traced"
    traced(sweep, operation, ["-o", str(output)])
    found = (_CALL.match(line) for line in output.read_text().splitlines())
    return Counter(each[1] for each in found if each)


def kill_at(sweep: Sweep, operation: str, call: str, number: int) -> Ended:
    """The end of an operation whose process is killed as it begins its n-th call of a kind."""
    return traced(sweep, operation, ["-o", os.devnull, "-e", f"inject={call}:signal=KILL:when={number}"], call)


def traced(sweep: Sweep, operation: str, options: list[str], *kinds: str) -> Ended:
    pid = sweep.start(operation, waits=True)
    command = [strace(), "-f", "-p", str(pid), "-e", f"trace={','.join(kinds or CALLS)}", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        assert "attached" in said, said
        sweep.forks.go_on()
        ended = sweep.forks.end()
        tracer.communicate()
    return ended
