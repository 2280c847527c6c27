"""What tests are made of: a clock that is moved by hand, destinations, payloads, and messages in any state."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa

from outbox import Ambient, EnosEvents, Lane, Outbox, Policy, State
from outbox.ambient import uuid7
from outbox.claims import Claims
from outbox.database import Database, prepare
from outbox.model import Attachment, Message, Outcome, Reason, SpooledFile
from outbox.store import arriving, breaker, claiming, living, recording, shares
from outbox.store import deliveries as uploads
from outbox.tables import attempt, delivery, message, metadata
from outbox.timekeeping import When
from outbox.verdict import Facts, Settlement

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ORIGIN = 1579580182824
T = TypeVar("T")


def in_full(full: T, brief: T) -> T:
    """What a story is about, such as a number: in full with OUTBOX_LONG=1, else so that it shows the same in less time."""
    return full if os.environ.get("OUTBOX_LONG") == "1" else brief


@dataclass
class Clock:
    """Wall and monotonic time that pass only when told to; dice that always fall the same."""

    wall: datetime = NOW
    ticks: float = 1000.0
    dice: float = 1.0

    def move(self, seconds: float = 0, **more: float) -> None:
        """Let time pass."""
        step = timedelta(seconds=seconds, **more)
        self.wall += step
        self.ticks += step.total_seconds()

    @property
    def ambient(self) -> Ambient:
        return Ambient(now=lambda: self.wall, monotonic=lambda: self.ticks, new_id=uuid7, random=lambda: self.dice)


def real_clock() -> Clock:
    """A clock that starts at the true time, for tests that compare it with the times of files."""
    return Clock(wall=datetime.now(UTC))


@dataclass(frozen=True)
class Kind:
    """What differs between the kinds of databases, as far as tests mind."""

    #: What makes a connection whose commits may not survive a power cut.
    careless: str
    #: Whether somebody has a transaction open that keeps others from writing.
    held_up: Callable[[sa.Engine], bool]


def _sqlite_held_up(engine: sa.Engine) -> bool:
    with contextlib.closing(sqlite3.connect(str(engine.url.database), timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False


def _postgres_held_up(engine: sa.Engine) -> bool:
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
    with engine.connect() as connection:
        return bool(connection.execute(sa.text(idle)).scalar_one())


KINDS = {
    "sqlite": Kind(careless="PRAGMA synchronous = NORMAL", held_up=_sqlite_held_up),
    "postgresql": Kind(careless="SET synchronous_commit = off", held_up=_postgres_held_up),
}


def held_up(engine: sa.Engine) -> bool:
    """Whether a transaction stands open that keeps others from writing."""
    return KINDS[engine.url.get_backend_name()].held_up(engine)


def careless_engine(url: str) -> sa.Engine:
    """A caller's engine that would lose a commit at a power cut."""
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def be_careless(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(KINDS[sa.make_url(url).get_backend_name()].careless)
        cursor.close()
        connection.commit()

    return engine


def caller_engine(url: str) -> sa.Engine:
    """A caller's engine as our documentation tells callers to make it."""
    return prepare(sa.create_engine(url))


def enos(url: str = "https://enos.example", name: str = "enos", policy: Policy | None = None, **options: Any) -> EnosEvents:
    return EnosEvents(name=name, url=url, org_id="o1", allow_plain_http=True, policy=policy or Policy(), **options)


def an_outbox(database: str | sa.Engine, spool: Any, *destinations: EnosEvents, **options: Any) -> Outbox:
    """An outbox that does not mind how durable the test's database is."""
    return Outbox(
        database, spool=spool, destinations=destinations or [enos()], **({"durability": "ignore", "reserve": 0} | options)
    )


def event(asset: str = "turbine-7", *files: str, **values: Any) -> dict[str, Any]:
    """A payload that names its message in `assetId`, and refers to these files."""
    references = {name: f"local://{name}" for name in files}
    return {"assetId": asset, "time": ORIGIN, "events": {"crack": {"severity": 3, **values, **references}}}


def spooled(name: str | None = None, content_length: int = 3) -> SpooledFile:
    return SpooledFile(name or uuid7(), content_length, "5" * 64, "3" * 32, "photo.jpg")


def new_message(key: str | None = None, **changes: Any) -> arriving.NewMessage:
    message = arriving.NewMessage(
        destination="enos",
        lane=Lane.NORMAL,
        key=key or uuid7(),
        payload="{}",
        digest="d" * 64,
        size=2,
        file_bytes=0,
        files=0,
        created_at=NOW,
        due_at=NOW,
        clock_plausible=True,
    )
    return message._replace(**changes)


def put(
    connection: sa.Connection,
    key: str | None = None,
    *,
    ordering_key: str | None = None,
    ordered: bool = True,
    files: Sequence[SpooledFile] = (),
    **changes: Any,
) -> int:
    """Enqueue through the store; the id."""
    new = new_message(key, files=len(files), **changes)
    place = arriving.next_in_stream(connection, new, ordering_key) if ordering_key and ordered else None
    share_id = shares.join(connection, new, ordering_key) if ordering_key and not ordered else None
    stream_id, number = place or (None, None)
    message_id = arriving.add_message(connection, new._replace(stream_id=stream_id, stream_number=number, share_id=share_id))
    assert message_id is not None, f"{key} is there already"
    if place is not None:
        arriving.wake_stream(connection, place[0], new)
    if share_id is not None:
        shares.wake(connection, [share_id], new.due_at, scheduled=new.scheduled)
    attachments = [Attachment(f"file-{number}", each, "photo.jpg", "image/jpeg") for number, each in enumerate(files)]
    arriving.attach(connection, {message_id: attachments})
    return message_id


def join(connection: sa.Connection, *workers: str) -> None:
    """Give workers their rows."""
    for each in workers:
        living.register(connection, each, "host", 1, NOW)


@dataclass(frozen=True)
class Claimed:
    """A claim made by hand."""

    delivery: int
    worker: str
    messages: tuple[Message, ...]

    @property
    def ids(self) -> list[int]:
        return [message.id for message in self.messages]

    def settled(self, **changes: Any) -> dict[int, Settlement]:
        """The same settlement for every message."""
        return {each.id: settlement(**changes) for each in self.messages}


def waiting(
    connection: sa.Connection, lane: Lane = Lane.NORMAL, now: datetime = NOW, limit: int = 100, *, skip: bool = False
) -> list[claiming.Waiting]:
    """What of a lane is due, by a clock that is right."""
    return claiming.waiting(connection, "enos", lane, When.certain(now), limit, skip=skip)[0]


def claim(
    connection: sa.Connection, worker: str = "w1", lane: Lane = Lane.NORMAL, now: datetime = NOW, limit: int = 100
) -> Claimed | None:
    """Claim everything due of a lane in one delivery; None when nothing is."""
    taken = waiting(connection, lane, now, limit)
    if not taken:
        return None
    number = start_delivery(connection, taken, lane, worker, now)
    marked = claiming.mark_claimed(connection, worker, {number: taken}, When.certain(now))
    return Claimed(number, worker, tuple(marked[number]))


def start_delivery(
    connection: sa.Connection,
    taken: Sequence[claiming.Waiting],
    lane: Lane = Lane.NORMAL,
    worker: str = "w1",
    now: datetime = NOW,
) -> int:
    """The row of one upload to enos; its id."""
    (number,) = uploads.start(connection, "enos", worker, [uploads.Start(lane, taken)], now)
    return number


def finish_delivery(
    connection: sa.Connection, number: int, outcome: Outcome, facts: Facts | None = None, now: datetime = NOW
) -> bool:
    """End one upload; False when somebody else has."""
    return number in uploads.end(connection, "enos", "w1", [uploads.Ended(number, outcome, facts or Facts())], now)


def claims_of(database: Database, clock: Clock, **policies: Policy) -> Claims:
    """Of the worker w1, at these destinations."""
    with database.begin() as connection:
        join(connection, "w1")
        breaker.declare(connection, list(policies))
    destinations = {name: enos(name=name, policy=policy) for name, policy in policies.items()}
    return Claims(database, destinations, clock.ambient, lambda: "w1")


def keys_claimed(database: Database, claims: Claims) -> list[str]:
    """What the next claim takes for enos."""
    with database.begin() as connection:
        batch = claims.claim(connection, "enos", [Lane.NORMAL])
    return [each.key for each in batch.messages] if batch else []


def record(
    connection: sa.Connection,
    delivery_id: int,
    worker: str,
    settled: dict[int, Settlement],
    now: datetime = NOW,
    *,
    whole: bool = False,
) -> set[int]:
    """As the worker does that sent it; the ids written."""
    return recording.record(connection, worker, {delivery_id: settled}, When.certain(now), whole=whole).written


def settlement(state: State = State.DELIVERED, outcome: Outcome = Outcome.DELIVERED, **changes: Any) -> Settlement:
    return Settlement(**({"state": state, "outcome": outcome, "failures": 0, "unknowns": 0, "batch_limit": None} | changes))


def dead(reason: Reason = Reason.REJECTED) -> Settlement:
    return settlement(State.DEAD, Outcome.REJECT, reason=reason)


#: The columns that make each state coherent.
COHERENT: Mapping[State, Mapping[str, Any]] = {
    State.PENDING: {},
    State.CLAIMED: {"claimed_by": "w1", "delivery_id": 1, "attempt": 1},
    State.DELIVERED: {"finished_at": NOW, "attempt": 1},
    State.DEAD: {"finished_at": NOW, "reason": Reason.REJECTED, "attempt": 1},
    State.CANCELLED: {"finished_at": NOW},
}


def message_values(state: State = State.PENDING, **changes: Any) -> dict[str, Any]:
    """A coherent row of outbox_message, as far as `changes` leave it so."""
    values: dict[str, Any] = {
        "destination": "enos",
        "lane": Lane.NORMAL,
        "key": uuid7(),
        "payload": "{}",
        "digest": "d" * 64,
        "size": 2,
        "file_bytes": 0,
        "files": 0,
        "state": state,
        "created_at": NOW,
        "due_at": NOW,
        "clock_plausible": True,
    }
    return values | dict(COHERENT[state]) | changes


def add_row(connection: sa.Connection, state: State = State.PENDING, **changes: Any) -> int:
    """A message in any state, written without asking anybody but the database; its id."""
    statement = sa.insert(message).values(message_values(state, **changes)).returning(message.c.id)
    return int(connection.execute(statement).scalar_one())


def row_of(connection: sa.Connection, message_id: int) -> Any:
    return connection.execute(sa.select(message).where(message.c.id == message_id)).one()


def attempts_of(connection: sa.Connection, message_id: int) -> list[tuple[int, str, str | None]]:
    """Number, outcome and late outcome of each attempt."""
    columns = (attempt.c.number, attempt.c.outcome, attempt.c.late_outcome)
    statement = sa.select(*columns).where(attempt.c.message_id == message_id).order_by(attempt.c.number)
    return [tuple(row) for row in connection.execute(statement)]


def states(database: Database) -> dict[str, str]:
    """The state of every message by its key."""
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(sa.select(message.c.key, message.c.state))}


