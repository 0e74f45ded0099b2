"""Vectors of texts that were embedded before, and who computes those that were not."""
