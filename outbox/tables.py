"""The schema."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    false,
    literal_column,
    or_,
    text,
)

from outbox.model import FINAL, Lane, Outcome, Reason, State
from outbox.patience import Stop
from outbox.timekeeping import When

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

#: SQLite only numbers rows by itself in a column declared INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")


#: What a damaged instant is read as: none that anybody waits for, since it is further away than any that we invent.
UNREADABLE = datetime.max.replace(tzinfo=UTC)


class Instant(TypeDecorator[datetime]):
    """An aware instant in UTC; a naive one is refused rather than guessed at."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"expected an instant with a time zone, got {value!r}")
        return value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Reads UNREADABLE where a text is no instant: one damaged row must not hold up all the others."""
        read: Any = super().result_processor(dialect, coltype)

        def read_what_is_there(value: Any) -> datetime | None:
            try:
                found: datetime | None = read(value)
            except (ValueError, TypeError):
                return UNREADABLE
            return found

        return read_what_is_there

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def read_instant(value: datetime | str | None) -> datetime | None:
    """An instant as a driver gives it, or none; UNREADABLE for a text that is none."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return UNREADABLE
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def one_of(column: str, words: Iterable[StrEnum]) -> CheckConstraint:
    """A CHECK that a column holds one of an enum's words."""
    return CheckConstraint(_is_one_of(column, words), name=column)


def _is_one_of(column: str, words: Iterable[StrEnum]) -> str:
    # For a list of three and more, SQLite makes an index first, in every statement, and looks each row up in it.
    return " OR ".join(f"{column} = '{word.value}'" for word in sorted(words))


#: Of these nothing but a migration needs to know, and to make one loads both dialects, a tenth of what a producer imports.
_partial: list[tuple[str, tuple[Any, ...], Any]] = []


def partial(name: str, *columns: Any, where: Any) -> None:
    """An index over the rows that matter only."""
    _partial.append((name, columns, where))


def schema() -> MetaData:
    """All that a database has to have, with those indexes in the two databases' words for it."""
    for name, columns, where in _partial:
        Index(name, *columns, postgresql_where=where, sqlite_where=where)
    _partial.clear()
    return metadata


_final = _is_one_of("state", FINAL)

#: The messages of one ordering key. A producer holds its row from enqueue to COMMIT: so numbers are commit order.
stream = Table(
    "outbox_stream",
    metadata,
    Column("id", Id, primary_key=True),
    Column("destination", String(100), nullable=False),
    Column("ordering_key", String(255), nullable=False),
    Column("last_number", BigInteger, nullable=False),
    UniqueConstraint("destination", "ordering_key"),
    sqlite_autoincrement=True,
)

#: Where each stream stands: the row that workers lock, and not the producers' one, so that neither waits for the other.
head = Table(
    "outbox_head",
    metadata,
    Column("stream_id", ForeignKey(stream.c.id), primary_key=True, autoincrement=False),
    Column("destination", String(100), nullable=False),
    Column("lane", String(10), nullable=False, comment="of the stream's first unfinished message"),
    Column("due_at", Instant, comment="of the same; null when the stream is at rest"),
    Column("scheduled", Boolean, nullable=False, server_default=false(), comment="of the same"),
    Column("claimed_by", String(32)),
    Column("served", BigInteger, nullable=False, server_default=text("0"), comment="the last delivery it was part of"),
    Column("blocked_by", BigInteger, comment="the dead message that holds it up"),
    Column("forgiven", BigInteger, nullable=False, server_default=text("0"), comment="deaths up to this number block no more"),
    one_of("lane", Lane),
)
partial(
    "ix_outbox_head_due",
    head.c.destination,
    head.c.lane,
    head.c.served,
    where=and_(head.c.due_at.is_not(None), head.c.claimed_by.is_(None), head.c.blocked_by.is_(None)),
)
partial("ix_outbox_head_claimed", head.c.claimed_by, where=head.c.claimed_by.is_not(None))
partial("ix_outbox_head_blocked", head.c.destination, where=head.c.blocked_by.is_not(None))

