"""The sources that choose the served model."""
