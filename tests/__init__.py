"""Tests; their tree mirrors that of src."""

import os

# Before torch is imported: its threads otherwise spin while other processes compute.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
