"""Counters, timings and their display."""
