"""A host application's own Alembic takes our migrations along: composed into its history, or called from a migration of its."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import alembic.config
import pytest
import sqlalchemy as sa

from outbox import SchemaError, migrate
from outbox.checkup.database_looks import DatabaseLooks
from outbox.checkup.findings import Level
from outbox.checkup.verify import Verification
from outbox.database import Database
from outbox.errors import ConfigurationError
from outbox.worker import Worker
from tests import warm
from tests.factories import an_outbox, enos, event
from tests.meta.test_migrations import differences, metadata, schema

ROOT = Path(__file__).parents[2]

#: As `alembic init` writes it, with a naming convention of the host's.
ENV = """
import sqlalchemy as sa
from alembic import context
from outbox.migrate import include_object

metadata = sa.MetaData(naming_convention={"ck": "host_ck_%(table_name)s_%(constraint_name)s", "pk": "host_pk_%(table_name)s"})
for name in context.config.get_main_option("tables").split():
    sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True))

if context.is_offline_mode():
    context.configure(url=context.config.get_main_option("sqlalchemy.url"), target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = sa.engine_from_config(context.config.get_section("alembic"), prefix="sqlalchemy.", poolclass=sa.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, include_object=include_object)
        with context.begin_transaction():
            context.run_migrations()
"""

REVISION = """
import sqlalchemy as sa
from alembic import op
from outbox import migrate

revision = "{name}"
down_revision = {after!r}
depends_on = {depends_on!r}


def upgrade():
    {up}


def downgrade():
    {down}
"""
ORDERS = ('op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))', 'op.drop_table("orders")')
INVOICES = ('op.create_table("invoices", sa.Column("id", sa.Integer, primary_key=True))', 'op.drop_table("invoices")')


class Host:
    """An application with its own migrations in the same database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder / "host"
        self.url = url
        (self.folder / "migrations" / "versions").mkdir(parents=True)
        (self.folder / "migrations" / "env.py").write_text(ENV)
        (self.folder / "migrations" / "script.py.mako").write_text("")
        self.options: list[str] = []
        self.revision("host_1", None, *ORDERS)

    def compose(self) -> None:
        """Take our migrations into its history."""
        here = "version_locations = %(here)s/migrations/versions"
        self.options = ["path_separator = newline", here, f"    {migrate.versions()}"]
        self.configure()

    def configure(self) -> None:
        made = (self.folder / "migrations" / "versions").glob("*.py")
        tables = "orders invoices" if any("invoices" in each.read_text() for each in made) else "orders"
        address = self.url.replace("%", "%%")
        lines = ["[alembic]", "script_location = %(here)s/migrations", f"sqlalchemy.url = {address}", f"tables = {tables}"]
        (self.folder / "alembic.ini").write_text("\n".join([*lines, *self.options, ""]))

    def revision(self, name: str, after: str | None, up: str, down: str, depends_on: str | None = None) -> None:
        text = REVISION.format(name=name, after=after, up=up, down=down, depends_on=depends_on)
        (self.folder / "migrations" / "versions" / f"{name}.py").write_text(text)
        self.configure()

    def alembic(self, *command: str) -> None:
        """The command, run in this process. Raises what stops it, and SystemExit where `check` finds a difference."""
        alembic.config.main(["-c", str(self.folder / "alembic.ini"), *command], prog="alembic")

    def tables(self) -> set[str]:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        return set(sa.inspect(engine).get_table_names())

    def versions(self, table: str = "alembic_version") -> set[str]:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return set(connection.execute(sa.text(f"SELECT version_num FROM {table}")).scalars())


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.create()
    yield database
    database.close()


@pytest.fixture
def host(database: Database, database_url: str, tmp_path: Path) -> Host:
    return Host(tmp_path, database_url)


def outbox(host: Host, *command: str) -> tuple[int, str]:
    run = warm.run(
        [sys.executable, "-m", "outbox", *command],
        cwd=host.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OUTBOX_DATABASE": host.url, "OUTBOX_SPOOL": str(host.folder / "spool")},
        capture_output=True,
        text=True,
    )
    return run.returncode, run.stdout + run.stderr


def standing(database: Database) -> migrate.Standing:
    with database.read() as connection:
        return migrate.standing(connection)


def test_a_terminal_of_the_hosts_runs_them_too(host: Host, database: Database) -> None:
    host.compose()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    run = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "heads"], cwd=host.folder, env=environment, capture_output=True
    )

    assert 0 == run.returncode, run.stderr
    migrate.require_current(database)


# Composed: one history with two heads


def test_composed_they_are_a_second_head_of_the_hosts_history(host: Host, database: Database) -> None:
    host.compose()

    host.alembic("upgrade", "heads")

    assert {"host_1", migrate.newest()} == host.versions()
    assert migrate.VERSION_TABLE not in host.tables()
    assert [] == differences(database)
    migrate.require_current(database)
    host.alembic("check")


