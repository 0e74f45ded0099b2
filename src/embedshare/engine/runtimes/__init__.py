"""What runs a batch: one file for each runtime, all behind one small interface."""
