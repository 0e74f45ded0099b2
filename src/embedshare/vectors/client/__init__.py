"""The caller's side of a vector index."""
