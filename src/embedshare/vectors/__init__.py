"""Vector indexes: stored by the model server, used through a light handle in the worker."""
