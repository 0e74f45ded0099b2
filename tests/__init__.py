"""Tests; their tree mirrors that of src."""

import os

# Before torch is imported anywhere: its threads otherwise spin for work that other processes' tests compute with.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
