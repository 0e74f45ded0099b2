"""What stands in a worker where a SentenceTransformer stood."""
