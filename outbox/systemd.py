"""What the service manager is told: ready, alive, stopping."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

log = logging.getLogger("outbox.systemd")


class Notifier:
    """Speaks to the socket that systemd names in NOTIFY_SOCKET; where it names none, every call does nothing.

    While `alive` says so, the watchdog of the unit is fed at half its interval: a worker whose threads stand still is
    killed and started again. It never asks the database, so an outage kills nobody.
    """

    def __init__(self, alive: Callable[[], bool] = lambda: True) -> None:
        self._alive = alive
        self._address = os.environ.get("NOTIFY_SOCKET", "") if hasattr(socket, "AF_UNIX") else ""
        self._every = _watchdog_interval()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="outbox-watchdog", daemon=True)
        self._said_so = False

    def ready(self, status: str) -> None:
        """Started; `status` is shown by `systemctl status`."""
        self.tell("READY=1", f"STATUS={status}")
        if self._address and self._every is not None:
            self._thread.start()

    def stopping(self, status: str) -> None:
        """About to end."""
        self.tell("STOPPING=1", f"STATUS={status}")

    def close(self) -> None:
        """No more signs of life."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def tell(self, *lines: str) -> None:
        """One message; that it cannot be sent is said once and harms nothing."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        words = "\n".join(" ".join(line.splitlines()) for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.connect(address)
                channel.sendall(words.encode())
        except OSError as error:
            if not self._said_so:
                log.warning("cannot tell systemd (%s): %s", self._address, error)
            self._said_so = True

    def _feed(self) -> None:
        while True:
            if self._alive():
                self.tell("WATCHDOG=1")
            if self._stop.wait(self._every):
                return


def _watchdog_interval() -> float | None:
    """Seconds between two signs of life: half of what the unit's WatchdogSec allows. None when there is no watchdog for us."""
    told, whose = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not (told.isascii() and told.isdigit()) or int(told) == 0 or (whose and whose != str(os.getpid())):
        return None
    return int(told) / 2_000_000
