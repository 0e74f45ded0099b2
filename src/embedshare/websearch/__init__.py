"""A web search in the worker: an engine's links, their pages' readable text, and the best passages."""
