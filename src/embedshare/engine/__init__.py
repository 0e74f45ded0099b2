"""Turns texts into vectors: in the model server, and in a worker that has fallen back."""
