"""How the two sides talk: messages, sockets, keys."""
