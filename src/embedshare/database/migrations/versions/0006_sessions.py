"""Sessions, their documents, and the tokens that they read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from embedshare.database.tables import DIGEST, MYSQL_OPTIONS, JsonText, UtcTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("uid", sa.String(32), primary_key=True),
        sa.Column("place", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("config", JsonText, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("used_at", UtcTime, nullable=False),
        sa.Column("is_ending", sa.Boolean, nullable=False),
        sa.Index("sessions_by_place", "place"),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )
    op.create_table(
        "session_documents",
        sa.Column("version", sa.String(32), primary_key=True),
        sa.Column("session", sa.String(32), nullable=False),
        sa.Column("document", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("content_type", sa.String(255), nullable=False),
        sa.Column("chunks", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("attributes", JsonText, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Index("session_documents_by_session", "session", "document"),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )
    op.create_table(
        "session_tokens",
        sa.Column("owner", DIGEST, primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        if_not_exists=True,
        **MYSQL_OPTIONS,
    )


def downgrade() -> None:
    for name in ("session_tokens", "session_documents", "sessions"):
        op.drop_table(name)
