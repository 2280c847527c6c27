"""A process like one on Windows, as far as another system can be one: what that has not is gone, and open files are held fast.

    python -m tests.windows imports          import every module of ours
    python -m tests.windows life FOLDER      a life from the first message to the last file, in that folder
    python -m tests.windows stop FOLDER      a worker that is told to end with Ctrl-Break

What remains as it is: the kernel, paths, and libraries that are not ours, which are loaded before.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import json
import os
import pkgutil
import re
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

#: Modules of the standard library that Windows has not.
MODULES = {"crypt", "curses", "fcntl", "grp", "nis", "pty", "pwd", "readline", "resource", "spwd", "syslog", "termios", "tty"}

#: Names that it has not, of modules that it has.
NAMES: dict[ModuleType, str] = {
    os: """
        chown chroot confstr copy_file_range ctermid eventfd fchmod fchown fdatasync fork forkpty fpathconf fstatvfs getegid
        geteuid getgid getgrouplist getgroups getloadavg getpgid getpgrp getpriority getresgid getresuid getsid getuid getxattr
        initgroups killpg lchown listxattr lockf major makedev memfd_create minor mkfifo mknod nice openpty pathconf pipe2
        posix_fadvise posix_fallocate posix_openpt posix_spawn posix_spawnp pread preadv pwrite pwritev readv register_at_fork
        removexattr sched_getaffinity sched_getparam sched_setaffinity sched_yield sendfile setegid seteuid setgid setgroups
        setpgid setpriority setregid setresgid setresuid setreuid setsid setuid setxattr splice statvfs sync tcgetpgrp tcsetpgrp
        ttyname uname wait wait3 wait4 waitid writev
        O_ACCMODE O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_LARGEFILE O_NDELAY O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK
        O_PATH O_RSYNC O_SYNC O_TMPFILE POSIX_FADV_DONTNEED POSIX_FADV_SEQUENTIAL WNOHANG EX_OK
    """,
    signal: """
        alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigtimedwait sigwait sigwaitinfo
        SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGPOLL SIGPROF SIGQUIT SIGSTOP SIGTSTP SIGTTIN SIGTTOU
        SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH SIG_BLOCK SIG_SETMASK SIG_UNBLOCK
    """,
    socket: "AF_UNIX MSG_DONTWAIT MSG_NOSIGNAL SOCK_CLOEXEC SOCK_NONBLOCK SO_REUSEPORT TCP_CORK TCP_USER_TIMEOUT socketpair",
    time: "CLOCK_BOOTTIME CLOCK_MONOTONIC CLOCK_REALTIME clock_getres clock_gettime clock_settime pthread_getcpuclockid tzset",
    select: "epoll poll",
}

#: What a name of a file must not be there, or begin with before a dot.
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]$|^(?:CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(?:\.|$)', re.IGNORECASE)

#: Where a file is open, and Windows says so with this number.
IN_USE = 32


def become() -> None:
    """Be like one on Windows from now on, and load our modules anew."""
    names = [each.name for each in pkgutil.walk_packages([str(Path(__file__).parents[1] / "outbox")], "outbox.")]
    names = [each for each in names if not each.endswith("__main__")]
    for each in names:
        importlib.import_module(each)  # and with it the libraries that are not ours
    for each in [each for each in sys.modules if each.partition(".")[0] == "outbox"]:
        del sys.modules[each]
    _take_away()
    for each in names:
        importlib.import_module(each)


def _take_away() -> None:
    shutil.disk_usage = _disk_usage_by(os.statvfs)  # which asks the system in its own way there
    signal.SIGBREAK = signal.SIGUSR2  # type: ignore[attr-defined]  # it has one more, for Ctrl-Break
    for module, listed in NAMES.items():
        for name in listed.split():
            if hasattr(module, name):
                delattr(module, name)
    os.supports_dir_fd.clear()
    os.supports_follow_symlinks.discard(os.utime)
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Missing())
    sys.platform = "win32"


def _disk_usage_by(statvfs: Callable[[Any], os.statvfs_result]) -> Callable[[Any], Any]:
    def disk_usage(path: Any) -> SimpleNamespace:
        told = statvfs(path)
        total, free = told.f_blocks * told.f_frsize, told.f_bavail * told.f_frsize
        return SimpleNamespace(total=total, used=total - free, free=free)

    return disk_usage


class _Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname in MODULES:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def hold_open_files_fast() -> None:
    """No name is taken from a file that this process has open."""

    def guarded(act: Callable[..., Any]) -> Callable[..., Any]:
        def may_refuse(path: Any, *more: Any, **named: Any) -> Any:
            if os.path.realpath(path) in _open_here() or (
                act.__name__ == "replace" and os.path.realpath(more[0]) in _open_here()
            ):
                error = PermissionError(13, "The process cannot access the file because it is being used", str(path))
                error.winerror = IN_USE  # type: ignore[attr-defined]
                raise error
            return act(path, *more, **named)

        return may_refuse

    for name in ("remove", "unlink", "rename", "replace"):
        setattr(os, name, guarded(getattr(os, name)))


def _open_here() -> set[str]:
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it is closed by now
            found.add(str(each.readlink()))
    return found


def note_names(folder: Path) -> set[str]:
    """The names of all files and folders that are opened, made or named in a folder from now on."""
    seen: set[str] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.link", "sqlite3.connect"):
            for each in arguments[:2]:
                if isinstance(each, str | os.PathLike) and os.fspath(each).startswith(str(folder)):
                    seen.update(Path(os.fspath(each)).relative_to(folder).parts)

    sys.addaudithook(note)
    return seen


def live(folder: Path) -> dict[str, Any]:
    """A life from the first message to the last file; what was seen in it."""
    become()
    hold_open_files_fast()
    names = note_names(folder)
    from datetime import timedelta

    import sqlalchemy as sa
    from click.testing import CliRunner

    from outbox import EnosEvents, File, Outbox, Retention, Selection, Worker, cli, migrate, prepare
    from outbox.model import State
    from outbox.testing import Receiver

    (folder / "photo one.jpg").write_bytes(b"a photo")
    url = f"sqlite:///{folder / 'out box.db'}"
    with Receiver(check_token=False, ledger=folder / "ledger.jsonl", keep_files=folder / "kept") as receiver:
        enos = EnosEvents(name="enos", url=receiver.url, org_id="o", allow_plain_http=True)
        outbox = Outbox(
            url, spool=folder / "spool", destinations=[enos], roots=[folder], retention=Retention(free_after=timedelta(0))
        )
        migrate.upgrade(outbox.database)
        engine = prepare(sa.create_engine(url))
        struct = {"assetId": "a", "time": 1579580182824, "events": {"crack": {"photo": File(folder / "photo one.jpg")}}}
        with engine.begin() as connection:
            first = outbox.enqueue(connection, "enos", struct, key="k")
            again = outbox.enqueue(connection, "enos", struct, key="k")
        ahead = outbox.spool(b"never sent")
        Worker(outbox).run(until_idle=True)
        spool, held = outbox.spool_store, {}
        (sent,) = (each for each in (folder / "spool").glob("??/*") if each.name != ahead.name)
        with sent.open("rb"):  # by a virus scanner, say
            held["freed"] = outbox.free_files()
            outbox.sweep(timedelta(0))
            held["kept"] = [sent.exists()]
        with spool.open(ahead.name):
            spool.park(ahead.name)
            spool.delete(ahead.name)
            held["kept"].append((folder / "spool" / ahead.name[-2:] / ahead.name).exists())
        spool.delete(ahead.name)
        outbox.sweep(timedelta(0))
        left = [each.name for each in (folder / "spool").glob("*/*")]
        purged = outbox.purge(Selection(states=(State.DELIVERED,)), by="a test")
        os.environ |= {
            "OUTBOX_DATABASE": url,
            "OUTBOX_SPOOL": str(folder / "spool"),
            "OUTBOX_DESTINATIONS__ENOS__TYPE": "enos-events",
            "OUTBOX_DESTINATIONS__ENOS__URL": receiver.url,
            "OUTBOX_DESTINATIONS__ENOS__ORG_ID": "o",
            "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
        }
        commands = {
            " ".join(words): CliRunner().invoke(cli.group, words)
            for words in (["status"], ["list"], ["doctor"], ["verify"], ["workers"], ["drain"])
        }
        outbox.close()
        engine.dispose()
        return {
            "again": [first.id == again.id, again.new],
            "delivered": [each.struct["assetId"] for each in receiver.accepted],
            "sizes": [each.size for accepted in receiver.accepted for each in accepted.files.values()],
            "held": held,
            "left": left,
            "purged": purged,
            "commands": {name: done.exit_code for name, done in commands.items()},
            "names": sorted(names),
        }


def stop(folder: Path) -> dict[str, Any]:
    """A worker that hears Ctrl-Break."""
    become()
    import threading

    from outbox import EnosEvents, Outbox, migrate
    from outbox.service import Service

    enos = EnosEvents(name="enos", url="https://a.example", org_id="o")
    outbox = Outbox(f"sqlite:///{folder / 'outbox.db'}", spool=folder / "spool", destinations=[enos])
    migrate.upgrade(outbox.database)
    os.environ["NOTIFY_SOCKET"] = str(folder / "socket")  # whoever set it: there is nobody to speak to
    service = Service(outbox)
    worker = service.worker

    class Started(threading.Thread):
        def run(self) -> None:
            while not worker.id:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGBREAK)  # type: ignore[attr-defined]

    Started(daemon=True).start()
    service.run()
    return {"ended": True}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["imports"]:
            become()
            print("{}")
        case ["life", place]:
            print(json.dumps(live(Path(place))))
        case ["stop", place]:
            print(json.dumps(stop(Path(place))))
