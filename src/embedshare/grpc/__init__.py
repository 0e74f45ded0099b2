"""The sessions service over gRPC: its messages, its server, and the client that web workers use."""

import os

# Else gRPC writes lines of its own on each connection that a peer closes. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
