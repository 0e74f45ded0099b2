"""The client: an object with SentenceTransformer's interface, over the model server or a local model."""
