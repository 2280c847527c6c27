"""S6, S15, S19 and S25 as they stand in the source: no unverified connection, no code in data, no library known to be bad.

What the wheel holds is in tests/meta/test_wheel.py, what is imported and not declared in tests/meta/test_dependencies.py.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import sqlalchemy as sa

from outbox import Outbox
from outbox.errors import ConfigurationError
from outbox.tables import audit
from tests import warm
from tests.factories import NOW
from tests.story.conftest import Place

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
Nodes = list[ast.AST]


@functools.cache
def sources() -> dict[Path, Nodes]:
    """Every node of every file of ours."""
    files = sorted((ROOT / "outbox").rglob("*.py"))
    return {path.relative_to(ROOT): list(ast.walk(ast.parse(path.read_text("utf-8")))) for path in files}


#: Modules that make code or objects out of bytes, and those that run other programs.
MAKERS = {
    "pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "yaml",
    "code",
    "codeop",
    "runpy",
    "ctypes",
}
RUNNERS = {"subprocess", "pty", "popen2", "commands", "multiprocessing"}
#: Where modules are imported by a name: our own list of commands, our own names, and what a person gives as --app.
BY_NAME = {Path(f"outbox/{each}.py") for each in ("__init__", "cli/__init__", "cli/named", "testing/__init__")}


def imports(nodes: Nodes) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def called(nodes: Nodes) -> Iterator[tuple[str, ast.Call]]:
    """What is called, by the last part of its name."""
    for node in nodes:
        if isinstance(node, ast.Call):
            yield getattr(node.func, "id", getattr(node.func, "attr", "")), node


def names(nodes: Nodes) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


# S19.


def test_nothing_makes_code_or_objects_out_of_what_is_kept() -> None:
    wanted = MAKERS | RUNNERS
    makers = {(str(path), name) for path, nodes in sources().items() for name in imports(nodes) if name in wanted}
    plain = {"eval", "exec", "compile", "__import__", "execfile"}
    run = {
        (str(path), name)
        for path, nodes in sources().items()
        for name, call in called(nodes)
        if name in plain and isinstance(call.func, ast.Name)
    }
    systems = {
        (str(path), name) for path, nodes in sources().items() for name in names(nodes) if name in {"system", "popen", "spawnv"}
    }

    demo = {("outbox/testing/demo.py", "subprocess")}  # it kills a worker, to show what happens then
    assert (demo, set(), set()) == (makers, run, systems)


def test_a_module_is_imported_by_name_only_where_a_person_or_we_said_which() -> None:
    assert {path for path, nodes in sources().items() if "import_module" in set(names(nodes))} == BY_NAME


#: Runs a producer and a worker with everything loaded beforehand, and tells what was unpickled, run or evaluated meanwhile.
LIFE = """
import sys
sys.path.insert(0, sys.argv[1])
from sqlalchemy import create_engine
from outbox import Outbox, EnosEvents, State, Worker, Selection, migrate, prepare
from outbox.testing import Receiver
heard, listening = [], []
def hook(event, args):
    if listening and event in ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
                               "ctypes.dlopen", "sqlite3.enable_load_extension", "sqlite3.load_extension"):
        heard.append((event, str(args)[:80]))
sys.addaudithook(hook)
with Receiver(check_token=False) as receiver:
    enos = EnosEvents(name="enos", url=receiver.url, org_id="o", allow_plain_http=True)
    outbox = Outbox("sqlite:///life.db", spool="spool", destinations=[enos])
    migrate.upgrade(outbox.database)
    engine = prepare(create_engine("sqlite:///life.db"))
    for once_more in (False, True):
        with engine.begin() as connection:
            words = ["cos\\nsystem\\n(S'true'\\ntR.", "!!python/object/apply:os.system", "__import__('os').system('true')"]
            struct = {"assetId": words[1], "time": 1579580182824, "events": {"e": {"p": "local://p", "x": words}}}
            outbox.enqueue(connection, "enos", struct, files={"p": b"\\x80\\x04cos\\nsystem\\n."}, key=f"k{once_more}")
        Worker(outbox, poll=0.05).run(until_idle=True)
        outbox.messages(), outbox.status(), outbox.explain("enos")
        outbox.replay(Selection(states=(State.DELIVERED,)), "ann")
        listening.append(True)
    print(len(receiver.accepted), heard)
