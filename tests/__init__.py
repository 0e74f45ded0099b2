"""Tests; their tree mirrors that of src."""

import os

# This line precedes any import of torch: its threads would otherwise spin on cores that other processes'
# tests use.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
