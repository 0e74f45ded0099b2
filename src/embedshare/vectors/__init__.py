"""Vector indexes: kept by the model server, held by a light handle in the worker."""
