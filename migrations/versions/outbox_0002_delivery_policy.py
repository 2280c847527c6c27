"""Shares, expiry, suspects, chosen times, and the words that a message died with."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "outbox_0002"
down_revision: str | None = "outbox_0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_PENDING = "state = 'pending'"
_IN_STREAM = "stream_id IS NOT NULL AND state IN"
_LOOSE = f"{_PENDING} AND stream_id IS NULL"


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def _flag(name: str, comment: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), server_default=sa.false(), nullable=False, comment=comment)


def _say_of_learned_bytes(comment: str) -> None:
    if op.get_context().dialect.supports_comments:
        op.alter_column(
            "outbox_destination", "learned_bytes", comment=comment, existing_type=sa.BigInteger(), existing_nullable=True
        )


def _one_of(column: str, *words: str) -> str:
    # For IN with a list SQLite makes an index first, in every statement that writes.
    return " OR ".join(f"{column} = '{word}'" for word in words)


def upgrade() -> None:
    op.create_table(
        "outbox_share",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("ordering_key", sa.String(length=255), nullable=False),
        sa.Column("lane", sa.String(length=10), nullable=False),
        sa.Column(
            "due_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="not before this is one of its messages due; null when it has none",
        ),
        sa.Column("scheduled", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column(
            "served",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="the last delivery it had a part of",
        ),
        sa.CheckConstraint(_one_of("lane", "bulk", "express", "large", "normal"), name=op.f("ck_outbox_share_lane")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_share")),
        sa.UniqueConstraint("destination", "ordering_key", "lane", name=op.f("uq_outbox_share_destination")),
        sqlite_autoincrement=True,
    )
    _partial("ix_outbox_share_due", "outbox_share", ["destination", "lane", "served"], "due_at IS NOT NULL")

    op.add_column("outbox_head", _flag("scheduled", "of the same"))
    _partial("ix_outbox_head_blocked", "outbox_head", ["destination"], "blocked_by IS NOT NULL")

    op.add_column(
        "outbox_message",
        sa.Column("reason_text", sa.Text(), nullable=True, comment="what was said about it when it died, cleaned"),
    )
    op.add_column("outbox_message", _flag("suspect", "a worker died while it travelled alone"))
    op.add_column(
        "outbox_message",
        sa.Column(
            "share_id",
            sa.BigInteger(),
            nullable=True,
            comment="the share it is served by, if it has an ordering key and no order",
        ),
    )
    op.add_column("outbox_message", _flag("scheduled", "due_at was chosen by the producer"))
    # A message that waits for a time and was never tried is one whose producer chose that time.
    op.execute("UPDATE outbox_message SET scheduled = TRUE WHERE state = 'pending' AND attempt = 0 AND due_at > created_at")

    # Without the dead, which may be many: they have an index of their own.
    op.drop_index("ix_outbox_message_stream", "outbox_message")
    _partial(
        "ix_outbox_message_stream", "outbox_message", ["stream_id", "stream_number"], f"{_IN_STREAM} ('pending', 'claimed')"
    )
    op.drop_index("ix_outbox_message_due", "outbox_message")
    loose = f"{_PENDING} AND stream_id IS NULL AND share_id IS NULL"
    _partial("ix_outbox_message_due", "outbox_message", ["destination", "lane", "due_at", "id"], loose)
    _partial("ix_outbox_message_share", "outbox_message", ["share_id", "due_at", "id"], f"share_id IS NOT NULL AND {_PENDING}")
    _partial("ix_outbox_message_expiring", "outbox_message", ["expires_at"], f"expires_at IS NOT NULL AND {_PENDING}")

    _say_of_learned_bytes("larger requests were refused with 413, or not tried since")


def downgrade() -> None:
    _say_of_learned_bytes("a request this large was refused with 413")
    op.drop_index("ix_outbox_message_expiring", "outbox_message")
    op.drop_index("ix_outbox_message_share", "outbox_message")
    op.drop_index("ix_outbox_message_due", "outbox_message")
    _partial("ix_outbox_message_due", "outbox_message", ["destination", "lane", "due_at", "id"], _LOOSE)
    op.drop_index("ix_outbox_message_stream", "outbox_message")
    in_stream = f"{_IN_STREAM} ('pending', 'claimed', 'dead')"
    _partial("ix_outbox_message_stream", "outbox_message", ["stream_id", "stream_number"], in_stream)
    for column in ("scheduled", "share_id", "suspect", "reason_text"):
        op.drop_column("outbox_message", column)
    op.drop_index("ix_outbox_head_blocked", "outbox_head")
    op.drop_column("outbox_head", "scheduled")
    op.drop_index("ix_outbox_share_due", "outbox_share")
    op.drop_table("outbox_share")
