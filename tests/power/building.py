"""The recorder, built when it is first needed."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.power.report import Unavailable

SOURCE = Path(__file__).with_name("recorder.c")
FLAGS = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]


@functools.cache
def recorder() -> Path:
    """The library to preload, which is there as long as this process; raises Unavailable where it cannot be built."""
    if sys.platform != "linux":
        raise Unavailable("not Linux: file operations are recorded with LD_PRELOAD")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Unavailable("no C compiler: the recorder of file operations cannot be built")
    folder = Path(tempfile.mkdtemp(prefix="outbox-power-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "recorder.so"
    command = [compiler, *FLAGS, "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise Unavailable(f"the recorder of file operations cannot be built: {built.stderr or built.stdout}")
    return library
