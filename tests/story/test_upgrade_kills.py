"""An upgrade that is killed at any of its statements has done nothing or all, and doing it again makes it whole."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from alembic import command

from outbox import Lane, Outbox, Selection, State, migrate
from outbox.database import Database
from outbox.store import living
from outbox.testing import HangUp
from tests import warm
from tests.factories import in_full, real_clock, states
from tests.postgres import create_database, drop_database
from tests.story.conftest import Hand, Place
from tests.story.process import ROOT

Rows = dict[str, list[dict[str, Any]]]


# Databases to begin with


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """One that nobody shares: its schema is an old one for a while."""
    url = create_database(postgres_server_url)
    database = Database(url)
    migrate.upgrade(database)
    database.close()
    yield url
    drop_database(url)


@pytest.fixture
def copy() -> Iterator[Callable[[Place], str]]:
    """Copies a place's database as it is; the copies go in the end."""
    made: list[str] = []

    def copied(place: Place) -> str:
        for each in (place.database, *place._outboxes):
            each.close()
        place.engine.dispose()
        if place.database.kind == "postgresql":
            made.append(create_database(place.url, template=sa.make_url(place.url).database))
            return made[-1]
        target = place.folder / f"copy-{len(list(place.folder.glob('copy-*')))}.db"
        with sa.create_engine(place.url).connect() as connection:
            connection.exec_driver_sql(f"VACUUM INTO '{target}'")
        return f"sqlite:///{target}"

    yield copied
    for url in made:
        drop_database(url)


def downgrade(database: Database, revision: str) -> None:
    config = migrate._config()
    with database.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def fill(place: Place) -> tuple[Outbox, Hand]:
    """A backlog with a bit of everything: states, files, streams, shares, tries, pauses, and an act that was interrupted."""
    place.clock = real_clock()  # the times of files are true ones
    outbox = place.outbox(clock=place.clock)
    hand = place.hand(outbox)
    place.enqueue(outbox, "delivered", {"photo": b"bytes"})
    place.enqueue(outbox, "delivered in order", ordering_key="pump")
    hand.turn_while_it_moves()
    place.receiver.refuse(lambda struct: struct["assetId"] == "dead")
    place.enqueue(outbox, "dead", {"photo": b"of the dead"}, ordering_key="valve")
    hand.turn_while_it_moves()
    place.receiver.stop_refusing()
    for key in ("waits behind the dead", "and so does this"):
        place.enqueue(outbox, key, ordering_key="valve")
    place.enqueue(outbox, "cancelled")
    outbox.cancel(Selection(keys=("cancelled",)), "anna")
    place.receiver.misbehave(HangUp("after_body"))
    place.enqueue(outbox, "tried once", {"photo": b"tried", "log": b"twice"})
    hand.turn()
    gone = place.hand(outbox)
    place.enqueue(outbox, "claimed", {"photo": b"claimed"}, ordering_key="motor")
    with outbox.database.begin() as connection:
        gone.dispatcher._claims.claim(connection, "enos", list(Lane))
        living.leave(connection, gone.presence.id)
    later = outbox.ambient.now() + timedelta(days=1)
    place.enqueue(outbox, "scheduled", due_at=later)
    place.enqueue(outbox, "in a share", ordering_key="pump", ordered=False)
    place.enqueue(outbox, "expires", expires_at=later)
    outbox.spool(b"spooled ahead")
    outbox.pause("enos", "look first", "anna", ordering_key="motor")
    outbox.begin("replay", Selection(keys=("delivered", "delivered in order")), "anna").step()
    return outbox, hand


# What a database is


class Whole(NamedTuple):
    """Everything that is in a database: its schema, in its own words, and every row of ours, in the order of their keys."""

    schema: list[tuple[Any, ...]]
    rows: Rows

    @classmethod
    def of(cls, url: str) -> Whole:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            schema = [tuple(row) for row in connection.execute(sa.text(SCHEMA[engine.dialect.name]))]
            names = sa.inspect(connection).get_table_names()
            ours = [sa.table(name) for name in sorted(names) if name.startswith("outbox_")]
            return cls(schema, {each.name: in_order(connection, each) for each in ours})

    def as_far_as(self, before: Whole) -> Rows:
        """Only the tables and columns that were there before."""
        return {
            table: [{name: row[name] for name in found[0]} for row in self.rows[table]] if found else self.rows[table]
            for table, found in before.rows.items()
            if table != migrate.VERSION_TABLE
        }


