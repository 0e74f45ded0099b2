"""Settings in a database, which change while processes run."""
