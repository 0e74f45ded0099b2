"""Flask blueprints, one a topic."""
