"""The worker as a service in the operator's hands, and a whole run in which no secret is to be found."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from outbox.database import Database
from outbox.tables import metadata
from outbox.testing import Answer, Receiver, Status
from tests import warm
from tests.commands import run_all
from tests.story.conftest import eventually

KEY, SECRET = "canary-key-41f9", 'canary"secret/7f+3a9c'
#: Known to the worker, and never sent to anybody.
UNUSED = "canary-of-the-careless"
EVENT = {"assetId": "turbine-7", "time": 1579580182824, "events": {"crack": {"severity": 3, "photo": "local://photo"}}}


class Shell:
    """A folder, an environment and the `outbox` command, whose every word is kept."""

    def __init__(self, folder: Path, receiver: Receiver, **environment: str) -> None:
        self.folder = folder
        self.said: list[str] = []
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
        self.environment = kept | {
            "OUTBOX_DESTINATIONS__ENOS__URL": receiver.url,
            "OUTBOX_DESTINATIONS__ENOS__TOKEN__URL": receiver.token_url,
            "OUTBOX_DESTINATIONS__ENOS__ALLOW_PLAIN_HTTP": "true",
            "ENOS_APP_KEY": KEY,
            "ENOS_APP_SECRET": SECRET,
            **environment,
        }
        (folder / "photo.jpg").write_bytes(b"a picture")

    def run(self, *arguments: str, stdin: str = "", code: int | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        run = warm.run(
            [sys.executable, "-m", "outbox", *arguments],
            cwd=self.folder,
            env=self.environment | more,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.said += [run.stdout, run.stderr]
        assert code is None or code == run.returncode, run.stderr
        return run

    def run_all(self, *commands: tuple[str, ...]) -> list[int]:
        """Several commands in one process; their exit codes."""
        runs = run_all(commands, self.folder, self.environment)
        self.said += [text for run in runs for text in (run.stdout, run.stderr)]
        return [run.returncode for run in runs]

    def enqueue(self, destination: str = "enos", key: str = "k") -> None:
        more = ("--payload", "-", "--file", "photo=photo.jpg", "--key", key)
        self.run("enqueue", destination, *more, stdin=json.dumps(EVENT), code=0)

    def worker(self, *arguments: str, before: tuple[str, ...] = ()) -> Working:
        return Working(self, [*before, "worker", *arguments])


class Working:
    """A worker in a process of its own, with pages to look at."""

    def __init__(self, shell: Shell, arguments: list[str]) -> None:
        self._shell = shell
        self._log = shell.folder / "worker.log"
        with self._log.open("wb") as log:
            self.process = warm.WarmPopen(
                [sys.executable, "-m", "outbox", *arguments],
                cwd=shell.folder,
                env=shell.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.url = ""

    def __enter__(self) -> Working:
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines()]

    def page(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return answer.read().decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(app_key=KEY, app_secret=SECRET) as receiver:
        yield receiver


@pytest.fixture
def shell(initialized: Path, tmp_path: Path, receiver: Receiver) -> Shell:
    return Shell(shutil.copytree(initialized, tmp_path, dirs_exist_ok=True), receiver)


def test_a_worker_has_pages_and_ends_when_it_is_told_through_the_database(shell: Shell, receiver: Receiver) -> None:
    shell.enqueue()
    with shell.worker("--http", "127.0.0.1:0", "--log-format", "json", "--gone-after", "1.5") as worker:
        receiver.wait_for(lambda seen: len(seen.accepted) == 1, 30)
        live, ready = (json.loads(worker.page(path)) for path in ("/livez", "/readyz"))
        families = {each.name for each in text_string_to_metric_families(worker.page("/metrics"))}

        stopped = shell.run("worker", "stop", live["worker"], "--wait", "--by", "ada", code=0)

        assert 0 == worker.process.wait(20)
    assert (True, True) == (live["live"], ready["ready"])
    assert {"outbox_database_up", "outbox_deliveries", "outbox_messages_due"} <= families
    assert f"{live['worker']}\n" == stopped.stdout
    said = [line["text"] for line in worker.lines]
    assert f"probes and metrics are at {worker.url}" in said
    assert f"worker {live['worker']} was asked to stop, through the database" in said
    assert f"worker {live['worker']} has stopped" == said[-1]


def test_asking_nobody_to_stop_is_said_with_exit_code_3(shell: Shell) -> None:
    unknown = shell.run("worker", "stop", "nobody", "--json", code=3)
    none = shell.run("worker", "stop", "--all", code=3)
    unclear = shell.run("worker", "stop", code=2)

    assert {"asked": [], "unknown": ["nobody"], "silent": []} == json.loads(unknown.stdout)
    assert "no worker nobody is alive; `outbox workers` lists those that are" in unknown.stderr
    assert "no worker is alive" in none.stderr
    assert "by id, or --all" in " ".join(unclear.stderr.replace("│", " ").split())


def test_what_a_worker_cannot_have_is_said_in_a_sentence_before_it_begins(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        busy = shell.run("worker", OUTBOX_WORKER__HTTP=address)
    wrong = shell.run("worker", "--http", "9464")
    without = shell.run("worker", "--tracing", PYTHONPATH=_without("opentelemetry", shell.folder))

    assert [2, 2, 2] == [run.returncode for run in (busy, wrong, without)], without.stderr
    assert f"outbox: cannot listen on {address}: Address already in use; choose another address for --http\n" == busy.stderr
    assert "such as 127.0.0.1:9464" in wrong.stderr
    assert "pip install 'durable-outbox[otel]'" in without.stderr
    (status,) = (json.loads(line) for line in shell.run("status", "--json").stdout.splitlines())
    assert 0 == status["workers"]


def _without(package: str, folder: Path) -> str:
    """A path on which that package cannot be imported."""
    (folder / "hidden" / package).mkdir(parents=True)
    (folder / "hidden" / package / "__init__.py").write_text(f"raise ImportError('no {package} here')")
    return str(folder / "hidden")


# A whole run with a secret in every place


SHOP = """
import os
from outbox import EnosEvents, Outbox, Token

