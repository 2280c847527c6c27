"""What every test may ask for: a database of its own on SQLite, on Postgres, or on each in turn.

One Postgres serves the whole run. A plain run starts it when the first test wants it; under xdist the controller starts
it in the background while the workers collect, and tells them its address. OUTBOX_TEST_PG_URL names another server.
Without any, those tests are skipped; where CI or OUTBOX_ALL_TOOLS is set, they fail instead.

`make test` leaves out what only a change that is about to land must pass (`make test-merge`): see `is_for_a_merge`.
OUTBOX_LONG=1 (`make test-all`) runs everything at full size: tests marked `full`, which nothing else runs; tests marked `long`
on both databases instead of on one of them in turn; and the numbers that `in_full` of factories.py gives (messages, followers,
points to be killed at) as large as they were promised.
"""

import asyncio
import contextlib
import gc
import inspect
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from outbox import migrate, secret
from outbox.database import Database
from tests.factories import in_full, wipe
from tests.planted import telling
from tests.postgres import NoBinariesError, Postgres, create_database, drop_database, wait_until_up

SERVER_URL = "OUTBOX_TEST_PG_URL"

settings.register_profile("outbox", deadline=None)  # a busy machine is no failure
settings.load_profile("outbox")


class SharedServer:
    """The one Postgres of a run, started at most once and stopped at its end."""

    def __init__(self) -> None:
        self._server: Postgres | None = None
        self._starting: threading.Thread | None = None

    def url(self) -> str:
        """The address of a server that is up. In an xdist worker, the controller's."""
        if SERVER_URL not in os.environ:
            self._server = Postgres()
            self._server.start()
            os.environ[SERVER_URL] = self._server.url
        url = os.environ[SERVER_URL]
        wait_until_up(url)
        return url

    def start_in_background(self) -> None:
        with contextlib.suppress(NoBinariesError):  # the tests that need it will say so
            self._server = Postgres()
            self._starting = threading.Thread(target=self._server.start, name="postgres")
            self._starting.start()
            os.environ[SERVER_URL] = self._server.url

    def stop(self) -> None:
        if self._starting is not None:
            self._starting.join()
        if self._server is not None:
            self._server.close()
            os.environ.pop(SERVER_URL, None)


SHARED = pytest.StashKey[SharedServer]()


def pytest_configure(config: pytest.Config) -> None:
    # Whoever runs us in the background ignores it, and what we start would, too: no Ctrl-C of a test would be heard.
    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    shared = config.stash[SHARED] = SharedServer()
    is_worker = hasattr(config, "workerinput")
    has_workers = config.getoption("dist", "no") != "no" and not is_worker
    needs_none = config.getoption("collectonly") or config.getoption("markexpr") == "not merge"
    if has_workers and SERVER_URL not in os.environ and not needs_none:
        shared.start_in_background()


def pytest_unconfigure(config: pytest.Config) -> None:
    if SHARED in config.stash:
        config.stash[SHARED].stop()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that awaits has an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**wanted))
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for several in terminalreporter.stats.values() for report in several]
    if planted := telling.recorded(reports):
        terminalreporter.section("planted faults")
        terminalreporter.write_line(telling.table(planted))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if {"postgres_url", "private_postgres"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("postgres")
        if is_for_a_merge(item):
            item.add_marker("merge")
    if in_full(0, 1):
        left_out = [item for item in items if not in_turn(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish() -> None:
    # What is here by now stays to the end: no collection of garbage need look at it again.
    gc.collect()
    gc.freeze()


def is_for_a_merge(item: pytest.Item) -> bool:
    """Whether `make test` leaves a test out: what takes long, what needs a Postgres, and the terminal's many processes."""
    if any(item.get_closest_marker(each) for each in ("merge", "full", "slow", "long", "postgres")):
        return True
    return Path(item.path).parent.name == "skins"


def in_turn(item: pytest.Item) -> bool:
    """Whether a test runs here. A long one does on one of the two databases, now this and now that; all do if asked."""
    if item.get_closest_marker("full") is not None:
        return False
    parameters = dict(getattr(getattr(item, "callspec", None), "params", {}))
    kind = parameters.pop("database_url", None)
    if kind is None or item.get_closest_marker("long") is None:
        return True
    others = item.nodeid.replace(str(kind), "")
    return kind == ("sqlite", "postgres")[zlib.crc32(others.encode()) % 2]


def missing(reason: str) -> NoReturn:
    """A tool is not here: skip on a laptop, fail where all tools were promised."""
    if os.environ.get("CI", "").lower() in {"1", "true"} or os.environ.get("OUTBOX_ALL_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _secrets_of_others_are_forgotten() -> Iterator[None]:
    """What one test had for a secret is an ordinary word in the next."""
    known = dict(secret._known), dict(secret._lasting), secret._forms
    yield
    secret._known, secret._lasting, secret._forms = known


@pytest.fixture(scope="session")
def postgres_server_url(pytestconfig: pytest.Config) -> str:
    """The shared server's own address, to make databases on."""
    try:
        return pytestconfig.stash[SHARED].url()
    except NoBinariesError as error:
        missing(str(error))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'outbox.db'}"


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """An empty Postgres database, dropped afterwards with whoever is still connected."""
    url = create_database(postgres_server_url)
    yield url
    drop_database(url)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all the tests of this process: copying it is faster than making another."""
    path = tmp_path_factory.mktemp("migrated") / "outbox.db"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database)
    database.close()
    return path


@pytest.fixture
def migrated_sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A migrated SQLite database without a row."""
    return f"sqlite:///{shutil.copy2(migrated_sqlite, tmp_path)}"


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server_url: str) -> Iterator[str]:
    """One for all the tests of this process: wiping it is faster than making another."""
    url = create_database(postgres_server_url)
    database = Database(url)
    migrate.upgrade(database)
    database.close()
    yield url
    drop_database(url)


@pytest.fixture
def migrated_postgres_url(migrated_postgres: str) -> Iterator[str]:
    """A migrated Postgres database without a row."""
    yield migrated_postgres
    wipe(migrated_postgres)


@pytest.fixture
def private_postgres() -> Iterator[Postgres]:
    """A server for this test alone, as durable as it comes: to be stopped, killed and started again."""
    try:
        server = Postgres(durable=True)
    except NoBinariesError as error:
        missing(str(error))
    with server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database: the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
