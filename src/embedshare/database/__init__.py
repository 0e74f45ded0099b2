"""The database of settings and API keys: SQLite, PostgreSQL, MySQL or MariaDB."""
