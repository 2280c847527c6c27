"""The wheel, as a stranger gets it: built, looked into, installed alone, and used to deliver a message with a photo."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.factories import in_full

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

SETTINGS = """\
database = "sqlite:///outbox.db"
spool = "spool"

[destinations.enos]
type = "enos-events"
url = "http://127.0.0.1:{port}"
org_id = "o1"
allow_plain_http = true

[destinations.enos.token]
url = "http://127.0.0.1:{port}"
app_key = "app-key"
app_secret = "env:ENOS_APP_SECRET"
"""

PAYLOAD = {
    "assetId": "turbine-7",
    "time": 1579580182824,
    "events": {"crack": {"severity": 3, "photo": "local://photo"}},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("durable_outbox-*.whl")
    return built


@pytest.fixture(scope="module")
def outbox(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `outbox` command of an environment that holds the wheel, what it depends on, and nothing else."""
    environment = tmp_path_factory.mktemp("alone") / "venv"
    run(sys.executable, "-m", "venv", environment, *in_full((), ("--without-pip",)))
    commands = environment / ("Scripts" if os.name == "nt" else "bin")
    if in_full(True, False):
        run(commands / "python", "-m", "pip", "install", "-q", "--no-compile", "-c", ROOT / "constraints.txt", wheel)
        return commands / "outbox"
    # What it depends on is borrowed: a folder on the path brings its packages, and not the checkout that is installed there.
    borrowed = sysconfig.get_path("purelib")
    packages = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(packages) / "borrowed.pth").write_text(f"{borrowed}\n", "utf-8")
    pip = (sys.executable, "-m", "pip", "--python", commands / "python", "install", "-q", "--no-deps", "--no-compile")
    run(*pip, wheel)
    assert str(environment) in run(commands / "python", "-c", "import outbox; print(outbox.__file__)", cwd=environment)
    return commands / "outbox"


def test_the_wheel_holds_what_it_needs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {"outbox/__init__.py", "outbox/py.typed", "outbox/_migrations/env.py"} <= set(names)
    in_checkout = {file.name for file in (ROOT / "migrations" / "versions").glob("*.py")}
    assert in_checkout == {Path(name).name for name in names if name.startswith("outbox/_migrations/versions/")}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"outbox", "durable_outbox"}
    assert [name for name in names if "__pycache__" in name] == []


def test_an_installed_wheel_delivers(outbox: Path, tmp_path: Path) -> None:
    def command(*arguments: str | Path, text: str | None = None) -> str:
        return run(outbox, *arguments, cwd=tmp_path, text=text)

    photo = tmp_path / "photo.jpg"
    photo.write_bytes(os.urandom(100_000))

    command("init")
    assert "[destinations.enos" in (tmp_path / "outbox.toml").read_text()
    port = free_port()
    (tmp_path / "outbox.toml").write_text(SETTINGS.format(port=port))
    with running(outbox, "receiver", "--port", str(port), port=port, cwd=tmp_path):
        command("db", "upgrade")
        command("enqueue", "enos", "--payload", "-", "--file", f"photo={photo}", text=json.dumps(PAYLOAD))
        command("drain")
        listed = [json.loads(line) for line in command("list", "--json").splitlines()]

    assert [(message["destination"], message["state"]) for message in listed] == [("enos", "delivered")]


def test_a_host_applications_alembic_takes_the_installed_migrations_along(outbox: Path, tmp_path: Path) -> None:
    """By the name of their package, as docs/how-to/upgrade.md has it."""
    page = (ROOT / "docs" / "how-to" / "upgrade.md").read_text("utf-8")
    settings, env = (re.search(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) for kind in ("ini", "python"))
    assert settings is not None
    assert env is not None
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "env.py").write_text(env.group(1), "utf-8")
    (tmp_path / "alembic.ini").write_text(f"{settings.group(1)}sqlalchemy.url = sqlite:///outbox.db\n", "utf-8")

    run(outbox.with_name("python"), "-m", "alembic", "upgrade", "heads", cwd=tmp_path)

    (tmp_path / "outbox.toml").write_text(SETTINGS.format(port=1))
    assert "found outbox_" in run(outbox, "db", "status", cwd=tmp_path)


def run(*command: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    """Its standard output; a failure shows everything it said."""
    done = subprocess.run(
        command, cwd=cwd, input=text, capture_output=True, text=True, encoding="utf-8", env=environment(), timeout=300
    )
    said = f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    return done.stdout


@contextmanager
def running(*command: str | Path, port: int, cwd: Path) -> Iterator[None]:
    """A background process that listens on `port`, ended afterwards."""
    log = cwd / "receiver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, stdout=output, stderr=output, env=environment())
    try:
        wait_for(port, process, log)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"nothing listens on {port}\n{log.read_text(errors='replace')}"
            time.sleep(0.05)
        else:
            return


def environment() -> dict[str, str]:
    """Ours, without what would let the checkout in or change the settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "PYTHON"))}
    return kept | {"ENOS_APP_SECRET": "app-secret", "PYTHONUTF8": "1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