class Careless(EnosEvents):
    def encode(self, batch):
        raise RuntimeError("cannot sign with " + {unused!r})

def made(kind, name, secret):
    token = Token({url!r}, {key!r}, secret, allow_plain_http=True)
    return kind(name=name, url={url!r}, org_id="o1", allow_plain_http=True, token=token)

both = [made(EnosEvents, "enos", {secret!r}), made(Careless, "careless", {unused!r})]
box = Outbox(os.environ["SHOP_DATABASE"], spool="spool", destinations=both)
"""


class Run:
    """One way to configure an outbox: what its secrets are, and everything that was written anywhere."""

    def __init__(
        self, shell: Shell, receiver: Receiver, database: str, app: tuple[str, ...] = (), password: str | None = None
    ) -> None:
        self.shell, self.receiver, self.database, self.app, self.password = shell, receiver, database, app, password
        self.seen_by_ps = ""

    def whole(self) -> Working:
        """From an empty database to a delivered message, with everything going wrong on the way that may give a secret away."""
        shell, receiver, token = self.shell, self.receiver, self.receiver.issue_token()
        echo = f"you are {KEY} with {SECRET} and {token}" + (f" at {self.password}" if self.password else "")
        receiver.misbehave_for_tokens(Status(500, body=echo))
        receiver.misbehave(
            Answer(99500, echo),
            Status(302, headers={"Location": f"http://login.example/{token}/{KEY}?ticket={token}"}),
            Status(500, body=echo),
        )
        self.run("enqueue", "enos", "--payload", "-", "--file", "photo=photo.jpg", "--key", "k", stdin=json.dumps(EVENT))
        options = ("--http", "127.0.0.1:0", "--log-format", "json", "--log-level", "debug", "--gone-after", "1.5")
        with shell.worker(*options, before=self.app) as worker:
            receiver.wait_for(lambda seen: len(seen.accepted) == 1, 40)
            if self.app:
                self.run("enqueue", "careless", "--payload", "-", "--file", "photo=photo.jpg", stdin=json.dumps(EVENT))
                eventually(lambda: "cannot encode" in worker.log)
            self.seen_by_ps = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
            shell.said += [worker.page(path) for path in ("/livez", "/readyz", "/metrics")]
            self.run("worker", "stop", "--all", "--wait")
            worker.process.wait(20)
        assert token in {request.headers["apim-accesstoken"] for request in receiver.requests}, "the secret was never used"
        assert 4 == len([request for request in receiver.requests if request.structs])
        return worker

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.shell.run(*self.app, *arguments, stdin=stdin)

    def everything(self, worker: Working) -> Mapping[str, str]:
        """All that was said and kept, by where."""
        rows = _rows(self.database)  # first: whoever closes a database takes its helpers' files away
        kept = [path for path in self.shell.folder.rglob("*") if path.is_file() and path.name not in LET_OUT]
        return {
            "logs": worker.log,
            "the terminal": "".join(self.shell.said),
            "ps": self.seen_by_ps,
            "rows": rows,
            "files": "".join(path.read_bytes().decode("latin-1") for path in kept if "__pycache__" not in path.parts),
        }


#: Where the secrets were put by us.
LET_OUT = {"secret.txt", "shop.py"}


def _rows(url: str) -> str:
    database = Database(url)
    with database.read() as connection:
        rows = [str(tuple(row)) for table in metadata.sorted_tables for row in connection.execute(sa.select(table))]
    database.close()
    return "\n".join(rows)


def leaks(everything: Mapping[str, str], secrets: list[str]) -> dict[str, list[str]]:
    """Where which of them is to be found, in any of the forms that text takes."""
    return {
        where: found
        for where, text in everything.items()
        if (found := [each for each in secrets for form in (each, json.dumps(each)[1:-1], repr(each)[1:-1]) if form in text])
    }


@pytest.mark.slow
def test_a_whole_run_leaves_no_secret_of_the_settings_anywhere(shell: Shell, receiver: Receiver) -> None:
    run = Run(shell, receiver, f"sqlite:///{shell.folder}/outbox.db")

    worker = run.whole()
    codes = shell.run_all(*LOOKING)

    everything = run.everything(worker)
    assert {} == leaks(everything, [KEY, SECRET, *tokens_of(receiver)])
    assert [0] * 6 == codes[:6]
    assert min(everything[where].count("***") for where in ("logs", "the terminal", "rows")) > 0, "nothing was echoed"
    assert {"debug", "info", "warning"} <= {line["level"] for line in worker.lines}
    outcomes = [line["outcome"] for line in worker.lines if line.get("message_key") == "k"]
    assert ["retry"] * 3 + ["delivered"] == outcomes[-4:]


@pytest.mark.slow
@pytest.mark.postgres
def test_nor_does_one_with_secrets_in_files_and_a_password_in_the_address(
    tmp_path: Path, receiver: Receiver, postgres_url: str
) -> None:
    password = sa.make_url(postgres_url).password
    assert password is not None
    (tmp_path / "secret.txt").write_text(f"{SECRET}\n")
    place = {"OUTBOX_DATABASE": postgres_url, "OUTBOX_DESTINATIONS__ENOS__TOKEN__APP_SECRET": "file:secret.txt"}
    shell = Shell(tmp_path, receiver, **place)
    del shell.environment["ENOS_APP_SECRET"]
    shell.run("init", code=0)
    run = Run(shell, receiver, postgres_url, password=str(password))

    worker = run.whole()
    shell.run_all(("show", "k", "--json"), ("status",), ("doctor",))
    away = shell.run("status", OUTBOX_DATABASE=postgres_url.replace(password, f"{password}x"))

    everything = run.everything(worker)
    assert {} == leaks(everything, [KEY, SECRET, str(password), *tokens_of(receiver)])
    assert "***" in everything["logs"]
    assert 1 == away.returncode  # with another password there is no way in: this one is what was used


@pytest.mark.full
def test_nor_does_an_app_with_literals_and_a_bug_that_speaks_of_them(tmp_path: Path, receiver: Receiver) -> None:
    database = f"sqlite:///{tmp_path}/shop.db"
    shell = Shell(tmp_path, receiver, SHOP_DATABASE=database, PYTHONDONTWRITEBYTECODE="1")
    shop = SHOP.format(url=receiver.url, key=KEY, secret=SECRET, unused=UNUSED)
    (tmp_path / "shop.py").write_text(shop)
    run = Run(shell, receiver, database, ("--app", "shop:box"))
    run.run("db", "upgrade")

    worker = run.whole()
    looking = (("show", "k"), ("show", "k", "--curl"), ("list", "--destination", "careless"), ("explain", "careless"))
    shell.run_all(*((*run.app, *command) for command in looking))
    (tmp_path / "shop.py").write_text(f"{shop}\nraise RuntimeError('the shop broke with ' + {SECRET!r})\n")
    broken = run.run("status")

    everything = run.everything(worker)
    assert {} == leaks(everything, [KEY, SECRET, UNUSED, *tokens_of(receiver)])
    (failed,) = {line["exception"].splitlines()[-1] for line in worker.lines if "cannot encode" in line["text"]}
    assert "RuntimeError: cannot sign with ***" == failed
    assert (1, "RuntimeError: the shop broke with ***") == (broken.returncode, broken.stderr.splitlines()[-1])


def tokens_of(receiver: Receiver) -> list[str]:
    """Every token that a worker sent."""
    found = sorted({request.headers["apim-accesstoken"] for request in receiver.requests})
    assert found
    return found


LOOKING = (
    ("show", "k"),
    ("show", "k", "--json"),
    ("status",),
    ("show", "k", "--curl"),
    ("list",),
    ("deliveries", "--json"),
    ("workers",),
    ("audit",),
    ("explain", "k"),
    ("doctor",),
)
