"""The recorder, built when it is first needed and once for each version of its source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.power.report import Unavailable

SOURCE = Path(__file__).with_name("recorder.c")
FLAGS = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]


def recorder(cache: Path | None = None) -> Path:
    """The library to preload; raises Unavailable where it cannot be built."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Unavailable("no C compiler: the recorder of file operations cannot be built")
    version = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = cache or Path(tempfile.gettempdir()) / f"outbox-power-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    library = folder / f"recorder-{version}.so"
    if not library.exists():
        unfinished = folder / f"{library.name}.{os.getpid()}"
        command = [compiler, *FLAGS, "-o", str(unfinished), str(SOURCE), "-ldl", "-lpthread"]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise Unavailable(f"the recorder of file operations cannot be built: {built.stderr or built.stdout}")
        unfinished.replace(library)
    return library
