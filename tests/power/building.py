"""The recorder, built when it is first needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.power.report import Unavailable

SOURCE = Path(__file__).with_name("recorder.c")
FLAGS = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]


def recorder(folder: Path) -> Path:
    """The library to preload, built in that folder unless it is there; raises Unavailable where it cannot be built."""
    if sys.platform != "linux":
        raise Unavailable("not Linux: file operations are recorded with LD_PRELOAD")
    library = folder / "recorder.so"
    if library.exists():
        return library
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Unavailable("no C compiler: the recorder of file operations cannot be built")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"recorder-{os.getpid()}.so"
    command = [compiler, *FLAGS, "-o", str(unfinished), str(SOURCE), "-ldl", "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise Unavailable(f"the recorder of file operations cannot be built: {built.stderr or built.stdout}")
    unfinished.replace(library)
    return library
