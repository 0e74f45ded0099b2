"""The guards before every route."""
