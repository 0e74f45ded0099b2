"""The web worker: Flask blueprints by topic, their guards, pages and server."""
