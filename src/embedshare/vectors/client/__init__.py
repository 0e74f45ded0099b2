"""A vector index as its caller holds it."""
