"""The database that settings and API keys are kept in: SQLite, PostgreSQL, MySQL or MariaDB."""
