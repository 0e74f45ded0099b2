"""One embedding model on a machine, shared by every worker on it."""

__version__ = "0.1.0"
