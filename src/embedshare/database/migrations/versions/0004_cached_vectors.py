"""Cached vectors."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from embedshare.database.tables import DIGEST, MYSQL_OPTIONS, VECTOR

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cached_vectors",
        sa.Column("space", DIGEST, primary_key=True),
        sa.Column("key", DIGEST, primary_key=True),
        sa.Column("value", VECTOR, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("written_at", sa.BigInteger, nullable=False),
        sa.Column("ends_at", sa.BigInteger),
        sa.Index("cached_vectors_by_age", "written_at", "size"),
        sa.Index("ix_cached_vectors_ends_at", "ends_at"),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("cached_vectors")
