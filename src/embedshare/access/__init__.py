"""Who may call, and how often; no Flask here."""
