"""The wire between client and model server: messages, sockets, keys."""