#: The messages of one ordering key and lane whose order does not matter: they get their share of each delivery.
share = Table(
    "outbox_share",
    metadata,
    Column("id", Id, primary_key=True),
    Column("destination", String(100), nullable=False),
    Column("ordering_key", String(255), nullable=False),
    Column("lane", String(10), nullable=False),
    Column("due_at", Instant, comment="not before this is one of its messages due; null when it has none"),
    Column("scheduled", Boolean, nullable=False, server_default=false()),
    Column("served", BigInteger, nullable=False, server_default=text("0"), comment="the last delivery it had a part of"),
    UniqueConstraint("destination", "ordering_key", "lane"),
    one_of("lane", Lane),
    sqlite_autoincrement=True,
)
partial("ix_outbox_share_due", share.c.destination, share.c.lane, share.c.served, where=share.c.due_at.is_not(None))

#: Ordering keys that a person has paused, whether or not there are messages of them.
pause = Table(
    "outbox_pause",
    metadata,
    Column("destination", String(100), primary_key=True),
    Column("ordering_key", String(255), primary_key=True),
    Column("paused_at", Instant, nullable=False),
    Column("paused_by", String(255), nullable=False),
    Column("text", Text, nullable=False, comment="why, in words"),
)

message = Table(
    "outbox_message",
    metadata,
    Column("id", Id, primary_key=True),
    Column("destination", String(100), nullable=False),
    Column("lane", String(10), nullable=False),
    Column("key", String(255), nullable=False),
    Column("payload", Text, nullable=False, comment="JSON, as it will travel"),
    Column(
        "digest",
        String(64),
        nullable=False,
        comment="SHA-256 of payload and attachments: what a repeated key must match",
    ),
    Column("size", Integer, nullable=False, comment="bytes it adds to the text of a request, at most"),
    Column("file_bytes", BigInteger, nullable=False),
    Column("files", Integer, nullable=False, comment="how many attachments"),
    Column("state", String(10), nullable=False),
    Column("reason", String(20)),
    Column("reason_text", Text, comment="what was said about it when it died, cleaned"),
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="numbers the tries; never falls"),
    Column("failures", Integer, nullable=False, server_default=text("0"), comment="charged to it; limited"),
    Column("unknowns", Integer, nullable=False, server_default=text("0"), comment="tries without an answer; limited"),
    Column("batch_limit", Integer, comment="halved each time a batch it was in is refused"),
    Column("suspect", Boolean, nullable=False, server_default=false(), comment="a worker died while it travelled alone"),
    Column("replays", Integer, nullable=False, server_default=text("0")),
    Column("stream_id", ForeignKey(stream.c.id)),
    Column("stream_number", BigInteger),
    Column("share_id", BigInteger, comment="the share it is served by, if it has an ordering key and no order"),
    Column("created_at", Instant, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("scheduled", Boolean, nullable=False, server_default=false(), comment="due_at was chosen by the producer"),
    Column("expires_at", Instant),
    Column("clock_plausible", Boolean, nullable=False, comment="whether the clock could be believed at enqueue"),
    Column("claimed_by", String(32), comment="the worker that tries it"),
    Column("delivery_id", BigInteger, comment="the delivery under way"),
    Column("faulted_in", BigInteger, comment="the last delivery of it that the destination was charged for"),
    Column("finished_at", Instant),
    Column("traceparent", String(64)),
    UniqueConstraint("destination", "key"),
    one_of("state", State),
    one_of("lane", Lane),
    one_of("reason", Reason),
    CheckConstraint("(state = 'dead') = (reason IS NOT NULL)", name="dead_has_reason"),
    CheckConstraint(f"({_final}) = (finished_at IS NOT NULL)", name="final_has_finished_at"),
    CheckConstraint("(state = 'claimed') = (claimed_by IS NOT NULL)", name="claimed_has_worker"),
    CheckConstraint("(state = 'claimed') = (delivery_id IS NOT NULL)", name="claimed_has_delivery"),
    CheckConstraint("(stream_id IS NULL) = (stream_number IS NULL)", name="stream_has_number"),
    CheckConstraint("attempt >= 0 AND failures >= 0 AND unknowns >= 0 AND replays >= 0", name="counters"),
    CheckConstraint("failures <= attempt AND unknowns <= attempt", name="counters_within_attempt"),
    CheckConstraint("batch_limit >= 1", name="batch_limit"),
    CheckConstraint("size >= 0 AND file_bytes >= 0 AND files >= 0", name="sizes"),
    sqlite_autoincrement=True,
)
# Conditions are shared by the partial indexes and the statements that count on them. Their words are literals: a planner cannot
# match a parameter, whose value it does not know, with the condition of an index.
pending = message.c.state == literal_column("'pending'")
claimed = message.c.state == literal_column("'claimed'")
dead = message.c.state == literal_column("'dead'")
unfinished = message.c.state.in_([literal_column("'pending'"), literal_column("'claimed'")])
loose = and_(message.c.stream_id.is_(None), message.c.share_id.is_(None))
in_share = and_(message.c.share_id.is_not(None), pending)
expiring = and_(message.c.expires_at.is_not(None), pending)
in_stream = and_(message.c.stream_id.is_not(None), unfinished)

