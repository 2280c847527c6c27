"""Ordering keys can be paused, a database knows the spool that has its files, and a worker says how patient it is."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "outbox_0004"
down_revision: str | None = "outbox_0003"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "outbox_spool",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False, comment="always 1"),
        sa.Column("mark", sa.String(length=32), nullable=False, comment="is also in the spool, in a file of its own"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_spool")),
    )
    op.create_table(
        "outbox_pause",
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("ordering_key", sa.String(length=255), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("paused_by", sa.String(length=255), nullable=False),
        sa.Column("text", sa.Text(), nullable=False, comment="why, in words"),
        sa.PrimaryKeyConstraint("destination", "ordering_key", name=op.f("pk_outbox_pause")),
    )
    patience = "seconds without a beat after which it takes others for gone"
    op.add_column("outbox_worker", sa.Column("gone_after", sa.Float(), nullable=True, comment=patience))


def downgrade() -> None:
    op.drop_column("outbox_worker", "gone_after")
    op.drop_table("outbox_pause")
    op.drop_table("outbox_spool")
