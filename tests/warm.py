"""Processes that begin where their imports end: forked from one that has them all, each an ordinary child of ours.

Most of a second of every start is spent on imports, and the suite starts some five hundred programs. So one process, warm,
imports what they need and waits; `WarmPopen` asks it for a fork. The fork is handed to us as our own child (Linux lets a
process adopt its orphaned descendants), so that its exit, its signals and its pipes are those of any other child. Where that
does not work, or where a program must begin from nothing (another Python setting, its own command line in the list of
processes), it is started as usual.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import outbox

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36
#: What an interpreter reads before its first line of Python: a fork has that of the warm process.
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_")
#: Of these, what a fork can still be given.
GIVEN_LATER = frozenset({"PYTHONPATH", "PYTHONWARNINGS", "PYTHONIOENCODING"})
#: What the product imports only where it uses it.
USED_LATER = ("alembic.command", "rich.console", "rich.table", "rich.text", "rich_click.rich_help_rendering")
#: The same, where it is installed.
USED_IF_THERE = ("psycopg", "sqlalchemy.dialects.postgresql.psycopg")


class WarmPopen(subprocess.Popen[Any]):
    """As `subprocess.Popen` of `[sys.executable, "-m", module, *arguments]`, or of `-c program`."""

    def _execute_child(self, args: Any, *more: Any) -> None:
        (executable, preexec, _close, pass_fds, cwd, env, _info, _flags, shell, *ends) = more
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest = ends
        environment = dict(os.environ if env is None else env)
        new_session = rest[5]
        plain = executable is None and preexec is None and not shell and not pass_fds and not new_session
        if not plain or not _warmable(args, environment):
            super()._execute_child(args, *more)
            return
        request = {"argv": [os.fspath(each) for each in args[1:]], "env": environment, "cwd": os.fspath(cwd or Path.cwd())}
        given = (p2cread if p2cread != -1 else 0, c2pwrite if c2pwrite != -1 else 1, errwrite if errwrite != -1 else 2)
        self.pid = _server().fork(request, given)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def run(arguments: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.CompletedProcess[Any]:
    """As `subprocess.run`, from a warm start."""
    text, timeout, check = (options.pop(name, None) for name in ("input", "timeout", "check"))
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if text is not None:
        options["stdin"] = subprocess.PIPE
    with WarmPopen(arguments, **options) as process:
        try:
            output, errors = process.communicate(text, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    ended = subprocess.CompletedProcess(arguments, process.returncode, output, errors)
    if check:
        ended.check_returncode()
    return ended


def _warmable(args: Any, environment: Mapping[str, str]) -> bool:
    if sys.platform != "linux" or isinstance(args, str | bytes) or len(args) < 3:
        return False
    names = {name for name in {*environment, *os.environ} if name.startswith(READ_AT_START)} - GIVEN_LATER
    same = all(environment.get(name) == os.environ.get(name) for name in names)
    return args[0] == sys.executable and args[1] in ("-m", "-c") and same


class _Server:
    """The warm process, and the wire to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._wire, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        atexit.register(self.close)

    def fork(self, request: Mapping[str, Any], given: Sequence[int]) -> int:
        """The process id of a fork that does as asked, with these as its standard streams; it is our child."""
        body = json.dumps(request).encode("utf-8", "surrogateescape")
        with self._lock:
            _adopt(True)
            try:
                socket.send_fds(self._wire, [len(body).to_bytes(8)], list(given))
                self._wire.sendall(body)
                return int.from_bytes(_exactly(self._wire, 8))
            finally:
                _adopt(False)

    def close(self) -> None:
        if os.getpid() == self.owner:
            self._wire.close()
            self._process.wait()


def _adopt(wanted: bool) -> None:
    """Whether descendants that lose their parent become our children. Only while a fork is on its way: others stay orphans."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


_running: _Server | None = None
_starting = threading.Lock()


def _server() -> _Server:
    global _running  # noqa: PLW0603 (one for all the tests of a process)
    with _starting:
        if _running is None or _running.owner != os.getpid():
            _running = _Server()
        return _running


def _exactly(wire: socket.socket, size: int) -> bytes:
    gathered = b""
    while len(gathered) < size:
        block = wire.recv(size - len(gathered))
        if not block:
            raise EOFError("the warm process is gone")
        gathered += block
    return gathered


def _import_everything() -> None:
    for each in pkgutil.walk_packages(outbox.__path__, "outbox."):
        if not each.name.endswith("__main__"):
            importlib.import_module(each.name)
    for name in USED_LATER:
        importlib.import_module(name)
    for name in USED_IF_THERE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _serve(wire: socket.socket) -> dict[str, Any] | None:
    """Fork whenever asked. Returns in each fork, with what it is to be; in the warm process when nobody will ask again."""
    while True:
        head, rights, _, _ = socket.recv_fds(wire, 8, 3)
        if not head:
            return None
        request: dict[str, Any] = json.loads(_exactly(wire, int.from_bytes(head)).decode("utf-8", "surrogateescape"))
        between = os.fork()
        if between == 0:
            between = os.getpid()
            if os.fork():
                os._exit(0)  # now the fork is an orphan, and adopted by who asked
            while os.getppid() == between:
                time.sleep(0)
            wire.sendall(os.getpid().to_bytes(8))
            wire.close()
            return request | {"rights": rights}
        os.waitpid(between, 0)
        for each in rights:
            os.close(each)


def _become(argv: Sequence[str], env: Mapping[str, str], cwd: str, rights: Sequence[int]) -> None:
    """Run a program as an interpreter would that has just been started with these arguments."""
    for number, given in enumerate(rights):
        os.dup2(given, number)
        os.close(given)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    encoding, _, errors = env.get("PYTHONIOENCODING", "").partition(":")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        file = io.open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115, UP020
        at_once = number == 2 or file.isatty()
        how = (errors or None) if number < 2 else "backslashreplace"
        stream = io.TextIOWrapper(file, encoding=encoding or None, errors=how, line_buffering=at_once)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if "PYTHONWARNINGS" in env:
        sys.warnoptions[:] = env["PYTHONWARNINGS"].split(",")
        warnings._processoptions(sys.warnoptions)
    sys.path[0] = cwd if argv[0] == "-m" else ""
    sys.path[1:1] = [each for each in env.get("PYTHONPATH", "").split(os.pathsep) if each]
    try:
        if argv[0] == "-m":
            sys.argv = list(argv[1:])
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *argv[2:]]
            exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as asked:
        _end(asked.code)
    else:
        _end(None)


def _end(code: object) -> None:
    """End as an interpreter does, but leave standing what was imported: most programs would take longest to pull that down."""
    if isinstance(code, int | None):
        with contextlib.suppress(Exception):  # a pipe without a reader: that, Python says better
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            gc.collect()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
    sys.exit(code)  # type: ignore[arg-type]


if __name__ == "__main__":
    _import_everything()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for the tests; they end us
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        _become(**asked)