def test_composed_they_make_the_same_schema_as_by_themselves(host: Host, database: Database) -> None:
    """Whatever names the host's constraints have."""
    host.compose()
    host.alembic("upgrade", "outbox@head")
    composed = schema(database)

    host.alembic("downgrade", "outbox@base")
    host.alembic("downgrade", "base")
    with database.begin() as connection:
        connection.execute(sa.text("DROP TABLE alembic_version"))
    migrate.upgrade(database)
    alone = schema(database)

    alone.pop(migrate.VERSION_TABLE)
    assert alone == composed


def test_an_older_schema_in_the_hosts_history_is_the_hosts_to_upgrade(host: Host, database: Database) -> None:
    host.compose()
    host.alembic("upgrade", "outbox_0003")
    before = schema(database)

    with pytest.raises(SchemaError, match=r"is outbox_0003 \(by the table alembic_version\).*run: alembic upgrade heads"):
        migrate.require_current(database)
    with pytest.raises(SchemaError, match="alembic upgrade heads"):
        migrate.upgrade(database)
    code, words = outbox(host, "db", "upgrade")
    with pytest.raises(SchemaError, match="part of the history in alembic_version"), database.begin() as connection:
        migrate.up(connection)

    printed, _ = outbox(host, "db", "upgrade", "--sql")

    assert (5, 5, True) == (code, printed, "alembic upgrade heads" in words), words
    assert before == schema(database)
    assert migrate.VERSION_TABLE not in host.tables()


def test_with_the_newest_schema_in_the_hosts_history_there_is_nothing_to_do(host: Host, database: Database) -> None:
    host.compose()
    host.alembic("upgrade", "heads")

    assert (migrate.newest(), migrate.newest()) == migrate.upgrade(database)
    code, words = outbox(host, "db", "upgrade")
    assert (0, f"nothing to do: {migrate.newest()}") == (code, words.strip())
    assert 0 == outbox(host, "db", "status")[0]
    assert migrate.VERSION_TABLE not in host.tables()


def test_what_looks_after_a_database_has_nothing_against_the_hosts_history(host: Host, database: Database) -> None:
    host.compose()
    host.alembic("upgrade", "heads")
    outbox = an_outbox(host.url, host.folder / "spool", enos())

    assert [] == list(Verification(outbox).run())
    assert [(Level.OK, f"the schema is {migrate.newest()}, as this code needs")] == [
        (each.level, each.text) for each in DatabaseLooks(outbox).schema()
    ]
    Worker(outbox).run(until_idle=True)
    outbox.close()


def test_what_looks_after_a_database_names_the_hosts_remedy(host: Host, database: Database) -> None:
    host.compose()
    host.alembic("upgrade", "outbox_0003")
    outbox = an_outbox(host.url, host.folder / "spool", enos())

    with pytest.raises(SchemaError, match="alembic upgrade heads"):
        list(Verification(outbox).run())
    with pytest.raises(SchemaError, match="alembic upgrade heads"):
        Worker(outbox).start()
    (finding,) = DatabaseLooks(outbox).schema()
    assert (Level.PROBLEM, True) == (finding.level, "alembic upgrade heads" in str(finding.remedy))
    (cause,) = outbox.explain("enos")
    assert "alembic upgrade heads" in f"{cause.sentence} {cause.next}"
    outbox.close()


def test_a_newer_schema_in_the_hosts_history_is_refused(host: Host, database: Database) -> None:
    host.compose()
    host.alembic("upgrade", "heads")
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'outbox_9999' WHERE version_num LIKE 'outbox%'"))

    with pytest.raises(SchemaError, match="newer than this code"):
        migrate.require_current(database)


def test_a_host_that_does_not_know_of_us_is_no_history_of_ours(host: Host, database: Database) -> None:
    host.alembic("upgrade", "head")

    with pytest.raises(SchemaError, match="no outbox schema yet; run: outbox db upgrade"):
        migrate.require_current(database)


def test_a_revision_of_the_hosts_may_depend_on_one_of_ours(host: Host, database: Database) -> None:
    """Then it stands for ours in the table of versions, where ours is no head any more."""
    host.compose()
    host.revision("host_2", "host_1", *INVOICES, depends_on="outbox_0003")
    host.alembic("upgrade", "host_2")
    older = standing(database)

    host.alembic("upgrade", "outbox@head")
    newest = standing(database)
    host.revision("host_3", "host_2", "pass", "pass", depends_on=migrate.newest())
    host.alembic("upgrade", "heads")

    assert older.is_a_hosts
    assert older.revision is not None
    assert older.revision < migrate.newest() == newest.revision
    assert {"host_3"} == host.versions()
    assert migrate.Standing(migrate.newest(), "alembic_version") == standing(database)


def test_down_from_the_hosts_history_and_up_again(host: Host, database: Database) -> None:
    host.compose()
    host.alembic("upgrade", "heads")
    before = schema(database)

    host.alembic("downgrade", "outbox@base")
    nothing = host.tables() & set(metadata.tables)
    host.alembic("upgrade", "heads")

    assert set() == nothing
    assert before == schema(database)