SCHEMA = {
    "sqlite": "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name",
    "postgresql": """
        SELECT c.relkind, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, c.reloptions::text,
               col_description(c.oid, a.attnum), coalesce(pg_get_indexdef(c.oid), pg_get_expr(d.adbin, d.adrelid))
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
             LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
        WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'i')
        UNION ALL
        SELECT 'c', conrelid::regclass::name, conname, pg_get_constraintdef(oid), false, NULL, NULL, NULL
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT 'f', oid::regprocedure::name, proname, pg_get_functiondef(oid), false, NULL, NULL, NULL
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'outbox%'
        ORDER BY 1, 2, 3
    """,
}


def in_order(connection: sa.Connection, table: sa.TableClause) -> list[dict[str, Any]]:
    found = connection.execute(sa.select(sa.text("*")).select_from(table)).mappings()
    return sorted((dict(row) for row in found), key=str)


def revision(url: str) -> str | None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return migrate.current(connection)


def killed(url: str, at: int) -> int | None:
    """Upgrade in a process of its own that is killed at a point; how many points there were, if it came to its end."""
    story = json.dumps({"database": url, "at": at})
    run = warm.run(
        [sys.executable, "-m", "tests.story.upgrade_programs"],
        cwd=ROOT,
        env=os.environ | {"STORY": story},
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    return None if run.returncode else int(run.stdout)


def upgraded(url: str) -> None:
    database = Database(url)
    migrate.upgrade(database)
    migrate.require_current(database)
    database.close()


def as_one_that_was_not(place: Place, copy: Callable[[Place], str], beginning: str, stride: Callable[[int], int]) -> None:
    """The whole story of an upgrade that is killed at one point after the other, and done again in the end."""
    if beginning == "nothing":
        place.damaged = True  # it is left without a table
        downgrade(place.database, "outbox@base")
    else:
        fill(place)
        downgrade(place.database, beginning)
    straight, victim, again = copy(place), copy(place), copy(place)
    before = Whole.of(straight)
    points = killed(straight, 0)
    assert points is not None
    expected = Whole.of(straight)

    struck = range(points, 0, -stride(points))
    for at in struck:
        assert killed(victim, at) is None
        after = Whole.of(victim)
        assert after == (expected if revision(victim) == migrate.newest() else before), f"killed at point {at} of {points}"
        if after == expected:
            victim, again = again, victim
    upgraded(victim)

    print(f"from {beginning}: killed at {len(struck)} of {points} points")
    assert expected == Whole.of(victim)
    if beginning != "nothing":
        assert before.as_far_as(before) == expected.as_far_as(before)


@pytest.mark.parametrize("beginning", ["nothing", "outbox_0001"])
def test_an_upgrade_that_is_killed_here_and_there_and_done_again_is_as_one_that_was_not(
    sqlite_place: Place, copy: Callable[[Place], str], beginning: str
) -> None:
    as_one_that_was_not(sqlite_place, copy, beginning, lambda points: points // 3)


@pytest.mark.merge
@pytest.mark.parametrize("beginning", ["nothing", pytest.param("outbox_0001", marks=pytest.mark.full), "outbox_0003"])
def test_an_upgrade_that_is_killed_anywhere_and_done_again_is_as_one_that_was_not(
    place: Place, copy: Callable[[Place], str], beginning: str
) -> None:
    as_one_that_was_not(place, copy, beginning, lambda _: in_full(1, 21))


def test_after_an_upgrade_that_was_killed_a_backlog_goes_on_where_it_was(place: Place) -> None:
    outbox, hand = fill(place)
    downgrade(place.database, "outbox_0001")
    assert killed(place.url, 20) is None

    migrate.upgrade(place.database)
    outbox.resume("enos", "anna", ordering_key="valve")
    for hours in (0, 1, 25):
        place.clock.move(hours=hours)
        hand.presence.beat()
        hand.dispatcher.rescue()
        hand.dispatcher.find_strays()
        hand.dispatcher.free_streams()
        hand.turn_while_it_moves()
        hand.turn("bulk")

    assert {"dead": State.DEAD, "cancelled": State.CANCELLED} == {
        key: state for key, state in states(place.database).items() if state != State.DELIVERED
    }
    place.check()


def test_what_a_killed_batch_of_somebodys_left_behind_is_nobodys_business(sqlite_place: Place) -> None:
    """As Alembic makes them where a table must be copied; ours never are."""
    downgrade(sqlite_place.database, "outbox_0001")
    with sqlite_place.engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE _alembic_tmp_outbox_message (id INTEGER)"))

    upgraded(sqlite_place.url)

    assert migrate.newest() == revision(sqlite_place.url)