partial(
    "ix_outbox_message_due",
    message.c.destination,
    message.c.lane,
    message.c.due_at,
    message.c.id,
    where=and_(pending, loose),
)
partial("ix_outbox_message_claimed", message.c.claimed_by, where=claimed)
# There may be millions of dead: what is counted of them is in the first, the second has them in the order of acts. The state is
# in it too, although it is always the same: SQLite would read every row to find that out.
_weighed = ("destination", "reason", "finished_at", "size", "file_bytes", "files", "unknowns", "state")
partial("ix_outbox_message_dead", *(message.c[name] for name in _weighed), where=dead)
partial("ix_outbox_message_dead_id", message.c.id, where=dead)
dead_in_stream = and_(message.c.stream_id.is_not(None), dead)
partial("ix_outbox_message_dead_in_stream", message.c.stream_id, message.c.stream_number, where=dead_in_stream)
partial("ix_outbox_message_stream", message.c.stream_id, message.c.stream_number, where=in_stream)
partial("ix_outbox_message_share", message.c.share_id, message.c.due_at, message.c.id, where=in_share)
partial("ix_outbox_message_expiring", message.c.expires_at, where=expiring)


def has_come(due_at: Column[Any], scheduled: Column[Any], when: When) -> ColumnElement[bool]:
    """The condition that an instant has come, chosen by a producer or invented by us: `When.has_come` in SQL."""
    if when.beyond is None:
        return and_(due_at <= when.invented, or_(~scheduled, due_at <= when.chosen))
    return or_(and_(~scheduled, or_(due_at <= when.invented, due_at > when.beyond)), and_(scheduled, due_at <= when.chosen))