def test_a_table_of_versions_with_a_name_of_the_hosts_is_found(host: Host, database: Database) -> None:
    host.compose()
    env = host.folder / "migrations" / "env.py"
    env.write_text(
        ENV.replace("include_object=include_object", "include_object=include_object, version_table='shop_alembic_version'")
    )
    host.alembic("upgrade", "heads")

    assert migrate.Standing(migrate.newest(), "shop_alembic_version") == standing(database)


# Called from a migration of the host's


UP = ('migrate.up(op.get_bind(), to="outbox_0003"); ' + INVOICES[0], INVOICES[1] + '; migrate.down(op.get_bind(), to="base")')


def test_called_from_a_migration_the_hosts_own_steps_go_on_afterwards(host: Host, database: Database) -> None:
    host.revision("host_2", "host_1", *UP)

    host.alembic("upgrade", "head")

    assert "invoices" in host.tables()
    assert ({"host_2"}, {"outbox_0003"}) == (host.versions(), host.versions(migrate.VERSION_TABLE))
    assert migrate.Standing("outbox_0003", migrate.VERSION_TABLE) == standing(database)
    host.alembic("check")


def test_called_step_by_step_they_make_the_same_schema_as_by_themselves(host: Host, database: Database) -> None:
    host.revision("host_2", "host_1", *UP)
    newest = ("migrate.up(op.get_bind())", 'migrate.down(op.get_bind(), to="outbox_0003")')
    host.revision("host_3", "host_2", *newest)
    host.alembic("upgrade", "head")
    called = schema(database)
    migrate.require_current(database)
    host.alembic("check")

    host.alembic("downgrade", "host_1")
    nothing = host.tables() & {*metadata.tables, "invoices"}
    migrate.upgrade(database)

    assert set() == nothing
    assert called == schema(database)


def test_what_is_there_is_left_as_it_is(host: Host, database: Database) -> None:
    migrate.upgrade(database)
    before = schema(database)
    host.revision("host_2", "host_1", *UP)

    host.alembic("upgrade", "head")

    assert before == schema(database)


def test_a_step_of_ours_that_fails_takes_back_the_whole_migration(host: Host, database: Database) -> None:
    """In the middle: outbox_0004 finds a table that it wants to make."""
    host.alembic("upgrade", "head")
    before = host.tables()
    spoil = 'op.create_table("outbox_pause", sa.Column("id", sa.Integer)); '
    host.revision("host_2", "host_1", spoil + "migrate.up(op.get_bind()); " + INVOICES[0], "pass")

    with pytest.raises(sa.exc.DBAPIError, match="outbox_pause"):
        host.alembic("upgrade", "head")

    assert {"host_1"} == host.versions()
    # SQLite's driver begins a transaction with ours: what was before it in the host's migration is kept there.
    assert host.tables() - before <= {"outbox_pause"}


def test_whoever_catches_that_goes_on_with_their_own(host: Host, database: Database) -> None:
    host.revision("host_2", "host_1", "\n    ".join(CATCHING), "pass")

    host.alembic("upgrade", "head")

    assert "invoices" in host.tables()
    assert migrate.Standing() == standing(database)


CATCHING = [
    "try:",
    '    migrate.up(op.get_bind(), to="outbox_99")',
    "except Exception as error:",
    '    assert "there are: outbox_0001" in str(error), error',
    INVOICES[0],
]


def test_where_only_statements_are_printed_it_says_what_prints_ours(host: Host, database: Database) -> None:
    host.revision("host_2", "host_1", *UP)

    with pytest.raises(SchemaError, match="outbox db sql"):
        host.alembic("upgrade", "head", "--sql")


ROLLED_BACK = """
import sys
import sqlalchemy as sa
from outbox import migrate

with sa.create_engine(sys.argv[1]).connect() as connection:
    migrate.up(connection)
    print(migrate.current(connection))
    connection.rollback()
"""


def test_in_a_transaction_that_is_rolled_back_nothing_was_migrated(database: Database, database_url: str) -> None:
    """In a process where Alembic never ran: its `op` is nobody's."""
    run = subprocess.run(
        [sys.executable, "-c", ROLLED_BACK, database_url],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

    assert (migrate.newest(), migrate.Standing()) == (run.stdout.strip(), standing(database)), run.stderr


@pytest.mark.postgres
def test_on_a_connection_without_transactions_nothing_is_begun(postgres_url: str) -> None:
    """A step of ours that failed there would stay half done, and never go on."""
    engine = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="autocommit mode: a migration that fails would stay half done"):
            migrate.up(connection)

        assert [] == sa.inspect(connection).get_table_names()


def test_a_producer_may_be_the_first_to_use_what_a_host_has_migrated(sqlite_url: str, tmp_path: Path) -> None:
    """Its transaction has written before, in the mode of SQLite's own, when the outbox has a look at the database."""
    engine = sa.create_engine(sqlite_url)
    with engine.begin() as connection:
        migrate.up(connection)
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER)")
    outbox = an_outbox(sqlite_url, tmp_path / "spool", quota=1_000_000)

    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
        made = outbox.enqueue(connection, "enos", event("a", "photo"), files={"photo": b"bytes"})

    assert made.new
    outbox.close()
    engine.dispose()
