"""The first schema."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "outbox_0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = ("outbox",)
depends_on: Sequence[str] | None = None


def _one_of(column: str, *words: str) -> str:
    # For IN with a list SQLite makes an index first, in every statement that writes.
    return " OR ".join(f"{column} = '{word}'" for word in words)


def upgrade() -> None:
    op.create_table(
        "outbox_audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("selection", sa.Text(), nullable=False),
        sa.Column("messages", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_audit")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "outbox_delivery",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("lane", sa.String(length=10), nullable=False),
        sa.Column("worker", sa.String(length=32), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("probe", sa.Boolean(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=10), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True, comment="the HTTP status"),
        sa.Column("code", sa.BigInteger(), nullable=True, comment="the code in the answer's own envelope"),
        sa.Column("text", sa.Text(), nullable=True, comment="the answer's words, cleaned; or why there was none"),
        sa.Column("request_id", sa.String(length=255), nullable=True, comment="the destination's name for it"),
        sa.CheckConstraint(_one_of("lane", "bulk", "express", "large", "normal"), name=op.f("ck_outbox_delivery_lane")),
        sa.CheckConstraint(
            _one_of("outcome", "delivered", "not_sent", "reject", "retry", "unknown"), name=op.f("ck_outbox_delivery_outcome")
        ),
        sa.CheckConstraint("(outcome IS NULL) = (finished_at IS NULL)", name=op.f("ck_outbox_delivery_finished_has_outcome")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_delivery")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_delivery_finished", "outbox_delivery", ["destination", "outcome", "id"], unique=False)
    op.create_index(
        "ix_outbox_delivery_open",
        "outbox_delivery",
        ["worker"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NULL"),
        sqlite_where=sa.text("finished_at IS NULL"),
    )

    op.create_table(
        "outbox_destination",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="consecutive, charged to it"),
        sa.Column(
            "open_until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the breaker: only a probe passes, and not before this",
        ),
        sa.Column("stop", sa.String(length=20), nullable=True),
        sa.Column("stop_text", sa.Text(), nullable=True, comment="why, in words"),
        sa.Column("stopped_by", sa.String(length=255), nullable=True),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "reject_streak",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="rejected alone since the last delivery",
        ),
        sa.Column("ramp", sa.Integer(), nullable=True, comment="deliveries at a time while it recovers"),
        sa.Column("rate_tokens", sa.Float(), nullable=True),
        sa.Column("rate_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("learned_bytes", sa.BigInteger(), nullable=True, comment="a request this large was refused with 413"),
        sa.Column("learned_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(_one_of("stop", "credentials", "pause", "reject_streak"), name=op.f("ck_outbox_destination_stop")),
        sa.CheckConstraint("(stop IS NULL) = (stopped_at IS NULL)", name=op.f("ck_outbox_destination_stop_has_stopped_at")),
        sa.CheckConstraint("failures >= 0 AND reject_streak >= 0", name=op.f("ck_outbox_destination_counters")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_outbox_destination")),
    )
    op.create_table(
        "outbox_file",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("md5", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "free_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when its bytes may go, unless a message still needs them",
        ),
        sa.Column("freed_at", sa.DateTime(timezone=True), nullable=True, comment="when its bytes went"),
        sa.CheckConstraint("size >= 0", name=op.f("ck_outbox_file_size")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_outbox_file")),
    )
    op.create_index(
        "ix_outbox_file_free",
        "outbox_file",
        ["free_at"],
        unique=False,
        postgresql_where=sa.text("free_at IS NOT NULL AND freed_at IS NULL"),
        sqlite_where=sa.text("free_at IS NOT NULL AND freed_at IS NULL"),
    )

    op.create_table(
        "outbox_stream",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("ordering_key", sa.String(length=255), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_stream")),
        sa.UniqueConstraint("destination", "ordering_key", name=op.f("uq_outbox_stream_destination")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "outbox_worker",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column(
            "beat_at", sa.DateTime(timezone=True), nullable=False, comment="for people; workers compare beats, not clocks"
        ),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.Column("stop_asked", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_worker")),
    )
    op.create_table(
        "outbox_head",
        sa.Column("stream_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("lane", sa.String(length=10), nullable=False, comment="of the stream's first unfinished message"),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True, comment="of the same; null when the stream is at rest"),
        sa.Column("claimed_by", sa.String(length=32), nullable=True),
        sa.Column(
            "served", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="the last delivery it was part of"
        ),
        sa.Column("blocked_by", sa.BigInteger(), nullable=True, comment="the dead message that holds it up"),
        sa.Column(
            "forgiven",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="deaths up to this number block no more",
        ),
        sa.CheckConstraint(_one_of("lane", "bulk", "express", "large", "normal"), name=op.f("ck_outbox_head_lane")),
        sa.ForeignKeyConstraint(["stream_id"], ["outbox_stream.id"], name=op.f("fk_outbox_head_stream_id")),
        sa.PrimaryKeyConstraint("stream_id", name=op.f("pk_outbox_head")),
    )
    op.create_index(
        "ix_outbox_head_claimed",
        "outbox_head",
        ["claimed_by"],
        unique=False,
        postgresql_where=sa.text("claimed_by IS NOT NULL"),
        sqlite_where=sa.text("claimed_by IS NOT NULL"),
    )
    op.create_index(
        "ix_outbox_head_due",
        "outbox_head",
        ["destination", "lane", "served"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL AND claimed_by IS NULL AND blocked_by IS NULL"),
        sqlite_where=sa.text("due_at IS NOT NULL AND claimed_by IS NULL AND blocked_by IS NULL"),
    )

    op.create_table(
        "outbox_message",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("lane", sa.String(length=10), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False, comment="JSON, as it will travel"),
        sa.Column(
            "digest",
            sa.String(length=64),
            nullable=False,
            comment="SHA-256 of payload and attachments: what a repeated key must match",
        ),
        sa.Column("size", sa.Integer(), nullable=False, comment="bytes it adds to the text of a request, at most"),
        sa.Column("file_bytes", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False, comment="how many attachments"),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=True),
        sa.Column(
            "attempt", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="numbers the tries; never falls"
        ),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="charged to it; limited"),
        sa.Column(
            "unknowns", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="tries without an answer; limited"
        ),
        sa.Column("batch_limit", sa.Integer(), nullable=True, comment="halved each time a batch it was in is refused"),
        sa.Column("replays", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("stream_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("stream_number", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("clock_plausible", sa.Boolean(), nullable=False, comment="whether the clock could be believed at enqueue"),
        sa.Column("claimed_by", sa.String(length=32), nullable=True, comment="the worker that tries it"),
        sa.Column("delivery_id", sa.BigInteger(), nullable=True, comment="the delivery under way"),
        sa.Column(
            "faulted_in", sa.BigInteger(), nullable=True, comment="the last delivery of it that the destination was charged for"
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("traceparent", sa.String(length=64), nullable=True),
        sa.CheckConstraint("(state = 'claimed') = (claimed_by IS NOT NULL)", name=op.f("ck_outbox_message_claimed_has_worker")),
        sa.CheckConstraint(
            "(state = 'claimed') = (delivery_id IS NOT NULL)", name=op.f("ck_outbox_message_claimed_has_delivery")
        ),
        sa.CheckConstraint("(state = 'dead') = (reason IS NOT NULL)", name=op.f("ck_outbox_message_dead_has_reason")),
        sa.CheckConstraint(
            f"({_one_of('state', 'cancelled', 'dead', 'delivered')}) = (finished_at IS NOT NULL)",
            name=op.f("ck_outbox_message_final_has_finished_at"),
        ),
        sa.CheckConstraint(_one_of("lane", "bulk", "express", "large", "normal"), name=op.f("ck_outbox_message_lane")),
        sa.CheckConstraint(
            _one_of(
                "reason", "exhausted", "expired", "file_changed", "file_missing", "outcome_unknown", "rejected", "too_large"
            ),
            name=op.f("ck_outbox_message_reason"),
        ),
        sa.CheckConstraint(
            _one_of("state", "cancelled", "claimed", "dead", "delivered", "pending"), name=op.f("ck_outbox_message_state")
        ),
        sa.CheckConstraint("(stream_id IS NULL) = (stream_number IS NULL)", name=op.f("ck_outbox_message_stream_has_number")),
        sa.CheckConstraint(
            "attempt >= 0 AND failures >= 0 AND unknowns >= 0 AND replays >= 0", name=op.f("ck_outbox_message_counters")
        ),
        sa.CheckConstraint("batch_limit >= 1", name=op.f("ck_outbox_message_batch_limit")),
        sa.CheckConstraint(
            "failures <= attempt AND unknowns <= attempt", name=op.f("ck_outbox_message_counters_within_attempt")
        ),
        sa.CheckConstraint("size >= 0 AND file_bytes >= 0 AND files >= 0", name=op.f("ck_outbox_message_sizes")),
        sa.ForeignKeyConstraint(["stream_id"], ["outbox_stream.id"], name=op.f("fk_outbox_message_stream_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_message")),
        sa.UniqueConstraint("destination", "key", name=op.f("uq_outbox_message_destination")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_outbox_message_claimed",
        "outbox_message",
        ["claimed_by"],
        unique=False,
        postgresql_where=sa.text("state = 'claimed'"),
        sqlite_where=sa.text("state = 'claimed'"),
    )
    op.create_index(
        "ix_outbox_message_dead",
        "outbox_message",
        ["destination", "finished_at"],
        unique=False,
        postgresql_where=sa.text("state = 'dead'"),
        sqlite_where=sa.text("state = 'dead'"),
    )
    op.create_index(
        "ix_outbox_message_dead_in_stream",
        "outbox_message",
        ["stream_id", "stream_number"],
        unique=False,
        postgresql_where=sa.text("stream_id IS NOT NULL AND state = 'dead'"),
        sqlite_where=sa.text("stream_id IS NOT NULL AND state = 'dead'"),
    )
    op.create_index(
        "ix_outbox_message_due",
        "outbox_message",
        ["destination", "lane", "due_at", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'pending' AND stream_id IS NULL"),
        sqlite_where=sa.text("state = 'pending' AND stream_id IS NULL"),
    )
    op.create_index(
        "ix_outbox_message_stream",
        "outbox_message",
        ["stream_id", "stream_number"],
        unique=False,
        postgresql_where=sa.text("stream_id IS NOT NULL AND state IN ('pending', 'claimed', 'dead')"),
        sqlite_where=sa.text("stream_id IS NOT NULL AND state IN ('pending', 'claimed', 'dead')"),
    )

    op.create_table(
        "outbox_attachment",
        sa.Column("message_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False, comment="the producer's name for it"),
        sa.Column("file", sa.String(length=32), nullable=False),
        sa.Column("filename", sa.String(length=255), nullable=False, comment="what the receiver calls it"),
        sa.Column("content_type", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["file"], ["outbox_file.name"], name=op.f("fk_outbox_attachment_file")),
        sa.ForeignKeyConstraint(
            ["message_id"], ["outbox_message.id"], name=op.f("fk_outbox_attachment_message_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("message_id", "position", name=op.f("pk_outbox_attachment")),
        sa.UniqueConstraint("message_id", "name", name=op.f("uq_outbox_attachment_message_id")),
    )
    op.create_index("ix_outbox_attachment_file", "outbox_attachment", ["file"], unique=False)

    op.create_table(
        "outbox_attempt",
        sa.Column("message_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("delivery_id", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(length=10), nullable=False),
        sa.Column(
            "late_outcome",
            sa.String(length=10),
            nullable=True,
            comment="what a worker that had lost the claim found out afterwards",
        ),
        sa.CheckConstraint(
            _one_of("late_outcome", "delivered", "not_sent", "reject", "retry", "unknown"),
            name=op.f("ck_outbox_attempt_late_outcome"),
        ),
        sa.CheckConstraint(
            _one_of("outcome", "delivered", "not_sent", "reject", "retry", "unknown"), name=op.f("ck_outbox_attempt_outcome")
        ),
        sa.ForeignKeyConstraint(
            ["message_id"], ["outbox_message.id"], name=op.f("fk_outbox_attempt_message_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("message_id", "number", name=op.f("pk_outbox_attempt")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("outbox_attempt")

    op.drop_table("outbox_attachment")

    op.drop_table("outbox_message")

    op.drop_table("outbox_head")
    op.drop_table("outbox_worker")
    op.drop_table("outbox_stream")

    op.drop_table("outbox_file")
    op.drop_table("outbox_destination")

    op.drop_table("outbox_delivery")
    op.drop_table("outbox_audit")
