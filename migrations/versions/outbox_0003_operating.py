"""What an operator needs: answers kept, acts to go on with, what workers serve, and a vacuum in time."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "outbox_0003"
down_revision: str | None = "outbox_0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_DEAD = "state = 'dead'"
_WEIGHED = ["destination", "reason", "finished_at", "size", "file_bytes", "files", "unknowns", "state"]
#: Tables whose rows come and go: a fifth of a table of millions is too long a wait for a vacuum.
_BUSY = ("message", "attachment", "file", "delivery", "attempt", "head", "stream", "share", "destination", "worker")
_VACUUM = {"autovacuum_vacuum_scale_factor": "0.02", "autovacuum_analyze_scale_factor": "0.02"}


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def _add(table: str, name: str, kind: sa.types.TypeEngine[Any], comment: str) -> None:
    # A producer of the schema before does not name it: it must do without.
    op.add_column(table, sa.Column(name, kind, nullable=True, comment=comment))


def _on_postgres(words: str) -> None:
    if op.get_context().dialect.name == "postgresql":
        for table in _BUSY:
            op.execute(f"ALTER TABLE outbox_{table} {words}")


def upgrade() -> None:
    _add("outbox_worker", "serves", sa.Text(), "names of destinations, with a space between them")
    _add("outbox_worker", "version", sa.String(length=40), "of durable-outbox")
    _add("outbox_delivery", "answer", sa.Text(), "the first 4 KB of the answer, cleaned")
    _add("outbox_audit", "chosen", sa.Text(), "the selection as JSON, to go on with")
    _add("outbox_audit", "position", sa.BigInteger(), "the last message that was looked at")
    _add("outbox_audit", "finished_at", sa.DateTime(timezone=True), "null: it was interrupted, or is under way")
    # What is in the audit by now was done in one go.
    op.execute("UPDATE outbox_audit SET finished_at = at")
    op.create_table(
        "outbox_reserve",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("filler", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_reserve")),
    )
    op.drop_index("ix_outbox_message_dead", "outbox_message")
    _partial("ix_outbox_message_dead", "outbox_message", _WEIGHED, _DEAD)
    _partial("ix_outbox_message_dead_id", "outbox_message", ["id"], _DEAD)
    _partial("ix_outbox_file_kept", "outbox_file", ["created_at", "size"], "freed_at IS NULL")
    _partial("ix_outbox_file_freed", "outbox_file", ["freed_at", "created_at", "size"], "freed_at IS NOT NULL")
    recent = ["finished_at", "destination", "outcome", "messages", "bytes"]
    _partial("ix_outbox_delivery_recent", "outbox_delivery", recent, "finished_at IS NOT NULL")
    _on_postgres("SET (" + ", ".join(f"{name} = {value}" for name, value in _VACUUM.items()) + ")")


def downgrade() -> None:
    _on_postgres("RESET (" + ", ".join(_VACUUM) + ")")
    op.drop_index("ix_outbox_delivery_recent", "outbox_delivery")
    op.drop_index("ix_outbox_file_freed", "outbox_file")
    op.drop_index("ix_outbox_file_kept", "outbox_file")
    op.drop_index("ix_outbox_message_dead_id", "outbox_message")
    op.drop_index("ix_outbox_message_dead", "outbox_message")
    _partial("ix_outbox_message_dead", "outbox_message", ["destination", "finished_at"], _DEAD)
    op.drop_table("outbox_reserve")
    for table, column in (
        ("outbox_audit", "finished_at"),
        ("outbox_audit", "position"),
        ("outbox_audit", "chosen"),
        ("outbox_delivery", "answer"),
        ("outbox_worker", "version"),
        ("outbox_worker", "serves"),
    ):
        op.drop_column(table, column)
