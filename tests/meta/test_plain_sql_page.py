"""docs/plain-sql.md is true: every block of it is executed, and its tables are those of the schema."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from outbox import State
from outbox.checkup.verify import Verification
from outbox.database import Database
from outbox.tables import metadata
from outbox.testing import Receiver
from outbox.worker import Worker
from tests import plain
from tests.factories import an_outbox, enos, event, states

PAGE = plain.PAGE.read_text("utf-8")


def delivered(url: str, folder: Path) -> dict[str, str]:
    """What there is when a worker has nothing left to do, each message in order."""
    with Receiver(check_token=False) as receiver:
        outbox = an_outbox(url, folder / "spool", enos(receiver.url))
        Worker(outbox).run(until_idle=True)
        assert [] == list(Verification(outbox).run())
        found = states(outbox.database)
        outbox.close()
    return found


def test_every_block_of_sql_is_executed_here_or_in_a_story() -> None:
    named = [re.match(r"-- sqlite: (.*)\n", each) for each in plain.blocks()]

    assert {"plain", "named", "ordered", "fair turns", "trigger"} == {each.group(1) for each in named if each}
    assert 2 == named.count(None)


@pytest.mark.postgres
def test_the_blocks_for_postgres_enqueue_what_is_delivered(migrated_postgres_url: str, tmp_path: Path) -> None:
    address = sa.make_url(migrated_postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as connection:
        for block in plain.blocks():
            if not block.startswith("-- sqlite"):
                connection.execute(block)  # type: ignore[call-overload]

    found = delivered(migrated_postgres_url, tmp_path)

    with psycopg.connect(address) as connection:
        connection.execute("DROP TABLE orders; DROP FUNCTION orders_to_outbox")
    assert [State.DELIVERED] * 2 == list(found.values())
    assert "order-7" in found


def test_the_trigger_for_sqlite_enqueues_what_is_delivered(migrated_sqlite_url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(str(sa.make_url(migrated_sqlite_url).database))) as connection:
        connection.executescript(plain.of_sqlite("trigger"))

    assert {"order-7": State.DELIVERED} == delivered(migrated_sqlite_url, tmp_path)


@pytest.mark.parametrize("how", ["REPLACE", "IGNORE"])
def test_the_trigger_for_sqlite_takes_no_message_away_and_leaves_none_out(migrated_sqlite_url: str, how: str) -> None:
    """What resolves the conflicts of an INSERT holds for those of the triggers that it sets off."""
    with closing(sqlite3.connect(str(sa.make_url(migrated_sqlite_url).database), isolation_level=None)) as connection:
        connection.executescript(plain.of_sqlite("trigger"))
        connection.execute("DELETE FROM orders")
        with pytest.raises(sqlite3.IntegrityError, match="no message for this order"):
            connection.execute(f"INSERT OR {how} INTO orders VALUES (7, 'turbine-8', 9)")

        kept = connection.execute("SELECT id, payload ->> '$.assetId' FROM outbox_message").fetchall()
        orders = connection.execute("SELECT count(*) FROM orders").fetchone()

    assert ([(1, "turbine-7")], (0,)) == (kept, orders)


def test_the_statements_for_sqlite_refuse_what_is_no_json_and_what_has_no_key(migrated_sqlite_url: str) -> None:
    database = Database(migrated_sqlite_url)
    for wrong in ({"payload": "{a: 1}"}, {"payload": "{}", "key": None}, {"payload": "{}", "lane": "fast"}):
        with pytest.raises(sqlite3.IntegrityError, match="constraint failed"), database.begin() as connection:
            plain.enqueue(connection, "enos", **wrong)  # type: ignore[arg-type]
    database.close()


def test_the_block_of_python_enqueues(migrated_sqlite_url: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    outbox = an_outbox(migrated_sqlite_url, tmp_path / "spool", enos())
    with closing(sqlite3.connect(str(sa.make_url(migrated_sqlite_url).database))) as connection:
        exec(block, {"outbox": outbox, "connection": connection, "payload": event("a")})
        connection.commit()

    assert {"order-7": State.PENDING} == states(outbox.database)
    outbox.close()


def rows(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    lines = PAGE.partition(f"\n## {heading}\n")[2].splitlines()
    table = [line for line in lines if line.startswith("|")]
    end = next((at for at, line in enumerate(table) if at and line.startswith("|---") and at > 1), len(table) + 1)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2 : end - 1]]


def test_each_column_is_one_that_a_producer_writes_or_one_that_it_leaves_alone() -> None:
    found = rows("The tables, as far as a producer needs them")

    assert ["outbox_message", "outbox_stream", "outbox_head", "outbox_share"] == [each[0].strip("`") for each in found]
    for table, *columns in found:
        named = [name for cell in columns for name in re.findall(r"`(\w+)`", cell)]
        assert sorted(metadata.tables[table.strip("`")].c.keys()) == sorted(named)


def test_what_a_producer_leaves_alone_needs_no_value() -> None:
    for table, _, left in rows("The tables, as far as a producer needs them"):
        for name in re.findall(r"`(\w+)`", left):
            column = metadata.tables[table.strip("`")].c[name]
            assert column.nullable or column.server_default is not None or column.primary_key, f"{table}.{name}"


@pytest.mark.postgres
def test_the_parameters_are_those_of_the_function(migrated_postgres_url: str) -> None:
    engine = sa.create_engine(migrated_postgres_url, poolclass=sa.NullPool)
    asked = "SELECT proargnames, pg_get_function_arguments(oid) FROM pg_proc WHERE proname = 'outbox_enqueue'"
    with engine.connect() as connection:
        found: list[Any] = connection.execute(sa.text(asked)).all()

    parameters = [each[0].strip("`") for each in rows("Postgres: `outbox_enqueue`")]
    assert 3 == len(found)
    assert [[*parameters, "id", "is_new"]] * 3 == [list(each[0]) for each in found]
    assert {"payload text", "payload json", "payload jsonb"} == {each[1].split(", ")[1] for each in found}
