"""A process is killed at every point of everything that an outbox does, and its successor makes good each time."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from outbox import Outbox, migrate
from outbox.database import Database
from outbox.testing import Receiver
from tests import ledger
from tests.conftest import missing
from tests.factories import an_outbox, enos, in_full, real_clock
from tests.postgres import create_database, drop_database
from tests.power import Unavailable, tracing
from tests.power.operations import OPERATIONS
from tests.power.successor import settle
from tests.power.sweep import Forks, Sweep, forks
from tests.power.workloads import insert_into_the_first_schema

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks up descriptors in /proc")

#: Of these each system call is tried: one that commits for a producer, one that commits for a worker, and what it sends.
TRACED = ("enqueue a file", "deliver")
FIRST_SCHEMA = "outbox_0001"


@pytest.fixture(scope="session", name="forks")
def one_forks() -> Iterator[Forks]:
    with forks() as found:
        yield found


@pytest.fixture
def sweep(database_url: str, tmp_path: Path, receiver: Receiver, forks: Forks) -> Iterator[Sweep]:
    sweep = Sweep(database_url, tmp_path / "swept", receiver, forks)
    yield sweep
    sweep.close()


@pytest.fixture
def sqlite_sweep(sqlite_url: str, tmp_path: Path, receiver: Receiver, forks: Forks) -> Iterator[Sweep]:
    sweep = Sweep(sqlite_url, tmp_path / "swept", receiver, forks)
    yield sweep
    sweep.close()


def dice() -> random.Random:
    seed = int(os.environ.get("OUTBOX_TEST_SEED", random.randrange(10**6)))
    print(f"OUTBOX_TEST_SEED={seed}")
    return random.Random(seed)


def kill(sweep: Sweep, operation: str, at: int) -> str:
    """Kill it at that point, and see to it that all adds up afterwards; the point, or "" when it had come to its end."""
    ended = sweep.run(operation, at)
    assert ended.killed or ended.status == 0, f"{operation} ended with {ended.status} before point {at}: {ended.said}"
    faults = sweep.make_good(OPERATIONS[operation].passes)
    assert [] == faults, f"{operation}, killed at point {at} ({ended.killed_at})"
    return ended.killed_at


@pytest.mark.merge
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_process_that_is_killed_at_any_point_is_made_good(sweep: Sweep, operation: str) -> None:
    struck = []
    while "the end" not in struck:
        struck.append(kill(sweep, operation, at=len(struck) + 1))

    words = ", ".join(f"{point} {many}" for point, many in Counter(struck).items())
    print(f"{operation}: killed at each of its {len(struck)} points: {words}")
    assert "" not in struck
    assert len(struck) > 1 or (operation, sweep.outbox.database.kind) == ("keep room", "postgresql"), "nothing of it was struck"


def test_a_process_that_is_killed_at_some_point_is_made_good(sqlite_sweep: Sweep) -> None:
    """Of some operations one point each, by chance; for all of them on both databases: `make test-merge`."""
    chance = dice()
    for operation in chance.sample(list(OPERATIONS), 8):
        many = len(sqlite_sweep.run(operation).labels)
        at = chance.randint(1, many)
        print(f"{operation}: {kill(sqlite_sweep, operation, at)}, point {at} of {many}")


# At system calls


@pytest.fixture
def strace() -> None:
    try:
        tracing.strace()
    except Unavailable as error:
        missing(str(error))


def kill_at_call(sweep: Sweep, operation: str, call: str, number: int) -> None:
    ended = tracing.kill_at(sweep, operation, call, number)
    assert ended.killed, f"{operation} ended with {ended.status} before {call} number {number}: {ended.said}"
    faults = sweep.make_good(OPERATIONS[operation].passes)
    assert [] == faults, f"{operation}, killed at {call} number {number}"


@pytest.mark.merge
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("operation", TRACED)
def test_a_process_that_is_killed_at_any_system_call_is_made_good(sqlite_sweep: Sweep, tmp_path: Path, operation: str) -> None:
    """In full at each; in brief of the many that write a page only some."""
    found = tracing.calls(sqlite_sweep, operation, tmp_path)
    assert [] == sqlite_sweep.make_good(OPERATIONS[operation].passes)

    for call, many in found.items():
        for number in range(1, many + 1, in_full(1, max(1, many // 8))):
            kill_at_call(sqlite_sweep, operation, call, number)

    print(f"{operation}: {found.total()} system calls; {dict(found)}")
    assert {"pwrite64", "fdatasync"} <= set(found)


@pytest.mark.usefixtures("strace")
def test_a_process_that_is_killed_at_a_sync_or_a_rename_is_made_good(sqlite_sweep: Sweep) -> None:
    """Those that its promises hang on."""
    for call in ("fsync", "rename", "fdatasync"):
        kill_at_call(sqlite_sweep, "enqueue a file", call, 1)


# Upgrades


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], name="database_before")
def any_database_before(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any schema."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'before.db'}"
        return
    url = create_database(request.getfixturevalue("postgres_server_url"))
    yield url
    drop_database(url)


def at_first_schema(outbox: Outbox) -> dict[str, dict[str, str]]:
    """Bring a database to the first schema there was, with messages; what was promised of them."""
    with outbox.database.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, FIRST_SCHEMA)
    outbox.spool_store.prepare()
    contents = {f"m{number}": bytes([number]) * 1000 for number in range(5)}
    for key, content in contents.items():
        insert_into_the_first_schema(outbox, key, content)
    return {key: {"photo": hashlib.sha256(content).hexdigest()} for key, content in contents.items()}


def rows_of(database: Database) -> dict[str, list[str]]:
    """Every row of every table of ours."""
    with database.read() as connection:
        names = [name for name in sa.inspect(connection).get_table_names() if name.startswith("outbox_")]
        return {name: sorted(map(repr, connection.execute(sa.text(f"SELECT * FROM {name}")))) for name in names}


def kill_upgrade(outbox: Outbox, forks: Forks, at: int) -> str:
    """Kill an upgrade, of which nothing is there then, unless it had come to its end; the point, or nothing at its end."""
    before = rows_of(outbox.database)
    outbox.close()
    ended = forks.upgrade(outbox.database._url.render_as_string(hide_password=False), at)
    assert ended.killed or ended.status == 0, f"the upgrade ended with {ended.status}: {ended.said}"
    if not ended.killed or ended.killed_at == "the end":
        return ""
    assert before == rows_of(outbox.database), f"killed at point {at} ({ended.killed_at})"
    return ended.killed_at


def kill_upgrades(url: str, folder: Path, receiver: Receiver, forks: Forks, step: Callable[[], int], *, backlog: bool) -> None:
    """Kill an upgrade at one point after the other, until it comes to its end; then whatever there was is delivered."""
    clock = real_clock()
    outbox = an_outbox(url, folder / "spool", enos(receiver.url), ambient=clock.ambient)
    outbox.database.create()
    promised = at_first_schema(outbox) if backlog else {}

    at, struck = 1, Counter[str]()
    while point := kill_upgrade(outbox, forks, at):
        struck[point] += 1
        at += step()

    print(f"killed at {struck.total()} points, the last of them {at - 1}: {dict(struck)}")
    assert struck
    migrate.require_current(outbox.database)
    settle(outbox, clock)
    ledger.check(outbox.database, receiver.requests, promised)
    outbox.close()


@pytest.mark.merge
@pytest.mark.parametrize("backlog", [True, False], ids=["with a backlog", "from nothing"])
def test_an_upgrade_that_is_killed_at_any_statement_can_be_begun_again(
    database_before: str, tmp_path: Path, receiver: Receiver, forks: Forks, backlog: bool
) -> None:
    """At each; on Postgres, where there are twice as many and each takes longer, in brief at every fourth."""
    step = 1 if database_before.startswith("sqlite") else in_full(1, 4)
    kill_upgrades(database_before, tmp_path, receiver, forks, lambda: step, backlog=backlog)


def test_an_upgrade_that_is_killed_at_some_statement_can_be_begun_again(
    tmp_path: Path, receiver: Receiver, forks: Forks
) -> None:
    chance = dice()
    url = f"sqlite:///{tmp_path / 'before.db'}"
    kill_upgrades(url, tmp_path, receiver, forks, lambda: chance.randint(5, 15), backlog=True)
