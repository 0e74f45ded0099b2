"""Alembic's entry: runs the migrations over the connection that `embedshare.database.upgrade` hands it."""

from __future__ import annotations

from alembic import context

from embedshare.database.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
