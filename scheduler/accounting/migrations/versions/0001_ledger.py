"""The first ledger: rows, the nodes of their tree, checkpoints, the last state, usage by minute."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG = sa.BigInteger()
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""A key that SQLite takes for the row's own place."""
HASH = sa.LargeBinary(32)
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Compared by bytes, so that a prefix is a range."""


def upgrade() -> None:
    op.create_table(
        "ledger",
        sa.Column("one", sa.Integer, primary_key=True),
        sa.Column("ledger_id", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "rows",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("row_id", TEXT, nullable=False),
        sa.Column("body", sa.Text),
        sa.Column("leaf", HASH, nullable=False),
    )
    op.create_index("rows_by_id", "rows", ["row_id", "kind"], unique=True)
    is_change = sa.text("kind = 'change'")
    op.create_index("rows_of_changes", "rows", ["seq"], sqlite_where=is_change, postgresql_where=is_change)
    op.create_table(
        "nodes",
        sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("place", BIG, primary_key=True, autoincrement=False),
        sa.Column("hash", HASH, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "checkpoints",
        sa.Column("size", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "states",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("minute_us", BIG, primary_key=True, autoincrement=False),
        *(sa.Column(name, TEXT, primary_key=True) for name in GROUPS),
        *(sa.Column(name, BIG, nullable=False) for name in SUMS),
        sqlite_with_rowid=False,
    )
    op.create_index("usage_by_task", "usage", ["tenant", "task", "minute_us"])
    op.create_table(
        "outcomes",
        sa.Column("subject", TEXT, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("outcome_id", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )


GROUPS = ("tenant", "project", "key_id", "model", "task", "tier", "currency")
SUMS = (
    "requests",
    "attempts",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "image_tokens",
    "audio_tokens",
    "input_bytes",
    "output_bytes",
    "gpu_us",
    "energy_mj",
    "carbon_ug",
    "cost_nano",
    "accepted",
    "rejected",
    "judged",
)


def downgrade() -> None:
    raise NotImplementedError("a ledger only goes forward: restore a backup of the older version")
