"""API keys that are valid for a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from embedshare.database.tables import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("api_keys")}
    if "expires_at" not in columns:  # a migration of MySQL's that was cut off has made it
        op.add_column("api_keys", sa.Column("expires_at", UtcTime))


def downgrade() -> None:
    op.drop_column("api_keys", "expires_at")
