"""Images as callers give them: files' contents, data URLs, and their decoding in a process with limits."""
