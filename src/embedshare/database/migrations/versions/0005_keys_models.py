"""API keys for some of the models; those from before may use all."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("api_keys")}
    if "models" not in columns:  # a migration of MySQL's that was cut off has made it
        op.add_column("api_keys", sa.Column("models", sa.Text))


def downgrade() -> None:
    op.drop_column("api_keys", "models")
