"""S24: on Postgres three roles are enough, each with no more than it needs; these lists are the grants to give them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from outbox import KeyConflict, Outbox, State, Worker, prepare
from outbox.errors import ConfigurationError
from outbox.model import Selection
from outbox.tables import metadata
from outbox.testing import Receiver
from tests.factories import an_outbox, enos, event, states

pytestmark = [pytest.mark.postgres, pytest.mark.merge]

_MESSAGE = (
    "destination, lane, key, payload, digest, size, file_bytes, files, state, stream_id, stream_number, share_id, "
    "created_at, due_at, scheduled, expires_at, clock_plausible, traceparent"
)
_STREAM, _SHARE = "destination, ordering_key, last_number", "destination, ordering_key, lane"
#: Who enqueues: adds rows, sees which keys are taken, and lets a stream or a share know. No payload can be read back.
PRODUCER = [
    f"INSERT ({_MESSAGE}), SELECT (id, destination, key, digest, state) ON outbox_message",
    "INSERT (message_id, position, name, file, filename, content_type) ON outbox_attachment",
    # UPDATE of one column, since without any nobody may lock a row.
    "INSERT (name, size, sha256, md5, created_at, free_at), SELECT (name, freed_at), UPDATE (created_at) ON outbox_file",
    f"INSERT ({_STREAM}), SELECT (id, {_STREAM}), UPDATE (last_number) ON outbox_stream",
    "INSERT (stream_id, destination, lane), SELECT (stream_id, due_at), UPDATE (due_at, scheduled, lane) ON outbox_head",
    f"INSERT ({_SHARE}), SELECT (id, {_SHARE}, due_at), UPDATE (due_at, scheduled) ON outbox_share",
    "USAGE ON SEQUENCE outbox_message_id_seq, outbox_stream_id_seq, outbox_share_id_seq",
]
#: One more, with a quota; and one by which a producer sees that its spool is another database's.
PRODUCER_MAY_COUNT = ["SELECT (size) ON outbox_file"]
PRODUCER_SEES_THE_MARK = ["SELECT ON outbox_spool"]
#: Who looks: status, list, show, explain, doctor; and a dashboard.
READER = [f"SELECT ON {', '.join(metadata.tables)}, outbox_alembic_version"]
#: Who delivers, and who acts on a terminal. The schema itself is the owner's: `outbox db upgrade` runs as that.
WORKER = [
    f"SELECT, INSERT, UPDATE, DELETE ON {', '.join(metadata.tables)}",
    "SELECT ON outbox_alembic_version",
    "USAGE ON ALL SEQUENCES IN SCHEMA public",
]


class Roles:
    """Makes roles in a database, and outboxes that are nothing else there."""

    def __init__(self, url: str, folder: Path, receiver: Receiver) -> None:
        self.url = sa.make_url(url)
        self.spool = folder / "spool"
        self.receiver = receiver
        self.owner = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        self.names: list[str] = []
        self.engines: list[sa.Engine] = []
        self.outboxes: list[Outbox] = []

    def say(self, *statements: str) -> None:
        with self.owner.connect() as connection:
            for each in statements:
                connection.exec_driver_sql(each)

    def make(self, grants: list[str]) -> sa.URL:
        """The address for a new role that has these grants and no other."""
        name = f"outbox_test_{uuid.uuid4().hex[:8]}"
        self.names.append(name)
        self.say(f"CREATE ROLE {name} LOGIN PASSWORD 'made-up-for-tests'", *(f"GRANT {each} TO {name}" for each in grants))
        return self.url.set(username=name, password="made-up-for-tests")

    def engine(self, url: sa.URL) -> sa.Engine:
        self.engines.append(prepare(sa.create_engine(url, hide_parameters=True)))
        return self.engines[-1]

    def outbox(self, url: sa.URL, **options: Any) -> Outbox:
        address = url.render_as_string(hide_password=False)
        self.outboxes.append(an_outbox(address, self.spool, enos(self.receiver.url), **options))
        return self.outboxes[-1]

    def close(self) -> None:
        for each in self.outboxes:
            each.close()
        for engine in self.engines:
            engine.dispose()
        for name in self.names:
            self.say(f"DROP OWNED BY {name}", f"DROP ROLE {name}")
        self.owner.dispose()


@pytest.fixture
def roles(migrated_postgres_url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Roles]:
    roles = Roles(migrated_postgres_url, tmp_path, receiver)
    yield roles
    roles.close()


def ways(outbox: Outbox) -> dict[str, Callable[[sa.Connection], object]]:
    """Everything that a producer does, in an order in which it can."""
    ahead: list[Any] = []

    def conflict(connection: sa.Connection) -> None:
        with pytest.raises(KeyConflict):
            outbox.enqueue(connection, "enos", event("other"), key="plain")

    def enqueue(*files: str, **options: Any) -> Callable[[sa.Connection], object]:
        return lambda connection: outbox.enqueue(connection, "enos", event("a", *files), **options)

    return {
        "plain": enqueue(key="plain"),
        "with a file": enqueue("photo", files={"photo": b"bytes"}),
        "the same again": enqueue(key="plain"),
        "in conflict": conflict,
        "first of its stream": enqueue(ordering_key="k"),
        "second of its stream": enqueue(ordering_key="k"),
        "first of its share": enqueue(ordering_key="k", ordered=False),
        "second of its share": enqueue(ordering_key="k", ordered=False),
        "a file ahead": lambda _connection: ahead.append(outbox.spool(b"ahead")),
        "a file that was there": lambda connection: outbox.enqueue(
            connection, "enos", event("a", "photo"), files={"photo": ahead[0]}
        ),
    }


def failures(engine: sa.Engine, outbox: Outbox) -> list[str]:
    """What of that this role cannot do."""
    failed = []
    for name, act in ways(outbox).items():
        try:
            with engine.begin() as connection:
                act(connection)
        except (ProgrammingError, IndexError):
            failed.append(name)
    return failed


def test_a_producer_that_may_only_add_enqueues_in_every_way(roles: Roles) -> None:
    url = roles.make(PRODUCER)

    assert [] == failures(roles.engine(url), roles.outbox(url))


@pytest.mark.parametrize("more", ["", ", 'named'", ", null, 'stream'", ", null, 'share', false"])
def test_a_producer_that_may_only_add_calls_the_function(roles: Roles, more: str) -> None:
    """It has no rights of its own, but those of its caller."""
    engine, stranger = roles.engine(roles.make(PRODUCER)), roles.engine(roles.make([]))
    call = sa.text(f"SELECT outbox_enqueue('enos', '{{}}'::jsonb{more})")

    for _ in range(2):
        with engine.begin() as connection:
            connection.execute(call)
    with pytest.raises(ProgrammingError, match="permission denied"), stranger.begin() as connection:
        connection.execute(call)


def test_each_grant_of_a_producer_is_needed(roles: Roles, subtests: pytest.Subtests) -> None:
    url = roles.make(PRODUCER)
    engine, outbox = roles.engine(url), roles.outbox(url)
    for grant in PRODUCER:
        what, _, where = grant.rpartition(" ON ")
        for privilege in what.replace("), ", ")|").split("|"):
            with subtests.test(f"{privilege} on {where}"):
                roles.say(f"REVOKE {privilege} ON {where} FROM {roles.names[0]}")

                assert failures(engine, outbox)

                roles.say(f"GRANT {privilege} ON {where} TO {roles.names[0]}", "DELETE FROM outbox_attachment")
                roles.say("DELETE FROM outbox_message", "DELETE FROM outbox_head", "DELETE FROM outbox_share")
                roles.say("DELETE FROM outbox_stream")


NOT_FOR_PRODUCERS = [
    "SELECT payload FROM outbox_message",
    "SELECT * FROM outbox_attachment",
    "SELECT sha256 FROM outbox_file",
    "UPDATE outbox_message SET state = 'delivered'",
    "UPDATE outbox_message SET payload = '{}'",
    "UPDATE outbox_file SET name = 'x', sha256 = 'x'",
    "UPDATE outbox_file SET free_at = now(), freed_at = now()",
    "UPDATE outbox_head SET claimed_by = 'x', blocked_by = 1",
    "DELETE FROM outbox_message",
    "DELETE FROM outbox_file",
    "TRUNCATE outbox_message",
    "SELECT * FROM outbox_delivery",
    "SELECT * FROM outbox_attempt",
    "SELECT * FROM outbox_audit",
    "SELECT * FROM outbox_worker",
    "UPDATE outbox_destination SET stop = 'x'",
    "INSERT INTO outbox_audit DEFAULT VALUES",
    "INSERT INTO outbox_worker DEFAULT VALUES",
    "INSERT INTO outbox_message (id, reason_text) VALUES (1, 'x')",
    "DROP TABLE outbox_message",
    "ALTER TABLE outbox_message ADD COLUMN x INTEGER",
]


def test_a_producer_can_neither_read_nor_change_what_is_there(roles: Roles, subtests: pytest.Subtests) -> None:
    engine = roles.engine(roles.make(PRODUCER))
    for statement in NOT_FOR_PRODUCERS:
        with subtests.test(statement), engine.connect() as connection:
            with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
                connection.exec_driver_sql(statement)
            connection.rollback()


def test_with_a_quota_a_producer_may_count(roles: Roles) -> None:
    url = roles.make(PRODUCER + PRODUCER_MAY_COUNT)
    outbox = roles.outbox(url, quota=10)

    assert "with a file" not in failures(roles.engine(url), outbox)
    assert 10 == outbox.room.quota
    assert outbox.room.most_of_a_file(None) == 10 - len(b"bytes") - len(b"ahead")


def test_a_producer_that_sees_the_mark_does_not_put_files_into_anothers_spool(roles: Roles, tmp_path: Path) -> None:
    url = roles.make(PRODUCER + PRODUCER_SEES_THE_MARK)
    outbox = roles.outbox(url)
    outbox.spool_store.prepare()
    outbox.spool_store.set_mark("0" * 32)

    with pytest.raises(ConfigurationError, match="belongs to another database"), roles.engine(url).begin() as connection:
        outbox.enqueue(connection, "enos", event("a", "photo"), files={"photo": b"bytes"})


def test_a_worker_that_owns_nothing_delivers_tidies_up_and_is_acted_on(roles: Roles) -> None:
    producer, worker = roles.make(PRODUCER + PRODUCER_SEES_THE_MARK), roles.make(WORKER)
    assert [] == failures(roles.engine(producer), roles.outbox(producer))
    outbox = roles.outbox(worker)

    Worker(outbox, poll=0.05).run(until_idle=True)
    outbox.pause("enos", "maintenance", "ann")
    outbox.resume("enos", "ann")
    replayed = outbox.replay(Selection(keys=("plain",)), "ann")
    Worker(outbox, poll=0.05).run(until_idle=True)
    outbox.sweep()
    outbox.free_files()
    found = set(states(outbox.database).values())
    purged = outbox.purge(Selection(states=(State.DELIVERED,)), "ann")

    assert (1, {State.DELIVERED}) == (replayed, found)
    assert purged == 7
    assert [] == roles.receiver.violations


def test_a_reader_sees_everything_and_changes_nothing(roles: Roles) -> None:
    producer, reader = roles.make(PRODUCER), roles.make(READER)
    failures(roles.engine(producer), roles.outbox(producer))
    outbox = roles.outbox(reader)

    assert 7 == len(outbox.messages(Selection(limit=100)))
    assert "plain" == outbox.message("plain").message.key
    assert outbox.status().destinations
    assert outbox.explain("enos")
    for act in (lambda: outbox.pause("enos", "no", "ann"), lambda: outbox.cancel(Selection(keys=("plain",)), "ann")):
        with pytest.raises(ProgrammingError, match="permission denied"):
            act()
    assert {State.PENDING} == set(states(outbox.database).values())
