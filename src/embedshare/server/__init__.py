"""The model server's answers, and the loading and replacement of its model."""
