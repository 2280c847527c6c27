"""What Windows has not is used nowhere but behind a question. Nobody of us has a Windows machine: see docs/windows.md."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from outbox.cli import group
from outbox.policy import STOP_GRACE

ROOT = Path(__file__).parents[2]

#: What a type checker for Windows misses, and the question that it does not understand.
ASKED_FOR = {
    ("outbox/ambient.py", "clock_gettime"): "only with CLOCK_BOOTTIME",
    ("outbox/bell.py", "fcntl"): "only on Linux",
    ("outbox/checkup/places.py", "geteuid"): "not with os.name 'nt'",
    ("outbox/intake.py", "O_CLOEXEC"): "only with O_PATH",
    ("outbox/intake.py", "O_DIRECTORY"): "only with O_PATH",
    ("outbox/intake.py", "O_NOFOLLOW"): "only with O_PATH",
    ("outbox/intake.py", "O_PATH"): "only with O_PATH",
    ("outbox/spool/directory.py", "POSIX_FADV_DONTNEED"): "only with posix_fadvise",
    ("outbox/spool/directory.py", "fchown"): "only with geteuid",
    ("outbox/systemd.py", "AF_UNIX"): "only with AF_UNIX",
    ("outbox/systemd.py", "SOCK_CLOEXEC"): "only with AF_UNIX",
}


def test_every_module_can_be_imported_where_all_that_is_gone() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.windows", "imports"], cwd=ROOT, capture_output=True, text=True)

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.merge
def test_what_a_type_checker_for_windows_misses_is_asked_for() -> None:
    options = ["--platform", "win32", "--no-incremental", "--cache-dir", "/dev/null", "--no-color-output"]
    done = subprocess.run([sys.executable, "-m", "mypy", *options], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode in (0, 1), done.stderr
    missed = re.findall(r'^(.+?):\d+: error: (?:Module has no attribute|Name) "(\w+)"', done.stdout, re.MULTILINE)
    assert ASKED_FOR.keys() == {(str(PurePosixPath(path)), name) for path, name in missed}


def test_no_folder_is_opened_and_no_platform_is_asked_for_anywhere_else() -> None:
    """What differs from system to system is in few files, where it can be looked through."""
    asking = re.compile(r"os\.name\b|sys\.platform\b|O_DIRECTORY")
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "outbox").rglob("*.py") if asking.search(path.read_text("utf-8"))}

    assert found == {
        "outbox/bell.py",
        "outbox/checkup/machine_looks.py",
        "outbox/checkup/places.py",
        "outbox/intake.py",
        "outbox/spool/directory.py",
        "outbox/testing/server.py",
    }


PAGE = (ROOT / "docs" / "windows.md").read_text("utf-8")


def test_every_command_of_the_page_is_one() -> None:
    spoken = re.findall(r'outbox\.exe (.+?)"?$', PAGE, re.MULTILINE)
    (in_xml,) = ET.fromstring(re.findall(r"^```xml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]).iter("arguments")
    commands = [*spoken, in_xml.text or "", *re.findall(r"`outbox (worker stop .+?)`", PAGE)]

    assert 6 == len(commands)
    for each in commands:
        done = CliRunner().invoke(group, [*shlex.split(each, posix=False), "--help"])
        assert 0 == done.exit_code, (each, done.output)


def test_a_service_manager_is_told_to_wait_for_longer_than_a_worker_takes() -> None:
    seconds = [int(re.findall(pattern, PAGE)[0]) for pattern in (r"AppStopMethodConsole (\d+)000", r"<stoptimeout>(\d+) sec")]

    assert f"({STOP_GRACE:.0f} s)" in PAGE
    assert all(each > STOP_GRACE for each in seconds)


def test_every_file_that_the_page_points_to_is_there() -> None:
    assert [] == [each for each in re.findall(r"\]\((?!http)(.+?)\)", PAGE) if not (ROOT / "docs" / each).exists()]
