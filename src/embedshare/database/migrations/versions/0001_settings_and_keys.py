"""Settings, their changes and their version; API keys.

MySQL ends a transaction with each table that is made: `if_not_exists` lets a migration that was cut off begin
again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from embedshare.database.tables import MYSQL_OPTIONS, UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "settings",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("updated_at", UtcTime, nullable=False),
        sa.Column("updated_by", sa.String(255), nullable=False),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )
    op.create_table(
        "settings_version",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, nullable=False),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )
    op.create_table(
        "settings_audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("changed_at", UtcTime, nullable=False),
        sa.Column("changed_by", sa.String(255), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("old", sa.Text),
        sa.Column("new", sa.Text),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("key_hash", sa.String(128), nullable=False, unique=True),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("revoked_at", UtcTime),
        sa.Column("last_used_at", UtcTime),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )
    versions = sa.table("settings_version", sa.column("id"), sa.column("version"))
    if op.get_bind().execute(sa.select(versions.c.id)).first() is None:
        op.bulk_insert(versions, [{"id": 1, "version": 0}])


def downgrade() -> None:
    for name in ("api_keys", "settings_audit", "settings_version", "settings"):
        op.drop_table(name)
