"""The model server's side of vector indexes."""
