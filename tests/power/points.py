"""Points at which a program may be killed, numbered as it comes to them: before each statement that writes, each commit of
such, each file operation and each step of a request, and when all is done.

They are found from outside: the product knows nothing of them. Who dies at anything else, such as a read, the begin of a
transaction or a rollback, or right after one of the points, leaves the same behind as at the next point.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import sqlalchemy as sa

_STATEMENT = re.compile(r"\s*(\w+)(?:\s+.*?\b(outbox_\w+))?", re.DOTALL)
_READS = ("SELECT", "PRAGMA", "BEGIN")
#: Functions of `os` that change something on the disk; the first argument says where.
_OF_DISK = ("fsync", "rename", "replace", "link", "unlink", "mkdir", "write", "utime", "posix_fallocate")


class Points:
    """Counts the points from `arm` on; at the one that is wanted the process kills itself."""

    def __init__(self, places: Sequence[str], tell: Callable[[str], None], kill_at: int = 0) -> None:
        """`places`: what the paths begin with that matter."""
        self.labels: list[str] = []
        self._places = tuple(places)
        self._wrote = False
        self._tell = tell
        self._kill_at = kill_at
        self._armed = False

    def arm(self) -> None:
        """Watch from now on, whatever is used."""
        self._watch_files()
        self._watch_database()
        self._watch_requests()
        self._armed = True

    def disarm(self) -> None:
        """All is done; that is the last point."""
        self.reach("the end")
        self._armed = False

    def reach(self, label: str) -> None:
        if not self._armed:
            return
        self.labels.append(label)
        if len(self.labels) == self._kill_at:
            self._tell(label)
            os.kill(os.getpid(), signal.SIGKILL)

    def _before(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            self.reach(what)
            return function(*arguments, **named)

        return watched

    def _watch_files(self) -> None:
        for name in _OF_DISK:
            self._watch_file(name, getattr(os, name))
        opening = os.open

        def watched(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & os.O_CREAT and self._is_ours(path):
                self.reach("open")
            return opening(path, flags, *more, **named)

        os.open = watched  # type: ignore[assignment]

    def _watch_file(self, name: str, function: Callable[..., Any]) -> None:
        def watched(where: Any, *more: Any, **named: Any) -> Any:
            if self._is_ours(where):
                self.reach(name)
            return function(where, *more, **named)

        setattr(os, name, watched)

    def _is_ours(self, where: Any) -> bool:
        """Whether a path or descriptor matters."""
        path = Path(f"/proc/self/fd/{where}").readlink() if isinstance(where, int) else where
        return os.fspath(path).startswith(self._places)

    def _watch_database(self) -> None:
        def before(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            found = _STATEMENT.match(statement)
            if found is not None and found[1].upper() not in _READS:
                self._wrote = True
                self.reach(" ".join(filter(None, (found[1].upper(), found[2]))))

        def before_commit(_connection: Any) -> None:
            if self._wrote:
                self._wrote = False
                self.reach("COMMIT")

        sa.event.listen(sa.Engine, "before_cursor_execute", before)
        sa.event.listen(sa.Engine, "commit", before_commit)

    def _watch_requests(self) -> None:
        # Not each piece of the answer: in how many it comes is a matter of luck.
        socket.socket.connect = self._before("connect", socket.socket.connect)  # type: ignore[method-assign]
        socket.socket.sendall = self._before("send", socket.socket.sendall)  # type: ignore[method-assign]
        begin = self._before("answer", http.client.HTTPResponse.begin)
        http.client.HTTPResponse.begin = begin  # type: ignore[method-assign]
