"""Where the chunks of sessions are kept and searched."""