"""


@pytest.mark.merge
def test_a_life_of_an_outbox_unpickles_nothing_and_runs_nothing(tmp_path: Path) -> None:
    run = warm.run([sys.executable, "-c", LIFE, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert (run.stdout, run.returncode) == ("3 []\n", 0), run.stderr


def test_a_row_that_names_a_class_is_inert(place: Place) -> None:
    """What is kept of an act, to go on with, is read as the selection that it is, or as nothing."""
    outbox: Outbox = place.outbox()
    for chosen in INERT:
        values = {
            "at": NOW,
            "actor": "ann",
            "action": "replay",
            "selection": "x",
            "messages": 0,
            "chosen": chosen,
            "position": 0,
        }
        with outbox.database.begin() as connection:
            number = connection.execute(sa.insert(audit).values(values).returning(audit.c.id)).scalar_one()

        with pytest.raises(ConfigurationError):
            outbox.go_on(number)


INERT = [
    '{"__reduce__": ["os.system", "true"]}',
    '{"states": ["os.system"]}',
    '{"text": {"py/object": "os.system"}, "since": {}}',
    '{"ids": ["os.system"]}',
    '{"limit": "os.system"}',
    '["os.system"]',
    "cos\nsystem\n(S'true'\ntR.",
    "__import__('os').system('true')",
    "{}",
    "[" * 5000,
]


# S6.


def test_no_connection_is_made_without_verification() -> None:
    words = {
        "CERT_NONE",
        "CERT_OPTIONAL",
        "_create_unverified_context",
        "disable_warnings",
        "TLSv1",
        "TLSv1_1",
        "SSLv3",
        "PROTOCOL_TLSv1",
    }
    said = {(str(path), name) for path, nodes in sources().items() for name in names(nodes) if name in words}
    loose = {
        (str(path), keyword.arg)
        for path, nodes in sources().items()
        for _, call in called(nodes)
        for keyword in call.keywords
        if keyword.arg in ("verify", "check_hostname", "assert_hostname", "cert_reqs", "verify_mode")
        and isinstance(keyword.value, ast.Constant)
        and not keyword.value.value
    }
    switched = {
        ast.unparse(node)
        for nodes in sources().values()
        for node in nodes
        if isinstance(node, ast.Assign)
        and re.search(r"\.(check_hostname|verify_mode|verify|trust_env)$", ast.unparse(node.targets[0]))
    }

    assert (set(), set(), set()) == (said, loose, switched)


def test_one_file_speaks_to_destinations() -> None:
    """Every request has the rules of one transport; a doctor looks with a HEAD, a demo and a receiver serve tests."""
    speakers = {path for path, nodes in sources().items() if {"requests", "urllib3", "httpx", "aiohttp"} & set(imports(nodes))}
    assert {Path("outbox/transport.py"), Path("outbox/multipart.py")} == speakers

    asking = {path for path, nodes in sources().items() if "HTTPSConnection" in set(names(nodes))}
    assert asking <= {Path("outbox/transport.py"), Path("outbox/checkup/network.py")}


# S15.


def test_no_statement_is_written_with_what_somebody_said() -> None:
    """A statement in words is a constant, or made of numbers and words of ours."""
    made = [
        (str(path), ast.unparse(call)[:80])
        for path, nodes in sources().items()
        for name, call in called(nodes)
        if name in ("text", "exec_driver_sql", "execute", "executescript", "literal_column")
        and call.args
        and isinstance(call.args[0], ast.JoinedStr | ast.BinOp)
    ]

    ours = re.compile(r"PRAGMA|'\{state\.value\}'")
    assert [] == [(path, words) for path, words in made if not ours.search(words)]


# S25.

FLOORS = {"requests": (2, 33), "urllib3": (2, 6, 3)}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", text))


@pytest.mark.parametrize("name", FLOORS)
def test_a_library_that_was_mended_is_wanted_as_mended(name: str) -> None:
    (need,) = (each for each in PROJECT["dependencies"] if re.match(rf"{name}\b", each))
    floor = re.search(r">=([\d.]+)", need)
    assert floor is not None
    assert numbers(floor[1]) >= FLOORS[name]
    assert re.search(r"<\d+", need), "and the next major version is not taken unseen"
    assert numbers(version(name)) >= FLOORS[name]


def test_what_is_tested_with_is_what_is_asked_for() -> None:
    pins = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    for need in PROJECT["dependencies"]:
        name = re.match(r"[\w.-]+", need)
        assert name is not None
        pinned = numbers(pins[name[0].lower()])
        low, high = re.search(r">=([\d.]+)", need), re.search(r"<([\d.]+)", need)
        assert low is not None
        assert pinned >= numbers(low[1])
        assert high is None or pinned < numbers(high[1])


def test_few_libraries_are_asked_for() -> None:
    assert len(PROJECT["dependencies"]) <= 12
