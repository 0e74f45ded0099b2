"""Who says which models there should be."""