def reasons(database: Database) -> dict[str, str]:
    """Why each dead message is dead, by its key."""
    with database.read() as connection:
        statement = sa.select(message.c.key, message.c.reason).where(message.c.reason.is_not(None))
        return {row[0]: row[1] for row in connection.execute(statement)}


def outcomes(database: Database, key: str) -> list[tuple[str, str | None]]:
    """Outcome and late outcome of each of a message's attempts."""
    with database.read() as connection:
        statement = sa.select(attempt.c.outcome, attempt.c.late_outcome).join(message, attempt.c.message_id == message.c.id)
        return [tuple(row) for row in connection.execute(statement.where(message.c.key == key).order_by(attempt.c.number))]


def column(database: Database, key: str, name: str) -> Any:
    """One column of the message with that key."""
    with database.read() as connection:
        return connection.execute(sa.select(message.c[name]).where(message.c.key == key)).scalar_one()


def count(database: Database, table: sa.Table) -> int:
    with database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def deliveries(database: Database) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(sa.select(delivery).order_by(delivery.c.id)))


#: A table for which row by row would take longer.
_LARGE = "schemaname = 'public' AND tablename LIKE 'outbox%' AND pg_relation_size(format('%I', tablename)::regclass) > 300000"
_BEGIN_ANEW = """
    SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)
    FROM pg_sequences WHERE schemaname = 'public' AND sequencename LIKE 'outbox%'
"""


def wipe(url: str) -> None:
    """Make a migrated Postgres database as good as new: whoever is still connected goes, and so does every row."""
    # Without an engine, which would ask a new connection more than we do.
    with psycopg.connect(sa.make_url(url).set(drivername="postgresql").render_as_string(False), autocommit=True) as connection:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        connection.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")
        foreign = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'outbox%'"
        for (name,) in connection.execute(foreign).fetchall():
            connection.execute(f'DROP TABLE "{name}" CASCADE')
        if connection.execute(f"SELECT 1 FROM pg_tables WHERE {_LARGE}").fetchone() is not None:
            connection.execute(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY")
            return
        # A TRUNCATE makes every file of every table anew, however few its rows. Triggers of a test have lost their table.
        deletions = "; ".join(f"DELETE FROM {table}" for table in metadata.tables)
        connection.execute(f"SET session_replication_role = replica; {deletions}; {_BEGIN_ANEW}")
