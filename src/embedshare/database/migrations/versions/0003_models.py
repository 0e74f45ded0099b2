"""Models as rows, and audited changes of theirs, whose keys are longer than those of settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from embedshare.database.tables import MYSQL_OPTIONS, UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("fields", sa.Text, nullable=False),
        sa.Column("updated_at", UtcTime, nullable=False),
        sa.Column("updated_by", sa.String(255), nullable=False),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )
    if op.get_bind().dialect.name != "sqlite":  # which holds text of any length
        op.alter_column("settings_audit", "key", type_=sa.String(255), existing_nullable=False)


def downgrade() -> None:
    op.drop_table("models")
