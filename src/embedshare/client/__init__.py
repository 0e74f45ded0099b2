"""The client's side that stands in for a SentenceTransformer."""