#: Spooled files: one row for each name in the spool that a message may refer to.
file = Table(
    "outbox_file",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("md5", String(32), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("free_at", Instant, comment="when its bytes may go, unless a message still needs them"),
    Column("freed_at", Instant, comment="when its bytes went"),
    CheckConstraint("size >= 0", name="size"),
)
# What is in the spool, and how it grew and shrank of late: what will fill it is told from these two alone.
partial("ix_outbox_file_kept", file.c.created_at, file.c.size, where=file.c.freed_at.is_(None))
partial("ix_outbox_file_freed", file.c.freed_at, file.c.created_at, file.c.size, where=file.c.freed_at.is_not(None))
partial("ix_outbox_file_free", file.c.free_at, where=and_(file.c.free_at.is_not(None), file.c.freed_at.is_(None)))

attachment = Table(
    "outbox_attachment",
    metadata,
    Column("message_id", ForeignKey(message.c.id, ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", String(255), nullable=False, comment="the producer's name for it"),
    Column("file", ForeignKey(file.c.name), nullable=False),
    Column("filename", String(255), nullable=False, comment="what the receiver calls it"),
    Column("content_type", String(255), nullable=False),
    UniqueConstraint("message_id", "name"),
)

Index("ix_outbox_attachment_file", attachment.c.file)

#: One upload request: committed before its first byte is sent.
delivery = Table(
    "outbox_delivery",
    metadata,
    Column("id", Id, primary_key=True),
    Column("destination", String(100), nullable=False),
    Column("lane", String(10), nullable=False),
    Column("worker", String(32), nullable=False),
    Column("messages", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("probe", Boolean, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("outcome", String(10)),
    Column("status", Integer, comment="the HTTP status"),
    Column("code", BigInteger, comment="the code in the answer's own envelope"),
    Column("text", Text, comment="the answer's words, cleaned; or why there was none"),
    Column("request_id", String(255), comment="the destination's name for it"),
    Column("answer", Text, comment="the first 4 KB of the answer, cleaned"),
    one_of("lane", Lane),
    one_of("outcome", Outcome),
    CheckConstraint("(outcome IS NULL) = (finished_at IS NULL)", name="finished_has_outcome"),
    sqlite_autoincrement=True,
)
partial("ix_outbox_delivery_open", delivery.c.worker, where=delivery.c.finished_at.is_(None))
Index("ix_outbox_delivery_finished", delivery.c.destination, delivery.c.outcome, delivery.c.id)
partial(
    "ix_outbox_delivery_recent",
    *(delivery.c[name] for name in ("finished_at", "destination", "outcome", "messages", "bytes")),
    where=delivery.c.finished_at.is_not(None),
)

#: One message's part in one delivery: written once, by record or by rescue.
attempt = Table(
    "outbox_attempt",
    metadata,
    Column("message_id", ForeignKey(message.c.id, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("delivery_id", BigInteger, nullable=False),
    Column("finished_at", Instant, nullable=False),
    Column("outcome", String(10), nullable=False),
    Column("late_outcome", String(10), comment="what a worker that had lost the claim found out afterwards"),
    one_of("outcome", Outcome),
    one_of("late_outcome", Outcome),
    sqlite_with_rowid=False,  # else each would have two places, one of them by a number that nobody asks for
)

destination = Table(
    "outbox_destination",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("failures", Integer, nullable=False, server_default=text("0"), comment="consecutive, charged to it"),
    Column("open_until", Instant, comment="the breaker: only a probe passes, and not before this"),
    Column("stop", String(20)),
    Column("stop_text", Text, comment="why, in words"),
    Column("stopped_by", String(255)),
    Column("stopped_at", Instant),
    Column(
        "reject_streak",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="rejected alone since the last delivery",
    ),
    Column("ramp", Integer, comment="deliveries at a time while it recovers"),
    Column("rate_tokens", Float),
    Column("rate_at", Instant),
    Column("learned_bytes", BigInteger, comment="larger requests were refused with 413, or not tried since"),
    Column("learned_at", Instant),
    one_of("stop", Stop),
    CheckConstraint("(stop IS NULL) = (stopped_at IS NULL)", name="stop_has_stopped_at"),
    CheckConstraint("failures >= 0 AND reject_streak >= 0", name="counters"),
)

#: A worker's proof of life. Nothing refers to it by key: history outlives workers.
worker = Table(
    "outbox_worker",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("beat_at", Instant, nullable=False, comment="for people; workers compare beats, not clocks"),
    Column("gone", Boolean, nullable=False),
    Column("stop_asked", Boolean, nullable=False),
    Column("serves", Text, comment="names of destinations, with a space between them"),
    Column("version", String(40), comment="of durable-outbox"),
    Column("gone_after", Float, comment="seconds without a beat after which it takes others for gone"),
)

audit = Table(
    "outbox_audit",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("actor", String(255), nullable=False),
    Column("action", String(20), nullable=False),
    Column("selection", Text, nullable=False),
    Column("messages", BigInteger, nullable=False),
    Column("chosen", Text, comment="the selection as JSON, to go on with"),
    Column("position", BigInteger, comment="the last message that was looked at"),
    Column("finished_at", Instant, comment="null: it was interrupted, or is under way"),
    sqlite_autoincrement=True,
)

#: Room that is given back when the database may grow no more, so that what is in it can still be delivered and purged.
reserve = Table(
    "outbox_reserve",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("filler", LargeBinary, nullable=False),
)

#: The spool that has this database's files: another database's would take them for rubbish, and so would this one its.
spool = Table(
    "outbox_spool",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, comment="always 1"),
    Column("mark", String(32), nullable=False, comment="is also in the spool, in a file of its own"),
    Column("created_at", Instant, nullable=False),
)
