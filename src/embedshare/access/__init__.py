"""API keys and rate limits; no Flask here."""
