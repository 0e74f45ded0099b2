"""Operators' commands: the processes to run, their state, their logs, their faults."""
