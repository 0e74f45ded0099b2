"""Processes: start, readiness, restart policy, stop."""
