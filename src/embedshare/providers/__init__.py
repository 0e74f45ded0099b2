"""Providers answer the calls of a model: the model server, or an engine in this process."""
