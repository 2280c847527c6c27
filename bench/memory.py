"""What memory a process needs at its peak, in megabytes: each look is at a fresh process.

    python -m bench.memory upload URL PATH SIZE SHA256
    python -m bench.memory spool PATH

Says by how much the peak grew while that was done; the same was done with something small before.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from outbox import DirectorySpool, SpooledFile
from outbox.multipart import FilePart
from outbox.transport import RequestsTransport, Upload

_KIB = 1024 / 1_000_000
_SMALL = 1_000_000


def of_an_upload(url: str, path: Path, file: SpooledFile) -> float:
    """What the peak grows by for one upload."""
    return _grown("upload", url, str(path), str(file.size), file.sha256)


def of_spooling(path: Path) -> float:
    """What the peak grows by for one file put into a spool."""
    return _grown("spool", str(path))


def of_a_worker(url: str, path: Path) -> float:
    """The peak of `outbox worker` from its start to the end of one upload."""
    with tempfile.TemporaryDirectory(prefix="outbox-bench-") as named:
        place = Path(named)
        (place / "event.json").write_text('{"assetId": "a", "time": 1, "events": {"e": {"file": "local://file"}}}')
        (place / "outbox.toml").write_text(
            '[destinations.enos]\ntype = "enos-events"\norg_id = "o1"\nallow_plain_http = true\n'
            f'max_file_bytes = 10_000_000_000\nurl = "{url}"\n'
        )
        _run(place, "init")
        _run(place, "enqueue", "enos", "--payload", "event.json", "--file", f"file={path}")
        worker = subprocess.Popen([sys.executable, "-m", "outbox", "worker", "--log-level", "error"], cwd=place)
        try:
            while '"delivered"' not in _run(place, "list", "--state", "delivered", "--json"):
                if worker.poll() is not None:
                    raise RuntimeError("the worker has ended")
                time.sleep(0.3)
            return _peak(worker.pid)
        finally:
            worker.terminate()
            worker.wait()


def _run(place: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "outbox", *arguments]
    ended = subprocess.run(command, cwd=place, check=False, capture_output=True, text=True)
    if ended.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr}")
    return ended.stdout


def _grown(*arguments: str) -> float:
    ended = subprocess.run([sys.executable, "-m", "bench.memory", *arguments], check=True, capture_output=True, text=True)
    return float(ended.stdout)


def _told(process: int | str, what: str) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == what:
            return int(value.split()[0]) * _KIB
    raise RuntimeError(f"this system does not tell {what} of a process")


def _peak(process: int | str) -> float:
    return _told(process, "VmHWM")


def _forget_peak() -> float:
    """From now on the peak is that of what comes; returns what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return _told("self", "VmRSS")


def _upload(url: str, path: str, size: str, sha256: str) -> None:
    transport = RequestsTransport()

    def send(name: str, size: int, sha256: str, content: Callable[[str], BinaryIO]) -> None:
        part = FilePart("file", "file.bin", SpooledFile(name, size, sha256, ""))
        transport.send(Upload(url, [part]), content, 600, 10)

    small = bytes(_SMALL)
    send("1" * 32, _SMALL, hashlib.sha256(small).hexdigest(), lambda _: io.BytesIO(small))
    before = _forget_peak()
    send("2" * 32, int(size), sha256, lambda _: open(path, "rb", buffering=0))  # noqa: PTH123, SIM115
    print(_peak("self") - before)


def _spool(path: str) -> None:
    with tempfile.TemporaryDirectory(prefix="outbox-bench-") as place:
        spool = DirectorySpool(Path(place) / "spool")
        spool.prepare()
        spool.put("1" * 32, io.BytesIO(bytes(_SMALL)))
        before = _forget_peak()
        with open(path, "rb", buffering=0) as source:  # noqa: PTH123
            spool.put("2" * 32, source)
        print(_peak("self") - before)


if __name__ == "__main__":
    {"upload": _upload, "spool": _spool}[sys.argv[1]](*sys.argv[2:])
