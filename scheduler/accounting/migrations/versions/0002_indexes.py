"""Indexes of changes without denied accesses (anybody can make those, and no start should read them all), and of
compactions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    is_deed = sa.text("kind = 'change' AND substr(row_id, 1, 4) <> 'dny-'")
    op.create_index("rows_of_deeds", "rows", ["seq"], sqlite_where=is_deed, postgresql_where=is_deed)
    is_daily = sa.text("kind = 'daily'")
    op.create_index("rows_of_compactions", "rows", ["seq"], sqlite_where=is_daily, postgresql_where=is_daily)


def downgrade() -> None:
    raise NotImplementedError("a ledger only goes forward: restore a backup of the older version")
