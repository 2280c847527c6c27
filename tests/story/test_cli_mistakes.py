"""Mistakes at the terminal: a wrong file, a wrong setting, a database that is none. Each is told in a sentence that is true."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import Form, Outbox, Secret, Webhook, from_settings, migrate, settings
from outbox.errors import ConfigurationError
from tests import warm
from tests.commands import run_all
from tests.factories import an_outbox
from tests.postgres import create_database, drop_database
from tests.story.conftest import ROOT

FORM = '[destinations.f]\ntype = "form"\nurl = "https://x.example"\n'
HOOK = '[destinations.h]\ntype = "webhook"\nurl = "https://x.example"\n'
ENOS = '[destinations.enos]\ntype = "enos-events"\nurl = "https://x.example"\norg_id = "o"\n'
STARTS_NONE = (
    "nothing moves until it can be read: a worker that runs tries again by itself, or ends if the database is damaged, and "
    "none can be started; see: outbox doctor"
)
UNTIL_THERE_IS_ONE = (
    "nothing is enqueued or sent until there is one: no worker starts before that, and one that worked in it cannot go on; "
    "start it again then"
)
UNTIL_WHOLE = (
    "nothing moves until a whole one is there again: a worker that runs ends, and none can be started; see: outbox doctor"
)

pytestmark = pytest.mark.merge


class Shell:
    """A folder with settings and a database, and the `outbox` command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith("OUTBOX_")}
        self.environment = kept | {"PYTHONPATH": str(ROOT)}

    def write(self, text: str = "") -> Path:
        """Settings with a destination."""
        path = self.folder / "outbox.toml"
        path.write_text(f"{text}\n{ENOS}" if "[destinations" not in text else text)
        return path

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        run = warm.run(
            [sys.executable, "-m", "outbox", *arguments],
            cwd=self.folder,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in run.stderr, run.stderr
        return run

    def run_all(self, *commands: str, **more: str) -> list[subprocess.CompletedProcess[str]]:
        """Several commands one after the other in one process."""
        runs = run_all([each.split() for each in commands], self.folder, self.environment | more)
        assert not [run.stderr for run in runs if "Traceback" in run.stderr]
        return runs

    def through(self, line: str) -> subprocess.CompletedProcess[str]:
        """The same in a line of the shell."""
        words = line.replace("outbox", f"{sys.executable} -m outbox", 1)
        script = f"set -o pipefail; {words}"
        return subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """One that is well, and that nobody changes anything in: two messages wait in it."""
    shell = Shell(tmp_path_factory.mktemp("settled"))
    shell.write()
    outbox = an_outbox(f"sqlite:///{shell.folder / 'outbox.db'}", shell.folder / "spool")
    migrate.upgrade(outbox.database)
    for key in ("a", "b"):
        with outbox.database.begin() as connection:
            payload = {"assetId": "turbine-7", "time": 1, "events": {"crack": {"width": 1}}}
            outbox.enqueue(connection, "enos", payload, key=key)
    outbox.close()
    return shell


def nothing(_path: Path) -> None:
    pass


def damaged(path: Path) -> None:
    path.write_bytes(b"this is no database " * 500)


NO_DATABASE = "there is no database {}; if there was one, look first whether its disk is mounted; if there was none: outbox"

TROUBLES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "missing": (nothing, "schema", NO_DATABASE, UNTIL_THERE_IS_ONE),
    "empty": (Path.touch, "schema", "the database has no outbox schema yet; run: outbox db upgrade", UNTIL_THERE_IS_ONE),
    "damaged": (damaged, "database", "the database {} is damaged (file is not a database); nothing was replaced", UNTIL_WHOLE),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_is_wrong_with_a_database_is_explained_and_what_happens_next_is_so(shell: Shell, trouble: str) -> None:
    harm, code, sentence, next_ = TROUBLES[trouble]
    shell.write()
    harm(shell.folder / "outbox.db")

    told, started = shell.run_all("explain enos --json", "drain")

    cause = json.loads(told.stdout)
    assert (0, code, next_) == (told.returncode, cause["code"], cause["next"])
    assert cause["sentence"].startswith(sentence.format(shell.folder / "outbox.db"))
    assert started.returncode in (1, 5), "no worker starts"


def away(_url: str) -> str:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        return f"postgresql+psycopg://nobody:canary-5e1f@127.0.0.1:{nobody.getsockname()[1]}/none"


def wrong_password(url: str) -> str:
    return sa.make_url(url).set(password="canary-5e1f").render_as_string(hide_password=False)


def no_such_database(url: str) -> str:
    return sa.make_url(url).set(database="nowhere").render_as_string(hide_password=False)


NOT_FOR_US = {
    "away": (away, "Connection refused"),
    "wrong password": (wrong_password, "password authentication failed"),
    "no such database": (no_such_database, 'database "nowhere" does not exist'),
}


@pytest.mark.postgres
@pytest.mark.parametrize("trouble", NOT_FOR_US)
def test_a_server_that_does_not_let_us_in_is_told_in_its_own_words(shell: Shell, postgres_url: str, trouble: str) -> None:
    turned, words = NOT_FOR_US[trouble]
    shell.write()
    url = turned(postgres_url)

    explained, looked, started = shell.run_all("explain enos", "list", "drain", OUTBOX_DATABASE=url)

    assert (0, 1, 1) == (explained.returncode, looked.returncode, started.returncode)
    assert STARTS_NONE in " ".join(explained.stdout.split())
    assert looked.stderr.startswith("outbox: the database cannot be used: ")
    for said in (explained.stdout, looked.stderr, started.stderr):
        assert words in said
        assert not [each for each in ("canary", "psycopg.", "Background", "sqlalche") if each in said], said


@pytest.mark.postgres
def test_a_server_that_is_away_is_not_said_to_be_damaged(shell: Shell, postgres_url: str) -> None:
    shell.write()
    url = away(postgres_url)

    commands = ("verify", "db upgrade", "check", "doctor --offline --json")
    verify, upgrade, check, doctor = shell.run_all(*commands, OUTBOX_DATABASE=url)

    assert (1, 1, 3, 1) == tuple(run.returncode for run in (verify, upgrade, check, doctor))
    assert "problem  the database cannot be read: connection failed" in verify.stdout
    assert "damaged" not in verify.stdout
    assert upgrade.stderr.startswith("outbox: the database cannot be used: connection failed")
    first = json.loads(doctor.stdout.splitlines()[0])
    assert first["text"].startswith("the database cannot be read: connection failed")
    assert "its user and its password" in first["remedy"]


@pytest.mark.postgres
def test_a_pool_that_others_have_drained_is_told_without_what_is_for_programmers(tmp_path: Path, postgres_url: str) -> None:
    engine = sa.create_engine(postgres_url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    outbox = Outbox(engine, spool=tmp_path / "spool", destinations=[])
    with engine.connect():
        (cause,) = outbox.explain("enos")
    engine.dispose()

    assert cause.sentence.startswith("the database cannot be read: QueuePool limit of size 1 overflow 0 reached")
    assert "Background" not in cause.sentence


@pytest.mark.postgres
def test_a_server_without_our_schema_is_explained_and_looked_at(shell: Shell, postgres_server_url: str) -> None:
    shell.write()
    url = create_database(postgres_server_url)
    try:
        told, doctor = shell.run_all("explain enos --json", "doctor --offline --json", OUTBOX_DATABASE=url)
    finally:
        drop_database(url)

    cause = json.loads(told.stdout)
    found = {each["check"]: each for each in map(json.loads, doctor.stdout.splitlines())}
    assert ("schema", UNTIL_THERE_IS_ONE) == (cause["code"], cause["next"])
    assert "run: outbox db upgrade" == found["schema"]["remedy"]
    assert {"clock", "power", "checksums"} <= found.keys(), "these ask for no table"
    assert "cannot be looked at" not in doctor.stdout


def test_a_directory_in_the_place_of_the_database_is_said_to_be_one(shell: Shell) -> None:
    shell.write()
    folder = shell.folder / "outbox.db"
    folder.mkdir()
    sentence = f"the database {folder} is a directory; name the file of the database itself"

    *refused, check, doctor = shell.run_all(
        "status", "explain enos", "verify", "drain", "db upgrade", "check", "doctor --offline"
    )
    for run in refused:
        assert (2, "", f"outbox: {sentence}\n") == (run.returncode, run.stdout, run.stderr), run.args

    assert (3, f"OUTBOX UNKNOWN - {sentence}\n") == (check.returncode, check.stdout)
    assert 1 == doctor.returncode
    assert f"problem  database: {folder} is a directory\n         → name the file of the database itself" in doctor.stdout


def test_a_folder_of_the_database_that_is_a_file_is_said_to_be_none(shell: Shell) -> None:
    shell.write()

    run = shell.run("status", OUTBOX_DATABASE="sqlite:///outbox.toml/outbox.db")

    path = shell.folder / "outbox.toml" / "outbox.db"
    assert (2, f"outbox: cannot look at the database {path}: Not a directory\n") == (run.returncode, run.stderr)


def test_a_statement_that_fails_is_told_without_the_names_of_classes(shell: Shell) -> None:
    shell.write()
    outbox = an_outbox(f"sqlite:///{shell.folder / 'outbox.db'}", shell.folder / "spool")
    migrate.upgrade(outbox.database)
    with outbox.database.begin() as connection:
        connection.execute(sa.text("DROP TABLE outbox_worker"))
    outbox.close()

    run = shell.run("workers")

    assert (1, "outbox: the database cannot be used: no such table: outbox_worker\n") == (run.returncode, run.stderr)


def test_a_settings_file_that_is_no_text_is_said_to_be_none(shell: Shell) -> None:
    (shell.folder / "outbox.toml").write_bytes(b'spool = "spool"\ndatabase = "sqlite:///caf\xe9.db"\n')

    run = shell.run("status")

    assert (2, "outbox: outbox.toml is not UTF-8 (byte 0xe9 in line 2); save it as that\n") == (run.returncode, run.stderr)


@pytest.mark.parametrize("how", ["option", "variable", "default"])
def test_a_settings_file_that_is_a_directory_is_said_to_be_one(shell: Shell, how: str) -> None:
    (shell.folder / "outbox.toml").mkdir()

    match how:
        case "option":
            run = shell.run("--config", "outbox.toml", "status")
        case "variable":
            run = shell.run("status", OUTBOX_CONFIG="outbox.toml")
        case _:
            run = shell.run("status")

    assert 2 == run.returncode
    assert "the settings file outbox.toml is a directory; say which file in it, such as outbox.toml/outbox.toml" in run.stderr


@pytest.mark.parametrize("command", ["status", "worker"])
def test_no_settings_at_all_is_told_with_where_they_were_looked_for(shell: Shell, command: str) -> None:
    run = shell.run(command)

    assert (2, "") == (run.returncode, run.stdout)
    assert f"there is no settings file; looked for {shell.folder / 'outbox.toml'}; " in run.stderr
    assert all(way in run.stderr for way in ("outbox init", "--config", "--app"))


def test_the_environment_may_say_everything_instead(shell: Shell, settled: Shell) -> None:
    run = shell.run("list", OUTBOX_DATABASE=f"sqlite:///{settled.folder / 'outbox.db'}")

    assert (0, "") == (run.returncode, run.stderr)


def test_a_settings_file_that_is_not_there_is_told_with_the_folder_and_what_writes_one(shell: Shell) -> None:
    run = shell.run("--config", "edge.toml", "status")

    sentence = f"there is no settings file edge.toml in {shell.folder}; write one with: outbox --config edge.toml init"
    assert (2, f"outbox: {sentence}\n") == (run.returncode, run.stderr)


def test_wrong_settings_from_the_environment_alone_say_that_there_is_no_file(shell: Shell) -> None:
    run = shell.run("status", OUTBOX_DESTINATIONS__ENOS__URL="https://x.example")

    assert 2 == run.returncode
    assert f"(OUTBOX_...; there is no {shell.folder / 'outbox.toml'})" in run.stderr
    assert "destinations.enos.type: is missing" in run.stderr


WRONG = {
    "worker.gone_after: expected seconds, more than 0 and at most 86,400, got nan": "[worker]\ngone_after = nan",
    "worker.gone_after: expected seconds, more than 0 and at most 86,400, got inf": "[worker]\ngone_after = inf",
    "worker.gone_after: expected seconds, more than 0 and at most 86,400, got -1": "[worker]\ngone_after = -1",
    "worker.gone_after: expected seconds, more than 0 and at most 86,400, got 0": "[worker]\ngone_after = 0",
    "worker.gone_after: expected a number of seconds, got true": "[worker]\ngone_after = true",
    "worker.gone_after: expected a number, got 'soon'": '[worker]\ngone_after = "soon"',
    "worker.stop_grace: expected seconds, from 0 to 86,400, got nan": "[worker]\nstop_grace = nan",
    "worker.poll: expected seconds, more than 0 and at most 86,400, got -0.5": "[worker]\npoll = -0.5",
    "worker: expected a table of settings, got 5": "worker = 5",
    "retention: expected dead to be at least 1 h, got 0 s: what was given up would be deleted": '[retention]\ndead = "0s"',
    "retention: expected delivered to be at most 36,500 days": '[retention]\ndelivered = "99999999d"',
    'retention.dead: expected a time such as "12h", "7d" or "forever", got 0': "[retention]\ndead = 0",
    'retention.dead: expected a time such as "12h", "7d" or "forever", got \'-1d\'': '[retention]\ndead = "-1d"',
    'quota: expected a size such as "20 GiB", or a number of bytes, got True': "quota = true",
    "quota: expected a size such as 500 MB, 20 GiB or a number of bytes, got 'lots'": 'quota = "lots"',
    "quota: expected a size of at least 1 byte, got -5; for no limit but the disk leave it out": "quota = -5",
    "reserve: expected a size, from 0 bytes on, got -1": "reserve = -1",
    "roots: expected a list, got text": 'roots = "/data"',
    "roots.0: expected text, got 1": "roots = [1]",
    "durability: expected 'warn', 'strict' or 'ignore', got 'no'": 'durability = "no"',
    "retentoin: there is no such setting; known: database, database_password, destinations, durability, nudge, quota, "
    "reserve, retention, roots, spool, worker": "[retentoin]",
    "worker.pol: there is no such setting; known: gone_after, http, poll, stop_grace": "[worker]\npol = 1",
    "destinations.fax.type: expected 'enos-events', 'enos-measurepoints', 'enos-attributes', 'form' or 'webhook', got 'fax'; "
    "destinations.fax.url: is missing": '[destinations.fax]\ntype = "fax"\norg_id = "o"',
    "destinations.enos.allow_plain_http: expected true or false, got 'perhaps'": f'{ENOS}allow_plain_http = "perhaps"',
    "destinations.enos.max_file_bytes: expected a whole number, got 1.5": f"{ENOS}max_file_bytes = 1.5",
    "destinations.enos.token: expected a table of settings, got text": f'{ENOS}token = "canary-5e1f"',
    "destinations.enos.token.secret: there is no such setting; known: app_key, app_secret, url": (
        f'{ENOS}[destinations.enos.token]\nurl = "u"\napp_key = "k"\napp_secret = "env:X"\nsecret = "canary-5e1f"'
    ),
    "destinations.enos.token.app_secret: env: names nothing; expected where the secret is, env:NAME or file:PATH": (
        f'{ENOS}[destinations.enos.token]\nurl = "https://x"\napp_key = "k"\napp_secret = "env:"'
    ),
    "destinations.enos.token.url: 'http://x' would send data and token in the clear; use https://, or say "
    "allow_plain_http = true in [destinations.enos]": (
        f'{ENOS}[destinations.enos.token]\nurl = "http://x"\napp_key = "k"\napp_secret = "env:X"'
    ),
    "destinations.enos: expected org_id to be the organisation's id, got ''": ENOS.replace('"o"', '""'),
    "destinations.enos.policy.senders: expected a whole number, got 'many'": f'{ENOS}policy = {{senders = "many"}}',
    "destinations.enos.policy.on_dead: expected 'block' or 'skip', got 'x'": f'{ENOS}policy = {{on_dead = "x"}}',
    "destinations.enos.policy.backoff_schedule: expected a list, got 3": f"{ENOS}policy = {{backoff_schedule = 3}}",
    "destinations.enos.secrets: there is no such setting; known: allow_plain_http, allowed_networks, max_file_bytes, "
    "max_message_bytes, org_id, policy, public_only, realtime, route, token, type, url": f'{ENOS}secrets = ["env:X"]',
    "destinations.f.url: is missing; destinations.f.org_id: there is no such setting; known: accept_html, allow_plain_http, "
    "allowed_networks, fields, files, headers, key_header, max_file_bytes, policy, public_only, route, token, type, url": (
        '[destinations.f]\ntype = "form"\norg_id = "o"'
    ),
    "destinations.f.fields.a: expected text, got 1": f"{FORM}fields = {{a = 1}}",
    "destinations.f: fields.a: expected a path in the payload such as meta.note?, got 'x..y'": f'{FORM}fields = {{a = "x..y"}}',
    'destinations.f: Authorization is no plain header; say secret = "env:NAME" in [destinations.f.token] instead': (
        f'{FORM}headers = {{Authorization = "canary-5e1f"}}'
    ),
    "destinations.f: 'http://x' would send data and token in the clear; use https://, or say allow_plain_http = true in "
    "[destinations.f]": '[destinations.f]\ntype = "form"\nurl = "http://x"',
    "destinations.f.token.secret: expected where the secret is, env:NAME or file:PATH, not the secret itself": (
        f'{FORM}token = {{secret = "canary-5e1f"}}'
    ),
    "destinations.f.token.app_key: there is no such setting; known: header, scheme, secret": (
        f'{FORM}token = {{secret = "env:X", app_key = "k"}}'
    ),
    "destinations.f.token: the header 'X Key' holds what is not printable ASCII": (
        f'{FORM}token = {{secret = "env:X", header = "X Key"}}'
    ),
    "destinations.h.secrets.1: expected where the secret is, env:NAME or file:PATH, not the secret itself": (
        f'{HOOK}secrets = ["env:X", "whsec_canary-5e1f"]'
    ),
    "destinations.h.secrets: expected a list, got text": f'{HOOK}secrets = "env:X"',
    "destinations.h.format: expected 'auto', 'json' or 'multipart', got 'xml'": f'{HOOK}format = "xml"',
}


def test_a_program_has_the_outbox_of_a_settings_file(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE", "sqlite:///its-own.db")
    file = shell.write(FORM)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    outbox = from_settings(file)

    assert (file.parent / "its-own.db", ["f"]) == (outbox.database.path, list(outbox.destinations))


def test_forms_and_webhooks_are_declared_in_settings(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_DESTINATIONS__H__EVENT_FIELD", "data")
    file = shell.write(
        f'{FORM}fields = {{device = "assetId"}}\nfiles = {{picture = "photo"}}\nkey_header = ""\nheaders = {{X-Site = "n"}}\n'
        'token = {secret = "env:X", header = "X-Key", scheme = ""}\naccept_html = true\nmax_file_bytes = 10\n'
        f'{HOOK}secrets = ["env:X", "file:old"]\nformat = "multipart"\npolicy = {{senders = 2}}\n'
    )

    outbox = settings.build(*settings.load(file))

    form, hook = (outbox.destinations[name] for name in ("f", "h"))
    outbox.close()
    assert isinstance(form, Form)
    assert isinstance(hook, Webhook)
    assert ({"device": "assetId"}, {"picture": "photo"}, None, {"X-Site": "n"}, True, 10) == (
        form.fields,
        form.files,
        form.key_header,
        form.headers,
        form.accept_html,
        form.max_file_bytes,
    )
    assert "StaticToken(Secret(environment variable X), header='X-Key', scheme='')" == repr(form.token)
    assert ("data", "multipart", 2, 1) == (hook.event_field, hook.format, hook.policy.senders, hook.policy.batch_messages)
    assert ["environment variable X", f"file {shell.folder / 'old'}"] == [
        each.source for each in hook.secrets if isinstance(each, Secret)
    ]


def test_the_commented_examples_of_init_are_understood(shell: Shell) -> None:
    _, _, examples = settings.TEMPLATE.partition("# Any other upload form")
    lines = [line.removeprefix("# ") for line in examples.partition("[worker]")[0].splitlines()]
    file = shell.write("\n".join(line for line in lines if re.match(r"\[|\w+ = ", line)))

    outbox = settings.build(*settings.load(file))

    outbox.close()
    assert ["archive", "hook"] == sorted(outbox.destinations)


@pytest.mark.parametrize("sentence", WRONG, ids=[f"{number} {each.partition(':')[0]}" for number, each in enumerate(WRONG)])
def test_a_wrong_setting_is_told_by_its_name_with_what_was_expected_and_what_was_got(shell: Shell, sentence: str) -> None:
    file = shell.write(WRONG[sentence])

    with pytest.raises(ConfigurationError) as refused:
        settings.build(*settings.load(file))

    assert sentence in str(refused.value)
    assert not [word for word in ("canary", "Input should", "Value error", "Field required") if word in str(refused.value)]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("OUTBOX_WORKER__POLL", "fast", "OUTBOX_WORKER__POLL: expected a number, got 'fast'"),
        ("OUTBOX_DESTINATIONS__ENOS__URL", "x", "destinations.enos: expected a URL that begins with https:// and names a host"),
        ("OUTBOX_ROOTS", "/data", "OUTBOX_ROOTS: expected JSON, a list or an object, got text that is none"),
        ("OUTBOX_DESTINATIONS__ENOS", "canary-5e1f", "OUTBOX_DESTINATIONS__ENOS: expected a table of settings, got text"),
        ("OUTBOX_DESTINATIONS__ENOS__POLICY__RATE", "fast", "OUTBOX_DESTINATIONS__ENOS__POLICY__RATE: expected a number"),
    ],
)
def test_a_wrong_variable_is_told_by_its_own_name(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    file = shell.write()
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError) as refused:
        settings.build(*settings.load(file))

    assert sentence in str(refused.value)
    assert "canary" not in str(refused.value)


def test_a_variable_that_nothing_reads_is_told_unless_a_secret_is_in_it(shell: Shell, settled: Shell) -> None:
    shell.write(f'{ENOS}[destinations.enos.token]\nurl = "https://x"\napp_key = "k"\napp_secret = "env:OUTBOX_SPOOLS"')
    database = f"sqlite:///{settled.folder / 'outbox.db'}"

    run = shell.run("list", OUTBOX_SPOL="x", OUTBOX_SPOOLS="canary-5e1f", OUTBOX_DATABASE=database)

    told = "outbox: nothing reads the variable OUTBOX_SPOL; did you mean OUTBOX_SPOOL?\n"
    assert (0, told) == (run.returncode, run.stderr)


def test_the_terminal_tells_a_wrong_setting_like_any_other_mistake(shell: Shell) -> None:
    shell.write("[worker]\ngone_after = nan")

    run = shell.run("worker")

    assert (2, "") == (run.returncode, run.stdout)
    assert "worker.gone_after: expected seconds, more than 0 and at most 86,400, got nan" in run.stderr


@pytest.mark.parametrize("command", ["list", "status --json", "--help"])
def test_output_that_cannot_be_written_is_a_sentence_and_a_failure(settled: Shell, command: str) -> None:
    run = settled.through(f"outbox {command} > /dev/full")

    assert (1, "outbox: cannot write the output: No space left on device\n") == (run.returncode, run.stderr)


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_reader_that_has_had_enough_is_not_told_of_it(settled: Shell, command: str) -> None:
    run = settled.through(f"outbox {command} | true")

    assert (1, "") == (run.returncode, run.stderr)


@pytest.mark.parametrize("command", ["list", "status", "doctor --offline"])
def test_output_that_nobody_wants_is_not_written(settled: Shell, command: str) -> None:
    run = settled.through(f"outbox {command} >&-")

    assert "" == run.stderr


@pytest.mark.parametrize(("command", "words"), [("list", "no message matches"), ("deliveries", "no upload matches")])
def test_that_nothing_matches_is_said_beside_the_output(settled: Shell, command: str, words: str) -> None:
    run = settled.run(command, "--until", "30d")

    assert (3, "", f"{words}\n") == (run.returncode, run.stdout, run.stderr)


def program(shell: Shell, text: str) -> None:
    (shell.folder / "shop.py").write_text(text)


def test_a_program_that_brings_its_outbox_does_not_pay_for_reading_settings(settled: Shell) -> None:
    program(settled, "from outbox import Outbox\nbox = Outbox('sqlite:///outbox.db', spool='spool', destinations=[])\n")

    for command in ("status", "explain a", "list"):
        run = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "outbox", "--app", "shop:box", *command.split()],
            cwd=settled.folder,
            env=settled.environment,
            capture_output=True,
            text=True,
        )
        assert 0 == run.returncode, run.stderr
        assert "sqlalchemy" in run.stderr
        assert "pydantic" not in run.stderr, command


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("shop", "expected module:attribute, such as shop.outbox:outbox, got 'shop'"),
        (".shop:box", "expected module:attribute, such as shop.outbox:outbox, got '.shop:box'"),
        ("shop:bax", "shop has no 'bax'; expected the name of an Outbox in it"),
        ("shop:number", "shop:number is not an Outbox but int"),
    ],
)
def test_a_name_that_is_no_outbox_is_told(shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str) -> None:
    from outbox.cli.named import from_app

    program(shell, "number = 7\n")
    monkeypatch.chdir(shell.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)

    with pytest.raises(ConfigurationError) as refused:
        from_app(name)

    assert sentence == str(refused.value)


def test_an_app_is_the_outbox_that_it_names(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from outbox.cli.named import from_app

    program(shell, "from outbox import Outbox\nbox = Outbox('sqlite:///x.db', spool='spool', destinations=[])\n")
    monkeypatch.chdir(shell.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)

    assert isinstance(from_app("shop:box"), Outbox)
