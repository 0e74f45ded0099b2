"""Settings that are kept in a database and change while processes run."""
