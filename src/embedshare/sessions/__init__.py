"""Sessions: many clients, each with its own model, chunks and collection, on one service."""
