"""What the model server answers, and how its model is loaded and changed."""
