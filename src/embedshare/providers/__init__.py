"""Those who answer the calls of a model: the one in this process, and the model server."""
