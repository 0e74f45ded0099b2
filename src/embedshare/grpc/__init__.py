"""The sessions service over gRPC: its messages, its server, and the client that web workers use."""
