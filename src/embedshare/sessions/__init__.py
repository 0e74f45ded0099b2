"""Sessions: documents that are cut, embedded and stored for a caller's searches."""
